// The tile of keys on vectors, once for each instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "contrast_keys.h"
#include "transpose.h"

namespace dadl::cpu {

// exp(x) = 2^n 2^f with x log2(e) = n + f and |f| <= 1/2. 2^f is a polynomial, in float the minimax polynomial.
template <typename A>
struct Exponential;
template <>
struct Exponential<float> {
  using Bits = int32_t;
  static constexpr float kRound = 12582912.0f, kLog2E = 1.44269504f, kLeast = -87.0f;
  static constexpr int kBias = 127, kMantissa = 23, kTerms = 7;
  static constexpr float kCoefficients[kTerms] = {
      1.55946764e-4f, 1.34066434e-3f, 9.61769279e-3f, 5.55031039e-2f, 2.40226522e-1f, 6.93147242e-1f, 1.0f};
};
template <>
struct Exponential<double> {
  using Bits = int64_t;
  static constexpr double kRound = 6755399441055744.0, kLog2E = 1.4426950408889634, kLeast = -708.0;
  static constexpr int kBias = 1023, kMantissa = 52, kTerms = 14;
  static constexpr double kCoefficients[kTerms] = {1.3691488853904124e-12, 2.5678435993488196e-11,
                                                   4.44553827187081e-10,   7.054911620801121e-09,
                                                   1.0178086009239696e-07, 1.3215486790144305e-06,
                                                   1.5252733804059838e-05, 1.5403530393380606e-04,
                                                   1.3333558146428441e-03, 9.618129107628477e-03,
                                                   5.5504108664821576e-02, 2.402265069591007e-01,
                                                   6.931471805599453e-01,  1.0};
};

#ifdef DADL_X86
DADL_BEGIN_TARGET("arch=x86-64-v4,prefer-vector-width=512")
namespace v4 {
constexpr int kVectorBytes = 64;
inline __attribute__((always_inline)) __m512 multiply_add(__m512 x, __m512 y, __m512 z) {
  return _mm512_fmadd_ps(x, y, z);
}
inline __attribute__((always_inline)) __m512d multiply_add(__m512d x, __m512d y, __m512d z) {
  return _mm512_fmadd_pd(x, y, z);
}
#include "contrast_lanes.inc"
}  // namespace v4
DADL_END_TARGET

DADL_BEGIN_TARGET("arch=x86-64-v3")
namespace v3 {
constexpr int kVectorBytes = 32;
inline __attribute__((always_inline)) __m256 multiply_add(__m256 x, __m256 y, __m256 z) {
  return _mm256_fmadd_ps(x, y, z);
}
inline __attribute__((always_inline)) __m256d multiply_add(__m256d x, __m256d y, __m256d z) {
  return _mm256_fmadd_pd(x, y, z);
}
#include "contrast_lanes.inc"
}  // namespace v3
DADL_END_TARGET
#endif

// For all other processors.
namespace v1 {
constexpr int kVectorBytes = 16;
template <typename V>
inline __attribute__((always_inline)) V multiply_add(V x, V y, V z) {
  return x * y + z;
}
#include "contrast_lanes.inc"
}  // namespace v1

}  // namespace dadl::cpu
