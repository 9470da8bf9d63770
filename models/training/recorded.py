"""Scores `delay.onnx` on a recording of HFP v2: real vehicles, a model that saw only simulated ones.

A line is `<receive time> <topic> <payload>`; the topic may hold spaces, so it ends at the first ` {`.
The recording is small and torn (few vehicles, windows around the ends of trips), so the figure is an
anecdote with its sample size beside it. Label: `tst` of the next ARS or PAS of the same trip minus
`ttarr`; a window counts only if the vehicle is heard at least every 90 s until then, otherwise the
next arrival seen need not be the next stop.
"""

import json
from collections import defaultdict
from datetime import datetime

import numpy as np

from .features import window_features

GAP_S = 90.0


def seconds(stamp):
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def number(v):
    return float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else np.nan


def trips(path):
    """Distinct messages by trip (topic operator, vehicle, operating day, start, route), in time order."""
    seen, by_trip = set(), defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        rest = line.split(" ", 1)[1]
        cut = rest.index(" {")
        topic, payload = rest[:cut], rest[cut + 1 :]
        if (topic, payload) in seen:
            continue
        seen.add((topic, payload))
        levels = topic.split("/")
        if len(levels) < 10 or levels[3] != "journey" or levels[4] != "ongoing":
            continue
        ((event, body),) = json.loads(payload).items()
        trip = (levels[7], levels[8], body.get("oday"), body.get("start"), body.get("route"))
        if None not in trip:
            by_trip[trip].append((seconds(body["tst"]), event, body))
    for rows in by_trip.values():
        rows.sort(key=lambda r: r[0])
    return by_trip


def samples_of_trip(rows, width):
    """(features, delay) of the windows of one trip that have a certain next arrival."""
    t = np.array([r[0] for r in rows])
    column = lambda k: np.array([number(r[2].get(k)) for r in rows])
    dl, speed, odo, doors = column("dl"), column("spd"), column("odo"), column("drst")
    at_stop = np.array([r[2].get("stop") is not None for r in rows])
    arrivals = [(r[0], r[0] - seconds(r[2]["ttarr"])) for r in rows if r[1] in ("ARS", "PAS") and r[2].get("ttarr")]
    out = []
    for pane in np.unique(t // width):
        end = (pane + 1) * width
        arrival = next((a for a in arrivals if a[0] >= end), None)
        if arrival is None:
            continue
        lo, hi = np.searchsorted(t, [pane * width, end])
        heard = np.append(t[(t >= t[hi - 1]) & (t < arrival[0])], arrival[0])
        if np.max(np.diff(heard)) > GAP_S:
            continue
        x = window_features(*(c[lo:hi] for c in (t, dl, speed, odo, doors, at_stop)))
        if x is not None:
            out.append((x, arrival[1]))
    return out


def score_width(model, by_trip, scores_of, width):
    """The figures for windows of `width` seconds."""
    x, y, stops, vehicles = [], [], set(), set()
    for trip, rows in by_trip.items():
        found = samples_of_trip(rows, width)
        for features, delay in found:
            x.append(features)
            y.append(delay)
            stops.add((trip, round(delay, 3)))
        if found:
            vehicles.add(trip[:2])
    if not x:
        raise SystemExit(f"no window of {width} s with a certain next arrival")
    result = scores_of(model, np.array(x, np.float32), np.array(y, np.float32))
    return {"window_s": width, "vehicles": len(vehicles), "arrivals": len(stops), **result}


def score(model, recording, scores_of):
    """The figures of models/README.md for one recording, one entry for each width of window."""
    by_trip = trips(recording)
    return [score_width(model, by_trip, scores_of, width) for width in (10, 15, 30, 60)]
