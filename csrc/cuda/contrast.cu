// The contrast operators on CUDA.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "../contrast_checks.h"
#include "../signatures.h"
#include "contrast_kernels.cuh"
#include "torch_backend.h"

namespace dadl::cuda {
namespace {

void check_sides(const Tensor& query, const Tensor& key, const std::optional<Tensor>& mask, double scale,
                 bool exclude_self) {
  check_contrast(query, key, mask, scale, exclude_self);
  check_device(key, query, "key");
  if (mask) check_device(*mask, query, "key_mask");
}

template <typename T>
Rows<T> rows_of(const Tensor& matrix, int64_t count, int64_t d) {
  STD_TORCH_CHECK(count <= kMostRows && d <= kMostFeatures,
                  "contrast needs up to 2^30 rows of up to 2^23 features, got ", count, " of ", d);
  return Rows<T>(data<T>(matrix), count, d);
}

// body(query, key, A{}) with Rows of contiguous tensors of one dtype: as they are where they have one, else in float32.
// `key` may have any shape of `count` rows.
template <typename Body>
void with_rows(const Tensor& query, const Tensor& key, int64_t count, Body body) {
  const int64_t queries = query.size(0), d = query.size(1);
  const bool same = query.scalar_type() == key.scalar_type();
  const Tensor rows = same ? as_contiguous(query) : as_contiguous(query, ScalarType::Float);
  const Tensor keys = same ? as_contiguous(key) : as_contiguous(key, ScalarType::Float);
  dispatch_floating(keys, "key", [&](auto tag) {
    using T = decltype(tag);
    body(rows_of<T>(rows, queries, d), rows_of<T>(keys, count, d), typename Storage<T>::Arithmetic{});
  });
}

std::tuple<Tensor, Tensor> similarity_logsumexp(Tensor query, Tensor key, std::optional<Tensor> key_mask, double scale,
                                                bool exclude_self, bool with_slope) {
  check_sides(query, key, key_mask, scale, exclude_self);
  TorchBackend backend(query);
  if (key_mask) key_mask = as_contiguous(*key_mask);
  const ScalarType arithmetic = arithmetic_type(query);
  const Tensor lse = new_empty(query, {query.size(0)}, arithmetic);
  const Tensor slope = new_empty(query, {with_slope ? query.size(0) : 0, query.size(1)}, arithmetic);
  KeyChoice choice;
  choice.mask = key_mask ? data<bool>(*key_mask) : nullptr;
  choice.exclude_self = exclude_self;
  with_rows(query, key, key.size(0), [&](const auto& queries, const auto& keys, auto tag) {
    using A = decltype(tag);
    contrast(backend, queries, keys, choice, static_cast<const A*>(nullptr), scale, mutable_data<A>(lse),
             with_slope ? mutable_data<A>(slope) : nullptr);
  });
  return {lse, slope};
}

Tensor similarity_logsumexp_key_gradient(Tensor grad, Tensor query, Tensor key, std::optional<Tensor> key_mask,
                                         Tensor lse, double scale, bool exclude_self) {
  check_sides(query, key, key_mask, scale, exclude_self);
  check_upstream(grad, lse, query);
  check_device(grad, query, "grad");
  check_device(lse, query, "lse");
  TorchBackend backend(query);
  grad = as_contiguous(grad);
  lse = as_contiguous(lse);
  if (key_mask) key_mask = as_contiguous(*key_mask);
  const ScalarType stored = key.scalar_type(), type = query.scalar_type() == stored ? stored : ScalarType::Float;
  query = as_contiguous(query, type);
  key = as_contiguous(key, type);
  const Tensor gradient = new_empty(key, key.sizes(), key.scalar_type());
  KeyChoice choice;
  choice.mask = key_mask ? data<bool>(*key_mask) : nullptr;
  choice.exclude_self = exclude_self;
  dispatch_floating(key, "key", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    contrast_key_gradient(backend, rows_of<T>(query, query.size(0), query.size(1)),
                          rows_of<T>(key, key.size(0), key.size(1)), choice, data<A>(grad), data<A>(lse), scale,
                          mutable_data<T>(gradient));
  });
  return as_contiguous(gradient, stored);
}

std::tuple<Tensor, Tensor> pseudo_group_contrast(Tensor query, Tensor key, Tensor queue, Tensor target,
                                                 std::optional<Tensor> slot_count, double temperature, int64_t form,
                                                 int64_t ignore_index, int64_t reduction, bool with_slope) {
  check_group_contrast(query, key, queue, target, slot_count, temperature, form, ignore_index, reduction);
  const int64_t queries = query.size(0), d = query.size(1), classes = queue.size(0), slots = queue.size(1);
  check_device(key, query, "key");
  check_device(queue, query, "queue");
  check_device(target, query, "target");
  if (slot_count) check_device(*slot_count, query, "slot_count");
  TorchBackend backend(query);
  target = as_contiguous(target);
  if (slot_count) slot_count = as_contiguous(*slot_count);
  const ScalarType arithmetic = arithmetic_type(query);
  const Tensor own = as_contiguous(key, arithmetic);
  const Tensor rows = new_empty(query, {queries}, arithmetic);
  const Tensor slope = new_empty(query, {with_slope ? queries : 0, d}, arithmetic);
  KeyChoice choice;
  choice.target = data<int64_t>(target);
  choice.slot_count = slot_count ? data<int64_t>(*slot_count) : nullptr;
  choice.classes = static_cast<int>(classes);
  choice.slots = static_cast<int>(slots);
  choice.kl = form == kKl;
  choice.mean = reduction == kMean;
  choice.ignore_index = ignore_index;
  with_rows(query, queue, classes * slots, [&](const auto& query_rows, const auto& keys, auto tag) {
    using A = decltype(tag);
    // Where d is 0 there are own keys all the same, of which nothing is read.
    contrast(backend, query_rows, keys, choice, d ? data<A>(own) : data<A>(rows), 1 / temperature,
             mutable_data<A>(rows), with_slope ? mutable_data<A>(slope) : nullptr);
  });
  return {reduction == kNone ? rows : torch::stable::sum(rows), slope};
}

}  // namespace
}  // namespace dadl::cuda

DADL_CUDA_LIBRARY(m) {
  DADL_IMPL(m, dadl::cuda, similarity_logsumexp);
  DADL_IMPL(m, dadl::cuda, similarity_logsumexp_key_gradient);
  DADL_IMPL(m, dadl::cuda, pseudo_group_contrast);
}
