// fp16 and bf16 as bits, with the conversions that the host, the device and the simulator share.
// Rounding is to nearest even, as everywhere in PyTorch.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace dadl {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

DADL_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DADL_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

DADL_HD float to_float(Half half) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(half.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half.bits & 0x7FFFu) << 13;
  // Re-bias the exponent by a multiplication, which also normalises subnormals.
  const float scaled = bits_to_float(magnitude) * bits_to_float((254u - 15u) << 23);
  const bool special = (half.bits & 0x7C00u) == 0x7C00u;  // infinity or NaN
  return bits_to_float(sign | (special ? magnitude | 0x7F800000u : float_to_bits(scaled)));
#endif
}

DADL_HD float to_float(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

DADL_HD float to_float(float value) { return value; }
DADL_HD double to_float(double value) { return value; }

DADL_HD Half to_half(float value) {
#if defined(__CUDA_ARCH__)
  return Half{__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return Half{static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return Half{static_cast<uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal: adding .5 leaves the rounded mantissa in the low bits.
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return Half{static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3F000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return Half{static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xFFFu + odd) >> 13))};
#endif
}

DADL_HD BFloat16 to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
    return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x0040u)};
  }
  return BFloat16{static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

// The arithmetic type of a storage type, and the way back into it.
template <typename T>
struct Storage;
template <>
struct Storage<Half> {
  using Arithmetic = float;
  static DADL_HD Half round(float value) { return to_half(value); }
};
template <>
struct Storage<BFloat16> {
  using Arithmetic = float;
  static DADL_HD BFloat16 round(float value) { return to_bfloat16(value); }
};
template <>
struct Storage<float> {
  using Arithmetic = float;
  static DADL_HD float round(float value) { return value; }
};
template <>
struct Storage<double> {
  using Arithmetic = double;
  static DADL_HD double round(double value) { return value; }
};

}  // namespace dadl
