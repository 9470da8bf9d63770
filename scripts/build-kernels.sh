#!/usr/bin/env bash
# Compiles executor/kernels/*.cu to the committed PTX, or checks it; installs NVIDIA's compilers from PyPI first.
#
#   scripts/build-kernels.sh            compiles
#   scripts/build-kernels.sh --ptxas    registers, shared memory and spills of the committed PTX for sm_75, 80, 90
#   scripts/build-kernels.sh --install  only makes the virtual environment and prints its python
#
# BARISTA_CUDA_VENV names the virtual environment (default: target/cuda-venv). No GPU and no CUDA toolkit is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${BARISTA_CUDA_VENV:-$PWD/target/cuda-venv}
if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import nvidia.cuda_nvrtc, nvidia.cuda_nvcc' 2>/dev/null; then
  python3 -m venv "$venv" >&2
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r executor/kernels/requirements.txt >&2
fi
if [ "${1:-}" = --install ]; then
  echo "$venv/bin/python"
  exit
fi
exec "$venv/bin/python" executor/kernels/build.py "$@"
