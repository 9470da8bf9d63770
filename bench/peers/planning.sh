#!/usr/bin/env bash
# Everything in docs/benchmarks/planning.md: bench/peers/planning.sh [OUT] (two hours on one core). BARISTA_DATA is the data folder.
# A run that was cut short goes on where it was: OUT keeps a report for each seed. DAYS=2 SEEDS=1 give the short form,
# POLICIES a shorter list, JOBS the scenarios at once. MILP_PYTHON is a Python with highspy (absent: left out).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-target/planning} days=${DAYS:-7} seeds=${SEEDS:-5} policies=${POLICIES:-all}
mkdir -p "$out"
cargo build --release -p sim --example simulate
cargo build --release -p planner --examples
run() { # SCENARIO SUFFIX POLICIES [ABLATION]
    echo "sim/scenarios/$1.toml --policy $3 --days $days --seeds $seeds --out $out/$1$2.jsonl ${4:+--ablation $4}"
}
paper=ours+shed,oracle+shed,barista2019,barista2019-no-forecast,barista2019-no-vertical,barista2019-no-algorithm1,hpa-60,static-peak
{
    for scenario in predictable-per-second gpu-catalogue flash-crowds flash-crowds-warm hourly-leases; do run $scenario "" "$policies"; done
    for trace in nyc_taxi i94_traffic fremont_bike; do run paper-$trace "" $paper; done
    # What holds a distance to the bound: forecasts (the oracle is in `all`), set-up, whole nodes.
    run flash-crowds .zero-setup ours+shed,oracle+shed,mark+shed zero-setup
    run gpu-catalogue .zero-setup ours+shed,oracle+shed zero-setup
    run predictable-per-second .fine-nodes ours+shed,oracle+shed fine-nodes
    run faults "" ours+shed,mark+shed,hpa-60+shed,barista2019,static-peak+shed
} | xargs -P "${JOBS:-1}" -L 1 target/release/examples/simulate
python3 bench/peers/planning_table.py "$out"/*.jsonl
target/release/examples/timing
if [ -n "${MILP_PYTHON:-}" ]; then target/release/examples/instances 200 | "$MILP_PYTHON" bench/peers/planning_milp.py | tail -2; fi
