// Measures of the disagreement between members. What they are is written in dadl_ext/reference/disagreement.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "exponential.h"
#include "macros.h"

namespace dadl {

// As numbered in dadl_ext/ops/disagreement.py.
enum class Measure : int64_t { kL1, kMse, kVariance, kSymmetricKl, kJs, kSoftmaxL1 };

DADL_HD bool is_over_classes(Measure measure) {
  return measure == Measure::kSymmetricKl || measure == Measure::kJs || measure == Measure::kSoftmaxL1;
}

// Log-probabilities stop here, so that members as far apart as finite logits can be still have a finite distance.
template <typename A>
DADL_HD A bounded_log(A value) {
  constexpr A kLowest = sizeof(A) == sizeof(double) ? A(-1e300) : A(-1e37);
  return value < kLowest ? kLowest : value;
}

// -1, 0 or 1; NaN stays.
template <typename A>
DADL_HD A sign(A value) {
  return value > 0 ? A{1} : value < 0 ? A{-1} : value;
}

// r log r - r + 1 for r >= 0, with log r. The difference is formed by hand around 1, where nothing would be left of it.
template <typename A>
struct EntropyGap {
  A log, gap;
};

DADL_HD EntropyGap<float> entropy_gap(float ratio) {
  constexpr float kSmallest = 1.17549435e-38f;
  const float x = ratio < kSmallest ? kSmallest : ratio;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  // x = 2^n f with f in [sqrt(1/2), sqrt(2))
  const uint32_t shifted = bits - 0x3F3504F3u;
  const float n = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const uint32_t mantissa = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
  float f;
  memcpy(&f, &mantissa, sizeof f);
  const float t = f - 1.0f;
  float p = 7.0376836292e-2f;  // log f = t - t^2 / 2 + t^3 p, as in Cephes
  p = p * t - 1.1514610310e-1f;
  p = p * t + 1.1676998740e-1f;
  p = p * t - 1.2420140846e-1f;
  p = p * t + 1.4249322787e-1f;
  p = p * t - 1.6668057665e-1f;
  p = p * t + 2.0000714765e-1f;
  p = p * t - 2.4999993993e-1f;
  p = p * t + 3.3333331174e-1f;
  const float square = t * t;
  const float log = n * 0.693147181f + (t + square * (t * p - 0.5f));
  const float near = square * (0.5f + t * (f * p - 0.5f)), far = ratio * log - ratio + 1.0f;
  const float gap = n == 0.0f ? near : far;
  return {ratio != ratio ? ratio : log, ratio != ratio ? ratio : gap};
}

DADL_HD EntropyGap<double> entropy_gap(double ratio) {
  const double log = std::log(ratio < 2.3e-308 ? 2.3e-308 : ratio), t = ratio - 1;
  // t^2 sum_n (-t)^n / ((n + 1) (n + 2))
  double p = 1.0 / 72;
  for (int n = 6; n >= 0; --n) p = 1.0 / ((n + 1) * (n + 2)) - t * p;
  return {ratio != ratio ? ratio : log, t < 1e-2 && t > -1e-2 ? t * t * p : ratio * log - ratio + 1};
}

}  // namespace dadl
