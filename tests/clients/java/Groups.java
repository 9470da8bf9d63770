import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;

/** Consumer groups of the classic protocol with every built-in assignor, static members, and their administration. */
final class Groups {
    static final String ASSIGNORS = "org.apache.kafka.clients.consumer.";

    static void check() throws Exception {
        String topic = Check.name("java-groups");
        try (Admin admin = Check.admin()) {
            admin.createTopics(List.of(new NewTopic(topic, 4, (short) 1))).all().get();
            try (var producer = Check.producer()) {
                for (int i = 0; i < 4; i++) Check.send(producer, new TopicPartition(topic, i), Check.numbered("p" + i + " ", 25));
            }
            for (String assignor : List.of("Range", "RoundRobin", "Sticky", "CooperativeSticky")) {
                share(admin, topic, assignor);
            }
            staticMembers(admin, topic);
            offsets(admin, topic);
            nextGeneration(topic);
        }
    }

    /** Two members share the partitions; one leaves and the other has all. */
    private static void share(Admin admin, String topic, String assignor) throws Exception {
        String group = Check.name("java-" + assignor);
        String[] settings = {"group.id", group, "partition.assignment.strategy", ASSIGNORS + assignor + "Assignor"};
        try (var first = Check.consumer(settings)) {
            first.subscribe(List.of(topic));
            var seen = Check.values(Check.take(first, Check.RECORDS));
            Check.say(assignor + " read", seen.size() + " " + new TreeSet<>(seen).hashCode());
            first.commitSync();
            var second = Check.consumer(settings);
            second.subscribe(List.of(topic));
            poll("halves", () -> first.assignment().size() == 2 && second.assignment().size() == 2, first, second);
            var all = new TreeSet<Integer>();
            for (var consumer : List.of(first, second)) consumer.assignment().forEach(at -> all.add(at.partition()));
            Check.say(assignor + " shares", all);
            settled(admin, group);
            show(assignor, admin, group);
            Check.say(assignor + ", deleted while in use",
                Check.outcome(() -> admin.deleteConsumerGroups(List.of(group)).all().get()));
            second.close();
            poll("all partitions", () -> first.assignment().size() == 4, first);
            Check.say(assignor + " takes over", first.committed(first.assignment()).values().stream()
                .mapToLong(OffsetAndMetadata::offset).sum());
        }
        Check.wait("the empty group", () -> describe(admin, group).members().isEmpty());
        show(assignor + ", left", admin, group);
        Check.say(assignor + " listed", admin.listConsumerGroups().valid().get().stream()
            .anyMatch(listing -> listing.groupId().equals(group)));
    }

    @SafeVarargs
    private static void poll(String what, Check.Condition condition, KafkaConsumer<String, String>... consumers) {
        Check.wait(what, () -> {
            for (var consumer : consumers) consumer.poll(Duration.ofMillis(20));
            return condition.holds();
        });
    }

    @SuppressWarnings("deprecation")
    private static void settled(Admin admin, String group) {
        Check.wait("a settled group", () -> describe(admin, group).state().toString().equals("Stable"));
    }

    private static ConsumerGroupDescription describe(Admin admin, String group) throws Exception {
        return admin.describeConsumerGroups(List.of(group)).all().get().get(group);
    }

    @SuppressWarnings("deprecation")
    private static void show(String what, Admin admin, String group) throws Exception {
        var described = describe(admin, group);
        var shares = new ArrayList<Integer>();
        described.members().forEach(member -> shares.add(member.assignment().topicPartitions().size()));
        Check.say(what + " described", described.state() + " " + described.partitionAssignor() + " " + shares + " simple "
            + described.isSimpleConsumerGroup() + " coordinator " + described.coordinator().id());
    }

    /** A static member restarts without a rebalance; its double shuts it out. */
    private static void staticMembers(Admin admin, String topic) throws Exception {
        String group = Check.name("java-static");
        String[] settings = {"group.id", group, "group.instance.id", "one", "session.timeout.ms", "20000"};
        var first = Check.consumer(settings);
        first.subscribe(List.of(topic));
        poll("all partitions", () -> first.assignment().size() == 4, first);
        int generation = first.groupMetadata().generationId();
        first.close();
        Check.say("a static member stays when it closes", describe(admin, group).members().size());
        try (var again = Check.consumer(settings)) {
            again.subscribe(List.of(topic));
            poll("all partitions", () -> again.assignment().size() == 4, again);
            Check.say("same generation after a restart", again.groupMetadata().generationId() == generation);
            Check.say("instance", describe(admin, group).members().iterator().next().groupInstanceId());
            try (var twin = Check.consumer(settings)) {
                twin.subscribe(List.of(topic));
                poll("all partitions", () -> twin.assignment().size() == 4, twin);
                String late = Check.outcome(() -> {
                    again.commitSync(Map.of(new TopicPartition(topic, 0), new OffsetAndMetadata(1)));
                    return "done";
                });
                // The second when a heartbeat has learned it before the commit.
                var refusals = List.of("FencedInstanceIdException", "CommitFailedException");
                Check.say("the older of two", refusals.contains(late) ? "refused" : late);
            }
        }
        var options = new org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions(
            List.of(new org.apache.kafka.clients.admin.MemberToRemove("one")));
        admin.removeMembersFromConsumerGroup(group, options).all().get();
        Check.wait("the removed member", () -> describe(admin, group).members().isEmpty());
    }

    /** Offsets set, listed and deleted by an administrator; the group deleted. */
    private static void offsets(Admin admin, String topic) throws Exception {
        String group = Check.name("java-Range");
        var at = new TopicPartition(topic, 1);
        admin.alterConsumerGroupOffsets(group, Map.of(at, new OffsetAndMetadata(7, "by hand"))).all().get();
        var listed = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        Check.say("altered", listed.get(at).offset() + " " + listed.get(at).metadata() + " of " + listed.size());
        admin.deleteConsumerGroupOffsets(group, Set.of(at)).all().get();
        Check.say("left", admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().size());
        admin.deleteConsumerGroups(List.of(group)).all().get();
        Check.say("deleted again", Check.outcome(() -> admin.deleteConsumerGroups(List.of(group)).all().get()));
        Check.say("its offsets", admin.listConsumerGroupOffsets(Check.name("java-Range")).partitionsToOffsetAndMetadata().get().size());
    }

    /** group.protocol=consumer (KIP-848): served, or refused at once with a reason. */
    private static void nextGeneration(String topic) {
        long began = System.nanoTime();
        String outcome;
        var settings = Check.settings("group.id", Check.name("java-next"), "group.protocol", "consumer",
            "auto.offset.reset", "earliest");
        var strings = new org.apache.kafka.common.serialization.StringDeserializer();
        try (var consumer = new KafkaConsumer<>(settings, strings, strings)) {
            consumer.subscribe(List.of(topic));
            try {
                Check.take(consumer, Check.RECORDS);
                outcome = "served";
            } catch (org.apache.kafka.common.errors.UnsupportedVersionException refused) {
                outcome = "refused: " + refused.getMessage();
            }
        }
        Check.say("#", "KIP-848 group " + outcome + ", after " + (System.nanoTime() - began) / 1_000_000 + " ms");
    }
}
