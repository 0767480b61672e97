// The tensor cores' product of fp16 or bf16 matrices, by a warp: c += a b with a [16, 16], b [16, 8] and c [16, 8] in
// float.
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
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#if defined(__CUDACC__)
#define DADL_MMA(T, name)                                                                                          \
  template <>                                                                                                      \
  __device__ __forceinline__ void multiply_add<T>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                                     \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                     \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                       \
  }
DADL_MMA(Half, "f16")
DADL_MMA(BFloat16, "bf16")
#undef DADL_MMA
#else
// The same with shuffles for the host simulator: from the four lanes that hold a row of a or a column of b, a lane
// collects the rows and columns that its part of c needs.
template <typename T>
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using Words = std::array<uint32_t, 2>;
  const auto value = [](uint32_t word, int half) { return to_float(T{static_cast<uint16_t>(word >> 16 * half)}); };
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int source = 0; source < 4; ++source) {
    const Words rows[2] = {__shfl_sync(kFullWarp, Words{a[0], a[1]}, 4 * g + source),
                           __shfl_sync(kFullWarp, Words{a[2], a[3]}, 4 * g + source)};
    for (int column = 0; column < 2; ++column) {
      const Words words = __shfl_sync(kFullWarp, Words{b[0], b[1]}, 4 * (2 * t + column) + source);
      for (int k = 0; k < 2; ++k) {
        for (int row = 0; row < 2; ++row) {
          for (int half = 0; half < 2; ++half) {
            c[2 * row + column] += value(rows[k][row], half) * value(words[k], half);
          }
        }
      }
    }
  }
}
#endif

}  // namespace dadl
