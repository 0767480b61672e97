// Log-sum-exp of similarities with its gradients, and pseudo group contrast on it. The formulas are those of
// dadl_ext/reference/contrast.py.
//
// Rows are streamed past rows as contrast_stream.cuh says; what the ranges leave is combined here, in order, so that
// the result depends on shapes and the device alone.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "contrast_flash.cuh"
#include "contrast_products.cuh"
#include "contrast_split.cuh"

namespace dadl {

constexpr int kCombineFeatures = 64;  // that a block combines at once
constexpr int kCombineGroups = kThreads / kCombineFeatures;
constexpr int kCombineAll = 256;  // that it combines one after the other

// Which keys a query meets, and which of them are its positives.
struct KeyChoice {
  const bool* mask = nullptr;  // [N], null for all
  bool exclude_self = false;   // key i is left out for query i
  // Group contrast: N = classes * slots, and the slots of the query's class are positives.
  const int64_t* target = nullptr;      // [B], null where there are no classes
  const int64_t* slot_count = nullptr;  // [classes], valid leading slots; null for all
  int classes = 0, slots = 1;
  bool kl = false, mean = false;
  int64_t ignore_index = -1;

  __device__ __forceinline__ int valid_slots(int64_t c) const {
    if (!slot_count) return slots;
    const int64_t count = slot_count[c];
    return count < 0 ? 0 : count < slots ? static_cast<int>(count) : slots;
  }
  __host__ __device__ __forceinline__ bool takes_all() const { return !mask && !slot_count; }
  __device__ __forceinline__ bool takes_part(int key) const {
    return (!mask || mask[key]) && (!slot_count || key % slots < slot_count[key / slots]);
  }
  __device__ __forceinline__ bool is_class(int64_t c) const { return c >= 0 && c < classes; }
};

// ---- bias and sign of streamed rows ---------------------------------------------------------------------------------

template <typename A>
__global__ void __launch_bounds__(kThreads)
    contrast_key_bias_kernel(KeyChoice choice, int64_t keys, A* bias /* [N] */) {
  const int64_t j = element_index();
  if (j < keys) bias[j] = choice.takes_part(static_cast<int>(j)) ? A{0} : minus_infinity<A>();
}

// A query that meets no key, or has no upstream gradient, is absent.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    contrast_query_bias_kernel(const A* grad /* [B] */, const A* lse /* [B] */, int64_t queries, A* bias /* [B] */,
                               A* sign /* [B] */) {
  const int64_t i = element_index();
  if (i >= queries) return;
  const bool absent = lse[i] == minus_infinity<A>() || grad[i] == 0;
  bias[i] = absent ? minus_infinity<A>() : log(fabs(grad[i])) - lse[i];
  sign[i] = grad[i] < 0 ? A{-1} : A{1};
}

// ---- what the ranges leave, combined --------------------------------------------------------------------------------

// A sum over groups of threads that share features, for the first group; `parts` [kThreads].
template <typename A>
__device__ __forceinline__ A sum_of_groups(A value, A* parts) {
  __syncthreads();
  parts[threadIdx.x] = value;
  __syncthreads();
  A sum = 0;
  for (int group = 0; group < kCombineGroups; ++group) {
    sum += parts[group * kCombineFeatures + threadIdx.x % kCombineFeatures];
  }
  return sum;
}

// The log-sum-exp, or with `own` [B, d], an additional key of each query, the row losses of group contrast; and the
// slope [B, d], the gradient of either. Grid: queries by chunks of features.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    contrast_combine_kernel(Partials<A> partials, Rows<T> query, Rows<T> key, KeyChoice choice, const A* own, A scale,
                            A* values /* [B] */, A* slope /* [B, d] or null */) {
  DADL_SHARED(warps, A[kThreads / kWarp]);
  DADL_SHARED(factors, A[kThreads]);
  DADL_SHARED(parts, A[kThreads]);
  const auto add = [](A a, A b) { return a + b; };
  const int i = static_cast<int>(blockIdx.x), d = query.d, thread = static_cast<int>(threadIdx.x);
  const bool has_split = thread < partials.splits;
  const int64_t at = partials.at(thread, i);
  const A* own_row = own + (own ? static_cast<int64_t>(i) * d : 0);
  const auto query_value = [&](int c) { return static_cast<A>(to_float(query.row(i)[c])); };

  A own_logit = minus_infinity<A>();
  if (own) {
    A inner = 0;
    for (int c = thread; c < d; c += kThreads) inner += query_value(c) * own_row[c];
    own_logit = scale * block_join(inner, warps, add);
  }
  const A split_largest = has_split ? partials.largest[at] : minus_infinity<A>();
  const A largest = larger(block_join(split_largest, warps, larger<A>), own_logit);
  const A base = base_of(largest);
  const A factor = exp(split_largest - base), own_weight = exp(own_logit - base);
  factors[thread] = factor;
  const A total = own_weight + block_join(has_split ? factor * partials.sum[at] : A{0}, warps, add);
  const A lse = base + log(total);

  const int64_t target = own ? choice.target[i] : 0;
  const bool is_class = own && choice.is_class(target);
  const int valid = is_class ? choice.valid_slots(target) : 0;
  const int64_t first_positive = is_class ? target * choice.slots : 0;
  const A share = A{1} / static_cast<A>(1 + valid);
  const int group = thread / kCombineFeatures;
  // Of a feature, over the slots of this thread's group.
  const auto positives = [&](int c) {
    A sum = 0;
#pragma unroll 8
    for (int slot = group; slot < valid; slot += kCombineGroups) {
      sum += static_cast<A>(to_float(key.row(first_positive + slot)[c]));
    }
    return sum;
  };
  A gain = 1;
  if (own && choice.mean) {
    // Every block counts for itself: few targets, and no launch of its own.
    int counted = 0;
    for (int b = thread; b < query.count; b += kThreads) counted += choice.target[b] != choice.ignore_index;
    gain = A{1} / larger(block_join(static_cast<A>(counted), warps, add), A{1});
  }
  if (blockIdx.y == 0) {
    A value = lse;
    if (own) {
      A positive = 0;
      for (int c = thread % kCombineFeatures; c < d; c += kCombineFeatures) {
        positive += query_value(c) * positives(c);
      }
      positive = own_logit + scale * block_join(positive, warps, add);
      const A missing = target == choice.ignore_index ? A{0} : static_cast<A>(NAN);
      value = is_class ? (lse - positive * share + (choice.kl ? log(share) : A{0})) * gain : missing;
    }
    if (thread == 0) values[i] = value;
  }
  if (!slope) return;

  const int first = static_cast<int>(blockIdx.y) * kCombineAll;
  for (int begin = first; begin < first + kCombineAll && begin < d; begin += kCombineFeatures) {
    const int c = begin + thread % kCombineFeatures;
    A weighted = 0, positive = 0;
    if (c < d) {
#pragma unroll 8
      for (int k = group; k < partials.splits; k += kCombineGroups) {
        weighted += factors[k] * partials.weighted[partials.at(k, i) * d + c];
      }
      positive = positives(c);
    }
    weighted = sum_of_groups(weighted, parts);
    if (own) positive = sum_of_groups(positive, parts);
    if (group != 0 || c >= d) continue;
    if (own) weighted += own_weight * own_row[c];
    A result = total == 0 ? A{0} : weighted * (scale / total);
    if (own) result = is_class ? (result - (positive + own_row[c]) * share * scale) * gain : A{0};
    slope[static_cast<int64_t>(i) * d + c] = result;
  }
}

// gradient [N, d]: zero for keys that take no part. One group of threads per key.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    contrast_key_gradient_kernel(Partials<A> partials, KeyChoice choice, A scale, T* gradient) {
  const int j = static_cast<int>(blockIdx.x) * kCombineGroups + static_cast<int>(threadIdx.x) / kCombineFeatures;
  if (j >= partials.rows) return;
  const bool takes_part = choice.takes_part(j);
  A largest = minus_infinity<A>();
  for (int k = 0; k < partials.splits; ++k) largest = larger(largest, partials.largest[partials.at(k, j)]);
  const A factor = scale * exp(largest);
  for (int c = static_cast<int>(threadIdx.x) % kCombineFeatures; c < partials.d; c += kCombineFeatures) {
    A sum = 0;
    for (int k = 0; k < partials.splits; ++k) {
      const int64_t at = partials.at(k, j);
      sum += exp(partials.largest[at] - base_of(largest)) * partials.weighted[at * partials.d + c];
    }
    gradient[static_cast<int64_t>(j) * partials.d + c] = Storage<T>::round(takes_part ? factor * sum : A{0});
  }
}

// ---- the order of the launches --------------------------------------------------------------------------------------

// finish(partials) after streaming, in the way that suits the dtype, the number of features and the device.
template <typename T, typename A, typename Backend, typename Finish>
void stream(Backend& backend, const Rows<T>& owned, const Rows<T>& streamed, const Logits<A>& logits,
            bool with_weighted, Finish finish) {
  if constexpr (sizeof(T) == 2) {
    if (owned.d <= kFlashFeatures) {
      return stream_flash<64>(backend, owned, streamed, logits, with_weighted, finish);
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    if (owned.d > 0 && owned.d <= kFlashFeatures && backend.prefers_split_products()) {
      return stream_split(backend, owned, streamed, logits, with_weighted, finish);
    }
  }
  stream_products(backend, owned, streamed, logits, with_weighted, finish);
}

// values [B] and, unless null, slope [B, d]; own [B, d] or null, see contrast_combine_kernel.
template <typename T, typename A, typename Backend>
void contrast(Backend& backend, const Rows<T>& query, const Rows<T>& key, const KeyChoice& choice, const A* own,
              double scale, A* values, A* slope) {
  if (query.count == 0) return;
  auto bias = backend.template buffer<A>(choice.takes_all() ? 0 : key.count);
  Logits<A> logits{static_cast<A>(scale)};
  logits.exclude_self = choice.exclude_self;
  if (!choice.takes_all() && key.count > 0) {
    backend.launch(contrast_key_bias_kernel<A>, dim3(blocks_for(key.count, kThreads)), dim3(kThreads), choice,
                   key.count, bias.data());
    logits.bias = bias.data();
  }
  const bool with_slope = slope && query.d > 0;
  stream(backend, query, key, logits, with_slope, [&](const Partials<A>& partials) {
    const unsigned chunks = with_slope ? blocks_for(query.d, kCombineAll) : 1;
    backend.launch(contrast_combine_kernel<T, A>, dim3(static_cast<unsigned>(query.count), chunks), dim3(kThreads),
                   partials, query, key, choice, own, scale, values, with_slope ? slope : nullptr);
  });
}

// gradient [N, d] = scale sum_i grad_i p_ij query_i
template <typename T, typename A, typename Backend>
void contrast_key_gradient(Backend& backend, const Rows<T>& query, const Rows<T>& key, const KeyChoice& choice,
                           const A* grad, const A* lse, double scale, T* gradient) {
  if (key.count == 0 || key.d == 0) return;
  auto bias = backend.template buffer<A>(query.count), sign = backend.template buffer<A>(query.count);
  if (query.count > 0) {
    backend.launch(contrast_query_bias_kernel<A>, dim3(blocks_for(query.count, kThreads)), dim3(kThreads), grad, lse,
                   query.count, bias.data(), sign.data());
  }
  const Logits<A> logits{static_cast<A>(scale), bias.data(), sign.data(), choice.exclude_self};
  stream(backend, key, query, logits, true, [&](const Partials<A>& partials) {
    backend.launch(contrast_key_gradient_kernel<T, A>, dim3(blocks_for(key.count, kCombineGroups)), dim3(kThreads),
                   partials, choice, scale, gradient);
  });
}

}  // namespace dadl
