// rank and rank_backward on CUDA.
#include <torch/csrc/stable/library.h>

#include "../ranking_checks.h"
#include "../signatures.h"
#include "ranking_kernels.cuh"
#include "torch_backend.h"

namespace dadl::cuda {
namespace {

Tensor rank(Tensor input, double /* interp_strength */) {
  const int64_t n = row_length(input);
  TorchBackend backend(input);
  input = as_contiguous(input);
  const Tensor output = new_empty(input, input.sizes(), arithmetic_type(input));
  dispatch_floating(input, "input", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    launch_ranks(backend, Rank<T>{data<T>(input), mutable_data<A>(output), static_cast<int>(n)},
                 n ? input.numel() / n : 0, n, RankLimits{});
  });
  return output;
}

Tensor rank_backward(Tensor grad, Tensor input, Tensor ranks, double interp_strength) {
  const int64_t n = row_length(input);
  check_rank_backward(grad, input, ranks);
  check_device(grad, input, "grad");
  check_device(ranks, input, "ranks");
  TorchBackend backend(input);
  grad = as_contiguous(grad);
  input = as_contiguous(input);
  ranks = as_contiguous(ranks);
  const Tensor output = new_empty(input, input.sizes(), input.scalar_type());
  dispatch_floating(input, "input", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    const RankBackward<T> op{data<A>(grad),
                             data<T>(input),
                             data<A>(ranks),
                             mutable_data<T>(output),
                             static_cast<int>(n),
                             static_cast<A>(interp_strength),
                             static_cast<A>(interp_strength + 1e-8)};
    launch_ranks(backend, op, n ? input.numel() / n : 0, n, RankLimits{});
  });
  return output;
}

}  // namespace
}  // namespace dadl::cuda

DADL_CUDA_LIBRARY(m) {
  DADL_IMPL(m, dadl::cuda, rank);
  DADL_IMPL(m, dadl::cuda, rank_backward);
}
