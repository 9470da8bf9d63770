#!/usr/bin/env bash
# Fetches other people's Kafka clients for tests/tests/kafka/clients.rs.
#
#   tests/clients/up.sh [java] [python] [go]     all three when none is named
#   . target/clients/env                         BARISTA_TEST_CLIENTS_KAFKA
#   cargo test --release -p tests --test kafka clients
#
# Running it again is harmless and quick: what is there and fits is left alone.
#   java     needs java 17+ (no compiler) and mvn: kafka-clients in each release of CLIENTS_JAVA, and Check
#            compiled against the oldest
#   python   needs python3 with venv (apt-get install python3-venv): confluent-kafka, kafka-python, aiokafka
#   go       needs the Go that franz/go.mod names, or a newer one; without it, this is said and the rest is done
# Inputs (environment): CLIENTS_DIR (default <workspace>/target/clients), CLIENTS_JAVA (default below).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${CLIENTS_DIR:-$here/../../target/clients}
releases=${CLIENTS_JAVA:-3.9.1 4.2.0}
ecj=3.40.0

say() { printf 'clients: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
need() { command -v "$1" >/dev/null 2>&1 || die "missing: $1 - apt-get install $2"; }

# stamped FOLDER STAMP: was FOLDER finished from these very inputs?
stamped() { [ "$(cat "$1/.stamp" 2>/dev/null)" = "$2" ]; }

maven() {
  mvn -B -q -Dstyle.color=never "$@" >&2
}

# Filled beside and moved in one step, so that an interrupted download is never taken for a whole one.
java_jars() {
  local release=$1 to=$dir/java/jars-$1 stamp
  stamp=$(sha256sum <"$here/java/pom.xml")
  if stamped "$to" "$stamp"; then return; fi
  say "fetching kafka-clients $release"
  rm -rf "$to" "$dir/java/partial"
  maven -f "$here/java/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -Dkafka.version="$release" -DincludeScope=runtime -DoutputDirectory="$dir/java/partial"
  printf '%s\n' "$stamp" >"$dir/java/partial/.stamp"
  mv "$dir/java/partial" "$to"
}

# With Eclipse's compiler, a jar: CI's Java is a runtime without javac.
java_classes() {
  local oldest=$1 compiler=$dir/java/ecj-$ecj.jar stamp
  stamp=$(cat "$here"/java/*.java "$here/java/pom.xml" | sha256sum)
  if stamped "$dir/java/classes" "$stamp"; then return; fi
  if [ ! -f "$compiler" ]; then
    maven org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -Dartifact="org.eclipse.jdt:ecj:$ecj" \
      -DoutputDirectory="$dir/java"
  fi
  say "compiling the Java checks"
  rm -rf "$dir/java/classes"
  java -jar "$compiler" -17 -proc:none -warn:none -d "$dir/java/classes" \
    -cp "$(printf '%s:' "$dir/java/jars-$oldest"/*.jar)" "$here"/java/*.java
  printf '%s\n' "$stamp" >"$dir/java/classes/.stamp"
}

up_java() {
  need java default-jre-headless
  need mvn maven
  mkdir -p "$dir/java"
  # Other releases than asked for would be checked too.
  for old in "$dir"/java/jars-*; do
    case " $releases " in *" ${old##*/jars-} "*) ;; *) rm -rf "$old" ;; esac
  done
  for release in $releases; do java_jars "$release"; done
  java_classes "${releases%% *}"
}

up_python() {
  local stamp
  need python3 python3
  stamp=$(python3 --version; cat "$here/requirements-kafka.txt")
  if stamped "$dir/python" "$stamp"; then return; fi
  say "installing the Python clients"
  rm -rf "$dir/python"
  python3 -m venv "$dir/python" || die "no virtual environment - apt-get install python3-venv"
  # Wheels only: a client that wants a compiler fails here and says so.
  "$dir/python/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: -r "$here/requirements-kafka.txt"
  printf '%s\n' "$stamp" >"$dir/python/.stamp"
}

up_go() {
  # Fails without Go and with one that is older than go.mod wants.
  if ! (cd "$here/franz" && GOTOOLCHAIN=local go list -m >/dev/null 2>&1); then
    rm -f "$dir/franz"
    say "no Go here, or too old a one ($(go version 2>&1 || true)): franz-go is NOT checked"
    return
  fi
  say "building the franz-go check"
  (cd "$here/franz" && CGO_ENABLED=0 go build -o "$dir/franz" .)
}

want=("$@")
[ ${#want[@]} -gt 0 ] || want=(java python go)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
exec 9>"$dir/.lock"
flock -w 300 9 || die "another up.sh holds $dir/.lock"
for what in "${want[@]}"; do
  case $what in
    java | python | go) "up_$what" 9>&- ;;
    *) die "unknown argument '$what': java, python or go" ;;
  esac
done
printf '# Written by tests/clients/up.sh; source it before running the tests.\nexport BARISTA_TEST_CLIENTS_KAFKA=%s\n' \
  "$dir" >"$dir/env"
