// What the contrast operators require of their arguments on every device.
#pragma once

#include <cmath>
#include <optional>

#include "tensors.h"

namespace dadl {

// Numbered as in FORMS and REDUCTIONS of dadl_ext/_shared/checks.py.
constexpr int64_t kCrossEntropy = 0, kKl = 1;
constexpr int64_t kNone = 0, kMean = 1, kSum = 2;

inline void check_contrast(const Tensor& query, const Tensor& key, const std::optional<Tensor>& mask, double scale,
                           bool exclude_self) {
  STD_TORCH_CHECK(is_floating(query) && is_floating(key),
                  "query and key must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(query.dim() == 2 && key.dim() == 2 && query.size(1) == key.size(1),
                  "query must be [B, d] and key [N, d]");
  STD_TORCH_CHECK(is_double(query) == is_double(key), "query and key must both be float64, or neither");
  STD_TORCH_CHECK(std::isfinite(scale), "scale must be finite, got ", scale);
  STD_TORCH_CHECK(!exclude_self || query.size(0) == key.size(0), "exclude_self needs one key per query");
  STD_TORCH_CHECK(
      !mask || (mask->dim() == 1 && mask->size(0) == key.size(0) && mask->scalar_type() == ScalarType::Bool),
      "key_mask must be bool [N]");
}

inline void check_upstream(const Tensor& grad, const Tensor& lse, const Tensor& query) {
  for (const Tensor* rows : {&grad, &lse}) {
    STD_TORCH_CHECK(rows->dim() == 1 && rows->size(0) == query.size(0) && rows->scalar_type() == arithmetic_type(query),
                    "grad and lse must be [B], in the dtype of similarity_logsumexp");
  }
}

inline void check_group_contrast(const Tensor& query, const Tensor& key, const Tensor& queue, const Tensor& target,
                                 const std::optional<Tensor>& slot_count, double temperature, int64_t form,
                                 int64_t ignore_index, int64_t reduction) {
  STD_TORCH_CHECK(is_floating(query) && is_floating(key) && is_floating(queue),
                  "query, key and queue must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(query.dim() == 2 && key.dim() == 2 && key.size(0) == query.size(0) && key.size(1) == query.size(1) &&
                      queue.dim() == 3 && queue.size(2) == query.size(1) && queue.size(0) > 0,
                  "query and key must be [B, d] and queue [C, D, d]");
  STD_TORCH_CHECK(is_double(query) == is_double(key) && is_double(query) == is_double(queue),
                  "query, key and queue must all be float64, or none");
  STD_TORCH_CHECK(target.dim() == 1 && target.size(0) == query.size(0) && target.scalar_type() == ScalarType::Long,
                  "target must be int64 [B]");
  STD_TORCH_CHECK(!slot_count || (slot_count->dim() == 1 && slot_count->size(0) == queue.size(0) &&
                                  slot_count->scalar_type() == ScalarType::Long),
                  "slot_count must be int64 [C]");
  STD_TORCH_CHECK(std::isfinite(temperature) && temperature > 0, "temperature must be positive and finite, got ",
                  temperature);
  STD_TORCH_CHECK(form == kCrossEntropy || form == kKl, "form must be 0 (cross_entropy) or 1 (kl), got ", form);
  STD_TORCH_CHECK(ignore_index < 0 || ignore_index >= queue.size(0), "ignore_index must not be a class, got ",
                  ignore_index);
  STD_TORCH_CHECK(kNone <= reduction && reduction <= kSum, "reduction must be 0 (none), 1 (mean) or 2 (sum), got ",
                  reduction);
}

}  // namespace dadl
