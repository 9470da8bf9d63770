"""Table and plots of docs/benchmarks/paper.md: python3 bench/peers/paper.py docs/benchmarks FILE.jsonl...

FILE.jsonl holds reports of `simulate --out`, one a seed. The text between the marks in paper.md is replaced, and one plot a
trace is written beside it: cost against requests in SLO, a dot a policy.
"""

import json
import math
import os
import sys

folder, files = sys.argv[1], sys.argv[2:]
BEGIN, END = "<!-- made by bench/peers/paper.py -->", "<!-- end -->"
FEED = {"ours": "ensemble", "oracle": "oracle", "barista2019-no-forecast": "lastvalue", "barista2019-no-compensator": "barista2019trend"}


def feed(policy):
    return FEED.get(policy, "barista2019" if policy.startswith("barista2019") else None)


def plot(name, rows, path):
    """x: cost over the bound; y: share of requests out of SLO on a logarithmic scale."""
    width, height, left, top, bottom = 760, 420, 60, 30, 44
    most = max(r["ratio"] for r in rows) * 1.05
    low, high = 1e-5, 1.0
    x = lambda v: left + (width - left - 150) * (v - 0.95) / (most - 0.95)
    y = lambda miss: top + (height - top - bottom) * (math.log10(high) - math.log10(min(max(miss, low), high))) / (math.log10(high) - math.log10(low))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">']
    out.append(f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="18" font-size="14">{name}: cost over the bound, requests out of SLO</text>')
    for e in range(-5, 1):
        at = y(10**e)
        out.append(f'<line x1="{left}" x2="{width - 150}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/><text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{100 * 10**e:g} %</text>')
    at = y(0.01)
    out.append(f'<line x1="{left}" x2="{width - 150}" y1="{at:.1f}" y2="{at:.1f}" stroke="#c00" stroke-dasharray="4 3"/>')
    step = 0.2 if most < 3 else 1.0
    tick = 1.0
    while tick < most:
        out.append(f'<text x="{x(tick):.1f}" y="{height - 26}" text-anchor="middle">{tick:.1f}</text>')
        tick += step
    out.append(f'<text x="{left}" y="{height - 8}">cost, 1.0 is the clairvoyant bound; below the red line the objective of 99 % is met</text>')
    labels = []
    for r in sorted(rows, key=lambda r: y(r["miss"])):
        color = "#047857" if r["policy"] == "ours" else "#1d4ed8" if r["policy"].startswith("barista") else "#6b7280"
        px, py = x(r["ratio"]), y(r["miss"])
        fill = color if r["shedding"] else "white"
        out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{fill}" stroke="{color}" stroke-width="1.5"/>')
        ly = py + 4
        while any(abs(ly - o) < 11 and abs(px - p) < 190 for p, o in labels):
            ly += 11
        labels.append((px, ly))
        side = f'x="{px + 8:.1f}"' if px < 0.6 * width else f'x="{px - 8:.1f}" text-anchor="end"'
        out.append(f'<text {side} y="{ly:.1f}" fill="{color}">{r["policy"]}{"" if r["shedding"] else " (no shedding)"}</text>')
    out.append("</svg>")
    open(path, "w").write("\n".join(out))


lines = []
os.makedirs(f"{folder}/paper", exist_ok=True)
for path in files:
    reports = [json.loads(line) for line in open(path)]
    name, n = reports[0]["scenario"].removeprefix("paper-"), len(reports)
    mean = lambda values: sum(values) / len(values)
    groups = {}
    for report in reports:
        for run in report["policies"]:
            groups.setdefault((run["policy"], run["shedding"]), []).append(run)
    wape = {k: mean([r["forecasts"][0]["wape"][k] for r in reports]) for k in reports[0]["forecasts"][0]["wape"]}
    rows = []
    for (policy, shedding), runs in groups.items():
        of = lambda key: mean([r[key] for r in runs])
        rows.append({"policy": policy, "shedding": shedding, "ratio": of("ratio_to_bound"), "miss": 1 - of("attainment"), "minutes": of("minutes_ok"), "p95": of("p95_ms"), "starts": of("cold_starts"), "wape": wape.get(feed(policy))})
    bound = mean([r["bound_usd"] for r in reports])
    lines += [f"### {name}: {reports[0]['days']:.0f} days, {n} seed{'s' if n > 1 else ''}, bound {bound:.2f} USD", ""]
    lines += ["| policy | shedding | forecast error, % | × bound | in SLO, % | minutes ok, % | p95, ms | starts | meets 99 % and 98 % |", "|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        error = f"{100 * r['wape']:.2f}" if r["wape"] is not None else ""
        ok = r["miss"] <= 0.01 and r["minutes"] >= 0.98
        lines.append(f"| {r['policy']} | {'yes' if r['shedding'] else 'no'} | {error} | {r['ratio']:.3f} | {100 * (1 - r['miss']):.2f} | {100 * r['minutes']:.2f} | {r['p95']:.0f} | {r['starts']:.0f} | {'yes' if ok else ''} |")
    plot(name, rows, f"{folder}/paper/{name}.svg")
    lines += ["", f"![{name}](paper/{name}.svg)", ""]
text = open(f"{folder}/paper.md").read()
head, rest = text.split(BEGIN)
open(f"{folder}/paper.md", "w").write(head + BEGIN + "\n\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])
