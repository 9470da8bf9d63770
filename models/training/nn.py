"""The little machine learning that the models need, in numpy: Adam, a schedule, im2col.

Everything is float32 and single-threaded; the caller seeds the generator. Shapes are written as
[N, C] (row = example) throughout.
"""

import numpy as np


class Adam:
    """Adam over a dict of parameter arrays, updated in place; `lr` is given per step."""

    def __init__(self, params):
        self.params = params
        self.m = {k: np.zeros_like(v) for k, v in params.items()}
        self.v = {k: np.zeros_like(v) for k, v in params.items()}
        self.t = 0

    def step(self, grads, lr):
        self.t += 1
        c1 = 1.0 - 0.9**self.t
        c2 = 1.0 - 0.999**self.t
        for k, g in grads.items():
            m, v = self.m[k], self.v[k]
            m *= np.float32(0.9)
            m += np.float32(0.1) * g
            v *= np.float32(0.999)
            v += np.float32(0.001) * g * g
            self.params[k] -= np.float32(lr) * (m / np.float32(c1)) / (
                np.sqrt(v / np.float32(c2)) + np.float32(1e-8)
            )


def cosine(step, steps, lr):
    """Learning rate at `step` of `steps`: a short linear warm-up, then half a cosine to 2 %."""
    warm = max(1, steps // 50)
    if step < warm:
        return lr * (step + 1) / warm
    x = (step - warm) / max(1, steps - warm)
    return lr * (0.02 + 0.98 * 0.5 * (1.0 + np.cos(np.pi * x)))


def clip_norm(grads, limit):
    """Scales all gradients together so that their joint 2-norm is at most `limit`."""
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads.values()))
    if norm > limit:
        for g in grads.values():
            g *= np.float32(limit / norm)


def sigmoid(x):
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1.0))


def he(rng, fan_in, shape):
    return rng.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)


def im2col(x, k, stride):
    """[N, H, W, C] to [N, Ho, Wo, k*k*C] with padding k // 2."""
    p = k // 2
    x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    w = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    w = w[:, ::stride, ::stride]  # [N, Ho, Wo, C, k, k]
    n, ho, wo = w.shape[:3]
    return w.transpose(0, 1, 2, 4, 5, 3).reshape(n, ho, wo, -1)


def col2im(cols, shape, k, stride):
    """The gradient of `im2col`: [N, Ho, Wo, k*k*C] summed back to `shape` = [N, H, W, C]."""
    p = k // 2
    n, h, w, c = shape
    _, ho, wo, _ = cols.shape
    out = np.zeros((n, h + 2 * p, w + 2 * p, c), np.float32)
    cols = cols.reshape(n, ho, wo, k, k, c)
    for i in range(k):
        for j in range(k):
            out[:, i : i + stride * ho : stride, j : j + stride * wo : stride] += cols[:, :, :, i, j]
    return out[:, p : p + h, p : p + w]
