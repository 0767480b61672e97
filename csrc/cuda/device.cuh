// The words of CUDA that the kernels use, from CUDA itself or from the host simulator.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
// A block's shared variable: DADL_SHARED(name, type).
#define DADL_SHARED(name, ...)     \
  using name##_type = __VA_ARGS__; \
  __shared__ name##_type name
// The block's memory whose size the launch gives, beyond what static variables may take: one variable in a kernel.
#define DADL_DYNAMIC_SHARED(name, ...)                                   \
  extern __shared__ __align__(1024) unsigned char dadl_dynamic_memory[]; \
  auto& name = *reinterpret_cast<__VA_ARGS__*>(dadl_dynamic_memory)
#else
#include "cuda_sim.h"
#endif

namespace dadl {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

// Kernels with one warp per row.
constexpr int kRowWarps = 4;
constexpr int kRowThreads = kRowWarps * kWarp;

// Kernels with one thread per element, and reductions by one block.
constexpr int kThreads = 256;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

// The value, of which the compiler knows nothing: what a loop computes from it stays in the loop, and out of the
// registers in between.
__device__ __forceinline__ int recomputed(int value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// The row of this warp.
__device__ __forceinline__ int64_t warp_row() {
  return static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
}

__device__ __forceinline__ int64_t element_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

// Every lane gets the sum, added in one fixed order.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int mask = kWarp / 2; mask; mask /= 2) value += __shfl_xor_sync(kFullWarp, value, mask);
  return value;
}

template <typename A>
__device__ __forceinline__ A minus_infinity() {
  return -static_cast<A>(INFINITY);
}

// A NaN is never larger: it shows in the sums.
template <typename A>
__device__ __forceinline__ A larger(A a, A b) {
  return b > a ? b : a;
}

// Over the block of kThreads, in one fixed order.
template <typename A, typename Join>
__device__ __forceinline__ A block_join(A value, A* parts /* [kThreads / kWarp] */, Join join) {
  for (int mask = kWarp / 2; mask; mask /= 2) value = join(value, __shfl_xor_sync(kFullWarp, value, mask));
  __syncthreads();
  if (lane_index() == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = parts[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) value = join(value, parts[warp]);
  return value;
}

// A matrix in memory, as the backends' products take it.
template <typename T>
struct Matrix {
  const T* values;
  int64_t rows, columns, row_stride, column_stride;
};

// More than a launch can have stay too many, and are refused.
inline unsigned blocks_for(int64_t work, int64_t per_block) {
  constexpr int64_t kMost = 0xFFFFFFFF;
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kMost ? blocks : kMost);
}

}  // namespace dadl
