#!/usr/bin/env bash
# Starts real servers on loopback for the tests: Apache Kafka (KRaft, one node) and Mosquitto.
#
#   tests/brokers/up.sh [--keep] [kafka] [mqtt]     both when none is named
#   . target/brokers/env                            BARISTA_TEST_KAFKA, BARISTA_TEST_MQTT
#   tests/brokers/down.sh [kafka] [mqtt]
#
# Running it again is harmless: a server that runs and answers is left alone. A server that has to
# be started begins with empty storage, so that a test run never reads what an older one left;
# --keep starts it on the storage of last time (a restart, for fault tests). Returns once every
# server answers a real request, or fails within two minutes and prints the end of its log.
# Needs java 17+ and mvn (first time only), mosquitto and mosquitto-clients; kcat makes it quicker.
# Inputs and defaults: lib.sh.
set -euo pipefail
# shellcheck source=tests/brokers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

keep=no
want=()
for arg in "$@"; do
  case $arg in
    --keep) keep=yes ;;
    kafka | mqtt) want+=("$arg") ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown argument '$arg'; see --help" ;;
  esac
done
[ ${#want[@]} -gt 0 ] || want=(kafka mqtt)

need() { command -v "$1" >/dev/null 2>&1 || die "missing: $1 - apt-get install $2"; }

port_is_free() {
  ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# ---------------------------------------------------------------- Apache Kafka

# The stamp holds the pom's checksum: another pom, other jars. Copied beside and moved in one step,
# so that an interrupted download is never taken for a complete one.
resolve_jars() {
  local sum tmp
  sum=$(sha256sum <"$here/pom.xml")
  if [ "$(cat "$jars/.pom.sha256" 2>/dev/null)" = "$sum" ]; then return; fi
  need mvn maven
  say "resolving the Kafka jars with Maven into $jars"
  tmp=$jars.partial
  rm -rf "$tmp"
  mkdir -p "$(dirname "$jars")"
  mvn -B -q -Dstyle.color=never -f "$here/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$tmp" >&2
  printf '%s\n' "$sum" >"$tmp/.pom.sha256"
  rm -rf "$jars"
  mv "$tmp" "$jars"
}

write_kafka_config() {
  cat >"$(marker kafka)" <<CONF
# Written by tests/brokers/up.sh at every start; edits are lost.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
listeners=PLAINTEXT://127.0.0.1:$kafka_port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=PLAINTEXT://127.0.0.1:$kafka_port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/kafka/data
# Kafka's own default, stated because client checks rely on it.
auto.create.topics.enable=true
# One node: nothing can be replicated. Few internal partitions: the first commit creates them all.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
# Waits that would only make tests slow: joining, evicting, expiring, deleting, compacting.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=300
group.consumer.heartbeat.interval.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.initial.task.delay.ms=500
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=500
CONF
}

# A cluster id is 16 random bytes in base64; '+' and '/' are not in Kafka's alphabet and a leading
# '-' would read as an option, hence letters in their place.
random_cluster_id() { head -c 16 /dev/urandom | base64 | tr '+/' 'pS' | tr -d '='; }

start_kafka() {
  need java default-jre-headless
  resolve_jars
  mkdir -p "$dir/kafka"
  write_kafka_config
  [ "$keep" = yes ] || rm -rf "$dir/kafka/data"
  local java=(java -Dlog4j2.configurationFile="$here/log4j2.properties" -cp "$jars/*")
  if [ ! -f "$dir/kafka/data/meta.properties" ]; then
    "${java[@]}" -Xshare:auto -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format \
      --cluster-id "$(random_cluster_id)" --config "$(marker kafka)" >"$dir/kafka/format.log" 2>&1 9>&- ||
      { tail -n 30 "$dir/kafka/format.log" >&2; die "kafka: formatting the storage failed"; }
  fi
  # setsid: outlives the shell that called us and is no target of its Ctrl-C; down.sh ends it.
  setsid nohup "${java[@]}" -Xms512m -Xmx1g -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
    -Djava.awt.headless=true kafka.Kafka "$(marker kafka)" \
    >"$dir/kafka/log" 2>&1 </dev/null 9>&- &
  printf '%s\n' $! >"$dir/kafka/pid"
}

# Metadata that names a broker: the listener is open, the node registered and unfenced.
kafka_answers() {
  if command -v kcat >/dev/null 2>&1; then
    timeout 10 kcat -b "127.0.0.1:$kafka_port" -L -m 3 2>/dev/null 9>&- | grep -q '^  broker 1 at '
  else
    timeout 30 java -Dlog4j2.configurationFile="$here/log4j2.properties" -cp "$jars/*" \
      org.apache.kafka.tools.BrokerApiVersionsCommand \
      --bootstrap-server "127.0.0.1:$kafka_port" 2>/dev/null 9>&- | grep -q '(id: 1 '
  fi
}

# ---------------------------------------------------------------- Mosquitto

write_mqtt_config() {
  cat >"$(marker mqtt)" <<CONF
# Written by tests/brokers/up.sh at every start; edits are lost.
listener $mqtt_port 127.0.0.1
allow_anonymous true
# Started as root it would become the user mosquitto, who may not write here.
user $(id -un)
# What a kill -9 may lose is what arrived after the last save: one second.
persistence true
persistence_location $dir/mqtt/data/
autosave_interval 1
# Nothing is dropped while a subscriber with a persistent session is away or slow.
max_queued_messages 0
max_inflight_messages 1000
set_tcp_nodelay true
log_dest stderr
connection_messages false
log_type error
log_type warning
log_type notice
CONF
}

start_mqtt() {
  need mosquitto mosquitto
  [ "$keep" = yes ] || rm -rf "$dir/mqtt/data"
  mkdir -p "$dir/mqtt/data"
  write_mqtt_config
  setsid nohup mosquitto -c "$(marker mqtt)" >"$dir/mqtt/log" 2>&1 </dev/null 9>&- &
  printf '%s\n' $! >"$dir/mqtt/pid"
}

# A publication at QoS 1 returns only after its PUBACK.
mqtt_answers() {
  timeout 5 mosquitto_pub -h 127.0.0.1 -p "$mqtt_port" -q 1 -t barista/brokers/up -n >/dev/null 2>&1 9>&-
}

# ---------------------------------------------------------------- both

ports_of() {
  case $1 in
    kafka) printf '%s\n' "$kafka_port" "$controller_port" ;;
    mqtt) printf '%s\n' "$mqtt_port" ;;
  esac
}

await() {
  local name=$1 deadline=$((SECONDS + 120))
  until "${name}_answers"; do
    if [ -z "$(pid_of "$name")" ]; then
      tail -n 40 "$dir/$name/log" >&2
      die "$name ended while starting; its log is $dir/$name/log"
    fi
    if [ $SECONDS -ge $deadline ]; then
      tail -n 40 "$dir/$name/log" >&2
      stop "$name"
      die "$name did not answer within 120 s; its log is $dir/$name/log"
    fi
    sleep 0.2
  done
}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
# One caller at a time; the servers do not inherit the lock (9>&-).
exec 9>"$dir/.lock"
flock -w 180 9 || die "another up.sh or down.sh holds $dir/.lock"

# The first request of mosquitto_pub is the proof that it answers.
case " ${want[*]} " in *" mqtt "*) need mosquitto_pub mosquitto-clients ;; esac

started=()
for name in "${want[@]}"; do
  if [ -n "$(pid_of "$name")" ]; then
    say "$name runs already (pid $(pid_of "$name"))"
    continue
  fi
  for port in $(ports_of "$name"); do
    port_is_free "$port" || die "$name: port $port on 127.0.0.1 belongs to another process; set BROKERS_${name^^}_PORT"
  done
  "start_$name"
  started+=("$name")
done
for name in "${want[@]}"; do
  await "$name"
done
for name in "${started[@]}"; do
  say "$name answers on 127.0.0.1:$(ports_of "$name" | head -n 1) (pid $(pid_of "$name"))"
done

# Names every server of this folder that runs, also one that an earlier call started.
{
  echo "# Written by tests/brokers/up.sh; source it before running the tests."
  [ -z "$(pid_of kafka)" ] || echo "export BARISTA_TEST_KAFKA=127.0.0.1:$kafka_port"
  [ -z "$(pid_of mqtt)" ] || echo "export BARISTA_TEST_MQTT=127.0.0.1:$mqtt_port"
} >"$dir/env"
