"""Tables of docs/benchmarks/planning.md from the JSON lines of `sim`'s example `simulate --seeds N --json`.

    python3 bench/peers/planning_table.py FILE.jsonl [--sort]

One row a policy: mean over seeds and the half-width of the 95 % confidence interval (Student's t). `ok` says whether
every mean meets 99.0 % of requests and 98 % of minutes.
"""

import json
import math
import sys

T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def interval(values):
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, None
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, T95.get(n - 1, 1.96) * math.sqrt(variance / n)


def show(values, digits, scale=1.0):
    mean, half = interval([v * scale for v in values])
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


for path in [a for a in sys.argv[1:] if not a.startswith("--")]:
    rows, bounds, head, reports = {}, [], None, []
    for line in open(path):
        report = json.loads(line)
        head = report
        reports.append(report)
        bounds.append(report["bound_usd"])
        for run in report["policies"]:
            rows.setdefault((run["policy"], run["shedding"]), []).append(run)
    n = len(bounds)
    print(f"**{head['scenario']}**: {head['days']:.0f} days, {n} seed{'s' if n > 1 else ''}, bound {show(bounds, 2)} USD")
    for key, what in [("floor_usd", "with 98 % of the minutes good"), ("queueing_usd", "and with queueing (reference)")]:
        ratios = [r[key] / r["bound_usd"] for r in reports if r.get(key)]
        if ratios:
            print(f"; {what}: {show(ratios, 3)}")
    wape = {}
    for report in reports:
        for service in report.get("forecasts", []):
            for feed, value in service["wape"].items():
                wape.setdefault(feed, []).append(value)
    if wape:
        print("; forecast error (WAPE of one step, %): " + ", ".join(f"{f} {show(v, 2, 100)}" for f, v in wape.items()))
    print()
    print("| policy | shedding | × bound | in SLO, % | minutes ok, % | p50 / p95 / p99 ms | starts | wasted, % | ok |")
    print("|---|---|---|---|---|---|---|---|---|")
    mean = lambda runs, key: sum(r[key] for r in runs) / len(runs)
    for (policy, shedding), runs in rows.items():
        ok = mean(runs, "attainment") >= 0.99 and mean(runs, "minutes_ok") >= 0.98
        of = lambda key: [r[key] for r in runs]
        print(
            f"| {policy} | {'yes' if shedding else 'no'} | {show(of('ratio_to_bound'), 3)} | {show(of('attainment'), 2, 100)} "
            f"| {show(of('minutes_ok'), 2, 100)} | {mean(runs, 'p50_ms'):.0f} / {mean(runs, 'p95_ms'):.0f} / {mean(runs, 'p99_ms'):.0f} "
            f"| {mean(runs, 'cold_starts'):.0f} | {100 * mean(runs, 'wasted'):.0f} | {'yes' if ok else ''} |"
        )
    print()
