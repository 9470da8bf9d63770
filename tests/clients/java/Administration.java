import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;

/** Topics, their settings, their records, as an administrator and an idempotent producer see them. */
final class Administration {
    static final List<String> SHOWN = List.of("cleanup.policy", "retention.ms", "retention.bytes",
        "max.message.bytes", "message.timestamp.type", "delete.retention.ms", "min.insync.replicas");

    static void check() throws Exception {
        try (Admin admin = Check.admin()) {
            topics(admin, Check.name("java-admin"));
            settings(admin, Check.name("java-admin"));
            records(admin, Check.name("java-records"));
        }
    }

    private static void topics(Admin admin, String topic) throws Exception {
        Check.say("nodes", admin.describeCluster().nodes().get().size());
        var wanted = new NewTopic(topic, 2, (short) 1).configs(Map.of("retention.ms", "3600000"));
        var created = admin.createTopics(List.of(wanted));
        Check.say("created partitions", created.numPartitions(topic).get());
        Check.say("created again", Check.outcome(() -> admin.createTopics(List.of(wanted)).all().get()));
        var bad = new NewTopic("a/b", 1, (short) 1);
        Check.say("bad name", Check.outcome(() -> admin.createTopics(List.of(bad)).all().get()));
        var many = new NewTopic(Check.name("replicated"), 1, (short) 3);
        Check.say("three replicas", Check.outcome(() -> admin.createTopics(List.of(many)).all().get()));
        Check.wait("the new topic", () -> admin.listTopics().names().get().contains(topic));
        grow(admin, topic, 3);
        Check.say("fewer partitions",
            Check.outcome(() -> admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(1))).all().get()));
        Check.wait("the third partition", () -> {
            var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            return described.partitions().size() == 3 && described.partitions().stream().allMatch(p -> p.leader() != null);
        });
        var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
        Check.say("described", described.partitions().stream().map(p -> p.partition() + "@" + p.replicas().size()).toList()
            + " internal " + described.isInternal());
        Check.say("described by id", admin.describeTopics(
            org.apache.kafka.common.TopicCollection.ofTopicIds(List.of(described.topicId())))
            .allTopicIds().get().values().iterator().next().name().equals(topic));
        String unknown = Check.name("unknown");
        Check.say("unknown topic", Check.outcome(() -> admin.describeTopics(List.of(unknown)).allTopicNames().get()));
        Check.say("unknown deleted", Check.outcome(() -> admin.deleteTopics(List.of(unknown)).all().get()));
    }

    private static void grow(Admin admin, String topic, int count) throws Exception {
        admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(count))).all().get();
    }

    private static void settings(Admin admin, String topic) throws Exception {
        var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        show("settings", admin, resource);
        alter(admin, resource, "cleanup.policy", "compact", AlterConfigOp.OpType.SET);
        alter(admin, resource, "max.message.bytes", "20000", AlterConfigOp.OpType.SET);
        alter(admin, resource, "retention.ms", null, AlterConfigOp.OpType.DELETE);
        Check.wait("the changed settings", () -> value(admin, resource, "max.message.bytes").equals("20000"));
        show("changed settings", admin, resource);
        for (var wrong : List.of(List.of("retention.ms", "soon"), List.of("no.such.setting", "1"))) {
            Check.say("wrong " + wrong,
                Check.outcome(() -> { alter(admin, resource, wrong.get(0), wrong.get(1), AlterConfigOp.OpType.SET); return "done"; }));
        }
        try (var producer = Check.producer()) {
            Check.say("too large", Check.outcome(
                () -> producer.send(new ProducerRecord<>(topic, 0, "k", "x".repeat(30_000))).get().offset()));
            Check.say("no key in a compacted topic",
                Check.outcome(() -> producer.send(new ProducerRecord<>(topic, 0, null, "x")).get().offset()));
        }
        admin.deleteTopics(List.of(topic)).all().get();
        Check.wait("the end of the topic", () -> !admin.listTopics().names().get().contains(topic));
    }

    private static void alter(Admin admin, ConfigResource resource, String key, String value, AlterConfigOp.OpType how)
            throws Exception {
        Collection<AlterConfigOp> change = List.of(new AlterConfigOp(new ConfigEntry(key, value), how));
        admin.incrementalAlterConfigs(Map.of(resource, change)).all().get();
    }

    private static String value(Admin admin, ConfigResource resource, String key) throws Exception {
        return admin.describeConfigs(List.of(resource)).all().get().get(resource).get(key).value();
    }

    private static void show(String what, Admin admin, ConfigResource resource) throws Exception {
        Config config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
        for (String key : SHOWN) {
            ConfigEntry entry = config.get(key);
            boolean set = entry.source() == ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG;
            Check.say(what, key + "=" + entry.value() + (set ? " (set)" : ""));
        }
    }

    /** Every codec, headers, offsets by time, deletion. */
    private static void records(Admin admin, String topic) throws Exception {
        admin.createTopics(List.of(new NewTopic(topic, Optional.of(1), Optional.empty()))).all().get();
        var at = new TopicPartition(topic, 0);
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            try (var producer = Check.producer("compression.type", codec, "linger.ms", "20")) {
                Check.send(producer, at, Check.numbered(codec + " ", Check.RECORDS));
            }
        }
        var values = Check.read(at, "read_uncommitted");
        Check.say("read", values.size() + " " + values.get(0) + " ... " + values.get(values.size() - 1) + " #" + values.hashCode());
        try (var producer = Check.producer(); var consumer = Check.consumer()) {
            var record = new ProducerRecord<>(topic, 0, 1_000_000_000_000L, "k", "with headers");
            record.headers().add("h", new byte[] {1, 2}).add("h", null);
            Check.say("offset", producer.send(record).get().offset());
            consumer.assign(List.of(at));
            consumer.seek(at, 500);
            var got = Check.take(consumer, 1).get(0);
            Check.say("headers", got.headers().toArray().length + " " + got.timestamp() + " " + got.timestampType());
            Check.say("by time", consumer.offsetsForTimes(Map.of(at, 1L)).get(at).offset());
        }
        for (var spec : List.of(OffsetSpec.earliest(), OffsetSpec.latest(), OffsetSpec.maxTimestamp())) {
            long offset = admin.listOffsets(Map.of(at, spec)).all().get().get(at).offset();
            Check.say("offset of " + spec.getClass().getSimpleName(),
                spec instanceof OffsetSpec.MaxTimestampSpec ? offset < 500 : offset);
        }
        Check.say("deleted up to", admin.deleteRecords(Map.of(at, RecordsToDelete.beforeOffset(300))).all().get() == null
            ? admin.deleteRecords(Map.of(at, RecordsToDelete.beforeOffset(300))).lowWatermarks().get(at).get().lowWatermark()
            : -1);
        Check.say("deleted too far",
            Check.outcome(() -> admin.deleteRecords(Map.of(at, RecordsToDelete.beforeOffset(9999))).all().get()));
        Check.say("what is left", Check.read(at, "read_uncommitted").size());
    }
}
