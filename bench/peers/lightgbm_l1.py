"""LightGBM on y[t+h] - y[t] with L1 loss, one model a horizon, refitted daily (or weekly: --every week).

Features: twelve lags, day and week lags at target and origin, two weeks, running means, hour and weekday. Quantiles
are separate models with the quantile loss on the same target, refitted by the weekly schedule.

    python lightgbm_l1.py --out /tmp/peers SERIES.csv...
"""

import argparse
import time

from protocol import H, Series, save  # sets the number of threads first

import lightgbm
import numpy as np
import pandas as pd

POINT = dict(objective="l1", n_estimators=400, learning_rate=0.04, num_leaves=31, min_child_samples=20,
             subsample=0.8, subsample_freq=1, colsample_bytree=0.8, verbose=-1, n_jobs=1, random_state=0)
QUANTILE = dict(objective="quantile", n_estimators=150, learning_rate=0.08, num_leaves=31, min_child_samples=40,
                verbose=-1, n_jobs=1, random_state=0)


def features(series, h):
    """Row j: what is known at j - h about the target j."""
    s, columns = pd.Series(series.y), {}
    for lag in range(12):
        columns[f"lag{lag}"] = s.shift(h + lag)
    for name, season in (("day", series.day), ("week", series.week)):
        for offset in (-1, 0, 1):
            columns[f"{name}{offset}"] = s.shift(season + offset) if season + offset >= h else s.shift(h)
        columns[f"origin_{name}"] = s.shift(season + h)
    columns["two_weeks"] = s.shift(2 * series.week)
    columns["mean12"] = s.rolling(12).mean().shift(h)
    columns["mean_day"] = s.rolling(series.day).mean().shift(h)
    columns["mean_week"] = s.rolling(series.week, min_periods=series.day).mean().shift(h)
    frame = pd.DataFrame(columns)
    frame["time"] = (series.times.dt.hour * 60 + series.times.dt.minute).to_numpy()
    frame["weekday"] = series.times.dt.day_of_week.to_numpy()
    return frame.to_numpy()


def run(series, every, out, method):
    first = series.targets[0]
    shape = (len(series.targets), len(H))
    point, q95, q99 = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    fits, fit_s, one_row_s = 0, 0.0, []
    for column, h in enumerate(H):
        x = features(series, h)
        last = np.concatenate([np.full(h, np.nan), series.y[:-h]])
        change = series.y - last
        usable = np.arange(series.n) >= series.week + h
        for refits, jobs in (
            (series.refits(every), [(point, POINT)]),
            (series.refits(series.weekly()), [(q95, QUANTILE | {"alpha": 0.95}), (q99, QUANTILE | {"alpha": 0.99})]),
        ):
            for start, served in refits:
                train = np.flatnonzero(usable[:start])
                for result, parameters in jobs:
                    began = time.perf_counter()
                    model = lightgbm.LGBMRegressor(**parameters).fit(x[train], change[train])
                    if result is point:
                        fits, fit_s = fits + 1, fit_s + time.perf_counter() - began
                        for row in served[:3]:
                            began = time.perf_counter()
                            model.predict(x[row : row + 1])
                            one_row_s.append(time.perf_counter() - began)
                    result[served - first, column] = last[served] + model.predict(x[served])
    save(out, series, method, point, q95, np.maximum(q95, q99), fit_s=fit_s / fits, fits=fits,
         forecast_us=1e6 * float(np.median(one_row_s)) * len(H), step_us=1e6 * fit_s / (series.n - series.split))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--every", choices=["day", "week"], default="day")
    parser.add_argument("series", nargs="+")
    arguments = parser.parse_args()
    for path in arguments.series:
        one = Series(path)
        every, method = (one.day, "lightgbm") if arguments.every == "day" else (one.weekly(), "lightgbm_weekly")
        run(one, every, arguments.out, method)
