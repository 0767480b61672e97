// What the operators of every backend share of torch: dtypes, pointers, and one signature for each operator.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "core/half.h"

namespace dadl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

inline bool is_floating(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline ScalarType arithmetic_type(const Tensor& tensor) {
  return is_double(tensor) ? ScalarType::Double : ScalarType::Float;
}

// The same tensor where nothing is to be done: asking the dispatcher takes microseconds.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor as_contiguous(const Tensor& tensor, ScalarType type) {
  return as_contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

// Uninitialised, on the device of `like`. By the C interface: torch::stable::new_empty looks the operator up by name at
// every call, which takes longer than the allocation.
inline Tensor new_empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
  const auto dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> strides(dims);
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                                  device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls body(T{}) with the storage type of a floating-point tensor.
template <typename Body>
void dispatch_floating(const Tensor& tensor, const char* name, Body body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16");
  }
}

template <typename Body>
void dispatch_labels(const Tensor& labels, Body body) {
  if (labels.scalar_type() == ScalarType::Long) return body(int64_t{});
  dispatch_floating(labels, "labels (or int64)", body);
}

inline int64_t row_length(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() >= 1, "rank needs at least one dimension");
  const int64_t n = input.size(input.dim() - 1);
  STD_TORCH_CHECK(n <= (int64_t{1} << 24), "rank is exact for rows of up to 2^24 values, got ", n);
  return n;
}

// The operators of ops.cpp as functions, without strings: the stable ABI of torch 2.13 never frees those that it passes
// (its issue 191340). Boxing checks a signature only when it is called, so the build checks it.
namespace signature {
using Similarity = std::optional<Tensor>;
using rank = Tensor(Tensor, double);
using rank_backward = Tensor(Tensor, Tensor, Tensor, double);
using ranksim_select = std::tuple<Tensor, Tensor, Tensor>(Tensor, Tensor);
using ranksim_loss = std::tuple<Tensor, Tensor>(Tensor, Tensor, Tensor, Similarity, double, double, bool, bool);
using ranksim_rows = Tensor(Tensor, Tensor, Tensor, Tensor, Tensor, Similarity, double, double);
using ranksim_rows_backward = Tensor(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Similarity, double, double);
using similarity_logsumexp = std::tuple<Tensor, Tensor>(Tensor, Tensor, std::optional<Tensor>, double, bool, bool);
using similarity_logsumexp_key_gradient = Tensor(Tensor, Tensor, Tensor, std::optional<Tensor>, Tensor, double, bool);
using pseudo_group_contrast = std::tuple<Tensor, Tensor>(Tensor, Tensor, Tensor, Tensor, std::optional<Tensor>, double,
                                                         int64_t, int64_t, int64_t, bool);
using disagreement = std::tuple<Tensor, Tensor>(Tensor, int64_t, bool, bool);
using dropout_linear = Tensor(Tensor, Tensor, std::optional<Tensor>, Tensor, double, int64_t);
using dropout_linear_backward = std::tuple<Tensor, Tensor>(Tensor, Tensor, Tensor, Tensor, double, bool, bool);
using dropout_disagreement = std::tuple<Tensor, Tensor, Tensor, Tensor>(Tensor, Tensor, std::optional<Tensor>, Tensor,
                                                                        double, int64_t, int64_t, bool, bool, bool);
using scale_gradient = Tensor(Tensor, Tensor, Tensor, int64_t);
}  // namespace signature

}  // namespace dadl

// Registers `backend`::`name` for the operator of that name.
#define DADL_IMPL(library, backend, name)                                                                     \
  static_assert(std::is_same_v<decltype(backend::name), dadl::signature::name>, #name " has another schema"); \
  library.impl(#name, TORCH_BOX(&backend::name))
