// Kernels with one bug each, and the same kernel without. Compiled by
//   scripts/build-kernels.sh --out executor/fakecuda/tests executor/fakecuda/tests/planted.cu
#define N 64

// y = x reversed within blocks of 64, through shared memory.
extern "C" __global__ void __launch_bounds__(N) reverse(const float* x, float* y, int n) {
  __shared__ float tile[N];
  const int t = threadIdx.x, i = blockIdx.x * N + t;
  tile[t] = i < n ? x[i] : 0.f;
  __syncthreads();
  if (i < n) y[i] = tile[N - 1 - t];
}
extern "C" __global__ void __launch_bounds__(N) missing_barrier(const float* x, float* y, int n) {
  __shared__ float tile[N];
  const int t = threadIdx.x, i = blockIdx.x * N + t;
  tile[t] = i < n ? x[i] : 0.f;
  if (i < n) y[i] = tile[t ^ 1];
}
// The tile is filled again while slow threads still read it.
extern "C" __global__ void __launch_bounds__(N) missing_second_barrier(const float* x, float* y, int n) {
  __shared__ float tile[N];
  const int t = threadIdx.x;
  for (int k = 0; k < n; k += N) {
    tile[t] = x[k + t];
    __syncthreads();
    y[k + t] = tile[N - 1 - t];
  }
}
extern "C" __global__ void __launch_bounds__(N) divergent_barrier(const float* x, float* y, int n) {
  __shared__ float tile[N];
  const int t = threadIdx.x, i = blockIdx.x * N + t;
  if (i >= n) return;
  tile[t] = x[i];
  __syncthreads();
  y[i] = tile[t ^ 1];
}
extern "C" __global__ void __launch_bounds__(N) barrier_in_branch(const float* x, float* y, int n) {
  __shared__ float tile[N];
  const int t = threadIdx.x;
  tile[t] = x[t];
  if (t & 1) {
    __syncthreads();
    y[t] = tile[t ^ 1];
  } else {
    y[t] = 2.f * tile[t];
    __syncthreads();
  }
}
extern "C" __global__ void __launch_bounds__(N) out_of_bounds(const float* x, float* y, int n) {
  const int i = blockIdx.x * N + threadIdx.x;
  if (i <= n) y[i] = x[i];
}
extern "C" __global__ void __launch_bounds__(N) shared_out_of_bounds(const float* x, float* y, int n) {
  __shared__ float tile[N];
  const int t = threadIdx.x;
  tile[t + 1] = x[t];
  __syncthreads();
  y[t] = tile[t];
}
extern "C" __global__ void __launch_bounds__(N) misaligned(const float* x, float* y, int n) {
  const int t = threadIdx.x;
  if (4 * t + 5 > n) return;
  const float4 v = *(const float4*)(x + 4 * t + 1);
  *(float4*)(y + 4 * t) = v;
}
extern "C" __global__ void __launch_bounds__(N) unwritten_shared(const float* x, float* y, int n) {
  __shared__ float tile[N];
  const int t = threadIdx.x;
  if (t != 7) tile[t] = x[t];
  __syncthreads();
  y[t] = tile[t];
}
extern "C" __global__ void __launch_bounds__(N) copy(const float* x, float* y, int n) {
  const int i = blockIdx.x * N + threadIdx.x;
  if (i < n) y[i] = x[i];
}
extern "C" __global__ void __launch_bounds__(N) all_write_one(const float* x, float* y, int n) {
  y[0] = x[threadIdx.x];
}
// Correct with one block; with more, each reads what its neighbour writes.
extern "C" __global__ void __launch_bounds__(N) reads_other_block(float* y, int n) {
  const int i = blockIdx.x * N + threadIdx.x;
  const float v = y[(i + N) % n];
  __syncthreads();
  y[i] = v;
}
extern "C" __global__ void __launch_bounds__(N) missing_lane(const float* x, float* y, int n) {
  const int t = threadIdx.x;
  float v = x[t];
  if (t % 32 < 16) v += __shfl_xor_sync(0xffffffffu, v, 8);
  y[t] = v;
}
extern "C" __global__ void __launch_bounds__(N) endless(const float* x, float* y, int n) {
  float v = 0.f;
  while (v < 2.f) y[threadIdx.x] = v = v * x[threadIdx.x];
}
