// Linear maps under many dropout masks, and the disagreement of their results, on CUDA.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../disagreement_checks.h"
#include "../dropout_checks.h"
#include "../signatures.h"
#include "dropout_kernels.cuh"
#include "torch_backend.h"

namespace dadl::cuda {
namespace {

void check_devices(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& bias,
                   const Tensor& seed) {
  check_device(weight, features, "weight");
  check_device(seed, features, "seed");
  if (bias) check_device(*bias, features, "bias");
}

// body(DropoutLinear<T>, A{}) on contiguous tensors
template <typename Body>
void with_linear(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& seed,
                 double p, int64_t samples, Body body) {
  const Tensor values = as_contiguous(features), factors = as_contiguous(weight);
  std::optional<Tensor> offsets;
  if (bias) offsets = as_contiguous(*bias);
  dispatch_floating(values, "features", [&](auto tag) {
    using T = decltype(tag);
    body(DropoutLinear<T>{data<T>(values), data<T>(factors), offsets ? data<T>(*offsets) : nullptr, data<int64_t>(seed),
                          dropout_threshold(p), values.size(0), values.size(1), factors.size(0), samples},
         typename Storage<T>::Arithmetic{});
  });
}

Tensor dropout_linear(Tensor features, Tensor weight, std::optional<Tensor> bias, Tensor seed, double p,
                      int64_t samples) {
  check_dropout(features, weight, bias, seed, samples);
  check_devices(features, weight, bias, seed);
  TorchBackend backend(features);
  const int64_t outputs = weight.size(0);
  const bool few = outputs <= kFewOutputs;
  const ScalarType arithmetic = arithmetic_type(features);
  const Tensor result =
      new_empty(features, {samples, features.size(0), outputs}, few ? features.scalar_type() : arithmetic);
  with_linear(features, weight, bias, seed, p, samples, [&](const auto& linear, auto tag) {
    using A = decltype(tag);
    using T = std::remove_const_t<std::remove_pointer_t<decltype(linear.features)>>;
    if (few) return dropout_predict(backend, linear, nullptr, mutable_data<T>(result));
    dropout_multiply(backend, linear, mutable_data<A>(result));
  });
  return as_contiguous(result, features.scalar_type());
}

std::tuple<Tensor, Tensor> dropout_linear_backward(Tensor grad, Tensor features, Tensor weight, Tensor seed, double p,
                                                   bool for_features, bool for_weight) {
  check_dropout_backward(grad, features, weight, seed);
  check_devices(features, weight, {}, seed);
  check_device(grad, features, "grad");
  TorchBackend backend(features);
  const int64_t rows = features.size(0), width = features.size(1), outputs = weight.size(0);
  const bool few = outputs <= kFewOutputs;
  const ScalarType arithmetic = arithmetic_type(features), type = few ? features.scalar_type() : arithmetic;
  const Tensor upstream = few ? as_contiguous(grad, arithmetic) : as_contiguous(grad);
  const Tensor features_gradient = new_empty(features, {for_features ? rows : 0, width}, type);
  const Tensor weight_gradient = new_empty(features, {for_weight ? outputs : 0, width}, type);
  with_linear(features, weight, {}, seed, p, grad.size(0), [&](const auto& linear, auto tag) {
    using A = decltype(tag);
    using T = std::remove_const_t<std::remove_pointer_t<decltype(linear.features)>>;
    if (few) {
      return dropout_gradients<false>(backend, linear, nullptr, data<A>(upstream), A{1},
                                      for_features ? mutable_data<T>(features_gradient) : nullptr,
                                      for_weight ? mutable_data<T>(weight_gradient) : nullptr,
                                      static_cast<A*>(nullptr));
    }
    dropout_multiply_back(backend, linear, data<T>(upstream),
                          for_features ? mutable_data<A>(features_gradient) : nullptr,
                          for_weight ? mutable_data<A>(weight_gradient) : nullptr);
  });
  return {as_contiguous(features_gradient, features.scalar_type()),
          as_contiguous(weight_gradient, features.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_disagreement(Tensor features, Tensor weight,
                                                                std::optional<Tensor> bias, Tensor seed, double p,
                                                                int64_t samples, int64_t measure_number, bool mean,
                                                                bool minimax, bool with_gradient) {
  const Measure measure = checked_measure(measure_number);
  check_dropout(features, weight, bias, seed, samples);
  check_devices(features, weight, bias, seed);
  const int64_t rows = features.size(0), width = features.size(1), outputs = weight.size(0);
  check_few_outputs(weight);
  TorchBackend backend(features);
  const ScalarType arithmetic = arithmetic_type(features);
  const auto empty = [&](int64_t size, int64_t columns) {
    return new_empty(features, {with_gradient ? size : 0, columns}, arithmetic);
  };
  const Tensor loss = new_empty(features, {rows}, arithmetic);
  const Tensor features_gradient = empty(rows, width);
  Tensor weight_gradient = empty(outputs, width);
  Tensor bias_gradient = new_empty(features, {with_gradient ? outputs : 0}, arithmetic);
  // The features' gradient would have no memory, and a null pointer says that no gradient is wanted.
  if (rows == 0) {
    return {loss, features_gradient, torch::stable::zero_(weight_gradient), torch::stable::zero_(bias_gradient)};
  }
  with_linear(features, weight, bias, seed, p, samples, [&](const auto& linear, auto tag) {
    using A = decltype(tag);
    dadl::dropout_disagreement(backend, linear, measure, mean ? 1 / static_cast<A>(std::max<int64_t>(rows, 1)) : A{1},
                               minimax ? A{-1} : A{1}, mutable_data<A>(loss),
                               with_gradient ? mutable_data<A>(features_gradient) : nullptr,
                               with_gradient ? mutable_data<A>(weight_gradient) : nullptr,
                               with_gradient ? mutable_data<A>(bias_gradient) : nullptr);
  });
  return {loss, features_gradient, weight_gradient, bias_gradient};
}

}  // namespace
}  // namespace dadl::cuda

DADL_CUDA_LIBRARY(m) {
  DADL_IMPL(m, dadl::cuda, dropout_linear);
  DADL_IMPL(m, dadl::cuda, dropout_linear_backward);
  DADL_IMPL(m, dadl::cuda, dropout_disagreement);
}
