// The fused RankSim operators on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "ranksim_kernels.cuh"
#include "torch_backend.h"

namespace dadl::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> ranksim_select(Tensor labels, Tensor priority) {
  STD_TORCH_CHECK(labels.dim() == 1 || labels.dim() == 2, "labels must be [n] or [n, k]");
  const int64_t n = labels.size(0), k = labels.dim() == 2 ? labels.size(1) : 1;
  STD_TORCH_CHECK(priority.dim() == 1 && priority.size(0) == n && priority.scalar_type() == ScalarType::Double,
                  "priority must be [n] float64");
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
  STD_TORCH_CHECK(a.features.dim() == 2, "features must be [n, d]");
  const int64_t n = a.features.size(0);
  for (Tensor* tensor : {&a.index, &a.order}) {
    STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == n && tensor->scalar_type() == ScalarType::Long,
                    "index, order and count must come from ranksim_select on the same batch");
    check_device(*tensor, a.features, "index and order");
    *tensor = as_contiguous(*tensor);
  }
  STD_TORCH_CHECK(a.count.numel() == 1 && a.count.scalar_type() == ScalarType::Long,
                  "index, order and count must come from ranksim_select on the same batch");
  check_device(a.count, a.features, "count");
  a.features = as_contiguous(a.features);
  if (a.label_similarity) {
    Tensor& matrix = *a.label_similarity;
    STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(0) == matrix.size(1) && matrix.size(0) <= n,
                    "the label-similarity matrix must be [m, m] with one row for each distinct label of the batch of ",
                    n);
    STD_TORCH_CHECK(matrix.scalar_type() == ScalarType::Float || matrix.scalar_type() == ScalarType::Double,
                    "label_similarity must be float32 or float64");
    check_device(matrix, a.features, "label_similarity");
    matrix = as_contiguous(matrix);
  } else {
    STD_TORCH_CHECK(a.labels.dim() == 1 && a.labels.size(0) == n, "vector labels need a label-similarity matrix");
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
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.size(0) == a.features.size(0) && grad.scalar_type() == arithmetic_type(a.features),
      "grad must be [n], in the dtype of ranksim_rows");
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
