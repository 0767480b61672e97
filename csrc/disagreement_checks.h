// What the disagreement operators require of their arguments on every device.
#pragma once

#include <optional>

#include "core/disagreement.h"
#include "tensors.h"

namespace dadl {

inline Measure checked_measure(int64_t measure) {
  STD_TORCH_CHECK(0 <= measure && measure <= static_cast<int64_t>(Measure::kSoftmaxL1), "measure must be in 0..",
                  static_cast<int64_t>(Measure::kSoftmaxL1), ", got ", measure);
  return static_cast<Measure>(measure);
}

inline void check_disagreement(const Tensor& predictions) {
  STD_TORCH_CHECK(
      predictions.dim() == 4 && predictions.size(0) > 0 && predictions.size(2) > 0 && predictions.size(3) > 0,
      "predictions must be [K, B, R, C] with K, R and C >= 1");
}

}  // namespace dadl
