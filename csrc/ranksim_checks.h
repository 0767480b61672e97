// What the RankSim operators require of their arguments on every device.
#pragma once

#include <optional>

#include "tensors.h"

namespace dadl {

inline void check_ranksim_select(const Tensor& labels, const Tensor& priority) {
  STD_TORCH_CHECK(labels.dim() == 1 || labels.dim() == 2, "labels must be [n] or [n, k]");
  STD_TORCH_CHECK(priority.dim() == 1 && priority.size(0) == labels.size(0) && is_double(priority),
                  "priority must be float64 [n]");
}

inline void check_ranksim(const Tensor& features, const Tensor& labels, const std::optional<Tensor>& label_similarity) {
  STD_TORCH_CHECK(is_floating(features) && features.dim() == 2,
                  "features must be [n, d], in float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK((labels.dim() == 1 || labels.dim() == 2) && labels.size(0) == features.size(0),
                  "labels must be [n] or [n, k], one row for each of the ", features.size(0), " rows of features");
  STD_TORCH_CHECK(label_similarity || labels.dim() == 1, "vector labels need a label-similarity matrix");
}

// The batch has at least `least` and at most `most` distinct labels; the host may not know their number.
inline void check_label_similarity(const Tensor& matrix, int64_t least, int64_t most) {
  STD_TORCH_CHECK(matrix.scalar_type() == ScalarType::Float || is_double(matrix),
                  "label_similarity must be float32 or float64");
  STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(0) == matrix.size(1),
                  "label_similarity must be a square matrix, [m, m]");
  STD_TORCH_CHECK(least <= matrix.size(0) && matrix.size(0) <= most,
                  "label_similarity must be [m, m], one row for each distinct label of the batch: m must be in ", least,
                  "..", most, ", got ", matrix.size(0));
}

// The results of ranksim_select on a batch of n rows.
inline void check_ranksim_subset(const Tensor& index, const Tensor& order, const Tensor& count, int64_t n) {
  for (const Tensor* columns : {&index, &order}) {
    STD_TORCH_CHECK(columns->dim() == 1 && columns->size(0) == n && columns->scalar_type() == ScalarType::Long,
                    "index and order must be int64 [n], as ranksim_select returns them for this batch");
  }
  STD_TORCH_CHECK(count.numel() == 1 && count.scalar_type() == ScalarType::Long,
                  "count must be one int64, as ranksim_select returns it for this batch");
}

inline void check_ranksim_rows_backward(const Tensor& grad, const Tensor& features) {
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.size(0) == features.size(0) && grad.scalar_type() == arithmetic_type(features),
      "grad must be [n], in the dtype of ranksim_rows");
}

}  // namespace dadl
