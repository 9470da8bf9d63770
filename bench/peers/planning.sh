#!/usr/bin/env bash
# Everything in docs/benchmarks/planning.md: bench/peers/planning.sh [OUT] (an hour on one core). BARISTA_DATA is the data folder.
# DAYS=2 and SEEDS=1 give the short form; MILP_PYTHON is a Python with highspy (absent: that part is left out).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-target/planning} days=${DAYS:-7} seeds=${SEEDS:-5}
mkdir -p "$out"
cargo build --release -p sim --example simulate
cargo build --release -p planner --examples
for scenario in predictable-per-second gpu-catalogue flash-crowds flash-crowds-warm hourly-leases; do
    target/release/examples/simulate "sim/scenarios/$scenario.toml" --policy all --days "$days" --seeds "$seeds" --json > "$out/$scenario.jsonl"
done
for trace in nyc_taxi i94_traffic fremont_bike; do
    target/release/examples/simulate "sim/scenarios/paper-$trace.toml" --days "$days" --seeds "$seeds" --json --policy \
        ours+shed,oracle+shed,barista2019,barista2019-no-forecast+shed,barista2019-no-vertical+shed,barista2019-no-algorithm1+shed,hpa-60+shed,static-peak+shed \
        > "$out/paper-$trace.jsonl"
done
python3 bench/peers/planning_table.py "$out"/*.jsonl
target/release/examples/timing
if [ -n "${MILP_PYTHON:-}" ]; then target/release/examples/instances 200 | "$MILP_PYTHON" bench/peers/planning_milp.py | tail -2; fi
