"""Time of one update and forecast on one core: `barista` against LightGBM and Prophet, in the same run.

Four horizons. `barista` learns a sample and forecasts with five quantiles at each horizon (`forecast_table`, which
replays the whole series: mean time a step; refits of its trees, made between two samples, are a second number).
LightGBM (one model a horizon) and Prophet are updated by a fit on everything before the last sample, once a day as in
the accuracy table, so a fit is spread over the day's steps; then they forecast the newest step, medians of five. They
give points only, which is less work than ours. CPU time where it is our own process, wall time where it is another, so
run it on an idle machine. Three series take about two minutes.

    python time.py --barista target/release/examples/forecast_table nasa_http.csv nyc_taxi.csv wc98.csv
"""

import argparse
import json
import logging
import pathlib
import subprocess
import tempfile
import time

from protocol import H, Series  # sets the number of threads first

import lightgbm
import numpy as np
import pandas as pd
from lightgbm_l1 import POINT, features
from prophet import Prophet

REPETITIONS = 5
for chatty in ("cmdstanpy", "prophet"):
    logging.getLogger(chatty).setLevel(logging.ERROR)


def cpu(function):
    """Result, and CPU microseconds."""
    began = time.process_time()
    result = function()
    return result, 1e6 * (time.process_time() - began)


def lightgbm_us(series):
    fit = forecast = 0.0
    for h in H:
        x, y = features(series, h), series.y
        rows = np.arange(series.week + h, series.n - 1)
        model, spent = cpu(lambda: lightgbm.LGBMRegressor(**POINT).fit(x[rows], y[rows] - y[rows - h]))
        fit += spent
        last = x[-1:]
        forecast += float(np.median([cpu(lambda: model.predict(last))[1] for _ in range(REPETITIONS)]))
    return fit, forecast


def prophet_us(series):
    frame = pd.DataFrame({"ds": series.times, "y": series.y})[:-1]
    future = pd.DataFrame({"ds": series.times[-1:]})
    model = Prophet(daily_seasonality=True, weekly_seasonality=True, yearly_seasonality=False)
    # Its optimiser is another process: wall time.
    began = time.perf_counter()
    model.fit(frame)
    fit = 1e6 * (time.perf_counter() - began)
    return fit, float(np.median([cpu(lambda: model.predict(future))[1] for _ in range(REPETITIONS)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--barista", required=True)
    parser.add_argument("series", nargs="+")
    arguments = parser.parse_args()
    print("| series | interval | barista: step, µs | + refits | LightGBM: daily fit a step, µs | + forecast | × barista | "
          "Prophet: daily fit a step, µs | + forecast | × barista |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for path in arguments.series:
        series = Series(path)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([arguments.barista, path, "--out", folder], check=True, stdout=subprocess.DEVNULL)
            times = json.loads((pathlib.Path(folder) / series.name / "ensemble.json").read_text())
        ours, refits = times["step_us"], times["background_us"]
        cells = [series.name, f"{1440 // series.day} min", f"{ours:.0f}", f"{refits:.0f}"]
        for fit, forecast in (lightgbm_us(series), prophet_us(series)):
            total = fit / series.day + forecast
            cells += [f"{fit / series.day:.0f}", f"{forecast:.0f}", f"{total / (ours + refits):.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
