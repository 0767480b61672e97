// The tile of keys on the widest vectors that the processor has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../core/exponential.h"
#include "contrast_keys.h"
#include "transpose.h"

namespace dadl::cpu {

template <typename A, int kBytes>
struct VectorOf {
  using type __attribute__((vector_size(kBytes))) = A;
};

// Of exp(x) = 2^n exp(r), as in core/exponential.h.
template <typename A>
struct Exponential;
template <>
struct Exponential<float> {
  using Bits = int32_t;
  static constexpr float kRound = 12582912.0f, kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f,
                         kLeast = -87.0f;
  static constexpr int kBias = 127, kMantissa = 23, kTerms = 8;
  static constexpr float kCoefficients[kTerms] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                                                  1.0f / 6,    0.5f,       1.0f,       1.0f};
};
template <>
struct Exponential<double> {
  using Bits = int64_t;
  static constexpr double kRound = 6755399441055744.0, kLog2E = 1.4426950408889634, kLn2High = 0.693147180369123816490,
                          kLn2Low = 1.90821492927058770002e-10, kLeast = -708.0;
  static constexpr int kBias = 1023, kMantissa = 52, kTerms = 14;
  static constexpr double kCoefficients[kTerms] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
};

#ifdef DADL_X86
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own intrinsics
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
namespace v4 {
constexpr int kVectorBytes = 64;
inline __attribute__((always_inline)) __m512 multiply_add(__m512 x, __m512 y, __m512 z) {
  return _mm512_fmadd_ps(x, y, z);
}
inline __attribute__((always_inline)) __m512d multiply_add(__m512d x, __m512d y, __m512d z) {
  return _mm512_fmadd_pd(x, y, z);
}
#include "lanes_contrast.h"
}  // namespace v4
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int kVectorBytes = 32;
inline __attribute__((always_inline)) __m256 multiply_add(__m256 x, __m256 y, __m256 z) {
  return _mm256_fmadd_ps(x, y, z);
}
inline __attribute__((always_inline)) __m256d multiply_add(__m256d x, __m256d y, __m256d z) {
  return _mm256_fmadd_pd(x, y, z);
}
#include "lanes_contrast.h"
}  // namespace v3
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

// For every processor.
namespace v1 {
constexpr int kVectorBytes = 16;
template <typename V>
inline __attribute__((always_inline)) V multiply_add(V x, V y, V z) {
  return x * y + z;
}
#include "lanes_contrast.h"
}  // namespace v1

}  // namespace dadl::cpu
