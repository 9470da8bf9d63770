// One step of a gated recurrent unit.
#include "common.cuh"

// ONNX GRU with linear_before_reset = 1. With xw = x W' + bW (already multiplied for the whole sequence), gates in the
// order z, r, n:
//   z = sigmoid(xw_z + h R_z' + b_z)   r = sigmoid(xw_r + h R_r' + b_r)
//   n = tanh(xw_n + r * (h R_n' + b_n))   h' = (1 - z) * n + z * h
// xw points at step t of row 0; row b is `xw_stride` further. rt is R' packed [K = hidden, 3*hidden]. The new state goes
// to `next` and, when y is not null, to y (row stride `y_stride`).
// A block computes 32 units of one row; its eight warps share the sum over the old state.
// Grid (ceil(hidden/32), rows), block (32, 8).
extern "C" __global__ void __launch_bounds__(256) gru_step_f32(const float* __restrict__ xw,
    const float* __restrict__ rt, const float* __restrict__ rb, const float* __restrict__ prev,
    float* __restrict__ next, float* __restrict__ y, int hidden, int xw_stride, int y_stride) {
  __shared__ float part[3][8][33];
  const int lane = threadIdx.x, slice = threadIdx.y, u = blockIdx.x * 32 + lane, row = blockIdx.y;
  const float* h = prev + (size_t)row * hidden;
  float acc[3] = {};
  if (u < hidden) {
    for (int k = slice; k < hidden; k += 8) {
      const float v = h[k];
      const float* r = rt + (size_t)k * 3 * hidden + u;
#pragma unroll
      for (int g = 0; g < 3; ++g) acc[g] = fmaf(v, r[(size_t)g * hidden], acc[g]);
    }
  }
#pragma unroll
  for (int g = 0; g < 3; ++g) part[g][slice][lane] = acc[g];
  __syncthreads();
  if (slice != 0 || u >= hidden) return;
  float s[3];
#pragma unroll
  for (int g = 0; g < 3; ++g) {
    s[g] = rb[g * hidden + u];
#pragma unroll
    for (int i = 0; i < 8; ++i) s[g] += part[g][i][lane];
  }
  const float* x = xw + (size_t)row * xw_stride;
  const float z = sigmoid(x[u] + s[0]), r = sigmoid(x[hidden + u] + s[1]);
  const float n = tanhf(x[2 * hidden + u] + r * s[2]);
  const float out = (1.f - z) * n + z * h[u];
  next[(size_t)row * hidden + u] = out;
  if (y) y[(size_t)row * y_stride + u] = out;
}
