// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the dropout masks drawn
// from it, the same on every processor.
//
// Feature f of a row is kept by draw 16 bits wide, eight to a block of four words:
//   counter = (16 (f / 128) + f % 16, row's low word, row's high word, member),  key = seed's low and high word,
//   word (f / 32) % 4, its lower half where (f / 16) % 2 is 0
// so that neighbouring features come from the same draw of neighbouring blocks, and vectors need no shuffling.
#pragma once

#include <cstdint>

#include "macros.h"

namespace dadl {

constexpr int kMaskLanes = 16;   // blocks side by side
constexpr int kMaskGroup = 128;  // features that they decide

// Outputs of a linear map up to which its rows are read once for all members; beyond, matrix products are quicker.
// dadl_ext/ops/dropout.py has it too.
constexpr int64_t kFewOutputs = 8;

struct PhiloxKey {
  uint32_t low, high;
};

DADL_HD PhiloxKey philox_key(int64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
}

// As a product of 64-bit factors it would cost one more addition, of a zero, in nvcc's code.
DADL_HD uint64_t wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

// Words x0..x3 of a block hold the counter before and the random words after.
DADL_HD void philox(PhiloxKey key, uint32_t& x0, uint32_t& x1, uint32_t& x2, uint32_t& x3) {
  constexpr uint32_t kFirst = 0xD2511F53, kSecond = 0xCD9E8D57;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = wide_product(kFirst, x0), b = wide_product(kSecond, x2);
    x0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ key.low;
    x1 = static_cast<uint32_t>(b);
    x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ key.high;
    x3 = static_cast<uint32_t>(a);
    key.low += 0x9E3779B9;
    key.high += 0xBB67AE85;
  }
}

// A feature is kept where its draw is not below the threshold.
struct Dropout {
  PhiloxKey key;
  uint32_t threshold;  // of 65536

  // What kept features are multiplied with: exactly one over the probability of being kept.
  DADL_HD double scale() const { return 65536.0 / (65536 - threshold); }
};

// The draws of one block: bit j is 1 where feature 128 (block / 16) + 16 j + block % 16 is kept.
DADL_HD uint32_t kept_features(const Dropout& dropout, int64_t member, int64_t row, uint32_t block) {
  uint32_t x0 = block, x1 = static_cast<uint32_t>(row), x2 = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32),
           x3 = static_cast<uint32_t>(member);
  philox(dropout.key, x0, x1, x2, x3);
  const auto pair = [&](uint32_t word) {
    return static_cast<uint32_t>((word & 0xFFFF) >= dropout.threshold) |
           static_cast<uint32_t>(word >> 16 >= dropout.threshold) << 1;
  };
  return pair(x0) | pair(x1) << 2 | pair(x2) << 4 | pair(x3) << 6;
}

}  // namespace dadl
