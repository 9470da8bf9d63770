// Matrix products: a tiled one for large operands, a thin one for few rows.
#include "common.cuh"

#define BM 64
#define BN 64
#define BK 16
#define LD (BM + 4)

// C[z] = act(A[z % a_mod] . B[z % b_mod] + bias), A m x k, B k x n, C m x n.
// The block owns a 64 x 64 tile of C, a thread 4 x 4 of it. Two shared buffers: while one is multiplied, the next tile
// of 16 columns of A and rows of B travels from global memory through registers into the other.
// VEC loads and stores 16 bytes at a time: needs k % 4 == 0 and n % 4 == 0.
template <bool VEC>
static __device__ __forceinline__ void gemm_body(const float* __restrict__ a, const float* __restrict__ b,
    const float* __restrict__ bias, float* __restrict__ c, int m, int n, int k, int a_mod, int b_mod, int bias_mode,
    int act) {
  __shared__ __align__(16) float as[2][BK][LD];
  __shared__ __align__(16) float bs[2][BK][LD];
  const int t = threadIdx.x, tx = t & 15, ty = t >> 4;
  const int row0 = blockIdx.y * BM, col0 = blockIdx.x * BN;
  const int az = blockIdx.z % a_mod, bz = blockIdx.z % b_mod;
  a += (size_t)az * m * k;
  b += (size_t)bz * k * n;
  c += (size_t)blockIdx.z * m * n;
  const int ar = t >> 2, ac = (t & 3) * 4;   // this thread's 4 elements of the A tile
  const int br = t >> 4, bc = (t & 15) * 4;  // and of the B tile
  float ra[4], rb[4], acc[4][4] = {};

  auto fetch = [&](int k0) {
    const int row = row0 + ar, ak = k0 + ac, bk = k0 + br, col = col0 + bc;
    if (VEC) {
      float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
      float4 w = v;
      if (row < m && ak < k) v = *(const float4*)(a + (size_t)row * k + ak);
      if (bk < k && col < n) w = *(const float4*)(b + (size_t)bk * n + col);
      ra[0] = v.x; ra[1] = v.y; ra[2] = v.z; ra[3] = v.w;
      rb[0] = w.x; rb[1] = w.y; rb[2] = w.z; rb[3] = w.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        ra[i] = (row < m && ak + i < k) ? a[(size_t)row * k + ak + i] : 0.f;
        rb[i] = (bk < k && col + i < n) ? b[(size_t)bk * n + col + i] : 0.f;
      }
    }
  };
  auto stage = [&](int buf) {
#pragma unroll
    for (int i = 0; i < 4; ++i) as[buf][ac + i][ar] = ra[i];
    *(float4*)&bs[buf][br][bc] = make_float4(rb[0], rb[1], rb[2], rb[3]);
  };

  fetch(0);
  stage(0);
  __syncthreads();
  int buf = 0;
  for (int k0 = 0; k0 < k; k0 += BK) {
    const bool more = k0 + BK < k;
    if (more) fetch(k0 + BK);
#pragma unroll
    for (int kk = 0; kk < BK; ++kk) {
      const float4 av = shared4(&as[buf][kk][ty * 4]);
      const float4 bv = shared4(&bs[buf][kk][tx * 4]);
      const float x[4] = {av.x, av.y, av.z, av.w}, y[4] = {bv.x, bv.y, bv.z, bv.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
    }
    if (more) stage(buf ^ 1);
    __syncthreads();
    buf ^= 1;
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = row0 + ty * 4 + i, col = col0 + tx * 4;
    if (row >= m) continue;
    float out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float v = acc[i][j];
      if (bias_mode == BIAS_ROW) v += bias[(size_t)az * m + row];
      if (bias_mode == BIAS_COLUMN && col + j < n) v += bias[col + j];
      out[j] = activate(v, act);
    }
    if (VEC) {
      if (col < n) *(float4*)(c + (size_t)row * n + col) = make_float4(out[0], out[1], out[2], out[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (col + j < n) c[(size_t)row * n + col + j] = out[j];
    }
  }
}

// Grid (ceil(n/64), ceil(m/64), batch), block 256.
extern "C" __global__ void __launch_bounds__(256) gemm_vec4_f32(const float* __restrict__ a,
    const float* __restrict__ b, const float* __restrict__ bias, float* __restrict__ c, int m, int n, int k, int a_mod,
    int b_mod, int bias_mode, int act) {
  gemm_body<true>(a, b, bias, c, m, n, k, a_mod, b_mod, bias_mode, act);
}

extern "C" __global__ void __launch_bounds__(256) gemm_f32(const float* __restrict__ a, const float* __restrict__ b,
    const float* __restrict__ bias, float* __restrict__ c, int m, int n, int k, int a_mod, int b_mod, int bias_mode,
    int act) {
  gemm_body<false>(a, b, bias, c, m, n, k, a_mod, b_mod, bias_mode, act);
}

// y[r, o] = act(sum_i x[r, i] w[i, o] + bias[o]) for few rows (at most 16 pays). A block computes 32 columns of 4 rows;
// its eight warps each take every eighth i and meet in shared memory, so that one row still fills a block.
// Grid (ceil(n/32), ceil(rows/4)), block (32, 8).
extern "C" __global__ void __launch_bounds__(256) linear_small_f32(const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ bias, float* __restrict__ y, int rows, int n, int k,
    int bias_mode, int act) {
  __shared__ float part[8][4][33];
  const int lane = threadIdx.x, slice = threadIdx.y, col = blockIdx.x * 32 + lane, row0 = blockIdx.y * 4;
  float acc[4] = {};
  if (col < n) {
    for (int i = slice; i < k; i += 8) {
      const float v = w[(size_t)i * n + col];
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (row0 + r < rows) acc[r] = fmaf(x[(size_t)(row0 + r) * k + i], v, acc[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) part[slice][r][lane] = acc[r];
  __syncthreads();
  const int row = row0 + slice;
  if (slice < 4 && row < rows && col < n) {
    float v = 0.f;
#pragma unroll
    for (int s = 0; s < 8; ++s) v += part[s][slice][lane];
    if (bias_mode == BIAS_COLUMN) v += bias[col];
    y[(size_t)row * n + col] = activate(v, act);
  }
}
