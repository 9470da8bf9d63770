#!/usr/bin/env bash
# Trains the models of models/ in a virtual environment of its own (target/models-venv).
#
#   scripts/train-models.sh [ARGS...]     ARGS go to models/train.py (see its --help)
#
# One thread: more make numpy's small matrix products many times slower, and the order of its sums,
# hence the last bits of the files, would depend on the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$PWD/target/models-venv
stamp=$venv/requirements.sha256
sum=$(sha256sum <models/requirements.txt)
if [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ]; then
  command -v python3 >/dev/null || { echo "missing: python3 - apt-get install python3 python3-venv" >&2; exit 2; }
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r models/requirements.txt
  printf '%s\n' "$sum" >"$stamp"
fi
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
exec "$venv/bin/python" models/train.py "$@"
