// The Rank-N-Contrast operators on CUDA.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../rank_n_contrast_checks.h"
#include "../signatures.h"
#include "rank_n_contrast_kernels.cuh"
#include "torch_backend.h"

namespace dadl::cuda {
namespace {

// Calls finish(F{}, contrast) after the anchors' losses are formed. Needs n >= 1.
template <typename Finish>
void with_anchors(TorchBackend& backend, Tensor features, Tensor labels, const RankNContrastSettings& settings,
                  double share, bool with_gradient, Finish finish) {
  features = as_contiguous(features);
  labels = as_contiguous(labels);
  dispatch_floating(features, "features", [&](auto tag) {
    using F = decltype(tag);
    RankNContrast<F, TorchBackend> contrast(backend, data<F>(features), features.size(0), features.size(1), settings);
    dispatch_labels(labels, [&](auto label) {
      contrast.anchors(data<decltype(label)>(labels), labels.dim() == 2 ? labels.size(1) : 0, share, with_gradient);
    });
    finish(tag, contrast);
  });
}

std::tuple<Tensor, Tensor> rank_n_contrast(Tensor features, Tensor labels, double temperature, int64_t similarity,
                                           int64_t label_distance, int64_t reduction, bool with_gradient) {
  const RankNContrastSettings settings =
      check_rank_n_contrast(features, labels, temperature, similarity, label_distance);
  const Reduction kind = check_reduction(reduction);
  check_device(labels, features, "labels");
  const int64_t n = features.size(0), d = features.size(1);
  TorchBackend backend(features);
  const ScalarType arithmetic = arithmetic_type(features);
  Tensor loss = kind == Reduction::kNone ? new_empty(features, {n}, arithmetic) : new_empty(features, {}, arithmetic);
  const Tensor gradient = new_empty(features, {with_gradient ? n : 0, d}, arithmetic);
  if (n == 0) return {torch::stable::zero_(loss), gradient};
  const double share = kind == Reduction::kMean ? 1.0 / static_cast<double>(n) : 1.0;
  with_anchors(backend, features, labels, settings, share, with_gradient, [&](auto tag, auto& contrast) {
    using T = typename Storage<decltype(tag)>::Arithmetic;
    if (kind == Reduction::kNone) {
      contrast.rows(mutable_data<T>(loss));
    } else {
      contrast.loss(share, mutable_data<T>(loss));
    }
    if (with_gradient) contrast.gradient(static_cast<const T*>(nullptr), mutable_data<T>(gradient));
  });
  return {loss, gradient};
}

Tensor rank_n_contrast_backward(Tensor grad, Tensor features, Tensor labels, double temperature, int64_t similarity,
                                int64_t label_distance) {
  const RankNContrastSettings settings =
      check_rank_n_contrast(features, labels, temperature, similarity, label_distance);
  check_rank_n_contrast_backward(grad, features);
  check_device(labels, features, "labels");
  check_device(grad, features, "grad");
  TorchBackend backend(features);
  grad = as_contiguous(grad);
  const Tensor gradient = new_empty(features, features.sizes(), features.scalar_type());
  if (features.size(0) == 0) return gradient;
  with_anchors(backend, features, labels, settings, 1.0, true, [&](auto tag, auto& contrast) {
    using F = decltype(tag);
    contrast.gradient(data<typename Storage<F>::Arithmetic>(grad), mutable_data<F>(gradient));
  });
  return gradient;
}

}  // namespace
}  // namespace dadl::cuda

DADL_CUDA_LIBRARY(m) {
  DADL_IMPL(m, dadl::cuda, rank_n_contrast);
  DADL_IMPL(m, dadl::cuda, rank_n_contrast_backward);
}
