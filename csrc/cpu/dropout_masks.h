// Dropout masks by groups of features, as ones and zeros.
#pragma once

#include <cstdint>

#include "../core/philox.h"

namespace dadl::cpu {

constexpr int64_t kGroup = kMaskGroup;

inline int64_t padded_features(int64_t features) { return (features + kGroup - 1) / kGroup * kGroup; }

// keep [128]: the features from 128 group on of one row, for one member
template <typename Keep>
inline void draw_group(const Dropout& dropout, int64_t member, int64_t row, int64_t group, Keep* keep) {
  uint32_t word[4][kMaskLanes];
  const auto first = static_cast<uint32_t>(group * kMaskLanes);
  for (int l = 0; l < kMaskLanes; ++l) {
    uint32_t x0 = first + static_cast<uint32_t>(l), x1 = static_cast<uint32_t>(row),
             x2 = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), x3 = static_cast<uint32_t>(member);
    philox(dropout.key, x0, x1, x2, x3);
    word[0][l] = x0;
    word[1][l] = x1;
    word[2][l] = x2;
    word[3][l] = x3;
  }
  const uint32_t threshold = dropout.threshold << 16;
  for (int w = 0; w < 4; ++w) {
    for (int l = 0; l < kMaskLanes; ++l)
      keep[2 * w * kMaskLanes + l] = word[w][l] << 16 >= threshold ? Keep{1} : Keep{0};
    for (int l = 0; l < kMaskLanes; ++l) {
      keep[(2 * w + 1) * kMaskLanes + l] = word[w][l] >= threshold ? Keep{1} : Keep{0};
    }
  }
}

}  // namespace dadl::cpu
