// Chains of elementwise operations, copies, transposes.
#include "common.cuh"

enum {
  OP_LOAD = 0, OP_ADD, OP_SUB, OP_RSUB, OP_MUL, OP_DIV, OP_RDIV, OP_MAX, OP_MIN, OP_POW, OP_RPOW,  // with an operand
  OP_RELU = 32, OP_SIGMOID, OP_TANH, OP_GELU, OP_EXP, OP_LN, OP_SQRT, OP_RSQRT, OP_RECIP, OP_NEG, OP_ABS, OP_SQUARE,
  OP_FLOOR, OP_CEIL, OP_ERF, OP_HARD_SWISH, OP_SILU, OP_LEAKY_RELU, OP_CLIP_HIGH, OP_POW_CONST, OP_SIGN, OP_GELU_TANH
};

// acc = x0[i]; then one step after the other; y[i] = acc. A step is 4 integers (operation, operand, float bits, unused):
// operand 0..5 is a tensor, -1 the constant in the third integer. prog begins with (steps, dimensions, size of each of
// 6 dimensions, then for each of 6 operands its 6 strides), 44 integers; a stride of 0 repeats the operand.
// Where a chain has one dimension the operand is read at i * stride without dividing.
// Grid ceil(n/256), block 256. Every thread runs the same steps, so nothing diverges.
extern "C" __global__ void __launch_bounds__(256) chain_f32(const int* __restrict__ prog, const float* __restrict__ x0,
    const float* __restrict__ x1, const float* __restrict__ x2, const float* __restrict__ x3,
    const float* __restrict__ x4, const float* __restrict__ x5, float* __restrict__ y, int n) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const int steps = prog[0], dims = prog[1];
  float acc = 0.f;
  for (int s = 0; s < steps; ++s) {
    const int* step = prog + 44 + s * 4;
    const int op = step[0], from = step[1];
    float v = __int_as_float(step[2]);
    if (op < 32 && from >= 0) {
      const int* stride = prog + 8 + from * 6;
      size_t at = 0;
      if (dims == 1) {
        at = (size_t)i * stride[0];
      } else {
        int rest = i;
        for (int d = dims - 1; d >= 0; --d) {
          const int size = prog[2 + d];
          at += (size_t)(rest % size) * stride[d];
          rest /= size;
        }
      }
      const float* x = x0;
      switch (from) {
        case 1: x = x1; break;
        case 2: x = x2; break;
        case 3: x = x3; break;
        case 4: x = x4; break;
        case 5: x = x5; break;
      }
      v = x[at];
    }
    switch (op) {
      case OP_LOAD: acc = v; break;
      case OP_ADD: acc += v; break;
      case OP_SUB: acc -= v; break;
      case OP_RSUB: acc = v - acc; break;
      case OP_MUL: acc *= v; break;
      case OP_DIV: acc /= v; break;
      case OP_RDIV: acc = v / acc; break;
      case OP_MAX: acc = fmaxf(acc, v); break;
      case OP_MIN: acc = fminf(acc, v); break;
      case OP_POW: acc = powf(acc, v); break;
      case OP_RPOW: acc = powf(v, acc); break;
      case OP_RELU: acc = fmaxf(acc, 0.f); break;
      case OP_SIGMOID: acc = sigmoid(acc); break;
      case OP_TANH: acc = tanhf(acc); break;
      case OP_GELU: acc = activate(acc, ACT_GELU); break;
      case OP_EXP: acc = expf(acc); break;
      case OP_LN: acc = logf(acc); break;
      case OP_SQRT: acc = sqrtf(acc); break;
      case OP_RSQRT: acc = 1.f / sqrtf(acc); break;
      case OP_RECIP: acc = 1.f / acc; break;
      case OP_NEG: acc = -acc; break;
      case OP_ABS: acc = fabsf(acc); break;
      case OP_SQUARE: acc *= acc; break;
      case OP_FLOOR: acc = floorf(acc); break;
      case OP_CEIL: acc = ceilf(acc); break;
      case OP_ERF: acc = erff(acc); break;
      case OP_HARD_SWISH: acc *= fminf(fmaxf(acc * (1.f / 6.f) + 0.5f, 0.f), 1.f); break;
      case OP_SILU: acc *= sigmoid(acc); break;
      case OP_LEAKY_RELU: acc = acc < 0.f ? acc * v : acc; break;
      case OP_CLIP_HIGH: acc = fminf(acc, v); break;
      case OP_POW_CONST: acc = powf(acc, v); break;
      case OP_SIGN: acc = acc > 0.f ? 1.f : (acc < 0.f ? -1.f : acc); break;
      case OP_GELU_TANH: acc = 0.5f * acc * (1.f + tanhf(0.79788456f * (acc + 0.044715f * acc * acc * acc))); break;
    }
  }
  y[i] = acc;
}

// Copies a box of up to 6 dimensions between two strided layouts: slices, concatenations, permutations, padding and
// broadcasts. shape holds (dimensions, 6 sizes, 6 source strides, 6 destination strides). Grid ceil(n/256), block 256.
extern "C" __global__ void __launch_bounds__(256) copy_box_f32(const int* __restrict__ shape,
    const float* __restrict__ x, float* __restrict__ y, int n, int x_offset, int y_offset) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  long long from = x_offset, to = y_offset;
  int rest = i;
  for (int d = shape[0] - 1; d >= 0; --d) {
    const int size = shape[1 + d], at = rest % size;
    from += (long long)at * shape[7 + d];
    to += (long long)at * shape[13 + d];
    rest /= size;
  }
  y[to] = x[from];
}

// y[i] = v. Grid ceil(n/256), block 256.
extern "C" __global__ void __launch_bounds__(256) fill_f32(float* __restrict__ y, int n, float v) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < n) y[i] = v;
}

// y[z, c, r] = x[z, r, c] through a padded tile, so that both sides are read and written 128 bytes at a time.
// Grid (ceil(cols/32), ceil(rows/32), batch), block (32, 8).
extern "C" __global__ void __launch_bounds__(256) transpose_f32(const float* __restrict__ x, float* __restrict__ y,
    int rows, int cols) {
  __shared__ float tile[32][33];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const size_t plane = (size_t)blockIdx.z * rows * cols;
  const int c = blockIdx.x * 32 + tx;
#pragma unroll
  for (int i = 0; i < 32; i += 8) {
    const int r = blockIdx.y * 32 + ty + i;
    if (r < rows && c < cols) tile[ty + i][tx] = x[plane + (size_t)r * cols + c];
  }
  __syncthreads();
  const int r = blockIdx.y * 32 + tx;
#pragma unroll
  for (int i = 0; i < 32; i += 8) {
    const int out = blockIdx.x * 32 + ty + i;
    if (out < cols && r < rows) y[plane + (size_t)out * rows + r] = tile[tx][ty + i];
  }
}
