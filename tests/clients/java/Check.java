import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.function.BooleanSupplier;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Kafka's own Java client against a broker: java -cp CLASSES:JARS Check HOST:PORT
 *
 * Prints one line for each thing observed, without names that differ between runs, so that the lines of
 * two brokers can be compared; a line that begins with '#' is for people. Ends with 1 at the first
 * failure. Compiled against the oldest client, run with newer ones.
 */
public final class Check {
    static final Duration PATIENCE = Duration.ofSeconds(30);
    static final int RECORDS = 100;
    static String bootstrap;
    static String run;

    public static void main(String[] args) {
        bootstrap = args[0];
        run = Long.toString(System.nanoTime(), 36);
        try {
            say("#", "kafka-clients " + org.apache.kafka.common.utils.AppInfoParser.getVersion());
            Administration.check();
            Transactions.check();
            Groups.check();
            System.exit(0);
        } catch (Throwable failure) {
            failure.printStackTrace();
            System.exit(1);
        }
    }

    /** One observation. */
    static void say(String what, Object seen) {
        System.out.println(what.equals("#") ? "# " + seen : what + ": " + seen);
    }

    /** A name of this run; what is printed leaves the run out. */
    static String name(String role) {
        return role + "-" + run;
    }

    static void ensure(boolean holds, Object otherwise) {
        if (!holds) throw new AssertionError(otherwise);
    }

    /** What came of it: its value, or the kind of its failure. */
    static <T> String outcome(Callable<T> attempt) {
        try {
            return String.valueOf(attempt.call());
        } catch (ExecutionException failure) {
            return failure.getCause().getClass().getSimpleName();
        } catch (Exception failure) {
            return failure.getClass().getSimpleName();
        }
    }

    static Properties settings(String... pairs) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < pairs.length; i += 2) settings.put(pairs[i], pairs[i + 1]);
        return settings;
    }

    static Admin admin() {
        return Admin.create(settings("default.api.timeout.ms", "20000", "request.timeout.ms", "15000"));
    }

    static KafkaProducer<String, String> producer(String... pairs) {
        Properties settings = settings("acks", "all", "enable.idempotence", "true", "delivery.timeout.ms", "30000",
            "request.timeout.ms", "15000", "max.block.ms", "20000");
        settings.putAll(settings(pairs));
        return new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(String... pairs) {
        Properties settings = settings("auto.offset.reset", "earliest", "enable.auto.commit", "false",
            "session.timeout.ms", "6000", "heartbeat.interval.ms", "200", "max.poll.interval.ms", "30000",
            "metadata.max.age.ms", "1000", "fetch.max.wait.ms", "50", "isolation.level", "read_committed", "default.api.timeout.ms", "20000");
        settings.putAll(settings(pairs));
        return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    /** Sends the values to one partition and waits until all are acknowledged. */
    static void send(KafkaProducer<String, String> producer, TopicPartition at, Collection<String> values)
            throws Exception {
        var sent = new ArrayList<java.util.concurrent.Future<?>>();
        for (String value : values) {
            sent.add(producer.send(new ProducerRecord<>(at.topic(), at.partition(), "key " + value, value)));
        }
        producer.flush();
        for (var one : sent) one.get();
    }

    static List<String> numbered(String prefix, int count) {
        var values = new ArrayList<String>();
        for (int i = 0; i < count; i++) values.add(prefix + i);
        return values;
    }

    /** The next records, at least `count` of them. */
    static List<ConsumerRecord<String, String>> take(KafkaConsumer<String, String> consumer, int count) {
        var seen = new ArrayList<ConsumerRecord<String, String>>();
        until("record " + count, () -> {
            consumer.poll(Duration.ofMillis(100)).forEach(seen::add);
            return seen.size() >= count;
        });
        return seen;
    }

    static List<String> values(Collection<ConsumerRecord<String, String>> records) {
        var values = new ArrayList<String>();
        for (var record : records) values.add(record.value());
        return values;
    }

    /** Values of one partition from its beginning up to what is the end now. */
    static List<String> read(TopicPartition at, String isolation) {
        try (var consumer = consumer("isolation.level", isolation)) {
            consumer.assign(List.of(at));
            consumer.seekToBeginning(List.of(at));
            long end = consumer.endOffsets(List.of(at)).get(at);
            var seen = new ArrayList<ConsumerRecord<String, String>>();
            until("offset " + end, () -> {
                consumer.poll(Duration.ofMillis(100)).forEach(seen::add);
                return consumer.position(at) >= end;
            });
            return values(seen);
        }
    }

    static Map<String, String> map(String... pairs) {
        var map = new HashMap<String, String>();
        for (int i = 0; i < pairs.length; i += 2) map.put(pairs[i], pairs[i + 1]);
        return map;
    }

    interface Condition {
        boolean holds() throws Exception;
    }

    static void wait(String what, Condition condition) {
        until(what, () -> {
            try {
                if (condition.holds()) return true;
                Thread.sleep(20);
                return false;
            } catch (Exception failure) {
                throw new RuntimeException(what, failure);
            }
        });
    }

    /** Asks again and again until it holds. */
    static void until(String what, BooleanSupplier condition) {
        long end = System.nanoTime() + PATIENCE.toNanos();
        while (!condition.getAsBoolean()) ensure(System.nanoTime() < end, "never came: " + what);
    }
}
