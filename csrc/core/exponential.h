// exp for arguments that are not positive, as a polynomial that compilers vectorise: relative error below 2e-7 in
// float and 5e-16 in double. Below the range of normal numbers it is 0; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace dadl {

// exp(x) = 2^n exp(r) with x = n ln2 + r; adding and subtracting 1.5 * 2^mantissa rounds to an integer.
DADL_HD float exp_nonpositive(float x) {
  const float bounded = x > -87.0f ? x : -87.0f;
  constexpr float kRound = 12582912.0f;
  const float shifted = bounded * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  const float value = x > -87.0f ? p * power : 0.0f;
  return x != x ? x : value;
}

DADL_HD double exp_nonpositive(double x) {
  const double bounded = x > -708.0 ? x : -708.0;
  constexpr double kRound = 6755399441055744.0;
  const double shifted = bounded * 1.4426950408889634 + kRound, n = shifted - kRound;
  const double r = (bounded - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023u) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  const double value = x > -708.0 ? p * power : 0.0;
  return x != x ? x : value;
}

}  // namespace dadl
