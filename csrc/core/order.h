// Unsigned keys whose order is the order of the values: a < b  <=>  ordered_key(a) < ordered_key(b).
// -0 and +0 share a key, and every NaN shares the largest key, as in torch.sort.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace dadl {

DADL_HD uint32_t ordered_key(float value) {
  value += 0.0f;  // -0 becomes +0
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t key = bits ^ ((bits >> 31) ? 0xFFFFFFFFu : 0x80000000u);
  return value != value ? 0xFFFFFFFFu : key;
}

DADL_HD uint64_t ordered_key(double value) {
  value += 0.0;
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint64_t key = bits ^ ((bits >> 63) ? ~uint64_t{0} : uint64_t{1} << 63);
  return value != value ? ~uint64_t{0} : key;
}

DADL_HD uint64_t ordered_key(int64_t value) { return static_cast<uint64_t>(value) ^ (uint64_t{1} << 63); }

}  // namespace dadl
