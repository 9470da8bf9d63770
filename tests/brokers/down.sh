#!/usr/bin/env bash
# Stops the servers that up.sh started from the same BROKERS_DIR, and no others.
#
#   tests/brokers/down.sh [kafka] [mqtt]     both when none is named
#
# Logs and storage stay for reading (and for `up.sh --keep`). Running it again is harmless.
set -euo pipefail
# shellcheck source=tests/brokers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

want=()
for arg in "$@"; do
  case $arg in
    kafka | mqtt) want+=("$arg") ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown argument '$arg'; see --help" ;;
  esac
done
[ ${#want[@]} -gt 0 ] || want=(kafka mqtt)

[ -d "$dir" ] || exit 0
dir=$(cd "$dir" && pwd)
exec 9>"$dir/.lock"
flock -w 180 9 || die "another up.sh or down.sh holds $dir/.lock"
for name in "${want[@]}"; do
  stop "$name"
done
rm -f "$dir/env"
