// The disagreement between members on CUDA.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../disagreement_checks.h"
#include "../signatures.h"
#include "disagreement_kernels.cuh"
#include "torch_backend.h"

namespace dadl::cuda {
namespace {

std::tuple<Tensor, Tensor> disagreement(Tensor predictions, int64_t measure_number, bool mean, bool with_gradient) {
  check_disagreement(predictions);
  const Measure measure = checked_measure(measure_number);
  TorchBackend backend(predictions);
  predictions = as_contiguous(predictions);
  const int64_t members = predictions.size(0), batch = predictions.size(1), rows = predictions.size(2),
                classes = predictions.size(3);
  const ScalarType arithmetic = arithmetic_type(predictions);
  const Tensor loss = new_empty(predictions, {batch}, arithmetic);
  const Tensor gradient = new_empty(predictions, {with_gradient ? members : 0, batch, rows, classes}, arithmetic);
  dispatch_floating(predictions, "predictions", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    dadl::disagreement(
        backend, Disagreement<T>{measure, data<T>(predictions), members, batch, rows, classes,
                                 mean ? 1 / static_cast<A>(std::max<int64_t>(batch, 1)) : A{1}, mutable_data<A>(loss),
                                 with_gradient ? mutable_data<A>(gradient) : nullptr});
  });
  return {loss, gradient};
}

}  // namespace
}  // namespace dadl::cuda

DADL_CUDA_LIBRARY(m) { DADL_IMPL(m, dadl::cuda, disagreement); }
