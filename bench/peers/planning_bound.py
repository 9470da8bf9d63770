"""The bound that costs are divided by, against HiGHS on small random instances.

    cargo build --release -p sim --example simulate
    /tmp/milp/bin/python bench/peers/planning_bound.py [INSTANCES] [SIMULATE]      # a Python with highspy

Each instance is a random load of an hour or two, minute by minute, and one to three flavors of random size, price and
boot time. `simulate` gives its bound (sim/src/simulate/bound.rs); HiGHS solves what that bound relaxes, as a MILP: whole
nodes n[f,t] and starts s[f,t] >= n[f,t] - n[f,t-1] (the first minute's are there), each start paying for its set-up, and
requests dropped d[t] >= load[t] - sum of rate[f] n[f,t], at most 1 % of them in all.

A Lagrangian is at most the optimum, so ratio = bound / optimum must not exceed 1; what it lies below 1 is the duality
gap of an hour, which falls with the length of the trace.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

import highspy
import numpy as np

instances = int(sys.argv[1]) if len(sys.argv) > 1 else 20
simulate = sys.argv[2] if len(sys.argv) > 2 else "target/release/examples/simulate"


def instance(rng, folder):
    minutes = rng.choice([60, 120])
    base, swing, jump = rng.uniform(20, 60), rng.uniform(0, 0.8), rng.randrange(minutes)
    load = [base * (1 + swing * np.sin(t / 15)) * rng.uniform(0.9, 1.1) * (2 if 0 <= t - jump < 10 else 1) for t in range(minutes)]
    peak = rng.uniform(80, 250)
    factor = peak / max(load)
    load = [x * factor for x in load]
    cores = rng.sample([1, 2, 4, 8], rng.randint(1, 3))
    flavors = [
        {"name": f"f{c}", "cores": c, "usd": round(0.045 * c ** rng.uniform(0.8, 1.05), 4), "boot": rng.choice([20, 60, 150])}
        for c in cores
    ]
    with open(f"{folder}/load.csv", "w") as f:
        f.write("timestamp,value\n")
        for t, x in enumerate(load):
            f.write(f"2020-01-01 {t // 60:02}:{t % 60:02}:00,{x * 60:.6f}\n")
    points = [{"workers": w, "batch": 1, "p50_ms": 50, "p95_ms": 60, "p99_ms": 70, "rps": 18.0 * w} for w in [1, 2, 4, 8]]
    profile = {"model": "m", "sha256": "", "backend": "tract", "host": "", "load_ms": 10000, "memory_mib": 1, "points": points}
    json.dump(profile, open(f"{folder}/profile.json", "w"))
    text = f'name = "bound"\nseed = 1\n[trace]\nfile = "load.csv"\ndays = {minutes / 1440}\npeak_rps = {peak}\n'
    text += '[[service]]\nname = "s"\nslo_ms = 200\nprofile = "profile.json"\n'
    for f in flavors:
        text += f'[[flavor]]\nname = "{f["name"]}"\ncores = {f["cores"]}\nusd_per_hour = {f["usd"]}\nboot_s = {f["boot"]}\n'
    text += "[setup]\nimage_s = 20\nload_s = 10\n"
    open(f"{folder}/scenario.toml", "w").write(text)
    return load, [(18.0 * f["cores"], f["usd"] / 60, (f["boot"] + 30) / 60) for f in flavors]


def optimum(load, flavors):
    h = highspy.Highs()
    h.silent()
    h.setOptionValue("mip_rel_gap", 1e-4)
    h.setOptionValue("time_limit", 60.0)
    inf, T = highspy.kHighsInf, len(load)
    n = [[h.addVariable(0, inf, usd, highspy.HighsVarType.kInteger) for _ in load] for _, usd, _ in flavors]
    s = [[h.addVariable(0, inf, usd * setup) for _ in load] for _, usd, setup in flavors]
    d = [h.addVariable(0, inf, 0.0) for _ in load]
    row = lambda low, high, terms: h.addRow(
        low, high, len(terms), np.array([v.index for v, _ in terms], dtype=np.int32), np.array([c for _, c in terms], dtype=float)
    )
    for t in range(T):
        row(load[t], inf, [(n[f][t], flavors[f][0]) for f in range(len(flavors))] + [(d[t], 1.0)])
        for f in range(len(flavors)):
            if t > 0:
                row(0.0, inf, [(s[f][t], 1.0), (n[f][t], -1.0), (n[f][t - 1], 1.0)])
    row(-inf, 0.01 * sum(load), [(x, 1.0) for x in d])
    h.run()
    done = h.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return h.getInfo().mip_dual_bound, h.getObjectiveValue(), done


rng, ratios, unsolved = random.Random(7), [], 0
for k in range(instances):
    with tempfile.TemporaryDirectory() as folder:
        load, flavors = instance(rng, folder)
        command = [simulate, f"{folder}/scenario.toml", "--policy", "static-peak+shed", "--json"]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "BARISTA_DATA": folder})
        bound = json.loads(out.stdout)["bound_usd"]
        low, best, done = optimum(load, flavors)
        unsolved += not done
        ratios.append(bound / best)
        flag = "" if bound <= best * (1 + 1e-6) else "   ABOVE THE OPTIMUM"
        print(f"{k}: {len(load)} min, {len(flavors)} flavors, bound {bound:.4f}, HiGHS {best:.4f} USD, ratio {bound / best:.4f}{flag}", flush=True)
ratios.sort()
print(f"{instances} instances, {unsolved} not proven optimal: bound / optimum mean {sum(ratios) / len(ratios):.4f}, min {ratios[0]:.4f}, max {ratios[-1]:.4f}")
sys.exit(ratios[-1] > 1 + 1e-6)
