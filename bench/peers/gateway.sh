#!/usr/bin/env bash
# HTTP against HTTP: Barista's gateway (direct) beside MLServer and Ray Serve on ONNX Runtime, same model, cores and load.
#
#   bench/peers/gateway.sh [RUNS] [SECONDS]        results: one JSON line a run; see docs/benchmarks/executor.md
#
# ORT=…/libonnxruntime.so.1.32.0 (of the wheel `onnxruntime`; a build with `--features ort`): Barista runs ONNX Runtime, too.
# RAY=V/bin, a Python with `ray[serve]` and `onnxruntime`: beside Ray Serve, too. One peer is enough; MODEL=resnet… another one.
# Needs `cargo build --release -p barista -p executor --examples` and PEER, a Python with `mlserver` and `onnxruntime`
# (python3 -m venv V && V/bin/pip install mlserver onnxruntime; PEER=V/bin). The server is pinned to core 0, the load
# to core 1; runs alternate.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
runs=${1:-5} seconds=${2:-5}
target=${CARGO_TARGET_DIR:-target}/release
peer=${PEER:-} ray=${RAY:-} ort=${ORT:-}
[ -n "$peer$ray" ] || { echo "PEER or RAY: a folder with python, see the head of this file" >&2; exit 2; }
# On the model of `delay` every row is 16 numbers; MODEL, INPUT and ELEMENTS name another one.
model=${MODEL:-$PWD/models/delay.onnx} elements=${ELEMENTS:-16} input=${INPUT:-features} connections_list=${CONNECTIONS:-1 8 32}
ort_line="" backend_line=""
if [ -n "$ort" ]; then ort_line="onnxruntime = \"$ort\"" backend_line="backend = \"ort\""; fi
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/barista.toml" <<TOML
[executor]
cores = 1
${ort_line}
[gateway]
http = "127.0.0.1:18000"
grpc = "127.0.0.1:18001"
mode = "direct"
[embedded]
kafka_port = 19092
mqtt_port = 11883
[[service]]
name = "delay"
model = "$model"
slo_p95_ms = 1000
${backend_line}
TOML
BARISTA_TELEMETRY__ADDRESS=127.0.0.1:0 taskset -c 0 "$target/barista" up -c "$work/barista.toml" --roles executor,gateway \
  --data-dir "$work/data" 2>"$work/barista.log" &
pids+=($!)

servers=(barista:18000)
if [ -n "$peer" ]; then
mkdir -p "$work/mlserver/delay"
cp bench/peers/gateway_mlserver.py "$work/mlserver/delay/runtime.py"
cat >"$work/mlserver/settings.json" <<JSON
{"http_port": 18100, "grpc_port": 18101, "metrics_port": 18102, "parallel_workers": 0, "debug": false}
JSON
cat >"$work/mlserver/delay/model-settings.json" <<JSON
{"name": "delay", "implementation": "runtime.Onnx", "max_batch_size": ${BATCH:-16}, "max_batch_time": ${BATCH_TIME:-0.002},
 "parameters": {"uri": "$model"}}
JSON
(cd "$work/mlserver/delay" && PYTHONPATH=. exec taskset -c 0 "$peer/mlserver" start "$work/mlserver" >"$work/mlserver.log" 2>&1) &
pids+=($!)
servers+=(mlserver:18100)
fi
if [ -n "$ray" ]; then
  RAY_USAGE_STATS_ENABLED=0 RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=120 taskset -c 0 "$ray/python" bench/peers/gateway_ray.py "$model" 18200 "${BATCH:-16}" \
    "${BATCH_TIME:-0.002}" >"$work/ray.log" 2>&1 &
  pids+=($!)
  servers+=(rayserve:18200)
fi

wait_for() {
  for _ in $(seq 1800); do curl -fs -o /dev/null "$1" && return; sleep 0.1; done
  cat "$work"/*.log >&2
  return 1
}
wait_for http://127.0.0.1:18000/v2/health/ready
curl -fsS -X POST http://127.0.0.1:18000/v2/repository/models/delay/load -d '{"parameters": {"max_batch": 16}}' >/dev/null
[ -z "$peer" ] || wait_for http://127.0.0.1:18100/v2/models/delay/ready
[ -z "$ray" ] || wait_for http://127.0.0.1:18200/

for run in $(seq "$runs"); do
  for connections in $connections_list; do
    for server in "${servers[@]}"; do
      line=$(taskset -c 1 "$target/examples/http_load" "127.0.0.1:${server#*:}" /v2/models/delay/infer "$elements" \
        --input "$input" --connections "$connections" --seconds "$seconds")
      printf '{"run": %d, "server": "%s", %s\n' "$run" "${server%:*}" "${line#\{}"
    done
  done
done
