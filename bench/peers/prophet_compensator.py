"""Prophet, and Prophet with a compensator that learns its error from the last five errors and its bounds.

This is how the method of BARISTA (IC2E 2019) is understood: y'(t) = f(forecast, upper, lower, last five errors). Both
a ridge and boosted trees are fitted for f.

    python prophet_compensator.py --out /tmp/peers SERIES.csv...
"""

import argparse
import logging
import time

from protocol import H, Series, save  # sets the number of threads first

import lightgbm
import numpy as np
import pandas as pd
from prophet import Prophet
from sklearn.linear_model import RidgeCV

logging.getLogger("cmdstanpy").setLevel(logging.ERROR)
logging.getLogger("prophet").setLevel(logging.ERROR)
LEVELS = [0.05, 0.1, 0.9, 0.95, 0.99]


def fit_and_predict(series, known, served):
    """Forecast and quantiles for the samples `served` by a model that knows the first `known`; times of fit, call."""
    began = time.perf_counter()
    model = Prophet(daily_seasonality=True, weekly_seasonality=True, uncertainty_samples=300)
    model.fit(pd.DataFrame({"ds": series.times[:known], "y": series.y[:known]}))
    fit_s = time.perf_counter() - began
    future = pd.DataFrame({"ds": series.times.to_numpy()[served]})
    began = time.perf_counter()
    model.predict(future[: max(H)])
    call_s = time.perf_counter() - began
    table = model.setup_dataframe(future.copy())
    table["trend"] = model.predict_trend(table)
    parts = model.predict_seasonal_components(table)
    point = (table["trend"] * (1 + parts["multiplicative_terms"]) + parts["additive_terms"]).to_numpy()
    samples = model.sample_posterior_predictive(table, vectorized=True)["yhat"]
    return point, np.quantile(samples, LEVELS, axis=1), fit_s, call_s


def run(series, out):
    np.random.seed(0)
    point, bounds = np.full(series.n, np.nan), np.full((len(LEVELS), series.n), np.nan)
    refits = series.refits(series.weekly())
    # The compensator learns from errors on samples that Prophet did not know: the last quarter of the train section.
    early = int(series.split * 0.75)
    fit_s, call_s = [], []
    for known, served in [(early, np.arange(early, series.split + max(H)))] + refits:
        point[served], bounds[:, served], fit, call = fit_and_predict(series, known, served)
        fit_s.append(fit)
        call_s.append(call)
    every_h = np.ones((1, len(H)))
    targets = series.targets
    times = dict(fit_s=float(np.mean(fit_s)), fits=len(fit_s), forecast_us=1e6 * float(np.median(call_s)))
    save(out, series, "prophet", point[targets][:, None] * every_h, bounds[3][targets][:, None] * every_h,
         bounds[4][targets][:, None] * every_h, **times)
    for kind in ("ridge", "trees"):
        compensate(series, out, kind, refits, early, point, bounds, times)


def compensate(series, out, kind, refits, early, point, bounds, times):
    errors = pd.Series(series.y - point)
    shape = (len(series.targets), len(H))
    result, q95, q99, first = np.zeros(shape), np.zeros(shape), np.zeros(shape), series.targets[0]
    for column, h in enumerate(H):
        lags = [errors.shift(h + lag).to_numpy() for lag in range(5)]
        x = np.column_stack([*lags, point, bounds[1], bounds[2]])
        usable = ~np.isnan(x).any(axis=1)
        for start, served in refits:
            train = np.arange(early, start)
            train = train[usable[train]]
            if kind == "ridge":
                scale = x[train].std(axis=0) + 1e-9
                model = RidgeCV(np.logspace(-3, 3, 7)).fit(x[train] / scale, series.y[train])
                residuals = series.y[train] - model.predict(x[train] / scale)
                forecast = model.predict(x[served] / scale)
            else:
                parameters = dict(n_estimators=200, learning_rate=0.05, num_leaves=15, min_child_samples=20,
                                  verbose=-1, n_jobs=1, random_state=0)
                held = int(len(train) * 0.8)
                trial = lightgbm.LGBMRegressor(**parameters).fit(x[train[:held]], series.y[train[:held]])
                residuals = series.y[train[held:]] - trial.predict(x[train[held:]])
                forecast = lightgbm.LGBMRegressor(**parameters).fit(x[train], series.y[train]).predict(x[served])
            rows = served - first
            result[rows, column] = np.clip(forecast, 0, None)
            q95[rows, column] = result[rows, column] + np.quantile(residuals, 0.95)
            q99[rows, column] = result[rows, column] + np.quantile(residuals, 0.99)
    save(out, series, f"prophet_{kind}", result, q95, q99, **times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("series", nargs="+")
    arguments = parser.parse_args()
    for path in arguments.series:
        run(Series(path), arguments.out)
