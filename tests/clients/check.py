"""Third-party Python clients against a broker of the Kafka protocol.

    tests/clients/up.sh python
    target/clients/python/bin/python tests/clients/check.py 127.0.0.1:9092 confluent-kafka|kafka-python|aiokafka

Prints one line for each thing observed, without names that differ between runs, so that the lines of two
brokers can be compared; a line that begins with '#' is for people. Ends with 1 at the first failure.
franz/ and java/ do the same with franz-go and with Kafka's own client.
"""
import asyncio
import sys
import time
import uuid

BOOTSTRAP = sys.argv[1]
RECORDS = 100
WAIT = 20


def unique(prefix):
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def say(what, seen):
    print(f"{what}: {seen}", flush=True)


def outcome(attempt):
    """The kind of failure an attempt ends with."""
    try:
        return attempt()
    except Exception as failure:  # whatever a client library has for it
        return type(failure).__name__


def confluent():
    import confluent_kafka as ck
    from confluent_kafka import admin as ck_admin

    print(f"# confluent-kafka {ck.__version__}, librdkafka {ck.libversion()[0]}")
    common = {"bootstrap.servers": BOOTSTRAP}
    admin = ck_admin.AdminClient(common)
    topic, group = unique("confluent"), unique("group")

    def code(future):
        try:
            return future.result(WAIT)
        except ck.KafkaException as failure:
            return failure.args[0].name()

    say("created", code(admin.create_topics([ck_admin.NewTopic(topic, 2, 1)])[topic]))
    say("created again", code(admin.create_topics([ck_admin.NewTopic(topic, 2, 1)])[topic]))
    say("grown", code(admin.create_partitions([ck_admin.NewPartitions(topic, 3)])[topic]))
    say("shrunk", code(admin.create_partitions([ck_admin.NewPartitions(topic, 1)])[topic]))
    resource = ck_admin.ConfigResource("topic", topic)
    resource.add_incremental_config(ck_admin.ConfigEntry(
        "retention.ms", "3600000", incremental_operation=ck_admin.AlterConfigOpType.SET))
    say("altered", code(admin.incremental_alter_configs([resource])[resource]))
    # Apache Kafka applies them after its answer.
    deadline = time.monotonic() + WAIT
    while True:
        settings = admin.describe_configs([resource])[resource].result(WAIT)
        if settings["retention.ms"].value == "3600000" or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    say("settings", [settings[key].value for key in ("retention.ms", "cleanup.policy", "max.message.bytes")])
    broker = ck_admin.ConfigResource("broker", "1")
    say("broker settings", bool(admin.describe_configs([broker])[broker].result(WAIT)))

    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        producer = ck.Producer({**common, "enable.idempotence": True, "compression.type": codec, "linger.ms": 20})
        for i in range(RECORDS):
            producer.produce(topic, f"{codec}{i}", key=f"k{i}", partition=i % 3, headers={"codec": codec})
        say(f"unsent {codec}", producer.flush(WAIT))

    def consumer(**settings):
        return ck.Consumer({**common, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
                            "isolation.level": "read_committed", **settings})

    reader = consumer(**{"partition.assignment.strategy": "cooperative-sticky"})
    reader.subscribe([topic])
    seen = []
    while len(seen) < 5 * RECORDS:
        message = reader.poll(WAIT)
        assert message is not None and message.error() is None, message
        assert dict(message.headers())["codec"].decode() in message.value().decode()
        seen.append(message.value().decode())
    say("read", f"{len(seen)} {sorted(seen)[0]} {sorted(seen)[-1]} {len(set(seen))} different")
    reader.commit(asynchronous=False)
    described = admin.describe_consumer_groups([group])[group].result(WAIT)
    say("group", f"{described.state.name} {len(described.members)} {described.partition_assignor}")
    say("group listed", any(one.group_id == group for one in admin.list_consumer_groups().result(WAIT).valid))
    asked = ck.ConsumerGroupTopicPartitions(group)
    offsets = admin.list_consumer_group_offsets([asked])[group].result(WAIT).topic_partitions
    say("committed", sorted((partition.partition, partition.offset) for partition in offsets))
    say("deleted in use", code(admin.delete_consumer_groups([group])[group]))

    producer = ck.Producer({**common, "transactional.id": unique("confluent")})
    producer.init_transactions(WAIT)
    ends = [ck.TopicPartition(topic, partition.partition, partition.offset + 5) for partition in offsets]
    for value, end in (("aborted", producer.abort_transaction), ("committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.send_offsets_to_transaction(ends, reader.consumer_group_metadata(), WAIT)
        end(WAIT)
    message = reader.poll(WAIT)
    say("read after the transactions", message.value().decode())
    say("committed by it", sorted((at.partition, at.offset) for at in reader.committed(ends, WAIT)))
    reader.close()
    low = admin.delete_records([ck.TopicPartition(topic, 0, 50)])
    say("records deleted", [future.result(WAIT).low_watermark for future in low.values()])
    say("group deleted", code(admin.delete_consumer_groups([group])[group]))
    say("topic deleted", code(admin.delete_topics([topic])[topic]))


def kafka_python():
    import kafka
    import kafka.admin

    print(f"# kafka-python {kafka.__version__}")
    admin = kafka.admin.KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    topic, group = unique("kafka-python"), unique("group")
    admin.create_topics([kafka.admin.NewTopic(topic, 2, 1)])
    variants = ({}, {"enable_idempotence": True, "acks": "all"}, {"compression_type": "gzip"})
    for settings in variants:
        producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP, **settings)
        sent = [producer.send(topic, str(i).encode(), key=f"k{i}".encode(), partition=i % 2) for i in range(RECORDS)]
        producer.flush(WAIT)
        say(f"offsets {settings}", sum(one.get(WAIT).offset for one in sent))
        producer.close()
    producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=unique("txn"))
    producer.init_transactions()
    for value, end in ((b"committed", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value, partition=0).get(WAIT)
        end()
    producer.close()
    consumer = kafka.KafkaConsumer(
        topic, bootstrap_servers=BOOTSTRAP, group_id=group, auto_offset_reset="earliest", consumer_timeout_ms=20000,
        isolation_level="read_committed", enable_auto_commit=False,
    )
    wanted, seen = RECORDS * len(variants) + 1, []
    for message in consumer:
        seen.append(message.value)
        if len(seen) == wanted:
            break
    say("read", f"{len(seen)} committed {b'committed' in seen} aborted {b'aborted' in seen}")
    consumer.commit()
    partitions = sorted(consumer.assignment())
    say("assigned", [at.partition for at in partitions])
    say("committed", [consumer.committed(at) for at in partitions])
    times = consumer.offsets_for_times({at: 0 for at in partitions})
    say("by time", [times[at].offset for at in partitions])
    say("ends", [offset for _, offset in sorted(consumer.end_offsets(partitions).items())])
    say("topic listed", topic in consumer.topics())
    consumer.close()
    say("deleted", outcome(lambda: admin.delete_topics([topic]) and "done"))
    admin.close()


async def aio():
    import aiokafka
    import aiokafka.admin

    print(f"# aiokafka {aiokafka.__version__}")
    topic, group = unique("aiokafka"), unique("group")
    admin = aiokafka.admin.AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await admin.start()
    await admin.create_topics([aiokafka.admin.NewTopic(topic, 2, 1)])
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=unique("txn"))
    await producer.start()
    async with producer.transaction():
        sent = [await producer.send_and_wait(topic, str(i).encode(), key=f"k{i}".encode(), partition=i % 2)
                for i in range(RECORDS)]
    say("offsets", sum(one.offset for one in sent))
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"aborted", partition=0)
            raise KeyError
    except KeyError:
        pass
    settings = {"bootstrap_servers": BOOTSTRAP, "group_id": group, "auto_offset_reset": "earliest",
                "isolation_level": "read_committed", "enable_auto_commit": False}
    consumer = aiokafka.AIOKafkaConsumer(topic, **settings)
    await consumer.start()
    seen = [(await asyncio.wait_for(consumer.getone(), WAIT)).value for _ in range(RECORDS)]
    say("read", f"{len(seen)} aborted {b'aborted' in seen}")
    partitions = sorted(consumer.assignment())
    async with producer.transaction():
        await producer.send_offsets_to_transaction({at: RECORDS // 2 for at in partitions}, group)
    await producer.stop()
    # Apache Kafka makes them visible after its answer to the commit.
    deadline = time.monotonic() + WAIT
    while None in (offsets := [await consumer.committed(at) for at in partitions]) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    say("committed by a transaction", offsets)
    await consumer.commit()
    say("committed", [await consumer.committed(at) >= RECORDS // 2 for at in partitions])
    await consumer.stop()
    await admin.delete_topics([topic])
    await admin.close()


def main():
    clients = {"confluent-kafka": confluent, "kafka-python": kafka_python, "aiokafka": lambda: asyncio.run(aio())}
    clients[sys.argv[2]]()


main()
