// Matrix products by PyTorch's BLAS on plain memory, bypassing the dispatcher.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "common.h"

namespace dadl::cpu {

// Memory as a matrix, with the device and dtype of `owner`.
template <typename A>
Tensor matrix_view(const Tensor& owner, const A* first, int64_t rows, int64_t columns, int64_t row_stride,
                   int64_t column_stride) {
  return torch::stable::from_blob(const_cast<A*>(first), {rows, columns}, {row_stride, column_stride}, owner.device(),
                                  owner.scalar_type());
}

// out = alpha a b + beta out
inline void add_product(const Tensor& a, const Tensor& b, double alpha, double beta, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, alpha));
}

}  // namespace dadl::cpu
