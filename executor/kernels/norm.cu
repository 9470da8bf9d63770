// Softmax, normalisations, reductions. A tensor is seen as [outer, n, inner]; the work runs along n.
#include "common.cuh"

// y = exp(x - max) / sum(exp(x - max)) along n; one warp per line. Grid ceil(outer*inner/4), block (32, 4).
extern "C" __global__ void __launch_bounds__(128) softmax_f32(const float* __restrict__ x, float* __restrict__ y,
    int outer, int n, int inner) {
  const int line = blockIdx.x * 4 + threadIdx.y, lane = threadIdx.x;
  if (line >= outer * inner) return;
  const size_t base = (size_t)(line / inner) * n * inner + line % inner;
  float top = -3.402823466e38f;
  for (int c = lane; c < n; c += 32) top = fmaxf(top, x[base + (size_t)c * inner]);
  top = warp_max(top);
  float sum = 0.f;
  for (int c = lane; c < n; c += 32) sum += expf(x[base + (size_t)c * inner] - top);
  const float inv = 1.f / warp_sum(sum);
  for (int c = lane; c < n; c += 32) y[base + (size_t)c * inner] = expf(x[base + (size_t)c * inner] - top) * inv;
}

// y = (x - mean) / sqrt(var + eps) * gain + shift along the last axis; var is the population variance, taken in a
// second pass. gain and shift hold n elements. Grid rows, block 128.
extern "C" __global__ void __launch_bounds__(128) layer_norm_f32(const float* __restrict__ x,
    const float* __restrict__ gain, const float* __restrict__ shift, float* __restrict__ y, int n, float eps) {
  __shared__ float part[32];
  const float* row = x + (size_t)blockIdx.x * n;
  float* out = y + (size_t)blockIdx.x * n;
  float s = 0.f;
  for (int c = threadIdx.x; c < n; c += 128) s += row[c];
  const float mean = block_sum(s, part) / n;
  float q = 0.f;
  for (int c = threadIdx.x; c < n; c += 128) {
    const float d = row[c] - mean;
    q = fmaf(d, d, q);
  }
  const float inv = 1.f / sqrtf(block_sum(q, part) / n + eps);
  for (int c = threadIdx.x; c < n; c += 128) out[c] = fmaf((row[c] - mean) * inv, gain[c], shift[c]);
}

// y = x / sqrt(mean(x^2) + eps) along n. Grid outer*inner, block 128.
extern "C" __global__ void __launch_bounds__(128) rms_norm_f32(const float* __restrict__ x, float* __restrict__ y,
    int n, int inner, float eps) {
  __shared__ float part[32];
  const size_t base = (size_t)(blockIdx.x / inner) * n * inner + blockIdx.x % inner;
  float q = 0.f;
  for (int c = threadIdx.x; c < n; c += 128) {
    const float v = x[base + (size_t)c * inner];
    q = fmaf(v, v, q);
  }
  const float inv = 1.f / sqrtf(block_sum(q, part) / n + eps);
  for (int c = threadIdx.x; c < n; c += 128) y[base + (size_t)c * inner] = x[base + (size_t)c * inner] * inv;
}

enum { RED_SUM = 0, RED_MAX = 1, RED_MIN = 2, RED_PROD = 3, RED_MEAN_SQUARE = 4 };

static __device__ __forceinline__ float red_start(int op) {
  switch (op) {
    case RED_MAX: return -__int_as_float(0x7f800000);
    case RED_MIN: return __int_as_float(0x7f800000);
    case RED_PROD: return 1.f;
    default: return 0.f;
  }
}

static __device__ __forceinline__ float red_join(float a, float b, int op) {
  switch (op) {
    case RED_MAX: return fmaxf(a, b);
    case RED_MIN: return fminf(a, b);
    case RED_PROD: return a * b;
    default: return a + b;
  }
}

// y[outer] = op over n of x[outer, n]; one warp per line. Grid ceil(outer/4), block (32, 4).
extern "C" __global__ void __launch_bounds__(128) reduce_row_f32(const float* __restrict__ x, float* __restrict__ y,
    int outer, int n, int op) {
  const int line = blockIdx.x * 4 + threadIdx.y, lane = threadIdx.x;
  if (line >= outer) return;
  const float* row = x + (size_t)line * n;
  float acc = red_start(op);
  for (int c = lane; c < n; c += 32) acc = red_join(acc, op == RED_MEAN_SQUARE ? row[c] * row[c] : row[c], op);
#pragma unroll
  for (int o = 16; o; o >>= 1) acc = red_join(acc, __shfl_xor_sync(0xffffffffu, acc, o), op);
  if (lane == 0) y[line] = op == RED_MEAN_SQUARE ? acc / n : acc;
}

// y[outer, inner] = op over n of x[outer, n, inner]; one thread per result, neighbours read neighbours.
// Grid ceil(outer*inner/128), block 128.
extern "C" __global__ void __launch_bounds__(128) reduce_col_f32(const float* __restrict__ x, float* __restrict__ y,
    int outer, int n, int inner, int op) {
  const int at = blockIdx.x * 128 + threadIdx.x;
  if (at >= outer * inner) return;
  const float* col = x + (size_t)(at / inner) * n * inner + at % inner;
  float acc = red_start(op);
  for (int c = 0; c < n; ++c) {
    const float v = col[(size_t)c * inner];
    acc = red_join(acc, op == RED_MEAN_SQUARE ? v * v : v, op);
  }
  y[at] = op == RED_MEAN_SQUARE ? acc / n : acc;
}
