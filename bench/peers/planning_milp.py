"""Gap of the planner to the MILP optimum on random static instances.

    python -m venv /tmp/milp && /tmp/milp/bin/pip install highspy
    cargo run --release -p planner --example instances 200 | /tmp/milp/bin/python bench/peers/planning_milp.py

The oracle: whole nodes n_f within quotas so that sum(capacity_f n_f) >= K(rate, d), where d is the least time that a
node in use leaves for waiting and K is the capacity at which a queue with deadline shedding drops epsilon of the
arrivals: u / (e^{cu} - 1) = epsilon with u = (K - rate)/rate and c = 2 K d (planner/src/margin.rs). One MILP for each d that the weakest node may have; the cheapest counts. Solved to a relative gap of 0 by HiGHS.
"""

import json
import math
import sys

import highspy
import numpy as np


def solve(flavors, need):
    h = highspy.Highs()
    h.silent()
    h.setOptionValue("mip_rel_gap", 0.0)
    h.setOptionValue("mip_abs_gap", 1e-9)
    inf = highspy.kHighsInf
    x = [
        h.addVariable(lb=0, ub=f["quota"] if f["quota"] is not None else inf, obj=f["usd_per_hour"], type=highspy.HighsVarType.kInteger)
        for f in flavors
    ]
    h.addRow(need, inf, len(x), np.arange(len(x), dtype=np.int32), np.array([f["capacity_rps"] for f in flavors]))
    h.run()
    if h.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return math.inf
    return h.getObjectiveValue()


def dropped(k, rate, d):
    u, c = (k - rate) / rate, 2 * k * d
    return 1 / c if abs(c * u) < 1e-9 else (u / math.expm1(c * u) if c * u < 700 else 0.0)


def required(rate, d, epsilon):
    low, high = 1e-9, 10 * rate + 10 / d
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if dropped(middle, rate, d) > epsilon else (low, middle)
    return high


gaps, infeasible, wrong = [], 0, 0
for line in sys.stdin:
    i = json.loads(line)
    best = math.inf
    for d in sorted({f["allowed_s"] for f in i["flavors"]}):
        usable = [f for f in i["flavors"] if f["allowed_s"] >= d]
        best = min(best, solve(usable, required(i["rate_rps"], d, i["epsilon"]) * (1 - 1e-9)))
    if math.isinf(best) or i["shortfall_rps"] > 0:
        infeasible += 1
        wrong += math.isinf(best) != (i["shortfall_rps"] > 0)
        continue
    gaps.append(i["usd_per_hour"] / best - 1)
gaps.sort()
print(f"{len(gaps)} instances solved by both, {infeasible} that quotas make infeasible ({wrong} not for both)")
print(f"gap to the optimum: mean {100 * sum(gaps) / len(gaps):.3f} %, max {100 * gaps[-1]:.3f} %, min {100 * gaps[0]:.3f} %")
