// A tile of keys and its logits by BLAS: any arithmetic, all queries at once, in rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../core/exponential.h"
#include "contrast_keys.h"
#include "products.h"

namespace dadl::cpu::blas {
namespace {

template <typename T, typename A>
void widen_rows(const T* source, A* target, int64_t count) {
  for (int64_t e = 0; e < count; ++e) target[e] = to_float(source[e]);
}

// logits [rows, columns] become exp(logit - largest); sums and largest are updated, `rescale` is what earlier sums are
// multiplied with.
template <typename A>
void exponentiate_rows(A* logits, A* largest, A* sum, A* rescale, int64_t rows, int64_t columns) {
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  constexpr int kLanes = 16;
  for (int64_t i = 0; i < rows; ++i) {
    A* row = logits + i * columns;
    A highest[kLanes];
    for (int l = 0; l < kLanes; ++l) highest[l] = largest[i];
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      for (int l = 0; l < kLanes; ++l) highest[l] = row[j + l] > highest[l] ? row[j + l] : highest[l];
    }
    A next = largest[i];
    for (int l = 0; l < kLanes; ++l) next = highest[l] > next ? highest[l] : next;
    for (; j < columns; ++j) next = row[j] > next ? row[j] : next;
    const A base = next == kNothing ? 0 : next;
    A totals[kLanes] = {};
    j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        row[j + l] = exp_nonpositive(row[j + l] - base);
        totals[l] += row[j + l];
      }
    }
    A total = 0;
    for (; j < columns; ++j) {
      row[j] = exp_nonpositive(row[j] - base);
      total += row[j];
    }
    for (int l = 0; l < kLanes; ++l) total += totals[l];
    rescale[i] = largest[i] == kNothing ? 0 : exp_nonpositive(largest[i] - base);
    sum[i] = sum[i] * rescale[i] + total;
    largest[i] = next;
  }
}

// logits become weight_i exp(logit - lse_i)
template <typename A>
void weigh_rows(A* logits, const A* lse, const A* weight, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    A* row = logits + i * columns;
    const bool empty = lse[i] == -std::numeric_limits<A>::infinity();
    const A base = empty ? 0 : lse[i], factor = empty ? 0 : weight[i];
    for (int64_t j = 0; j < columns; ++j) {
      // Rounding can put a logit above the log-sum-exp by a hair.
      const A x = row[j] - base;
      row[j] = factor * exp_nonpositive(x > 0 ? A{0} : x);
    }
  }
}

template <typename A>
void add_scaled_values(const A* source, A factor, A* target, int64_t count) {
  for (int64_t e = 0; e < count; ++e) target[e] += factor * source[e];
}

#define DADL_CONTRAST_KERNELS(A)                                                                            \
  DADL_CLONES void exponentiate(A* logits, A* largest, A* sum, A* rescale, int64_t rows, int64_t columns) { \
    exponentiate_rows<A>(logits, largest, sum, rescale, rows, columns);                                     \
  }                                                                                                         \
  DADL_CLONES void weigh(A* logits, const A* lse, const A* weight, int64_t rows, int64_t columns) {         \
    weigh_rows<A>(logits, lse, weight, rows, columns);                                                      \
  }                                                                                                         \
  DADL_CLONES void add_scaled(const A* source, A factor, A* target, int64_t count) {                        \
    add_scaled_values<A>(source, factor, target, count);                                                    \
  }                                                                                                         \
  DADL_CLONES A dot(const A* x, const A* y, int64_t count) { return inner_product<A>(x, y, count); }
DADL_CONTRAST_KERNELS(float)
DADL_CONTRAST_KERNELS(double)
#undef DADL_CONTRAST_KERNELS

#define DADL_WIDEN(T, A) \
  DADL_CLONES void widen(const T* source, A* target, int64_t count) { widen_rows<T, A>(source, target, count); }
DADL_WIDEN(Half, float)
DADL_WIDEN(BFloat16, float)
#undef DADL_WIDEN

struct Query {
  Query(const Tensor& values, double scale, bool)
      : values(values), scale(scale), count(values.size(0)), padded(count), width(values.size(1)) {}

  // target [d] += factor times a row of the weighted sums.
  template <typename A>
  void add_row(const A* weighted, int64_t row, A factor, A* target, int64_t d) const {
    add_scaled(weighted + row * width, factor, target, d);
  }

  const Tensor& values;
  const double scale;
  const int64_t count, padded, width;
};

template <typename T>
class KeyTile {
 public:
  using Arithmetic = typename Storage<T>::Arithmetic;
  using A = Arithmetic;
  using Query = blas::Query;

  static int64_t size(int64_t queries, int64_t d, int64_t) {
    constexpr int64_t kBytes = 1 << 19;  // of a tile's keys and of its logits: both stay in a core's L2 cache
    const int64_t widest = kBytes / static_cast<int64_t>(sizeof(A)) / std::max<int64_t>({queries, d, 1});
    return std::clamp<int64_t>(widest / 16 * 16, 16, 1024);
  }

  KeyTile(const Query& query, const Keys<T>& keys, int64_t size)
      : query_(query), keys_(keys), logits_(query.count * size), rescale_(query.count) {
    if (!std::is_same_v<T, A> || keys.mask) own_values_.resize(size * keys.d);
  }

  void attend(Range keys, Range, const Softmax<A>& state, bool add) {
    load(keys.first, keys.last);
    const int64_t queries = query_.count, d = keys_.d;
    exponentiate(logits_.data(), state.largest, state.sum, rescale_.data(), queries, count_);
    if (!state.weighted) return;
    for (int64_t i = 0; add && i < queries; ++i) {
      if (rescale_[i] == 1) continue;
      for (int64_t c = 0; c < d; ++c) state.weighted[i * d + c] *= rescale_[i];
    }
    add_product(logits(), view(values_, count_, d, d, 1), 1.0, add ? 1.0 : 0.0, view(state.weighted, queries, d, d, 1));
  }

  void key_gradient(Range keys, Range, const A* lse, const A* grad, A* gradient) {
    load(keys.first, keys.last);
    weigh(logits_.data(), lse, grad, query_.count, count_);
    add_product(view(logits_.data(), count_, query_.count, 1, count_), query_.values, query_.scale, 0.0,
                view(gradient + keys.first * keys_.d, count_, keys_.d, keys_.d, 1));
  }

 private:
  // The keys as A, those that do not take part as zeros: what they hold must not show, not even as 0 NaN.
  void load(int64_t first, int64_t last) {
    constexpr A kLeftOut = -std::numeric_limits<A>::infinity();
    const int64_t d = keys_.d;
    count_ = last - first;
    values_ = own_values_.data();
    if constexpr (std::is_same_v<T, A>) {
      if (keys_.mask) {
        std::copy_n(keys_.values + first * d, count_ * d, own_values_.data());
      } else {
        values_ = keys_.values + first * d;
      }
    } else {
      widen(keys_.values + first * d, own_values_.data(), count_ * d);
    }
    for (int64_t j = 0; keys_.mask && j < count_; ++j) {
      if (!keys_.mask[first + j]) std::fill_n(own_values_.data() + j * d, d, A{0});
    }
    add_product(query_.values, view(values_, d, count_, 1, d), query_.scale, 0.0, logits());
    for (int64_t j = 0; keys_.mask && j < count_; ++j) {
      if (keys_.mask[first + j]) continue;
      for (int64_t i = 0; i < query_.count; ++i) logits_[i * count_ + j] = kLeftOut;
    }
    for (int64_t j = first; keys_.exclude_self && j < last; ++j) logits_[j * count_ + j - first] = kLeftOut;
  }

  Tensor view(const A* values, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
    return matrix_view(query_.values, values, rows, columns, row_stride, column_stride);
  }
  Tensor logits() { return view(logits_.data(), query_.count, count_, count_, 1); }

  const Query& query_;
  const Keys<T>& keys_;
  int64_t count_ = 0;
  const A* values_ = nullptr;
  std::vector<A> logits_, rescale_, own_values_;
};

}  // namespace
}  // namespace dadl::cpu::blas
