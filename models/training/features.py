"""The 16 features of `delay.onnx`, computed from the rows of one vehicle in one tumbling window.

This is the definition; models/README.md gives the same in SQL over `telemetry.vehicle`. Order and
units are part of the model's contract.
"""

import numpy as np

FEATURES = [
    "deviation_mean_s",
    "deviation_min_s",
    "deviation_max_s",
    "deviation_last_s",
    "rows",
    "speed_mean_mps",
    "speed_max_mps",
    "stopped_fraction",
    "doors_open_fraction",
    "at_stop_fraction",
    "distance_m",
    "elapsed_s",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
]
DEVIATION_LAST = FEATURES.index("deviation_last_s")


def window_features(t, deviation, speed, odometer, doors, at_stop):
    """Features of one window, or None when no row has a deviation.

    Arrays of its rows in time order: `t` in Unix seconds, NaN = null.
    """
    known = ~np.isnan(deviation)
    if not known.any():
        return None
    dl = deviation[known]
    moving = speed[~np.isnan(speed)]
    meters = odometer[~np.isnan(odometer)]
    hour = 2.0 * np.pi * (t[-1] % 86400.0) / 86400.0
    # 1970-01-01 was a Thursday: day 0 of the week is Monday.
    weekday = 2.0 * np.pi * ((t[-1] // 86400.0 + 3.0) % 7.0) / 7.0
    return [
        dl.mean(),
        dl.min(),
        dl.max(),
        dl[-1],
        len(t),
        moving.mean() if len(moving) else 0.0,
        moving.max() if len(moving) else 0.0,
        np.count_nonzero(moving < 0.5) / len(t),
        np.count_nonzero(doors == 1.0) / len(t),
        np.count_nonzero(at_stop) / len(t),
        meters.max() - meters.min() if len(meters) else 0.0,
        t[-1] - t[0],
        np.sin(hour),
        np.cos(hour),
        np.sin(weekday),
        np.cos(weekday),
    ]
