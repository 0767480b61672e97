// The fused RankSim operators on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../ranksim_checks.h"
#include "../signatures.h"
#include "ranksim_kernels.cuh"
#include "torch_backend.h"

namespace dadl::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> ranksim_select(Tensor labels, Tensor priority) {
  check_ranksim_select(labels, priority);
  const int64_t n = labels.size(0), k = labels.dim() == 2 ? labels.size(1) : 1;
  check_device(priority, labels, "priority");
  TorchBackend backend(labels);
  labels = as_contiguous(labels);
  priority = as_contiguous(priority);
  const Tensor index = new_empty(labels, {n}, ScalarType::Long);
  const Tensor order = new_empty(labels, {n}, ScalarType::Long);
  const Tensor count = new_empty(labels, {}, ScalarType::Long);
  dispatch_labels(labels, [&](auto tag) {
    using Label = decltype(tag);
    dadl::ranksim_select(backend, data<Label>(labels), data<double>(priority), n, k, mutable_data<int64_t>(index),
                         mutable_data<int64_t>(order), mutable_data<int64_t>(count));
  });
  return {index, order, count};
}

struct Arguments {
  Tensor features, labels, index, order, count;
  std::optional<Tensor> label_similarity;
  RankSimSettings settings;
};

void check(Arguments& a) {
  check_ranksim(a.features, a.labels, a.label_similarity);
  check_ranksim_subset(a.index, a.order, a.count, a.features.size(0));
  for (Tensor* tensor : {&a.index, &a.order, &a.count}) {
    check_device(*tensor, a.features, "index, order and count");
    *tensor = as_contiguous(*tensor);
  }
  a.features = as_contiguous(a.features);
  if (a.label_similarity) {
    check_label_similarity(*a.label_similarity, 0, a.features.size(0));
    check_device(*a.label_similarity, a.features, "label_similarity");
    a.label_similarity = as_contiguous(*a.label_similarity);
  } else {
    check_device(a.labels, a.features, "labels");
    a.labels = as_contiguous(a.labels);
  }
}

// Calls finish(ranksim) after the rows are ranked. Needs n >= 1.
template <typename Finish>
void with_ranked_rows(TorchBackend& backend, const Arguments& a, bool with_gradient, Finish finish) {
  dispatch_floating(a.features, "features", [&](auto tag) {
    using F = decltype(tag);
    RankSim<F, TorchBackend> ranksim(backend, data<F>(a.features), data<int64_t>(a.index), data<int64_t>(a.order),
                                     data<int64_t>(a.count), a.features.size(0), a.features.size(1), a.settings,
                                     RankLimits{});
    if (!a.label_similarity) {
      dispatch_labels(a.labels, [&](auto label) { ranksim.label_ranks(data<decltype(label)>(a.labels)); });
    } else if (a.label_similarity->scalar_type() == ScalarType::Float) {
      ranksim.matrix_ranks(data<float>(*a.label_similarity), a.label_similarity->size(0));
    } else {
      ranksim.matrix_ranks(data<double>(*a.label_similarity), a.label_similarity->size(0));
    }
    ranksim.rank_rows(with_gradient);
    finish(tag, ranksim);
  });
}

std::tuple<Tensor, Tensor> ranksim_loss(Tensor features, Tensor labels, Tensor priority,
                                        std::optional<Tensor> label_similarity, double interp_strength, double weight,
                                        bool mean, bool with_gradient) {
  const auto [index, order, count] = ranksim_select(labels, priority);
  Arguments a{features, labels, index, order, count, label_similarity, {interp_strength, weight, mean}};
  check(a);
  const int64_t n = a.features.size(0), d = a.features.size(1);
  TorchBackend backend(a.features);
  const ScalarType arithmetic = arithmetic_type(a.features);
  Tensor loss = new_empty(a.features, {}, arithmetic);
  const Tensor gradient = new_empty(a.features, {with_gradient ? n : 0, d}, arithmetic);
  if (n == 0) return {torch::stable::zero_(loss), gradient};
  with_ranked_rows(backend, a, with_gradient, [&](auto tag, auto& ranksim) {
    using T = typename Storage<decltype(tag)>::Arithmetic;
    ranksim.loss(mutable_data<T>(loss));
    if (with_gradient) ranksim.gradient(static_cast<const T*>(nullptr), mutable_data<T>(gradient));
  });
  return {loss, gradient};
}

Tensor ranksim_rows(Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count,
                    std::optional<Tensor> label_similarity, double interp_strength, double weight) {
  Arguments a{features, labels, index, order, count, label_similarity, {interp_strength, weight, false}};
  check(a);
  const int64_t n = a.features.size(0);
  TorchBackend backend(a.features);
  const Tensor rows = new_empty(a.features, {n}, arithmetic_type(a.features));
  if (n == 0) return rows;
  with_ranked_rows(backend, a, false, [&](auto tag, auto& ranksim) {
    ranksim.rows(mutable_data<typename Storage<decltype(tag)>::Arithmetic>(rows));
  });
  return rows;
}

Tensor ranksim_rows_backward(Tensor grad, Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count,
                             std::optional<Tensor> label_similarity, double interp_strength, double weight) {
  Arguments a{features, labels, index, order, count, label_similarity, {interp_strength, weight, false}};
  check(a);
  check_ranksim_rows_backward(grad, a.features);
  check_device(grad, a.features, "grad");
  TorchBackend backend(a.features);
  grad = as_contiguous(grad);
  const Tensor gradient = new_empty(a.features, a.features.sizes(), a.features.scalar_type());
  if (a.features.size(0) == 0) return gradient;
  with_ranked_rows(backend, a, true, [&](auto tag, auto& ranksim) {
    using F = decltype(tag);
    ranksim.gradient(data<typename Storage<F>::Arithmetic>(grad), mutable_data<F>(gradient));
  });
  return gradient;
}

}  // namespace
}  // namespace dadl::cuda

DADL_CUDA_LIBRARY(m) {
  DADL_IMPL(m, dadl::cuda, ranksim_select);
  DADL_IMPL(m, dadl::cuda, ranksim_loss);
  DADL_IMPL(m, dadl::cuda, ranksim_rows);
  DADL_IMPL(m, dadl::cuda, ranksim_rows_backward);
}
