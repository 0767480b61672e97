// Rank-N-Contrast's losses and the gradient with respect to distances or cosines, several anchors at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../core/exponential.h"
#include "../core/rank_n_contrast.h"
#include "common.h"
#include "pair_kernels.h"
#include "rank_n_contrast_orders.h"
#include "transpose.h"

namespace dadl::cpu {

constexpr int kAnchors = 8;  // at once, one in each lane

template <typename A>
struct ContrastTask {
  // Inner products [n, n]. Row i becomes anchor i's derivatives by distance over the distance (by cosine), in A from
  // the row's first byte.
  double* inner;
  const A* x;             // [n, d]
  const double* squared;  // [n]
  const AnchorOrders* orders;
  double* rows;                              // [n], losses summed over the pairs
  std::vector<std::vector<int32_t>>* close;  // [n]: others whose features nearly coincide with the anchor's
  int64_t n, d;
  double inverse_temperature;
  bool cosine, with_gradient;
};

template <typename A>
struct ContrastScratch {
  explicit ContrastScratch(int64_t n)
      : similarity(n),
        derivative(n),
        values(n * kAnchors),
        sums(n * kAnchors),
        starts(n * kAnchors),
        order(n * kAnchors),
        row_starts(n),
        slopes(n) {}
  std::vector<double> similarity, derivative;  // of one anchor, by position
  std::vector<double> values, sums;            // [n][kAnchors], in the order of labels
  std::vector<int64_t> starts;                 // [n][kAnchors]
  std::vector<int32_t> order;                  // [kAnchors][n]
  std::vector<int64_t> row_starts;             // [n]
  std::vector<A> slopes;                       // [n]
};

// The row of inner products becomes distances, or cosines.
template <typename A>
void measure_anchor(const ContrastTask<A>& task, int64_t i) {
  double* row = task.inner + i * task.n;
  const double* squared = task.squared;
  if (task.cosine) {
    for (int64_t j = 0; j < task.n; ++j) row[j] = row[j] / std::sqrt(squared[i] * squared[j]);
    return;
  }
  int64_t close = 0;
  for (int64_t j = 0; j < task.n; ++j) {
    const double square = squared[i] + squared[j] - 2 * row[j];
    close += features_are_close<A>(square, squared[i], squared[j]);
    row[j] = square;
  }
  if (close > 1) {  // the anchor itself is one
    for (int64_t j = 0; j < task.n; ++j) {
      if (j == i || !features_are_close<A>(row[j], squared[i], squared[j])) continue;
      (*task.close)[i].push_back(static_cast<int32_t>(j));
      const A *a = task.x + i * task.d, *b = task.x + j * task.d;
      row[j] = sum_over<double>(task.d, [&](int64_t c) {
        const double difference = static_cast<double>(a[c]) - static_cast<double>(b[c]);
        return difference * difference;
      });
    }
  }
  row[i] = 0;
  for (int64_t j = 0; j < task.n; ++j) row[j] = std::sqrt(row[j]);
}

template <typename A>
void load_similarities(const ContrastTask<A>& task, int64_t i, double* similarity) {
  const double* row = task.inner + i * task.n;
  const double factor = task.cosine ? task.inverse_temperature : -task.inverse_temperature;
  for (int64_t j = 0; j < task.n; ++j) similarity[j] = factor * row[j];
}

// log sum exp of the numbers added so far.
class RunningLogSumExp {
 public:
  double add(double x) {
    if (x > largest_) {
      sum_ = sum_ * std::exp(largest_ - x) + 1;
      largest_ = x;
    } else {
      sum_ += std::exp(x - largest_);
    }
    return largest_ + std::log(sum_);
  }

 private:
  double largest_ = -std::numeric_limits<double>::infinity(), sum_ = 0;
};

// One anchor in logarithms, with a moving maximum: for similarities so far apart that exponentials of a common shift
// would underflow. derivative[r] is that of the r-th in order.
inline double contrast_in_logarithms(const double* similarity, const int32_t* order, const int64_t* starts, int64_t n,
                                     double* derivative, double* sums) {
  RunningLogSumExp farther, nearer;
  for (int64_t r = n - 1; r >= 1; --r) sums[r] = farther.add(similarity[order[r]]);
  double loss = 0;
  for (int64_t r = 1; r < n; ++r) {
    if (!starts[r]) sums[r] = sums[r - 1];
    loss += sums[r] - similarity[order[r]];
  }
  for (int64_t r = 1; r < n; ++r) sums[r] = nearer.add(-sums[r]);
  for (int64_t r = n - 1; r >= 1; --r) {
    if (r + 1 < n && !starts[r + 1]) sums[r] = sums[r + 1];
    derivative[r] = std::exp(similarity[order[r]] + sums[r]) - 1;
  }
  return loss;
}

// kAnchors anchors at once. In the order of their labels, values [n][kAnchors] are similarities and become derivatives;
// sums is working memory. Returns the lanes that are left to contrast_in_logarithms().
//
// With S_r = sum_{q >= start of the group of r} exp(s_q): loss = sum_r log S_r - s_r, and
// derivative_q = exp(s_q) sum_{r <= end of the group of q} 1 / S_r - 1. Every sum is of positive numbers.
inline __attribute__((always_inline)) uint32_t contrast_lanes(double* values, double* sums, const int64_t* starts,
                                                              int64_t n, double (&loss)[kAnchors]) {
  using Vector __attribute__((vector_size(8 * kAnchors))) = double;
  using Mask __attribute__((vector_size(8 * kAnchors))) = int64_t;
  // By reference: without wide registers, a vector has no agreed way to be passed.
  const auto load = [](auto& x, const auto* memory, int64_t r)
                        __attribute__((always_inline)) { std::memcpy(&x, memory + r * kAnchors, sizeof x); };
  const auto store = [](const Vector& x, double* memory, int64_t r)
                         __attribute__((always_inline)) { std::memcpy(memory + r * kAnchors, &x, sizeof x); };
  // With a common shift for the anchor, exponentials in this range and their reciprocals are normal numbers.
  constexpr double kRange = 600;
  Vector x, largest, least;
  load(largest, values, 1);
  least = largest;
  for (int64_t r = 2; r < n; ++r) {
    load(x, values, r);
    largest = x > largest ? x : largest;
    least = x < least ? x : least;
  }
  uint32_t doubtful = 0;
  for (int l = 0; l < kAnchors; ++l) doubtful |= static_cast<uint32_t>(!(largest[l] - least[l] < kRange)) << l;
  Vector total{};
  for (int64_t r = 1; r < n; ++r) {
    load(x, values, r);
    x -= largest;
    total -= x;
    store(x, values, r);
  }
  for (int64_t e = kAnchors; e < n * kAnchors; ++e) values[e] = exp_nonpositive(values[e]);

  Vector sum{};
  for (int64_t r = n - 1; r >= 1; --r) {
    load(x, values, r);
    sum += x;
    store(sum, sums, r);
  }
  // sum log S as the logarithm of a product whose exponent is kept apart.
  constexpr int64_t kMantissa = 52, kBias = 1023, kOne = kBias << kMantissa, kFraction = (int64_t{1} << kMantissa) - 1;
  Vector product = 1.0 - Vector{}, group{}, nearer{};
  Mask exponent{}, start;
  for (int64_t r = 1; r < n; ++r) {
    load(x, sums, r);
    load(start, starts, r);
    group = start ? x : group;
    product *= group;
    const Mask bits = reinterpret_cast<Mask>(product);
    exponent += (bits >> kMantissa) - kBias;
    product = reinterpret_cast<Vector>((bits & kFraction) | kOne);
    nearer += 1.0 / group;
    store(nearer, sums, r);
  }
  for (int l = 0; l < kAnchors; ++l) {
    loss[l] = total[l] + std::log(product[l]) + static_cast<double>(exponent[l]) * 0.693147180559945309417;
  }
  Mask last = -1 - Mask{};  // of its group
  for (int64_t r = n - 1; r >= 1; --r) {
    load(x, sums, r);
    nearer = last ? x : nearer;
    load(last, starts, r);
    load(x, values, r);
    store(x * nearer - 1.0, values, r);
  }
  return doubtful;
}

// Anchors [begin, end).
template <typename A>
void contrast_anchors(const ContrastTask<A>& task, AnchorOrders::Scratch& orders, ContrastScratch<A>& scratch,
                      int64_t begin, int64_t end) {
  const int64_t n = task.n;
  double *similarity = scratch.similarity.data(), *derivative = scratch.derivative.data();
  for (int64_t first = begin; first < end; first += kAnchors) {
    const int64_t count = std::min<int64_t>(kAnchors, end - first);
    for (int64_t l = 0; l < kAnchors; ++l) {
      int32_t* order = scratch.order.data() + l * n;
      if (l < count) {
        measure_anchor(task, first + l);
        load_similarities(task, first + l, similarity);
        orders.row(first + l, order, scratch.row_starts.data());
      }  // else the last anchor again
      for (int64_t r = 0; r < n; ++r) {
        scratch.values[r * kAnchors + l] = similarity[l < count ? order[r] : scratch.order[(count - 1) * n + r]];
        scratch.starts[r * kAnchors + l] = scratch.row_starts[r];
      }
    }
    double loss[kAnchors];
    const uint32_t doubtful =
        contrast_lanes(scratch.values.data(), scratch.sums.data(), scratch.starts.data(), n, loss);
    for (int64_t l = 0; l < count; ++l) {
      const int64_t i = first + l;
      const int32_t* order = scratch.order.data() + l * n;
      if (doubtful >> l & 1) {
        load_similarities(task, i, similarity);
        for (int64_t r = 0; r < n; ++r) scratch.row_starts[r] = scratch.starts[r * kAnchors + l];
        loss[l] =
            contrast_in_logarithms(similarity, order, scratch.row_starts.data(), n, derivative, scratch.sums.data());
        for (int64_t r = 1; r < n; ++r) scratch.values[r * kAnchors + l] = derivative[r];
      }
      task.rows[i] = loss[l];
      if (!task.with_gradient) continue;
      derivative[i] = 0;
      for (int64_t r = 1; r < n; ++r) derivative[order[r]] = scratch.values[r * kAnchors + l];
      double* row = task.inner + i * n;
      if (task.cosine) {
        for (int64_t j = 0; j < n; ++j) similarity[j] = derivative[j] * task.inverse_temperature;
      } else {
        for (int64_t j = 0; j < n; ++j) {
          similarity[j] = derivative[j] * distance_slope(row[j], task.inverse_temperature);
        }
      }
      std::copy_n(similarity, n, scratch.slopes.data());
      std::memcpy(row, scratch.slopes.data(), n * sizeof(A));
    }
  }
}

// The upper triangle from the lower, for rows [begin, end), which are whole tiles.
inline void mirror_rows(double* inner, int64_t n, int64_t begin, int64_t end) {
  for (int64_t i0 = begin; i0 < end; i0 += kTile) {
    const int64_t rows = std::min(kTile, n - i0);
    for (int64_t i = i0; i < i0 + rows; ++i) {
      for (int64_t j = i + 1; j < i0 + rows; ++j) inner[i * n + j] = inner[j * n + i];
    }
    for (int64_t j0 = i0 + kTile; j0 < n; j0 += kTile) {
      transpose(inner + j0 * n + i0, n, inner + i0 * n + j0, n, std::min(kTile, n - j0), rows);
    }
  }
}

// Takes the pairs whose features nearly coincide out of the weights [n, stride] of rows [begin, end), and adds up what
// remains.
template <typename A>
void sum_weights(A* weights, int64_t stride, int64_t n, const std::vector<std::vector<int32_t>>& close,
                 std::vector<A>* close_weights, double* sums, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    A* row = weights + i * stride;
    for (const int32_t j : close[i]) {
      close_weights[i].push_back(row[j]);
      row[j] = 0;
    }
    sums[i] = sum_over<double>(n, [&](int64_t j) { return static_cast<double>(row[j]); });
  }
}

// gradient_i = x_i sum_j w_ij - (w X)_i + sum over close j of w_ij (x_i - x_j), to the rows of the batch.
template <typename A>
void finish_distances(const A* weighed, const double* sums, const A* x, const std::vector<std::vector<int32_t>>& close,
                      const std::vector<A>* close_weights, const int64_t* index, A* gradient, int64_t d, int64_t begin,
                      int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const A *own = x + i * d, sum = static_cast<A>(sums[i]), *product = weighed + i * d;
    A* out = gradient + index[i] * d;
    for (int64_t c = 0; c < d; ++c) out[c] = own[c] * sum - product[c];
    for (size_t e = 0; e < close[i].size(); ++e) {
      const A *other = x + close[i][e] * d, weight = close_weights[i][e];
      for (int64_t c = 0; c < d; ++c) out[c] += weight * (own[c] - other[c]);
    }
  }
}

// target_clones does not work on templates, so each type has its own functions.
#define DADL_CONTRAST_ROWS(A)                                                                                         \
  DADL_CLONES inline void contrast(const ContrastTask<A>& task, AnchorOrders::Scratch& orders,                        \
                                   ContrastScratch<A>& scratch, int64_t begin, int64_t end) {                         \
    contrast_anchors<A>(task, orders, scratch, begin, end);                                                           \
  }                                                                                                                   \
  DADL_CLONES inline void finish(const A* weighed, const double* sums, const A* x,                                    \
                                 const std::vector<std::vector<int32_t>>& close, const std::vector<A>* close_weights, \
                                 const int64_t* index, A* gradient, int64_t d, int64_t begin, int64_t end) {          \
    finish_distances<A>(weighed, sums, x, close, close_weights, index, gradient, d, begin, end);                      \
  }
DADL_CONTRAST_ROWS(float)
DADL_CONTRAST_ROWS(double)
#undef DADL_CONTRAST_ROWS

}  // namespace dadl::cpu
