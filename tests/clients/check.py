"""Third-party Python clients against a broker of the Kafka protocol: produce, consume in a group, commit,
transactions where the client has them, and the views of an admin client.

    python -m venv venv && venv/bin/pip install confluent-kafka kafka-python aiokafka
    venv/bin/python tests/clients/check.py 127.0.0.1:9092

Ends with 1 at the first thing that is not as expected. franz/ does the same with franz-go.
"""
import asyncio
import sys
import uuid

import aiokafka
import aiokafka.admin
import confluent_kafka
import confluent_kafka.admin
import kafka
import kafka.admin

BOOTSTRAP = sys.argv[1]
RECORDS = 100


def unique(prefix):
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def confluent():
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": BOOTSTRAP})
    topic, group = unique("confluent"), unique("group")
    admin.create_topics([confluent_kafka.admin.NewTopic(topic, 2, 1)])[topic].result(20)
    producer = confluent_kafka.Producer({"bootstrap.servers": BOOTSTRAP, "enable.idempotence": True})
    for i in range(RECORDS):
        producer.produce(topic, str(i), key=f"k{i}")
    assert producer.flush(20) == 0
    consumer = confluent_kafka.Consumer({
        "bootstrap.servers": BOOTSTRAP, "group.id": group, "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "cooperative-sticky",
    })
    consumer.subscribe([topic])
    seen = set()
    while len(seen) < RECORDS:
        message = consumer.poll(20)
        assert message is not None and message.error() is None, message
        seen.add(message.value())
    consumer.commit(asynchronous=False)
    described = admin.describe_consumer_groups([group])[group].result(20)
    assert described.state.name == "STABLE" and len(described.members) == 1, described
    assert any(listed.group_id == group for listed in admin.list_consumer_groups().result(20).valid)
    asked = confluent_kafka.ConsumerGroupTopicPartitions(group)
    offsets = admin.list_consumer_group_offsets([asked])[group].result(20).topic_partitions
    assert sum(partition.offset for partition in offsets) == RECORDS, offsets
    consumer.close()
    for resource in (confluent_kafka.admin.ConfigResource("topic", topic), confluent_kafka.admin.ConfigResource("broker", "1")):
        answers = admin.describe_configs([resource])
        assert answers[resource].result(20), resource
    print("confluent-kafka", confluent_kafka.__version__, "librdkafka", confluent_kafka.libversion()[0])


def kafka_python():
    admin = kafka.admin.KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    topic, group = unique("kafka-python"), unique("group")
    admin.create_topics([kafka.admin.NewTopic(topic, 2, 1)])
    variants = ({}, {"enable_idempotence": True, "acks": "all"}, {"compression_type": "gzip"})
    for settings in variants:
        producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP, **settings)
        for i in range(RECORDS):
            producer.send(topic, str(i).encode(), key=f"k{i}".encode())
        producer.flush(20)
        producer.close()
    producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=unique("txn"))
    producer.init_transactions()
    for value, end in ((b"committed", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value).get(20)
        end()
    producer.close()
    consumer = kafka.KafkaConsumer(
        topic, bootstrap_servers=BOOTSTRAP, group_id=group, auto_offset_reset="earliest", consumer_timeout_ms=20000,
        isolation_level="read_committed",
    )
    wanted, seen = RECORDS * len(variants) + 1, []
    for message in consumer:
        seen.append(message.value)
        if len(seen) == wanted:
            break
    assert len(seen) == wanted and b"committed" in seen and b"aborted" not in seen, len(seen)
    consumer.commit()
    assert len(consumer.offsets_for_times({partition: 0 for partition in consumer.assignment()})) == 2
    consumer.close()
    admin.close()
    print("kafka-python", kafka.__version__)


async def aio():
    topic = unique("aiokafka")
    admin = aiokafka.admin.AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await admin.start()
    await admin.create_topics([aiokafka.admin.NewTopic(topic, 2, 1)])
    await admin.close()
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=unique("txn"))
    await producer.start()
    async with producer.transaction():
        for i in range(RECORDS):
            await producer.send_and_wait(topic, str(i).encode(), key=f"k{i}".encode())
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"aborted")
            raise KeyError
    except KeyError:
        pass
    await producer.stop()
    consumer = aiokafka.AIOKafkaConsumer(
        topic, bootstrap_servers=BOOTSTRAP, group_id=unique("group"), auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    seen = [(await asyncio.wait_for(consumer.getone(), 20)).value for _ in range(RECORDS)]
    assert b"aborted" not in seen
    await consumer.commit()
    await consumer.stop()
    print("aiokafka", aiokafka.__version__)


confluent()
kafka_python()
asyncio.run(aio())
