"""A seeded simulator of bus and tram trips as HFP shows them, one row per second.

What it has: a made-up timetable in whole minutes, links with cruise and traffic lights, a delay that
moves as a mean-reverting walk over the links (late drivers hurry, early ones hold at timing points),
rush hours on weekdays, passengers and doors, late starts, a lay-over before the first departure.

The deviation `dl` is *reported* as the recorded feed reports it, which is not the true delay: while
waiting early it counts down in whole minutes; on a link it stays at the departure's value and grows
later when the vehicle falls behind the nominal speed, but never recovers; near the stop it jumps
back to timetable minus clock. The label is the true one: arrival minus scheduled arrival.
"""

import numpy as np

# Weekday peaks in UTC, (hour, width in hours, height): a city two hours ahead, with peaks at 8 and 16 o'clock there.
PEAKS_H = ((6.0, 1.1, 1.0), (14.0, 1.5, 0.8))
MONDAY = 1_700_438_400  # 2023-11-20T00:00:00Z


def rush(t):
    """0 (quiet) to about 1 (peak) at Unix time `t`."""
    day = int(t // 86400 + 3) % 7
    hour = (t % 86400) / 3600.0
    level = sum(a * np.exp(-0.5 * ((hour - m) / s) ** 2) for m, s, a in PEAKS_H)
    return level * (1.0, 1.0, 1.0, 1.0, 0.95, 0.25, 0.15)[day]


def speed_profile(rng, meters, seconds):
    """Metres per second for each of `seconds`, their sum `meters`: ramps, ripple, perhaps a red light."""
    i = np.arange(seconds)
    v = np.minimum(1.0, np.minimum(i + 1, seconds - i) / 8.0)
    if seconds > 40 and rng.random() < 0.5:
        red = int(rng.integers(5, min(40, seconds // 2)))
        at = int(rng.integers(8, seconds - red - 8)) if seconds - red > 17 else 8
        v *= np.clip(np.minimum(np.abs(i - at), np.abs(i - at - red)) / 5.0, 0.0, 1.0) * ((i < at) | (i > at + red))
    v = v * (1.0 + 0.12 * np.sin(i / 5.0 + rng.uniform(0, 6.3)))
    total = v.sum()
    return v * (meters / total) if total > 1.0 else np.full(seconds, meters / seconds)


class Rows:
    """Columns of a trip under construction, one entry per second."""

    def __init__(self):
        self.t, self.dl, self.speed, self.odo, self.doors, self.stop = [], [], [], [], [], []

    def add(self, t, dl, speed, odo, doors, stop):
        n = len(t)
        for column, v in zip(
            (self.t, self.dl, self.speed, self.odo, self.doors, self.stop), (t, dl, speed, odo, doors, stop)
        ):
            column.append(np.broadcast_to(np.asarray(v, np.float64), (n,)))

    def arrays(self):
        return [np.concatenate(c) for c in (self.t, self.dl, self.speed, self.odo, self.doors, self.stop)]


def minutes_left(seconds):
    """How a waiting vehicle reports that it is early: whole minutes, rounded down, less one second."""
    return np.where(seconds > 0, np.maximum(0.0, np.floor(seconds / 60.0) * 60.0 - 1.0), -np.floor(-seconds / 60.0) * 60.0)


def wait_at_stop(rng, rows, start, arrived_dl, due, leave, odo, doors_from, doors_to):
    """Rows from `start` to `leave` at one stop; `due` is the scheduled departure."""
    t = np.arange(np.ceil(start), leave)
    if not len(t):
        return
    left = due - t
    early = left > 0
    dl = np.where(early, minutes_left(left), min(0.0, arrived_dl) if arrived_dl is not None else minutes_left(left))
    if arrived_dl is not None:
        dl = np.where(early & (t - start < 15), max(arrived_dl, 0.0), dl)
        # The last seconds before departure show the delay in whole minutes.
        late = t > leave - 4
        dl = np.where(late & ~early, np.round(left / 60.0) * 60.0, dl)
    rows.add(t, dl, np.abs(rng.normal(0.05, 0.05, len(t))), np.round(odo), (t >= doors_from) & (t < doors_to), 1.0)


def simulate_trip(rng):
    """One trip: (columns at 1 Hz, arrivals [(time, delay_s)] at the second and later stops)."""
    n_stops = int(rng.integers(12, 31))
    link_m = np.clip(rng.lognormal(np.log(430.0), 0.45, n_stops - 1), 150.0, 2500.0)
    cruise = rng.normal(7.6, 0.9)
    begins = MONDAY + 86400 * int(rng.integers(0, 7)) + 60 * int(rng.integers(3 * 60, 22 * 60))
    # The timetable knows part of the rush hour, and only whole minutes.
    planned_run = link_m / max(cruise, 5.0) + 8.0
    planned = (planned_run + 14.0) * (1.0 + 0.08 * rush(begins))
    due = begins + np.concatenate([[0.0], np.floor(np.cumsum(planned) / 60.0) * 60.0])
    timing_point = rng.random(n_stops) < 0.15

    rows, arrivals = Rows(), []
    layover = rng.uniform(60.0, 420.0)
    late_start = rng.exponential(110.0) if rng.random() < 0.2 else rng.exponential(15.0)
    leave = begins + 2.0 + late_start
    doors = begins - rng.uniform(20.0, layover)
    wait_at_stop(rng, rows, begins - layover, None, due[0], leave, 0.0, doors, leave - 6.0)

    # A slow day or a fast driver for the whole trip, and congestion that carries over between links.
    trip_pace, pace, odo = rng.normal(0.0, 0.05), rng.normal(0.0, 0.08), 0.0
    sensitivity = rng.uniform(0.08, 0.25)
    nominal_speed = rng.uniform(0.9, 1.25)
    for stop in range(1, n_stops):
        late = leave - due[stop - 1]
        pace = 0.75 * pace + rng.normal(0.0, 0.09)
        hurry = 0.07 * np.clip(late / 300.0, -0.5, 1.0)
        run = planned_run[stop - 1] * np.exp(trip_pace + pace + sensitivity * rush(leave) - hurry)
        run = max(run + (rng.uniform(5, 30) if rng.random() < 0.3 else 0.0), link_m[stop - 1] / 16.0)
        seconds = max(12, int(round(run)))
        t = np.floor(leave) + np.arange(seconds)
        v = speed_profile(rng, link_m[stop - 1], seconds)
        covered = np.cumsum(v)
        behind = np.maximum.accumulate(
            np.maximum(0.0, (t - t[0]) - covered / link_m[stop - 1] * planned_run[stop - 1] / nominal_speed)
        )
        dl = -np.round(late + behind)
        arrive = float(t[-1] + 1)
        near = covered > link_m[stop - 1] - 45.0
        first_near = t[near][0]
        dl = np.where(near, -np.round(first_near - due[stop]), dl)
        rows.add(t, dl, np.maximum(0.0, v + rng.normal(0, 0.3, seconds)), np.round(odo + covered), 0.0, near)
        odo += link_m[stop - 1]
        delay = arrive - due[stop]
        arrivals.append((arrive, delay))
        if stop == n_stops - 1:
            break
        waiting = rng.poisson((0.7 + 2.0 * rush(arrive)) * (1.0 + 0.3 * np.clip(delay / 300.0, -0.5, 1.5)))
        if waiting == 0 and not (timing_point[stop] and delay < 0):
            leave = arrive  # passes without stopping
            continue
        dwell = 7.0 + 2.3 * waiting + abs(rng.normal(0.0, 3.0))
        leave = arrive + dwell
        if timing_point[stop]:
            leave = max(leave, due[stop] + 2.0)
        else:
            leave = max(leave, due[stop] - rng.uniform(20.0, 90.0))  # nobody leaves far too early
        wait_at_stop(rng, rows, arrive, -np.round(delay), due[stop], leave, odo, arrive + 2.0, leave - 5.0)
    return rows.arrays(), arrivals
