// Copies from global to shared memory that pass no register and arrive only when they are waited for.
#pragma once

#include "device.cuh"

namespace dadl {

// 16 bytes, both at multiples of 16, or 16 bytes of zeros where `real` is false; the source must be mapped even then.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool real);

// Closes a group of the thread's copies.
__device__ __forceinline__ void commit_copies();

// Until all groups of the thread but the last kLeft have arrived. Other threads see them after a barrier.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies();

#if defined(__CUDACC__)
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool real) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(real ? 16 : 0)
      : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
#else
inline void copy_async(void* shared, const void* global, bool real) { sim::copy_async(shared, global, real); }
inline void commit_copies() { sim::commit_copies(); }
template <int kLeft>
inline void wait_for_copies() {
  sim::wait_for_copies(kLeft);
}
#endif

}  // namespace dadl
