"""The decomposition of `barista2019` beside Prophet itself: same series, same past, same seasonalities.

Both are fitted to the first 65 % and forecast the week that follows. Differences are mean absolute differences in per
cent of the mean value of the known part: of the forecast on the first day and on the week, and, over the known part, of
the trend and of the daily and weekly component (these two without their mean, which the trend may carry). The width is ours over
Prophet's (both 10 % to 90 %), the coverage the share of the week inside, the error the week's WAPE.

    cargo build --release -p forecaster --example decompose
    python prophet_plausibility.py --decompose target/release/examples/decompose SERIES.csv...
"""

import argparse
import io
import logging
import subprocess

from protocol import Series  # sets the number of threads first

import numpy as np
import pandas as pd
from prophet import Prophet

logging.getLogger("cmdstanpy").setLevel(logging.ERROR)
logging.getLogger("prophet").setLevel(logging.ERROR)


def prophet(series, until):
    np.random.seed(0)
    # The orders of the decomposition are Prophet's defaults; neither has a year.
    model = Prophet(daily_seasonality=True, weekly_seasonality=True, yearly_seasonality=False)
    model.fit(pd.DataFrame({"ds": series.times[: series.split], "y": series.y[: series.split]}))
    table = model.predict(pd.DataFrame({"ds": series.times[:until]}))
    return table.rename(columns={"yhat": "mean", "yhat_lower": "lower", "yhat_upper": "upper", "daily": "day", "weekly": "week"})


def ours(series, path, until, binary):
    command = [binary, path, str(series.split), str(until - series.split)]
    return pd.read_csv(io.StringIO(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def compare(path, binary):
    series = Series(path)
    until = min(series.n, series.split + series.week)
    a, b = ours(series, path, until, binary), prophet(series, until)
    known, week = slice(0, series.split), slice(series.split, until)
    first_day = slice(series.split, series.split + series.day)
    mean, truth = series.y[known].mean(), series.y[week]
    apart = lambda left, right: 100 * np.abs(left.to_numpy() - right.to_numpy()).mean() / mean
    cells = [series.name, f"{apart(a['mean'][first_day], b['mean'][first_day]):.1f}",
             f"{apart(a['mean'][week], b['mean'][week]):.1f}", f"{apart(a['trend'][known], b['trend'][known]):.1f}"]
    for name in ("day", "week"):
        left, right = (table[name][known] - table[name][known].mean() for table in (a, b))
        cells.append(f"{apart(left, right):.1f}")
    width = [(table["upper"] - table["lower"])[week].mean() for table in (a, b)]
    cells.append(f"{width[0] / width[1]:.2f}")
    for table in (a, b):
        inside = (truth >= table["lower"][week]) & (truth <= table["upper"][week])
        error = np.abs(truth - table["mean"][week]).sum() / truth.sum()
        cells.append(f"{100 * inside.mean():.0f} % / {100 * error:.0f} %")
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decompose", required=True)
    parser.add_argument("series", nargs="+")
    arguments = parser.parse_args()
    print("| series | forecast, day | week | trend | daily | weekly | width, ours / Prophet's | ours: inside / error | Prophet: inside / error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in arguments.series:
        compare(path, arguments.decompose)
