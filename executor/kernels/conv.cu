// Convolutions and pooling over x[N, C, H, W]. One-dimensional ones come as H = 1.
#include "common.cuh"

// Unfolds patches: col[n, (c*KH + i)*KW + j, oh*OW + ow] = x[n, c, oh*sh - ph + i*dh, ow*sw - pw + j*dw], 0 outside.
// One thread per element of col. Grid (ceil(C*KH*KW*OH*OW/256), N), block 256.
extern "C" __global__ void __launch_bounds__(256) im2col_f32(const float* __restrict__ x, float* __restrict__ col,
    int C, int H, int W, int KH, int KW, int OH, int OW, int sh, int sw, int ph, int pw, int dh, int dw) {
  const int total = C * KH * KW * OH * OW, at = blockIdx.x * 256 + threadIdx.x;
  if (at >= total) return;
  const int ow = at % OW, oh = at / OW % OH, r = at / (OW * OH);
  const int j = r % KW, i = r / KW % KH, c = r / (KW * KH);
  const int h = oh * sh - ph + i * dh, w = ow * sw - pw + j * dw;
  const bool inside = h >= 0 && h < H && w >= 0 && w < W;
  col[(size_t)blockIdx.y * total + at] = inside ? x[((size_t)blockIdx.y * C + c) * H * W + (size_t)h * W + w] : 0.f;
}

// y[n, o] = act(sum_c x[n, c] * w[o, c] + bias[o]), 3x3, stride S, no dilation, one group. w is packed [CI, 9, CO8] with
// CO8 = CO rounded up to 8 (the rest zero), bias likewise. A block computes 16 x 16 outputs of 8 channels; it stages
// 4 input channels and their weights in shared memory at a time, so that an input is read once for 8 channels.
// Grid (ceil(OW/16) * ceil(OH/16), CO8/8, N), block (16, 16).
template <int S>
static __device__ __forceinline__ void conv3x3_body(const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, float* __restrict__ y, int CI, int H, int W, int CO, int OH, int OW, int ph, int pw,
    int act) {
  constexpr int SIDE = 15 * S + 3, CHUNK = 4;
  __shared__ float in[CHUNK][SIDE * SIDE];
  __shared__ __align__(16) float ws[CHUNK * 9 * 8];
  const int tiles = (OW + 15) / 16, tx = threadIdx.x, ty = threadIdx.y, t = ty * 16 + tx;
  const int ow0 = blockIdx.x % tiles * 16, oh0 = blockIdx.x / tiles * 16, co0 = blockIdx.y * 8, CO8 = gridDim.y * 8;
  x += (size_t)blockIdx.z * CI * H * W;
  y += (size_t)blockIdx.z * CO * OH * OW;
  float acc[8];
#pragma unroll
  for (int o = 0; o < 8; ++o) acc[o] = bias[co0 + o];
  for (int c0 = 0; c0 < CI; c0 += CHUNK) {
    const int chunk = min(CHUNK, CI - c0);
    for (int i = t; i < chunk * SIDE * SIDE; i += 256) {
      const int c = i / (SIDE * SIDE), p = i % (SIDE * SIDE);
      const int h = oh0 * S - ph + p / SIDE, v = ow0 * S - pw + p % SIDE;
      in[c][p] = (h >= 0 && h < H && v >= 0 && v < W) ? x[(size_t)(c0 + c) * H * W + (size_t)h * W + v] : 0.f;
    }
    for (int i = t; i < chunk * 72; i += 256) ws[i] = w[(size_t)(c0 * 9 + i / 8) * CO8 + co0 + i % 8];
    __syncthreads();
    for (int c = 0; c < chunk; ++c) {
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        const float v = in[c][(ty * S + k / 3) * SIDE + tx * S + k % 3];
        const float4 lo = shared4(&ws[(c * 9 + k) * 8]), hi = shared4(&ws[(c * 9 + k) * 8 + 4]);
        acc[0] = fmaf(v, lo.x, acc[0]); acc[1] = fmaf(v, lo.y, acc[1]);
        acc[2] = fmaf(v, lo.z, acc[2]); acc[3] = fmaf(v, lo.w, acc[3]);
        acc[4] = fmaf(v, hi.x, acc[4]); acc[5] = fmaf(v, hi.y, acc[5]);
        acc[6] = fmaf(v, hi.z, acc[6]); acc[7] = fmaf(v, hi.w, acc[7]);
      }
    }
    __syncthreads();
  }
  const int oh = oh0 + ty, ow = ow0 + tx;
  if (oh >= OH || ow >= OW) return;
#pragma unroll
  for (int o = 0; o < 8; ++o)
    if (co0 + o < CO) y[(size_t)(co0 + o) * OH * OW + (size_t)oh * OW + ow] = activate(acc[o], act);
}

extern "C" __global__ void __launch_bounds__(256) conv3x3_s1_f32(const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ bias, float* __restrict__ y, int CI, int H, int W, int CO,
    int OH, int OW, int ph, int pw, int act) {
  conv3x3_body<1>(x, w, bias, y, CI, H, W, CO, OH, OW, ph, pw, act);
}

extern "C" __global__ void __launch_bounds__(256) conv3x3_s2_f32(const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ bias, float* __restrict__ y, int CI, int H, int W, int CO,
    int OH, int OW, int ph, int pw, int act) {
  conv3x3_body<2>(x, w, bias, y, CI, H, W, CO, OH, OW, ph, pw, act);
}

// y[n, o, p] = act(sum_c w[o, c] x[n, c, p] + bias[o]): 1x1, stride 1, where the picture is too small to fill a tile of
// the product kernel. w is packed [CI, CO8], bias CO8. A thread computes 8 channels at one place.
// Grid (ceil(P/128), CO8/8, N), block 128.
extern "C" __global__ void __launch_bounds__(128) conv1x1_f32(const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, float* __restrict__ y, int CI, int P, int CO, int act) {
  const int p = blockIdx.x * 128 + threadIdx.x, co0 = blockIdx.y * 8, CO8 = gridDim.y * 8;
  if (p >= P) return;
  x += (size_t)blockIdx.z * CI * P + p;
  y += (size_t)blockIdx.z * CO * P + p;
  float acc[8];
#pragma unroll
  for (int o = 0; o < 8; ++o) acc[o] = bias[co0 + o];
  for (int c = 0; c < CI; ++c) {
    const float v = x[(size_t)c * P];
    const float4 lo = *(const float4*)&w[(size_t)c * CO8 + co0], hi = *(const float4*)&w[(size_t)c * CO8 + co0 + 4];
    acc[0] = fmaf(v, lo.x, acc[0]); acc[1] = fmaf(v, lo.y, acc[1]);
    acc[2] = fmaf(v, lo.z, acc[2]); acc[3] = fmaf(v, lo.w, acc[3]);
    acc[4] = fmaf(v, hi.x, acc[4]); acc[5] = fmaf(v, hi.y, acc[5]);
    acc[6] = fmaf(v, hi.z, acc[6]); acc[7] = fmaf(v, hi.w, acc[7]);
  }
#pragma unroll
  for (int o = 0; o < 8; ++o)
    if (co0 + o < CO) y[(size_t)(co0 + o) * P] = activate(acc[o], act);
}

// One filter per channel: y[n, c] = act(x[n, c] * w[c] + bias[c]). One thread per output.
// Grid (ceil(OH*OW/128), C, N), block 128.
extern "C" __global__ void __launch_bounds__(128) depthwise_f32(const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ bias, float* __restrict__ y, int H, int W, int KH, int KW,
    int OH, int OW, int sh, int sw, int ph, int pw, int dh, int dw, int act) {
  const int at = blockIdx.x * 128 + threadIdx.x, c = blockIdx.y, C = gridDim.y;
  if (at >= OH * OW) return;
  const int oh = at / OW, ow = at % OW;
  const size_t plane = (size_t)blockIdx.z * C + c;
  x += plane * H * W;
  w += (size_t)c * KH * KW;
  float acc = bias[c];
  for (int i = 0; i < KH; ++i) {
    const int h = oh * sh - ph + i * dh;
    if (h < 0 || h >= H) continue;
    for (int j = 0; j < KW; ++j) {
      const int v = ow * sw - pw + j * dw;
      if (v >= 0 && v < W) acc = fmaf(x[(size_t)h * W + v], w[i * KW + j], acc);
    }
  }
  y[plane * OH * OW + at] = activate(acc, act);
}

enum { POOL_MAX = 0, POOL_SUM = 1, POOL_MEAN_INSIDE = 2, POOL_MEAN_ALL = 3 };

// Maximum, sum, mean of what lies inside, or mean over the whole window with zeros outside. One thread per output.
// Grid ceil(planes*OH*OW/128), block 128.
extern "C" __global__ void __launch_bounds__(128) pool_f32(const float* __restrict__ x, float* __restrict__ y,
    int planes, int H, int W, int KH, int KW, int OH, int OW, int sh, int sw, int ph, int pw, int dh, int dw, int mode) {
  const int at = blockIdx.x * 128 + threadIdx.x;
  if (at >= planes * OH * OW) return;
  const int ow = at % OW, oh = at / OW % OH;
  x += (size_t)(at / (OW * OH)) * H * W;
  float acc = mode == POOL_MAX ? -__int_as_float(0x7f800000) : 0.f;
  int inside = 0;
  for (int i = 0; i < KH; ++i) {
    const int h = oh * sh - ph + i * dh;
    if (h < 0 || h >= H) continue;
    for (int j = 0; j < KW; ++j) {
      const int v = ow * sw - pw + j * dw;
      if (v < 0 || v >= W) continue;
      const float e = x[(size_t)h * W + v];
      acc = mode == POOL_MAX ? fmaxf(acc, e) : acc + e;
      ++inside;
    }
  }
  if (mode == POOL_MEAN_INSIDE) acc /= (float)inside;
  if (mode == POOL_MEAN_ALL) acc /= (float)(KH * KW);
  y[at] = acc;
}
