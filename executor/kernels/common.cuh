// What every kernel file shares. All tensors are 32-bit floats, row-major, contiguous unless a kernel says otherwise.
#pragma once

enum { ACT_NONE = 0, ACT_RELU = 1, ACT_SIGMOID = 2, ACT_TANH = 3, ACT_GELU = 4 };
enum { BIAS_NONE = 0, BIAS_COLUMN = 1, BIAS_ROW = 2 };

static __device__ __forceinline__ float sigmoid(float v) { return 1.f / (1.f + expf(-v)); }

static __device__ __forceinline__ float activate(float v, int act) {
  switch (act) {
    case ACT_RELU: return fmaxf(v, 0.f);
    case ACT_SIGMOID: return sigmoid(v);
    case ACT_TANH: return tanhf(v);
    case ACT_GELU: return 0.5f * v * (1.f + erff(v * 0.70710678f));
    default: return v;
  }
}

// 16 bytes of shared memory in one load. Written out because NVRTC's own merging of neighbouring loads differs from run
// to run, and the committed PTX must be reproducible.
static __device__ __forceinline__ float4 shared4(const float* p) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"((unsigned)__cvta_generic_to_shared(p)));
  return v;
}

static __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}

static __device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}

// Sum over a block of full warps, the same value in every thread. `part` holds 32 floats.
static __device__ __forceinline__ float block_sum(float v, float* part) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  v = warp_sum(v);
  if (lane == 0) part[warp] = v;
  __syncthreads();
  float total = 0.f;
  for (int i = 0; i < (int)(blockDim.x >> 5); ++i) total += part[i];
  __syncthreads();
  return total;
}
