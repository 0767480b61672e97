// Hopper's products by a warp group of four warps, whose operands lie in shared memory: sm_90a alone.
//
// Shared matrices are panels of 64 values of 16 bits in a row, 128 bytes, whose eight copies of 16 bytes change places
// as panel_offset says; a panel begins at a multiple of 1024 bytes. Warp w of the group has rows 16 w to 16 w + 15 of
// the sums, in the layout of c in mma.cuh, eight columns after the other.
#pragma once

#include <cstdint>

#include "mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DADL_WGMMA 1
#endif

namespace dadl {

constexpr int kWarpGroup = 4 * kWarp;
constexpr int kPanel = 64;  // columns

// Where copy `copy` of a row is, in a matrix of `rows` rows: panels of all rows one after the other.
template <int kRows>
__device__ __forceinline__ int panel_offset(int row, int copy) {
  return copy / 8 * (kRows * kPanel) + row * kPanel + ((copy % 8) ^ (row % 8)) * 8;
}

#if defined(DADL_WGMMA)

// What the unit is told of a matrix: where it begins, and the bytes from panel to panel where its columns are summed
// over (they are not looked at where they stand still). Groups of eight rows follow one another.
__device__ __forceinline__ uint64_t describe(const void* first, uint32_t panel_bytes) {
  const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(first));
  return (address & 0x3FFFF) >> 4 | static_cast<uint64_t>(panel_bytes >> 4) << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

// Before the first product of some registers, and after other code wrote them.
__device__ __forceinline__ void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void finish_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// What this thread wrote to shared memory, or had copied there, is seen by the products after the next barrier.
__device__ __forceinline__ void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// sums [64, 64] (+)= a b^T for 16 columns of a [64, ...] and b [64, ...].
template <typename T>
__device__ __forceinline__ void multiply_shared(float (&sums)[8][4], uint64_t a, uint64_t b, bool add);

// sums [64, 8 kTiles] += a b with a [64, 16] in registers as in mma.cuh and b [16, ...] in shared memory.
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&sums)[8][4], const uint32_t (&a)[4], uint64_t b);
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&sums)[16][4], const uint32_t (&a)[4], uint64_t b);

#define DADL_WGMMA_PRODUCTS(T, name)                                                                               \
  template <>                                                                                                      \
  __device__ __forceinline__ void multiply_shared<T>(float (&sums)[8][4], uint64_t a, uint64_t b, bool add) {      \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name \
                 " "                                                                                               \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19,  "    \
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;} "         \
                 : "+f"(sums[0][0]), "+f"(sums[0][1]), "+f"(sums[0][2]), "+f"(sums[0][3]), "+f"(sums[1][0]),       \
                   "+f"(sums[1][1]), "+f"(sums[1][2]), "+f"(sums[1][3]), "+f"(sums[2][0]), "+f"(sums[2][1]),       \
                   "+f"(sums[2][2]), "+f"(sums[2][3]), "+f"(sums[3][0]), "+f"(sums[3][1]), "+f"(sums[3][2]),       \
                   "+f"(sums[3][3]), "+f"(sums[4][0]), "+f"(sums[4][1]), "+f"(sums[4][2]), "+f"(sums[4][3]),       \
                   "+f"(sums[5][0]), "+f"(sums[5][1]), "+f"(sums[5][2]), "+f"(sums[5][3]), "+f"(sums[6][0]),       \
                   "+f"(sums[6][1]), "+f"(sums[6][2]), "+f"(sums[6][3]), "+f"(sums[7][0]), "+f"(sums[7][1]),       \
                   "+f"(sums[7][2]), "+f"(sums[7][3])                                                              \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add))                                                      \
                 : "memory");                                                                                      \
  }                                                                                                                \
  template <>                                                                                                      \
  __device__ __forceinline__ void multiply_rows<T>(float (&sums)[8][4], const uint32_t (&a)[4], uint64_t b) {      \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name   \
                 " "                                                                                               \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19,  "    \
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, "     \
                 "1, 1, 1;}"                                                                                       \
                 : "+f"(sums[0][0]), "+f"(sums[0][1]), "+f"(sums[0][2]), "+f"(sums[0][3]), "+f"(sums[1][0]),       \
                   "+f"(sums[1][1]), "+f"(sums[1][2]), "+f"(sums[1][3]), "+f"(sums[2][0]), "+f"(sums[2][1]),       \
                   "+f"(sums[2][2]), "+f"(sums[2][3]), "+f"(sums[3][0]), "+f"(sums[3][1]), "+f"(sums[3][2]),       \
                   "+f"(sums[3][3]), "+f"(sums[4][0]), "+f"(sums[4][1]), "+f"(sums[4][2]), "+f"(sums[4][3]),       \
                   "+f"(sums[5][0]), "+f"(sums[5][1]), "+f"(sums[5][2]), "+f"(sums[5][3]), "+f"(sums[6][0]),       \
                   "+f"(sums[6][1]), "+f"(sums[6][2]), "+f"(sums[6][3]), "+f"(sums[7][0]), "+f"(sums[7][1]),       \
                   "+f"(sums[7][2]), "+f"(sums[7][3])                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                              \
                 : "memory");                                                                                      \
  }                                                                                                                \
  template <>                                                                                                      \
  __device__ __forceinline__ void multiply_rows<T>(float (&sums)[16][4], const uint32_t (&a)[4], uint64_t b) {     \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name  \
                 " "                                                                                               \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19,  "    \
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37,  "     \
                 "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55,  "     \
                 "%56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;}"                \
                 : "+f"(sums[0][0]), "+f"(sums[0][1]), "+f"(sums[0][2]), "+f"(sums[0][3]), "+f"(sums[1][0]),       \
                   "+f"(sums[1][1]), "+f"(sums[1][2]), "+f"(sums[1][3]), "+f"(sums[2][0]), "+f"(sums[2][1]),       \
                   "+f"(sums[2][2]), "+f"(sums[2][3]), "+f"(sums[3][0]), "+f"(sums[3][1]), "+f"(sums[3][2]),       \
                   "+f"(sums[3][3]), "+f"(sums[4][0]), "+f"(sums[4][1]), "+f"(sums[4][2]), "+f"(sums[4][3]),       \
                   "+f"(sums[5][0]), "+f"(sums[5][1]), "+f"(sums[5][2]), "+f"(sums[5][3]), "+f"(sums[6][0]),       \
                   "+f"(sums[6][1]), "+f"(sums[6][2]), "+f"(sums[6][3]), "+f"(sums[7][0]), "+f"(sums[7][1]),       \
                   "+f"(sums[7][2]), "+f"(sums[7][3]), "+f"(sums[8][0]), "+f"(sums[8][1]), "+f"(sums[8][2]),       \
                   "+f"(sums[8][3]), "+f"(sums[9][0]), "+f"(sums[9][1]), "+f"(sums[9][2]), "+f"(sums[9][3]),       \
                   "+f"(sums[10][0]), "+f"(sums[10][1]), "+f"(sums[10][2]), "+f"(sums[10][3]), "+f"(sums[11][0]),  \
                   "+f"(sums[11][1]), "+f"(sums[11][2]), "+f"(sums[11][3]), "+f"(sums[12][0]), "+f"(sums[12][1]),  \
                   "+f"(sums[12][2]), "+f"(sums[12][3]), "+f"(sums[13][0]), "+f"(sums[13][1]), "+f"(sums[13][2]),  \
                   "+f"(sums[13][3]), "+f"(sums[14][0]), "+f"(sums[14][1]), "+f"(sums[14][2]), "+f"(sums[14][3]),  \
                   "+f"(sums[15][0]), "+f"(sums[15][1]), "+f"(sums[15][2]), "+f"(sums[15][3])                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                              \
                 : "memory");                                                                                      \
  }
DADL_WGMMA_PRODUCTS(Half, "f16")
DADL_WGMMA_PRODUCTS(BFloat16, "bf16")
#undef DADL_WGMMA_PRODUCTS

#endif

}  // namespace dadl
