"""`count-cnn.onnx`: passengers in a 96 x 96 picture from above, by a small strided CNN.

Trained on rendered pictures: floor, seats, bags, and heads with shoulders under them. Besides the
count, training uses where the heads are (the count is the sum of a density over the last feature
map), which is what lets so small a network learn in minutes; the exported graph gives the count only.
"""

import numpy as np
from onnx import helper

from . import export, nn

SEED = 20190625
SIDE, MAX_HEADS = 96, 24
TRAIN, TEST = 6000, 800
# Kernel 3, padding 1: (input channels, output channels, stride). 96 -> 48 -> 24 -> 24 -> 12 -> 12.
LAYERS = ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
MAP = 12
IO = {"input_name": "image", "output_name": "count"}

ROWS, COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


def ellipse(image, cy, cx, ry, rx, colour, soft=0.6):
    """Blends a soft-edged ellipse into `image` [SIDE, SIDE, 3]."""
    y0, y1 = max(0, int(cy - ry - 2)), min(SIDE, int(cy + ry + 3))
    x0, x1 = max(0, int(cx - rx - 2)), min(SIDE, int(cx + rx + 3))
    if y0 >= y1 or x0 >= x1:
        return
    y, x = ROWS[y0:y1, x0:x1], COLUMNS[y0:y1, x0:x1]
    inside = np.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2)
    alpha = np.clip((1.0 - inside) * min(ry, rx) / soft, 0.0, 1.0)[..., None]
    patch = image[y0:y1, x0:x1]
    patch += alpha * (colour - patch)


HAIR = np.array([[0.08, 0.06, 0.05], [0.25, 0.16, 0.1], [0.45, 0.3, 0.15], [0.75, 0.62, 0.4], [0.6, 0.6, 0.6]])


def picture(rng):
    """One picture [SIDE, SIDE, 3] in 0..1 and the head centres per cell of the last map [MAP, MAP]."""
    floor = rng.uniform(0.25, 0.7, 3) * 0.3 + rng.uniform(0.2, 0.6)
    slope = rng.uniform(-0.15, 0.15, 2)
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = floor + ((ROWS / SIDE - 0.5) * slope[0] + (COLUMNS / SIDE - 0.5) * slope[1])[..., None]
    seat = rng.uniform(0.1, 0.8, 3)
    for y in range(int(rng.integers(0, 12)), SIDE, int(rng.integers(16, 24))):
        for x in (4, 20, 62, 78):
            if rng.random() < 0.6:
                image[y : y + 11, x : x + 13] = seat * rng.uniform(0.9, 1.1)
    for _ in range(int(rng.integers(0, 5))):  # bags: dark, but angular
        y, x = rng.integers(0, SIDE - 10, 2)
        image[y : y + int(rng.integers(4, 10)), x : x + int(rng.integers(4, 10))] = rng.uniform(0.02, 0.6, 3)

    cells = np.zeros((MAP, MAP), np.float32)
    centres = []
    wanted = int(rng.integers(0, MAX_HEADS + 1))
    for _ in range(wanted * 20):
        if len(centres) == wanted:
            break
        y, x = rng.uniform(4.0, SIDE - 4.0, 2)
        if all((y - a) ** 2 + (x - b) ** 2 > 64.0 for a, b in centres):
            centres.append((y, x))
    for y, x in centres:
        r = rng.uniform(3.2, 5.0)
        upright = rng.random() < 0.5
        ellipse(image, y, x, r * (1.1 if upright else 1.9), r * (1.9 if upright else 1.1), rng.uniform(0.02, 0.95, 3))
        ellipse(image, y, x, r, r * rng.uniform(0.85, 1.1), HAIR[rng.integers(len(HAIR))] * rng.uniform(0.8, 1.2))
        cells[int(y) * MAP // SIDE, int(x) * MAP // SIDE] += 1.0
    image *= rng.uniform(0.7, 1.2)
    image += rng.normal(0.0, 0.03, image.shape).astype(np.float32)
    return np.clip(image, 0.0, 1.0), cells


def dataset(rng, n):
    """Pictures [n, SIDE, SIDE, 3] and cells [n, MAP, MAP]."""
    made = [picture(rng) for _ in range(n)]
    return np.stack([m[0] for m in made]), np.stack([m[1] for m in made])


def init(rng):
    p = {}
    for i, (c, d, _) in enumerate(LAYERS):
        p[f"w{i}"] = nn.he(rng, 9 * c, (9 * c, d))
        p[f"b{i}"] = np.zeros(d, np.float32)
    p["wo"] = nn.he(rng, LAYERS[-1][1], (LAYERS[-1][1], 1)) * np.float32(0.1)
    p["bo"] = np.zeros(1, np.float32)
    return p


def forward(p, x):
    """x [N, H, W, 3] -> (density [N, MAP, MAP], inputs and columns of every layer)."""
    tape = []
    for i, (_, _, stride) in enumerate(LAYERS):
        cols = nn.im2col(x, 3, stride)
        y = np.maximum(cols @ p[f"w{i}"] + p[f"b{i}"], 0)
        tape.append((x.shape, cols, y))
        x = y
    return (x @ p["wo"] + p["bo"])[..., 0], tape


def backward(p, tape, d_density):
    g = {}
    top = tape[-1][2]
    flat = d_density.reshape(-1, 1)
    g["wo"] = top.reshape(-1, top.shape[-1]).T @ flat
    g["bo"] = flat.sum(0)
    d = d_density[..., None] * p["wo"][:, 0]
    for i in range(len(LAYERS) - 1, -1, -1):
        shape, cols, y = tape[i]
        d = (d * (y > 0)).reshape(-1, y.shape[-1])
        g[f"w{i}"] = cols.reshape(-1, cols.shape[-1]).T @ d
        g[f"b{i}"] = d.sum(0)
        if i:
            d = nn.col2im((d @ p[f"w{i}"].T).reshape(cols.shape), shape, 3, LAYERS[i][2])
    return g


def blur(cells):
    """Spreads each head over its 3 x 3 neighbourhood: a centre on a cell's edge belongs to both."""
    k = np.array([0.2, 0.6, 0.2], np.float32)
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        c = np.pad(cells, pad, mode="edge")
        take = lambda o: np.take(c, np.arange(o, o + MAP), axis=axis)
        cells = k[0] * take(0) + k[1] * take(1) + k[2] * take(2)
    return cells


def train(rng, x, cells):
    """Adam on the square errors of the density and of the count; pictures mirrored at random."""
    p = init(rng)
    adam, batch, epochs = nn.Adam(p), 32, 12
    target, truth = blur(cells), cells.sum((1, 2))
    per_epoch = len(x) // batch
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        for i in range(per_epoch):
            rows = order[i * batch : (i + 1) * batch]
            flip_y, flip_x = rng.integers(0, 2, 2)
            turn = lambda a: a[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
            density, tape = forward(p, np.ascontiguousarray(turn(x[rows])))
            off = (density.sum((1, 2)) - truth[rows])[:, None, None]
            d = (density - turn(target[rows])) + np.float32(0.02) * np.clip(off, -4.0, 4.0)
            grads = backward(p, tape, (d / np.float32(batch)).astype(np.float32))
            nn.clip_norm(grads, 5.0)
            adam.step(grads, nn.cosine(epoch * per_epoch + i, epochs * per_epoch, 3e-3))
    return p


def onnx_weights(p):
    """ONNX layout: convolutions [out, in, 3, 3]; the sum over the map is its average times its size."""
    w = {}
    for i, (c, d, _) in enumerate(LAYERS):
        w[f"w{i}"] = np.ascontiguousarray(p[f"w{i}"].reshape(3, 3, c, d).transpose(3, 2, 0, 1))
        w[f"b{i}"] = p[f"b{i}"]
    w["wo"] = p["wo"] * np.float32(MAP * MAP)
    w["bo"] = p["bo"] * np.float32(MAP * MAP)
    return w


def reference(weights, x):
    """The exported graph in float64 on x [N, 3, H, W]."""
    y = x.astype(np.float64).transpose(0, 2, 3, 1)
    for i, (c, d, stride) in enumerate(LAYERS):
        w = weights[f"w{i}"].astype(np.float64).transpose(2, 3, 1, 0).reshape(9 * c, d)
        y = np.maximum(nn.im2col(y, 3, stride) @ w + weights[f"b{i}"], 0)
    return y.mean((1, 2)) @ weights["wo"].astype(np.float64) + weights["bo"]


def write(path, weights):
    nodes, x = [], "image"
    for i, (_, _, stride) in enumerate(LAYERS):
        nodes.append(
            helper.make_node(
                "Conv", [x, f"w{i}", f"b{i}"], [f"z{i}"], kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4
            )
        )
        nodes.append(helper.make_node("Relu", [f"z{i}"], [f"a{i}"]))
        x = f"a{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "wo", "bo"], ["count"]),
    ]
    doc = "Passengers seen from above. image: RGB, 0..1, planes of 96 x 96."
    inputs, outputs = [("image", ["N", 3, SIDE, SIDE])], [("count", ["N", 1])]
    return export.save(path, "count-cnn", doc, nodes, weights, inputs, outputs)


def errors(predicted, truth):
    e = np.asarray(predicted, np.float64).ravel() - truth.astype(np.float64).ravel()
    return {"mae": round(float(np.abs(e).mean()), 2), "rmse": round(float(np.sqrt((e * e).mean())), 2)}


def build(path):
    """Trains and writes the file; returns (scores on held-out pictures, test-vector cases)."""
    rng = np.random.default_rng(SEED)
    x, cells = dataset(rng, TRAIN)
    x_test, cells_test = dataset(rng, TEST)
    weights = onnx_weights(train(rng, x, cells))
    write(path, weights)
    planes = x_test.transpose(0, 3, 1, 2)
    export.agree(path, planes[:64], reference(weights, planes[:64]))

    truth = cells_test.sum((1, 2))
    predicted = np.concatenate([export.run(path, planes[i : i + 100]) for i in range(0, len(planes), 100)])
    scores = {
        "pictures": len(planes),
        "model": errors(predicted, truth),
        "rounded_exactly_right": round(float(np.mean(np.round(predicted.ravel()) == truth)), 3),
        "naive_mean": errors(np.full(len(truth), cells.sum((1, 2)).mean()), truth),
    }
    answer = lambda tensor: reference(weights, tensor)
    size = (3, SIDE, SIDE)
    vectors = [export.sine_case(answer, (1, *size), 0.5, 0.5), export.sine_case(answer, (2, *size), 0.5, 0.5, 0.037)]
    return scores, vectors
