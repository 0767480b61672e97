// What the Rank-N-Contrast operators require of their arguments on every device.
#pragma once

#include "core/rank_n_contrast.h"
#include "tensors.h"

namespace dadl {

inline RankNContrastSettings check_rank_n_contrast(const Tensor& features, const Tensor& labels, double temperature,
                                                   int64_t similarity, int64_t label_distance) {
  STD_TORCH_CHECK(is_floating(features) && features.dim() == 2,
                  "features must be [n, d], in float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK((labels.dim() == 1 || labels.dim() == 2) && labels.size(0) == features.size(0),
                  "labels must be [n] or [n, k], one row for each of the ", features.size(0), " rows of features");
  STD_TORCH_CHECK(is_floating(labels) || labels.scalar_type() == ScalarType::Long,
                  "labels must be int64, float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(temperature > 0, "temperature must be positive, got ", temperature);
  STD_TORCH_CHECK(0 <= similarity && similarity <= 1, "similarity must be 0 (L2) or 1 (cosine), got ", similarity);
  STD_TORCH_CHECK(0 <= label_distance && label_distance <= 1, "label_distance must be 0 (L1) or 1 (L2), got ",
                  label_distance);
  return {temperature, static_cast<Similarity>(similarity), static_cast<LabelDistance>(label_distance)};
}

inline Reduction check_reduction(int64_t reduction) {
  STD_TORCH_CHECK(0 <= reduction && reduction <= 2, "reduction must be 0 (none), 1 (mean) or 2 (sum), got ", reduction);
  return static_cast<Reduction>(reduction);
}

inline void check_rank_n_contrast_backward(const Tensor& grad, const Tensor& features) {
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.size(0) == features.size(0) && grad.scalar_type() == arithmetic_type(features),
      "grad must be [n], in the dtype of the anchors' losses");
}

}  // namespace dadl
