// The operators of ops.cpp as C++ types, and their registration.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>

#include "tensors.h"

// No operator takes a string: the stable ABI of torch 2.13 never frees the strings that it passes (its issue 191340).
namespace dadl::signature {

using Similarity = std::optional<Tensor>;
using rank = Tensor(Tensor, double);
using rank_backward = Tensor(Tensor, Tensor, Tensor, double);
using ranksim_select = std::tuple<Tensor, Tensor, Tensor>(Tensor, Tensor);
using ranksim_loss = std::tuple<Tensor, Tensor>(Tensor, Tensor, Tensor, Similarity, double, double, bool, bool);
using ranksim_rows = Tensor(Tensor, Tensor, Tensor, Tensor, Tensor, Similarity, double, double);
using ranksim_rows_backward = Tensor(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Similarity, double, double);
using rank_n_contrast = std::tuple<Tensor, Tensor>(Tensor, Tensor, double, int64_t, int64_t, int64_t, bool);
using rank_n_contrast_backward = Tensor(Tensor, Tensor, Tensor, double, int64_t, int64_t);
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

}  // namespace dadl::signature

// Registers `backend`::`name` for the operator of that name. Boxing would check the signature only at the first call.
#define DADL_IMPL(library, backend, name)                                                                     \
  static_assert(std::is_same_v<decltype(backend::name), dadl::signature::name>, #name " has another schema"); \
  library.impl(#name, TORCH_BOX(&backend::name))

// The operators' namespace. Each build for the Hugging Face Hub has one of its own, so that one process can load
// several: kernel-builder defines its name.
#if defined(TORCH_EXTENSION_NAME)
#define DADL_NAMESPACE TORCH_EXTENSION_NAME
#else
#define DADL_NAMESPACE dadl
#endif

// PyTorch's macros make strings and names of what they are given, so that the namespace must be expanded before.
#define DADL_EXPANDED_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define DADL_EXPANDED_LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)
#define DADL_LIBRARY(m) DADL_EXPANDED_LIBRARY(DADL_NAMESPACE, m)
#define DADL_LIBRARY_IMPL(key, m) DADL_EXPANDED_LIBRARY_IMPL(DADL_NAMESPACE, key, m)
