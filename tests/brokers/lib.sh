# shellcheck shell=bash
# Shared by up.sh and down.sh: where things are, and how a process is known to be ours.
# Sourced, never run. Pure bash; expects `set -euo pipefail` in the caller.
#
# Inputs (environment; deliberately without the BARISTA_ prefix, which is the program's own):
#   BROKERS_DIR         state, logs and pids          default <workspace>/target/brokers
#   BROKERS_JARS        cache of the Kafka jars       default $BROKERS_DIR/jars
#   BROKERS_KAFKA_PORT  client listener, loopback     default 19092 (the controller takes the next port)
#   BROKERS_MQTT_PORT   MQTT listener, loopback       default 11884
# A second set of servers (a test that kills its broker) needs only another BROKERS_DIR and other ports.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# Read by the scripts that source this file.
# shellcheck disable=SC2034
{
  dir=${BROKERS_DIR:-$root/target/brokers}
  jars=${BROKERS_JARS:-$dir/jars}
  kafka_port=${BROKERS_KAFKA_PORT:-19092}
  controller_port=$((kafka_port + 1))
  mqtt_port=${BROKERS_MQTT_PORT:-11884}
}
# Debian keeps mosquitto where an ordinary user's PATH does not look.
PATH=$PATH:/usr/sbin:/usr/local/sbin

say() { printf 'brokers: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# marker NAME: a string that only the command line of our own server contains.
marker() {
  case $1 in
    kafka) printf '%s/kafka/server.properties' "$dir" ;;
    mqtt) printf '%s/mqtt/mosquitto.conf' "$dir" ;;
  esac
}

# is_ours PID NAME: does PID run, and is it the server that this folder's up.sh started? A pid file
# outlives its process and the number may be somebody else's by now, so the command line decides.
is_ours() {
  local pid=$1
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
  tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$(marker "$2")"
}

# pid_of NAME: the pid of our running server, or nothing.
pid_of() {
  local pid
  pid=$(cat "$dir/$1/pid" 2>/dev/null) || return 0
  if is_ours "$pid" "$1"; then printf '%s' "$pid"; fi
}

# stop NAME: SIGTERM, up to 20 s for an orderly end, then SIGKILL.
stop() {
  local name=$1 pid
  pid=$(pid_of "$name")
  if [ -n "$pid" ]; then
    say "stopping $name (pid $pid)"
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
      is_ours "$pid" "$name" || break
      sleep 0.2
    done
    if is_ours "$pid" "$name"; then
      say "$name ignored SIGTERM for 20 s: SIGKILL"
      kill -KILL "$pid" 2>/dev/null || true
    fi
  fi
  rm -f "$dir/$name/pid"
}
