import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ListTransactionsOptions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.admin.TransactionState;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;

/** Consume, process, produce in transactions; aborts; zombies; what an administrator sees of it. */
final class Transactions {
    static void check() throws Exception {
        String in = Check.name("java-in"), out = Check.name("java-out");
        try (Admin admin = Check.admin()) {
            admin.createTopics(List.of(new NewTopic(in, 1, (short) 1), new NewTopic(out, 1, (short) 1))).all().get();
            process(admin, new TopicPartition(in, 0), new TopicPartition(out, 0));
            zombies(new TopicPartition(out, 0));
            views(admin, new TopicPartition(out, 0));
        }
    }

    /** Batches of ten from one topic to another; every second one is aborted first and then done again. */
    private static void process(Admin admin, TopicPartition in, TopicPartition out) throws Exception {
        try (var producer = Check.producer()) {
            Check.send(producer, in, Check.numbered("order ", Check.RECORDS));
        }
        String group = Check.name("java-process");
        try (var producer = Check.producer("transactional.id", Check.name("java-process"));
             var consumer = Check.consumer("group.id", group, "max.poll.records", "10")) {
            producer.initTransactions();
            consumer.subscribe(List.of(in.topic()));
            int done = 0, turn = 0;
            while (done < Check.RECORDS) {
                var records = consumer.poll(Duration.ofMillis(100));
                if (records.isEmpty()) continue;
                producer.beginTransaction();
                for (var record : records) {
                    producer.send(new ProducerRecord<>(out.topic(), out.partition(), record.key(), "done " + record.value()));
                }
                producer.sendOffsetsToTransaction(positions(consumer), consumer.groupMetadata());
                if (turn++ % 2 == 0) {
                    producer.abortTransaction();
                    rewind(consumer);
                } else {
                    producer.commitTransaction();
                    done += records.count();
                }
            }
            Check.say("processed", Check.read(out, "read_committed").equals(Check.numbered("done order ", Check.RECORDS)));
            Check.say("with what was aborted", Check.read(out, "read_uncommitted").size() > Check.RECORDS);
            Check.say("committed offset", consumer.committed(java.util.Set.of(in)).get(in).offset());
        }
        var listed = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        Check.say("listed offset", listed.get(in).offset());
    }

    private static Map<TopicPartition, OffsetAndMetadata> positions(KafkaConsumer<?, ?> consumer) {
        var positions = new HashMap<TopicPartition, OffsetAndMetadata>();
        for (var at : consumer.assignment()) positions.put(at, new OffsetAndMetadata(consumer.position(at)));
        return positions;
    }

    private static void rewind(KafkaConsumer<?, ?> consumer) {
        var committed = consumer.committed(consumer.assignment());
        for (var at : consumer.assignment()) {
            var offset = committed.get(at);
            consumer.seek(at, offset == null ? 0 : offset.offset());
        }
    }

    /** A second producer with the same id shuts the first one out and ends its transaction. */
    private static void zombies(TopicPartition at) throws Exception {
        String id = Check.name("java-zombie");
        try (var old = Check.producer("transactional.id", id); var successor = Check.producer("transactional.id", id)) {
            old.initTransactions();
            old.beginTransaction();
            Check.send(old, at, List.of("of the zombie"));
            successor.initTransactions();
            Check.say("the zombie commits", Check.outcome(() -> { old.commitTransaction(); return "done"; }));
            successor.beginTransaction();
            Check.send(successor, at, List.of("of the successor"));
            successor.commitTransaction();
        }
        var seen = Check.read(at, "read_committed");
        Check.say("seen of them", seen.subList(Check.RECORDS, seen.size()));
        try (var slow = Check.producer("transactional.id", Check.name("java-slow"), "transaction.timeout.ms", "1000")) {
            slow.initTransactions();
            slow.beginTransaction();
            Check.send(slow, at, List.of("too late"));
            Check.wait("the time-out", () -> stableEnd(at) == end(at));
            String late = Check.outcome(() -> { slow.commitTransaction(); return "done"; });
            // Which of them depends on the version of the transaction protocol; all mean: not committed.
            var refusals = List.of("ProducerFencedException", "InvalidProducerEpochException", "InvalidTxnStateException", "KafkaException");
            Check.say("after the time-out", refusals.contains(late) ? "refused" : late);
        }
        Check.say("not committed", Check.read(at, "read_committed").contains("too late"));
    }

    private static long end(TopicPartition at) {
        return end(at, "read_uncommitted");
    }

    private static long stableEnd(TopicPartition at) {
        return end(at, "read_committed");
    }

    private static long end(TopicPartition at, String isolation) {
        try (var consumer = Check.consumer("isolation.level", isolation)) {
            return consumer.endOffsets(List.of(at)).get(at);
        }
    }

    /** What listTransactions, describeTransactions and describeProducers say of an open transaction. */
    private static void views(Admin admin, TopicPartition at) throws Exception {
        String id = Check.name("java-viewed");
        try (KafkaProducer<String, String> producer = Check.producer("transactional.id", id, "transaction.timeout.ms", "60000")) {
            Check.say("described unknown", Check.outcome(() -> admin.describeTransactions(List.of(id)).all().get()));
            producer.initTransactions();
            view("initialised", admin, id, at);
            producer.beginTransaction();
            Check.send(producer, at, List.of("open"));
            view("open", admin, id, at);
            Check.say("stable end before the end", stableEnd(at) < end(at));
            producer.commitTransaction();
            Check.wait("the end of the transaction", () -> stableEnd(at) == end(at));
            view("committed", admin, id, at);
            producer.beginTransaction();
            Check.send(producer, at, List.of("fenced"));
            admin.fenceProducers(List.of(id)).all().get();
            Check.say("commit after fencing", Check.outcome(() -> { producer.commitTransaction(); return "done"; }));
        }
        view("fenced", admin, id, at);
    }

    private static void view(String when, Admin admin, String id, TopicPartition at) throws Exception {
        Check.wait("a settled state", () -> {
            var state = admin.describeTransactions(List.of(id)).description(id).get().state();
            return !state.toString().startsWith("Prepare");
        });
        var described = admin.describeTransactions(List.of(id)).description(id).get();
        Check.say(when, described.state() + " on " + described.topicPartitions().size() + " partitions, time-out "
            + described.transactionTimeoutMs() + since(described));
        long producerId = described.producerId();
        var byState = new ListTransactionsOptions().filterStates(List.of(described.state())).filterProducerIds(List.of(producerId));
        Check.say(when + ", listed", ids(admin, byState).equals(List.of(id)));
        var other = new ListTransactionsOptions().filterStates(List.of(TransactionState.PREPARE_EPOCH_FENCE));
        Check.say(when + ", listed in another state", ids(admin, other).contains(id));
        var producers = admin.describeProducers(List.of(at)).partitionResult(at).get().activeProducers();
        var mine = producers.stream().filter(producer -> producer.producerId() == producerId).toList();
        Check.say(when + ", producers", mine.stream().map(producer -> "same epoch "
            + (producer.producerEpoch() == described.producerEpoch())
            // With the second version of the protocol the end of a transaction begins a new epoch, without sequence.
            + (when.equals("open") ? ", sequence " + producer.lastSequence() : "")
            + ", open " + producer.currentTransactionStartOffset().isPresent()).toList());
    }

    /** Apache Kafka keeps the time after the end of a transaction; that says nothing. */
    private static String since(TransactionDescription described) {
        boolean open = described.state() == TransactionState.ONGOING;
        return open ? ", started " + (described.transactionStartTimeMs().getAsLong() > 1_600_000_000_000L) : "";
    }

    private static List<String> ids(Admin admin, ListTransactionsOptions options) throws Exception {
        return admin.listTransactions(options).all().get().stream().map(listing -> listing.transactionalId()).toList();
    }
}
