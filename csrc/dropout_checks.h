// What the dropout operators require of their arguments on every device.
#pragma once

#include <cmath>
#include <optional>

#include "core/philox.h"
#include "tensors.h"

namespace dadl {

inline uint32_t dropout_threshold(double p) {
  STD_TORCH_CHECK(p >= 0 && p < 1 && std::lround(p * 65536) < 65536, "p must be in [0, 1 - 2^-17), got ", p);
  return static_cast<uint32_t>(std::lround(p * 65536));
}

inline void check_dropout(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& bias,
                          const Tensor& seed, int64_t samples) {
  STD_TORCH_CHECK(features.dim() == 2 && weight.dim() == 2 && weight.size(1) == features.size(1) &&
                      weight.scalar_type() == features.scalar_type() && weight.numel() > 0,
                  "features must be [B, F] and weight [C, F] with C and F >= 1, of one dtype");
  STD_TORCH_CHECK(
      !bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == features.scalar_type()),
      "bias must be [C], in the features' dtype");
  STD_TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long, "seed must be one int64");
  STD_TORCH_CHECK(samples >= 1, "samples must be at least 1, got ", samples);
}

inline void check_dropout_backward(const Tensor& grad, const Tensor& features, const Tensor& weight,
                                   const Tensor& seed) {
  STD_TORCH_CHECK(grad.dim() == 3 && grad.scalar_type() == features.scalar_type(),
                  "grad must be [K, B, C], in the features' dtype");
  check_dropout(features, weight, {}, seed, grad.size(0));
  STD_TORCH_CHECK(grad.size(1) == features.size(0) && grad.size(2) == weight.size(0),
                  "grad must be [K, B, C] for features [B, F] and weight [C, F]");
}

inline void check_few_outputs(const Tensor& weight) {
  STD_TORCH_CHECK(weight.size(0) <= kFewOutputs, "dropout_disagreement is for 1 to ", kFewOutputs, " outputs, got ",
                  weight.size(0));
}

}  // namespace dadl
