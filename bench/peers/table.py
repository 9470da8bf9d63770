"""One Markdown table of all forecasts that were written for the same series: `barista` and its peers.

Mean MASE over the horizons, pinball loss in per cent of the mean target, coverage pooled over the horizons, and the
ratio of `ensemble` to each peer, with 95 % intervals by a bootstrap of whole days (1,000 draws, seed 0).

    python table.py --forecasts /tmp/peers SERIES.csv...
"""

import argparse
import json
import pathlib

from protocol import H, Series  # sets the number of threads first

import numpy as np
import pandas as pd

OURS = "ensemble"
DRAWS = 1000
LEVELS = {"q95": 0.95, "q99": 0.99}


class Scores:
    """Loss and hits of one method by day: all that the table and the bootstrap need."""

    def __init__(self, series, path, naive):
        frame = pd.read_csv(path)
        expected = len(series.targets) * len(H)
        if len(frame) != expected:
            raise SystemExit(f"{path}: {len(frame)} rows, expected {expected}: another protocol or series")
        y = series.y[frame.target.to_numpy()]
        error = y - frame.point.to_numpy()
        columns = {"n": np.ones(expected), "y": y, "absolute": np.abs(error) / naive}
        for name, level in LEVELS.items():
            above = y - frame[name].to_numpy()
            columns[f"pinball_{name}"] = np.maximum(level * above, (level - 1) * above)
            columns[f"covered_{name}"] = np.where(np.isnan(above), np.nan, above <= 0)
        days = (frame.target.to_numpy() - series.targets[0]) // series.day
        self.by_day = pd.DataFrame(columns).groupby(days).sum(min_count=1).to_numpy()
        self.names = {name: place for place, name in enumerate(columns)}
        times = pathlib.Path(path).with_suffix(".json")
        self.times = json.loads(times.read_text()) if times.exists() else {}

    def sums(self, draws=None):
        """Column sums, for the days as they are or for each draw of days."""
        return self.by_day.sum(axis=0) if draws is None else self.by_day[draws].sum(axis=1)

    def ratio(self, over, under, draws=None):
        sums = self.sums(draws)
        return sums[..., self.names[over]] / sums[..., self.names[under]]


def interval(values):
    return np.quantile(values, [0.025, 0.975])


def rows(series, folder):
    train = series.y[: series.split]
    naive = min(np.mean(np.abs(train[season:] - train[:-season])) for season in (series.day, series.week))
    methods = {path.stem: Scores(series, path, naive) for path in sorted((folder / series.name).glob("*.csv"))}
    ours = methods[OURS]
    days = len(ours.by_day)
    draws = np.random.default_rng(0).integers(0, days, (DRAWS, days))
    for name, method in methods.items():
        row = {"series": series.name, "method": name, "mase": method.ratio("absolute", "n")}
        for quantile in LEVELS:
            row[f"pinball_{quantile}"] = 100 * method.ratio(f"pinball_{quantile}", "y")
            row[f"covered_{quantile}"] = 100 * method.ratio(f"covered_{quantile}", "n")
            row[f"interval_{quantile}"] = 100 * interval(method.ratio(f"covered_{quantile}", "n", draws))
        row["ratio"] = ours.ratio("absolute", "n") / row["mase"]
        row["ratio_interval"] = interval(ours.ratio("absolute", "n", draws) / method.ratio("absolute", "n", draws))
        row["times"] = method.times
        yield row


def number(value, digits=3):
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def spread(pair, digits=3):
    return "" if np.isnan(pair).any() else f"{pair[0]:.{digits}f}–{pair[1]:.{digits}f}"


def time_of(times):
    """Microseconds a step for update and forecast: learning spread over the steps, plus a forecast."""
    ours = times.get("step_us")
    if "background_us" in times:
        return f"{ours:.0f} + {times['background_us']:.0f}"
    if "fit_s" in times:
        learning = f" + {ours:.0f}" if ours else ""
        return f"{times['forecast_us']:.0f}{learning}"
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forecasts", required=True, type=pathlib.Path)
    parser.add_argument("series", nargs="+")
    arguments = parser.parse_args()
    table = [row for path in arguments.series for row in rows(Series(path), arguments.forecasts)]
    print("| series | method | mean MASE | ours / it (95 %) | pinball .95 | .99 | coverage .95 (95 %) | .99 (95 %) | µs a step |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in table:
        cells = [row["series"], row["method"], number(row["mase"]),
                 "" if row["method"] == OURS else f"{row['ratio']:.3f} ({spread(row['ratio_interval'])})"]
        cells += [number(row[f"pinball_{quantile}"]) for quantile in LEVELS]
        for quantile in LEVELS:
            covered = number(row[f"covered_{quantile}"], 2)
            cells.append(f"{covered} ({spread(row[f'interval_{quantile}'], 1)})" if covered else "")
        print("| " + " | ".join(cells + [time_of(row["times"])]) + " |")
    print()
    frame = pd.DataFrame(table)
    for column, title in (("mase", "MASE"), ("pinball_q95", "pinball .95"), ("pinball_q99", "pinball .99")):
        pivot = frame.pivot(index="method", columns="series", values=column).dropna()
        means = np.exp(np.log(pivot).mean(axis=1))
        print(f"Geometric mean of {title}:", ", ".join(f"{name} {value:.3f}" for name, value in means.items()))


if __name__ == "__main__":
    main()
