// scale_gradient, for every device, from operators of ATen.
#include <torch/csrc/stable/library.h>

#include <array>

#include "signatures.h"
#include "tensors.h"

namespace dadl {
namespace {

template <size_t kArguments>
Tensor call_aten(const char* name, const char* overload, std::array<StableIValue, kArguments> stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor scale_gradient(Tensor grad, Tensor gradient, Tensor input, int64_t dim) {
  using torch::stable::detail::from;
  const int64_t dims = input.dim();
  bool same = gradient.dim() == dims && gradient.scalar_type() == arithmetic_type(input);
  for (int64_t d = 0; same && d < dims; ++d) same = gradient.size(d) == input.size(d);
  STD_TORCH_CHECK(same, "gradient must have the input's shape, in float32 (float64 for float64 input)");
  STD_TORCH_CHECK(
      grad.scalar_type() == gradient.scalar_type() &&
          (grad.dim() == 0 || (grad.dim() == 1 && 0 <= dim && dim < dims && grad.size(0) == input.size(dim))),
      "grad must be [] or as long as the input's dimension ", dim, ", in the gradient's dtype");
  for (int64_t d = dim + 1; grad.dim() && d < dims; ++d) {
    grad = call_aten<2>("aten::unsqueeze", "", {from(grad), from(int64_t{-1})});
  }
  const Tensor product = call_aten<2>("aten::mul", "Tensor", {from(gradient), from(grad)});
  return as_contiguous(product, input.scalar_type());
}

}  // namespace
}  // namespace dadl

DADL_LIBRARY_IMPL(CompositeExplicitAutograd, m) { DADL_IMPL(m, dadl, scale_gradient); }
