// The tensor cores' product of fp16 or bf16 matrices, by a warp: c += a b with a [16, 16], b [16, 8] and c [16, 8] in
// float; and the loads from shared memory that bring matrices into the layout of its operands.
//
// With g = lane / 4 and t = lane % 4 a lane holds, two values a word, the lower half first:
//   a[0], a[1]   rows g and g + 8, columns 2t, 2t + 1
//   a[2], a[3]   rows g and g + 8, columns 2t + 8, 2t + 9
//   b[0], b[1]   column g, rows 2t, 2t + 1 and 2t + 8, 2t + 9
//   c[0], c[1]   row g, columns 2t, 2t + 1
//   c[2], c[3]   row g + 8, columns 2t, 2t + 1
#pragma once

#include <array>
#include <cstdint>

#include "../core/half.h"
#include "device.cuh"

namespace dadl {

template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// Four 8x8 matrices of 16-bit values. Lane 8 m + r gives the address of row r of matrix m, at a multiple of 16 bytes;
// words[m] of a lane is then row g, columns 2t and 2t + 1, of matrix m.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row);

// The same of the transposed matrices: words[m] is rows 2t and 2t + 1 of column g.
__device__ __forceinline__ void load_transposed(uint32_t (&words)[4], const void* row);

// Two values in one word, the first in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float first, float second);

// 2^x to about two units in the last place; results below the smallest normal number are 0.
__device__ __forceinline__ float fast_exp2(float x);

#if defined(__CUDACC__)
#define DADL_MMA(T, name)                                                                                            \
  template <>                                                                                                        \
  __device__ __forceinline__ void multiply_add<T>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                              \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                              \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                    \
  }
DADL_MMA(Half, "f16")
DADL_MMA(BFloat16, "bf16")
#undef DADL_MMA

__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

__device__ __forceinline__ void load_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

template <>
__device__ __forceinline__ uint32_t pack_pair<BFloat16>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

template <>
__device__ __forceinline__ uint32_t pack_pair<Half>(float first, float second) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#else
// The same with shuffles for the host simulator: from the four lanes that hold a row of a or a column of b, a lane
// collects the rows and columns that its part of c needs.
template <typename T>
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using Words = std::array<uint32_t, 2>;
  const auto value = [](uint32_t word, int half) { return to_float(T{static_cast<uint16_t>(word >> 16 * half)}); };
  const int g = lane_index() / 4, t = lane_index() % 4;
  float products[2][4][8];  // of the first and the second eight columns of a, for each sum
  for (int source = 0; source < 4; ++source) {
    const Words rows[2] = {__shfl_sync(kFullWarp, Words{a[0], a[1]}, 4 * g + source),
                           __shfl_sync(kFullWarp, Words{a[2], a[3]}, 4 * g + source)};
    for (int column = 0; column < 2; ++column) {
      const Words words = __shfl_sync(kFullWarp, Words{b0, b1}, 4 * (2 * t + column) + source);
      for (int k = 0; k < 2; ++k) {
        for (int row = 0; row < 2; ++row) {
          for (int half = 0; half < 2; ++half) {
            products[k][2 * row + column][2 * source + half] = value(rows[k][row], half) * value(words[k], half);
          }
        }
      }
    }
  }
  for (int k = 0; k < 2; ++k) {
    for (int e = 0; e < 4; ++e) c[e] = sim::add_cut_off(c[e], products[k][e]);
  }
}

inline void load_matrices(uint32_t (&words)[4], const void* row) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int m = 0; m < 4; ++m) {
    const auto* values = static_cast<const uint16_t*>(__shfl_sync(kFullWarp, row, 8 * m + g));
    words[m] = static_cast<uint32_t>(values[2 * t]) | static_cast<uint32_t>(values[2 * t + 1]) << 16;
  }
}

inline void load_transposed(uint32_t (&words)[4], const void* row) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int m = 0; m < 4; ++m) {
    const auto* lower = static_cast<const uint16_t*>(__shfl_sync(kFullWarp, row, 8 * m + 2 * t));
    const auto* upper = static_cast<const uint16_t*>(__shfl_sync(kFullWarp, row, 8 * m + 2 * t + 1));
    words[m] = static_cast<uint32_t>(lower[g]) | static_cast<uint32_t>(upper[g]) << 16;
  }
}

template <typename T>
inline uint32_t pack_pair(float first, float second) {
  return static_cast<uint32_t>(Storage<T>::round(first).bits) | static_cast<uint32_t>(Storage<T>::round(second).bits)
                                                                    << 16;
}

inline float fast_exp2(float x) {
  const float result = exp2f(x);
  return result < 1.1754944e-38f ? 0 : result;  // a NaN stays
}
#endif

}  // namespace dadl
