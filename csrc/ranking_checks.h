// What the ranking operators require of their arguments on every device.
#pragma once

#include "tensors.h"

namespace dadl {

inline int64_t row_length(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() >= 1, "rank needs at least one dimension");
  const int64_t n = input.size(input.dim() - 1);
  STD_TORCH_CHECK(n <= (int64_t{1} << 24), "rank is exact for rows of up to 2^24 values, got ", n);
  return n;
}

inline void check_rank_backward(const Tensor& grad, const Tensor& input, const Tensor& ranks) {
  STD_TORCH_CHECK(grad.scalar_type() == arithmetic_type(input) && ranks.scalar_type() == arithmetic_type(input),
                  "rank_backward needs grad and ranks in rank's output dtype");
  STD_TORCH_CHECK(grad.numel() == input.numel() && ranks.numel() == input.numel(),
                  "rank_backward needs grad, input and ranks of one shape");
}

}  // namespace dadl
