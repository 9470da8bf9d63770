"""`occupancy-gru.onnx`: a GRU over the last 48 half-minutes of a vehicle, for its load in five minutes.

No public HFP field is a usable label (`occu` is 0 or 100 on nearly every vehicle), so both input and
label are simulated: a passenger flow with peaks, stops, doors, capacity, and a counter at the doors
that is imperfect and only reports when they close.
"""

import numpy as np
from onnx import helper

from . import export, nn
from .trips import PEAKS_H

SEED = 20190624
STEPS, STEP_S, AHEAD = 48, 30, 10
FEATURES = [
    "occupancy_fraction",
    "boardings",
    "doors_open_fraction",
    "at_stop_fraction",
    "speed_mean_mps",
    "delay_s",
    "hour_sin",
    "hour_cos",
]
HIDDEN = 64
VEHICLES, TEST_VEHICLES = 7000, 1200
IO = {"input_name": "x", "output_name": "occupancy"}


def demand(hour, amplitude):
    """Boarding rate over the day (hours UTC), 0.5 = quiet, with the peaks of the simulated trips."""
    peaks = sum(height * np.exp(-0.5 * ((hour - at) / width) ** 2) for at, width, height in PEAKS_H)
    return 0.5 + amplitude * peaks


def vehicle(rng):
    """One vehicle for STEPS + AHEAD half-minutes: (features [STEPS, 8], true load AHEAD steps later)."""
    capacity = float(rng.choice([45, 70, 110]))
    amplitude, delay = rng.uniform(1.0, 4.0), rng.normal(60.0, 90.0)
    hour = rng.uniform(3.0, 22.0)
    stops_per_trip = int(rng.integers(10, 26))
    # Where on its trip the vehicle is, and where along it people get on and off.
    stop = int(rng.integers(0, stops_per_trip))
    centre = rng.uniform(0.2, 0.5)
    base = rng.uniform(0.02, 0.07) * capacity
    load = float(np.clip(rng.normal(0.25, 0.15), 0.0, 0.9)) * capacity * np.sin(np.pi * (stop + 0.5) / stops_per_trip)
    counted, to_next = load, int(rng.integers(1, 4))
    drift = rng.normal(0.0, 0.02)
    x, loads = np.zeros((STEPS, len(FEATURES)), np.float32), []
    for step in range(STEPS + AHEAD):
        to_next -= 1
        at_stop, doors, boarded = 0.0, 0.0, 0.0
        if to_next <= 0:
            place = (stop + 0.5) / stops_per_trip
            on_rate = base * demand(hour, amplitude) * np.exp(-0.5 * ((place - centre) / 0.22) ** 2) * 2.0
            off = rng.binomial(int(round(load)), min(1.0, 0.05 + place**2 * 0.35))
            if stop == stops_per_trip - 1:
                off = int(round(load))  # everybody off at the terminus
            boarded = float(min(rng.poisson(on_rate * (1.0 + np.clip(delay, 0, 600) / 900.0)), capacity - load + off))
            load = load - off + boarded
            counted = max(0.0, load * (1.0 + drift) + rng.normal(0.0, 0.6))
            moved = off + boarded
            at_stop, doors = min(1.0, 0.25 + 0.02 * moved), min(0.9, 0.03 * moved)
            delay = 0.95 * delay + rng.normal(2.0, 15.0) + 0.6 * moved
            stop += 1
            to_next = int(rng.integers(2, 5))
            if stop == stops_per_trip:  # lay-over, then the next trip
                stop, to_next, delay = 0, int(rng.integers(6, 16)), rng.exponential(20.0)
        loads.append(load / capacity)
        if step < STEPS:
            waiting = stop == 0 and to_next > 3
            speed = 0.0 if waiting else max(0.0, (1.0 - at_stop) * rng.normal(8.0, 1.5))
            angle = 2.0 * np.pi * hour / 24.0
            x[step] = (
                counted / capacity, boarded, doors, 1.0 if waiting else at_stop, speed, delay, np.sin(angle), np.cos(angle),
            )  # fmt: skip
        hour += STEP_S / 3600.0
    return x, loads[-1]


def dataset(rng, n):
    made = [vehicle(rng) for _ in range(n)]
    return np.stack([m[0] for m in made]), np.array([[m[1]] for m in made], np.float32)


def init(rng, n_in):
    """ONNX layout: gates z, r, h stacked; W [3H, F], R [3H, H], one bias for W and one for R."""
    h = HIDDEN
    q, _ = np.linalg.qr(rng.normal(size=(3 * h, h)))
    p = {
        "W": rng.normal(0.0, np.sqrt(1.0 / n_in), (3 * h, n_in)),
        "R": q * 1.2,
        "Wb": np.zeros(3 * h),
        "Rb": np.zeros(3 * h),
        "wo": rng.normal(0.0, 0.1, (h, 1)),
        "bo": np.full(1, -1.0),
    }
    p["Wb"][:h] = 1.0  # z near 1 keeps the old state: gradients reach the first step
    return {k: v.astype(np.float32) for k, v in p.items()}


def forward(p, x, keep=False):
    """x [N, T, F] normalised. Returns (occupancy [N, 1], what the backward pass needs)."""
    h = HIDDEN
    n, steps, _ = x.shape
    state = np.zeros((n, h), x.dtype)
    gates = x @ p["W"].T + p["Wb"]  # all steps at once
    tape = []
    for t in range(steps):
        from_state = state @ p["R"].T + p["Rb"]
        zr = nn.sigmoid(gates[:, t, : 2 * h] + from_state[:, : 2 * h])
        z, r = zr[:, :h], zr[:, h:]
        # linear_before_reset = 1: the reset gate scales R·h + b, not h.
        candidate = np.tanh(gates[:, t, 2 * h :] + r * from_state[:, 2 * h :])
        if keep:
            tape.append((state, z, r, from_state[:, 2 * h :], candidate))
        state = (1 - z) * candidate + z * state
    return nn.sigmoid(state @ p["wo"] + p["bo"]), (state, tape)


def backward(p, x, out, state, tape, d_out):
    """Gradients by back-propagation through all steps; d_out = dLoss/d(logit) [N, 1]."""
    h = HIDDEN
    g = {"wo": state.T @ d_out, "bo": d_out.sum(0), "R": np.zeros_like(p["R"])}
    d_gates = np.empty((*x.shape[:2], 3 * h), np.float32)
    rb = np.zeros(3 * h, np.float32)
    d = d_out @ p["wo"].T
    for t in range(x.shape[1] - 1, -1, -1):
        before, z, r, recurrent, candidate = tape[t]
        d_candidate = d * (1 - z) * (1 - candidate * candidate)
        d_z = d * (before - candidate) * z * (1 - z)
        d_r = d_candidate * recurrent * r * (1 - r)
        d_recurrent = np.concatenate([d_z, d_r, d_candidate * r], 1)
        d_gates[:, t] = np.concatenate([d_z, d_r, d_candidate], 1)
        g["R"] += d_recurrent.T @ before
        rb += d_recurrent.sum(0)
        d = d * z + d_recurrent @ p["R"]
    flat = d_gates.reshape(-1, 3 * h)
    g["W"] = flat.T @ x.reshape(-1, x.shape[2])
    g["Wb"], g["Rb"] = flat.sum(0), rb
    return g


def train(rng, x, y):
    """Adam on the square error of the fraction, batches of 64."""
    p = init(rng, x.shape[2])
    adam, batch, epochs = nn.Adam(p), 64, 16
    per_epoch = len(x) // batch
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        for i in range(per_epoch):
            rows = order[i * batch : (i + 1) * batch]
            out, (state, tape) = forward(p, x[rows], keep=True)
            d_out = (out - y[rows]) * out * (1 - out) * np.float32(20.0 / batch)
            grads = backward(p, x[rows], out, state, tape, d_out)
            nn.clip_norm(grads, 1.0)
            adam.step(grads, nn.cosine(epoch * per_epoch + i, epochs * per_epoch, 4e-3))
    return p


def fold(p, mean, std):
    """Normalisation folded into the input weights, so that the graph takes raw features."""
    w = p["W"].astype(np.float64) / std
    bias = p["Wb"].astype(np.float64) - w @ mean
    return {
        "W": w[None].astype(np.float32),
        "R": p["R"][None],
        "B": np.concatenate([bias, p["Rb"]])[None].astype(np.float32),
        "wo": p["wo"],
        "bo": p["bo"],
        "direction": np.array([0], np.int64),
    }


def reference(weights, x):
    """The exported graph in float64."""
    f = lambda v: v.astype(np.float64)
    b = f(weights["B"][0])
    p = {"W": f(weights["W"][0]), "R": f(weights["R"][0]), "Wb": b[: 3 * HIDDEN], "Rb": b[3 * HIDDEN :]}
    p |= {"wo": f(weights["wo"]), "bo": f(weights["bo"])}
    return forward(p, f(x))[0]


def write(path, weights):
    nodes = [
        helper.make_node("Transpose", ["x"], ["by_step"], perm=[1, 0, 2]),  # ONNX GRU is step-major
        helper.make_node("GRU", ["by_step", "W", "R", "B"], ["", "last"], hidden_size=HIDDEN, linear_before_reset=1),
        helper.make_node("Squeeze", ["last", "direction"], ["state"]),
        helper.make_node("Gemm", ["state", "wo", "bo"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["occupancy"]),
    ]
    doc = f"Load of a vehicle in {AHEAD * STEP_S} s, fraction of capacity. Features per {STEP_S} s: " + ", ".join(FEATURES)
    inputs, outputs = [("x", ["N", STEPS, len(FEATURES)])], [("occupancy", ["N", 1])]
    return export.save(path, "occupancy-gru", doc, nodes, weights, inputs, outputs)


def errors(predicted, truth):
    e = np.asarray(predicted, np.float64).ravel() - truth.astype(np.float64).ravel()
    return {"mae": round(float(np.abs(e).mean()), 4), "rmse": round(float(np.sqrt((e * e).mean())), 4)}


def build(path):
    """Trains and writes the file; returns (scores on held-out vehicles, test-vector cases)."""
    rng = np.random.default_rng(SEED)
    x, y = dataset(rng, VEHICLES)
    x_test, y_test = dataset(rng, TEST_VEHICLES)
    mean = x.mean((0, 1), dtype=np.float64)
    std = np.maximum(x.std((0, 1), dtype=np.float64), 1e-3)
    weights = fold(train(rng, ((x - mean) / std).astype(np.float32), y), mean, std)
    write(path, weights)
    export.agree(path, x_test[:256], reference(weights, x_test[:256]))

    scores = {
        "vehicles": len(x_test),
        "model": errors(export.run(path, x_test), y_test),
        "naive_persistence": errors(x_test[:, -1, 0], y_test),
        "naive_mean": errors(np.full(len(y_test), y.mean()), y_test),
    }
    answer = lambda tensor: reference(weights, tensor)
    size = (STEPS, len(FEATURES))
    vectors = [export.sine_case(answer, (1, *size), 0.0, 1.0), export.sine_case(answer, (3, *size), 0.5, 0.5)]
    return scores, vectors
