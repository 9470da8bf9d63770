"""The protocol that `barista backtest` runs, for peers written in Python.

The first 65 % of a series are not scored. Targets are all j in [split + 12, n), forecast from origin j - h for each h
in H, the same for every method. Batch methods refit on everything before r and serve the targets in
[r + 12, next r + 12). A forecast file has one row `target,h,point,q95,q99` for each target and horizon (quantiles may
be empty), and a JSON file beside it holds the times.
"""

import json
import os
import pathlib

# One core for everyone: must be set before numpy is loaded.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import numpy as np
import pandas as pd

H = [1, 2, 6, 12]
TRAIN = 0.65


class Series:
    """One `timestamp,value` file on its regular grid."""

    def __init__(self, path):
        frame = pd.read_csv(path)
        self.name = pathlib.Path(path).stem
        self.times = pd.to_datetime(frame.timestamp).dt.tz_localize(None)
        self.y = frame.value.to_numpy(float)
        steps = self.times.diff().dropna().unique()
        if len(steps) != 1:
            raise SystemExit(f"{path}: not on a regular grid")
        self.day = int(pd.Timedelta(days=1) / steps[0])
        self.week = 7 * self.day
        self.n = len(self.y)
        self.split = int(self.n * TRAIN)
        self.targets = np.arange(self.split + max(H), self.n)

    def refits(self, every):
        """First sample that the k-th fit does not know, and the targets that this fit serves."""
        starts = list(range(self.split, self.n - max(H), every))
        ends = [start + max(H) for start in starts[1:]] + [self.n]
        return [(start, np.arange(start + max(H), end)) for start, end in zip(starts, ends)]

    def weekly(self):
        """Steps between two refits of the slower peers: a week, or a sixth of the test section if that is longer."""
        return max(self.week, -(-(self.n - self.split) // 6))


def save(out, series, method, point, q95=None, q99=None, **times):
    """`point` and the quantiles have a row a target and a column a horizon."""
    folder = pathlib.Path(out) / series.name
    folder.mkdir(parents=True, exist_ok=True)
    empty = np.full_like(point, np.nan)
    columns = {
        "target": np.repeat(series.targets, len(H)),
        "h": np.tile(H, len(series.targets)),
        "point": np.clip(point, 0, None).ravel(),
        "q95": np.clip(empty if q95 is None else q95, 0, None).ravel(),
        "q99": np.clip(empty if q99 is None else q99, 0, None).ravel(),
    }
    pd.DataFrame(columns).to_csv(folder / f"{method}.csv", index=False, float_format="%.6g")
    (folder / f"{method}.json").write_text(json.dumps(times))
    print(series.name, method, {key: round(value, 3) for key, value in times.items()}, flush=True)
