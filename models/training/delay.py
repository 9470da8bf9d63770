"""`delay.onnx`: a 16-64-64-1 perceptron for the arrival delay at the next stop."""

import numpy as np
from onnx import helper

from . import export, nn
from .features import DEVIATION_LAST, FEATURES, window_features
from .trips import simulate_trip

SEED = 20190623
TRIPS, TEST_TRIPS, WINDOWS_PER_TRIP = 5000, 800, 24
WINDOW_S = (10, 15, 20, 30, 60)
HIDDEN = 64
# Two of the 64 units of each hidden layer carry -deviation_last_s through the rectifiers unchanged,
# as relu(z) - relu(-z): the network adds a learned correction to "the delay of now persists", and
# stays sensible for delays larger than any it was trained on. The graph remains a plain perceptron.
CARRY = 2
LEARNED = HIDDEN - CARRY
IO = {"input_name": "features", "output_name": "delay_s"}


def windows_of_trip(rng):
    """A few windows of one simulated trip, thinned and torn as real telemetry is."""
    (t, dl, speed, odo, doors, stop), arrivals = simulate_trip(rng)
    # Most vehicles report every second, some more rarely; some report no speed; a little gets lost.
    period = rng.choice([1, 2, 5, 10], p=[0.7, 0.1, 0.1, 0.1])
    keep = (np.arange(len(t)) % period == 0) & (rng.random(len(t)) > 0.02)
    t, dl, speed, odo, doors, stop = (c[keep] for c in (t, dl, speed, odo, doors, stop))
    if rng.random() < 0.15:
        speed = np.full(len(t), np.nan)
    dl = np.where(rng.random(len(t)) < 0.01, np.nan, dl)
    width = int(rng.choice(WINDOW_S))
    when, late = np.array(arrivals).T
    pane = t // width
    panes = np.unique(pane)
    panes = np.sort(rng.permutation(panes)[:WINDOWS_PER_TRIP])
    x, y = [], []
    for p in panes:
        following = np.searchsorted(when, (p + 1) * width, side="left")
        if following == len(when):
            continue
        rows = slice(*np.searchsorted(pane, [p, p + 1]))
        row = window_features(*(c[rows] for c in (t, dl, speed, odo, doors, stop)))
        if row is not None:
            x.append(row)
            y.append(late[following])
    return x, y


def dataset(rng, trips):
    xs, ys = [], []
    for _ in range(trips):
        x, y = windows_of_trip(rng)
        xs += x
        ys += y
    return np.array(xs, np.float32), np.array(ys, np.float32)[:, None]


def forward(p, x):
    a1 = np.maximum(x @ p["w0"] + p["b0"], 0)
    a2 = np.maximum(a1 @ p["w1"] + p["b1"], 0)
    return a1, a2, a2 @ p["w2"] + p["b2"]


def train(rng, x, y, scale):
    """Adam on a Huber loss (one minute is where it turns linear) of the scaled correction."""
    sizes = (len(FEATURES), LEARNED, LEARNED, 1)
    p = {}
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        p[f"w{i}"] = nn.he(rng, a, (a, b)) * np.float32(0.1 if i == 2 else 1.0)
        p[f"b{i}"] = np.zeros(b, np.float32)
    adam, batch, epochs = nn.Adam(p), 256, 40
    per_epoch = len(x) // batch
    limit = np.float32(60.0 / scale)
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        for i in range(per_epoch):
            rows = order[i * batch : (i + 1) * batch]
            xb = x[rows]
            a1, a2, out = forward(p, xb)
            g = np.clip(out - y[rows], -limit, limit) / np.float32(batch)
            g2 = (g @ p["w2"].T) * (a2 > 0)
            g1 = (g2 @ p["w1"].T) * (a1 > 0)
            grads = {
                "w2": a2.T @ g, "b2": g.sum(0),
                "w1": a1.T @ g2, "b1": g2.sum(0),
                "w0": xb.T @ g1, "b0": g1.sum(0),
            }  # fmt: skip
            adam.step(grads, nn.cosine(epoch * per_epoch + i, epochs * per_epoch, 2e-3))
    return p


def fold(p, mean, std, scale):
    """One plain perceptron on raw features: normalisation, output scale and carry folded in (float64)."""
    p = {k: v.astype(np.float64) for k, v in p.items()}
    n = len(FEATURES)
    w0, b0 = np.zeros((n, HIDDEN)), np.zeros(HIDDEN)
    w1, b1 = np.zeros((HIDDEN, HIDDEN)), np.zeros(HIDDEN)
    w2 = np.zeros((HIDDEN, 1))
    w0[:, :LEARNED] = p["w0"] / std[:, None]
    b0[:LEARNED] = p["b0"] - (mean / std) @ p["w0"]
    w1[:LEARNED, :LEARNED] = p["w1"]
    b1[:LEARNED] = p["b1"]
    w2[:LEARNED] = p["w2"] * scale
    for unit, sign in ((LEARNED, 1.0), (LEARNED + 1, -1.0)):
        w0[DEVIATION_LAST, unit] = -sign
        w1[unit, unit] = 1.0
        w2[unit] = sign
    weights = {"w0": w0, "b0": b0, "w1": w1, "b1": b1, "w2": w2, "b2": p["b2"] * scale}
    return {k: v.astype(np.float32) for k, v in weights.items()}


def reference(weights, x):
    """The exported graph in float64."""
    w = {k: v.astype(np.float64) for k, v in weights.items()}
    return forward(w, x.astype(np.float64))[2]


def write(path, weights):
    nodes = [
        helper.make_node("Gemm", ["features", "w0", "b0"], ["z0"]),
        helper.make_node("Relu", ["z0"], ["a0"]),
        helper.make_node("Gemm", ["a0", "w1", "b1"], ["z1"]),
        helper.make_node("Relu", ["z1"], ["a1"]),
        helper.make_node("Gemm", ["a1", "w2", "b2"], ["delay_s"]),
    ]
    doc = "Arrival delay at the next stop, seconds, positive = late. Features: " + ", ".join(FEATURES)
    inputs, outputs = [("features", ["N", len(FEATURES)])], [("delay_s", ["N", 1])]
    return export.save(path, "delay", doc, nodes, weights, inputs, outputs)


def errors(predicted, truth):
    e = np.asarray(predicted, np.float64).ravel() - np.asarray(truth, np.float64).ravel()
    return {"mae_s": round(float(np.abs(e).mean()), 1), "rmse_s": round(float(np.sqrt((e * e).mean())), 1)}


def scores(path, x, y):
    """The model against two naive guesses: the reported deviation persists; punctual."""
    return {
        "windows": len(x),
        "model": errors(export.run(path, x), y),
        "naive_persistence": errors(-x[:, DEVIATION_LAST], y),
        "naive_punctual": errors(np.zeros(len(x)), y),
    }


def build(path):
    """Trains and writes the file; returns (scores on held-out trips, test-vector cases)."""
    rng = np.random.default_rng(SEED)
    x, y = dataset(rng, TRIPS)
    x_test, y_test = dataset(rng, TEST_TRIPS)
    mean = x.mean(0, dtype=np.float64)
    std = np.maximum(x.std(0, dtype=np.float64), 1e-3)
    target = y + x[:, DEVIATION_LAST : DEVIATION_LAST + 1]
    scale = float(target.std())
    normal = ((x - mean) / std).astype(np.float32)
    weights = fold(train(rng, normal, (target / scale).astype(np.float32), scale), mean, std, scale)
    write(path, weights)
    export.agree(path, x_test[:256], reference(weights, x_test[:256]))

    cases = np.round(x_test[[0, len(x_test) // 3, len(x_test) // 2, -1]], 3).astype(np.float32)
    rows = [[round(float(v), 3) for v in row] for row in cases]
    vectors = [export.case(cases, reference(weights, cases), {"rows": rows})]
    return scores(path, x_test, y_test), vectors
