#!/usr/bin/env bash
# The paper's evaluation, re-run: docs/benchmarks/paper.md and its plots. bench/peers/paper.sh [OUT]; BARISTA_DATA is the
# data folder, DAYS and SEEDS make it shorter. A run that was cut short goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-target/paper} days=${DAYS:-7} seeds=${SEEDS:-3}
mkdir -p "$out"
cargo build --release -p sim --example simulate
policies=ours+shed,oracle+shed,barista2019,barista2019-no-compensator,barista2019-no-forecast,barista2019-no-vertical
policies+=,barista2019-no-algorithm1,hpa-60+shed,static-peak+shed
for trace in nyc_taxi i94_traffic fremont_bike; do
    target=${CARGO_TARGET_DIR:-target}
    "$target/release/examples/simulate" "sim/scenarios/paper-$trace.toml" --policy "$policies" --days "$days" --seeds "$seeds" --out "$out/paper-$trace.jsonl"
done
python3 bench/peers/paper.py docs/benchmarks "$out"/paper-*.jsonl
