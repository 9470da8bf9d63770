#!/usr/bin/env bash
# The CUDA backend on a real device: conformance against tract, speed against the kernels' floors, and compute-sanitizer
# where there is one. One table at the end.
#
#   scripts/gpu-check.sh pack [OUT.tar.gz]   builds and packs all it needs (default target/gpu-check.tar.gz); any Linux host
#   ./gpu-check.sh [ARGS]                    in the unpacked folder, on a host with NVIDIA's driver and nothing else
#   scripts/gpu-check.sh [ARGS]              in the repository: builds, then the same
#
# ARGS go to gpu_check (--quick; --models FOLDER). Without a GPU it says so and ends with 0; with REQUIRE_GPU=1 that is
# a failure. GPU_CHECK_BINARY names a gpu_check that is built already. The binary wants a C library no older than that
# of the host it was built on. BARISTA_BENCH_MODELS names a folder whose ppocr-cls.onnx is packed too.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

build() {
  if [ -n "${GPU_CHECK_BINARY:-}" ]; then
    echo "$GPU_CHECK_BINARY"
    return
  fi
  (cd "$here/.." && cargo build --release --quiet -p executor --example gpu_check) >&2
  echo "${CARGO_TARGET_DIR:-$here/../target}/release/examples/gpu_check"
}

pack() {
  local out=${1:-$here/../target/gpu-check.tar.gz} binary work
  binary=$(build)
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work/gpu-check/models" "$(dirname "$out")"
  cp "$binary" "$work/gpu-check/gpu_check"
  cp "${BASH_SOURCE[0]}" "$work/gpu-check/gpu-check.sh"
  cp "$here"/../models/*.onnx "$work/gpu-check/models/"
  local extra=${BARISTA_BENCH_MODELS:-$here/../target/bench-models}/ppocr-cls.onnx
  if [ -f "$extra" ]; then cp "$extra" "$work/gpu-check/models/"; fi
  strip "$work/gpu-check/gpu_check" 2>/dev/null || true
  tar -czf "$out" -C "$work" gpu-check
  echo "$out: $(du -h "$out" | cut -f1), unpack and run gpu-check/gpu-check.sh"
}

# sanitize COMMAND...: one line a tool.
sanitize() {
  local tool status
  if ! command -v compute-sanitizer >/dev/null 2>&1; then
    echo "compute-sanitizer: not installed, not run"
    return
  fi
  for tool in memcheck racecheck initcheck synccheck; do
    status=clean
    if ! compute-sanitizer --tool "$tool" --error-exitcode 99 "$@" --quick >"$log" 2>&1; then
      status="FAILED"
      failed=1
      tail -n 20 "$log"
    fi
    echo "compute-sanitizer $tool: $status"
  done
}

run() {
  local binary table sanitized
  if [ -x "$here/gpu_check" ]; then
    binary=$here/gpu_check
    set -- --models "$here/models" "$@"
  else
    binary=$(build)
  fi
  failed=0
  log=$(mktemp)
  table=$(mktemp)
  sanitized=$(mktemp)
  # shellcheck disable=SC2064
  trap "rm -f '$log' '$table' '$sanitized'" EXIT
  command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L || true
  "$binary" "$@" >"$table" 2>&1 || failed=1
  # Nothing to look into where there was no device.
  if ! grep -q '^CUDA backend: off' "$table"; then sanitize "$binary" "$@" >"$sanitized"; fi
  cat "$table" "$sanitized"
  return "$failed"
}

case "${1:-}" in
pack) shift; pack "$@" ;;
-h | --help) sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//' ;;
*) run "$@" ;;
esac
