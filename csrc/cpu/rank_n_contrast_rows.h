// Rank-N-Contrast's losses and the gradient with respect to distances or cosines, several anchors at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "../core/rank_n_contrast.h"
#include "common.h"
#include "pair_kernels.h"
#include "rank_n_contrast_lanes.h"
#include "rank_n_contrast_orders.h"
#include "transpose.h"

namespace dadl::cpu {

// A: the type of features and gradients. W: that of inner products and all that is made of them, which is A or wider.
template <typename A, typename W>
struct ContrastTask {
  // Inner products [n, n]. They become distances (or cosines), and row i anchor i's derivatives by distance over the
  // distance (by cosine), in A from the row's first byte.
  W* pairs;
  const A* x;                                // [n, d]
  const W* squared;                          // [n], squared norms of the rows whose products these are
  double* rows;                              // [n], losses summed over the pairs
  std::vector<std::vector<int32_t>>* close;  // [n]: others whose features nearly coincide with the anchor's
  int64_t n, d;
  double inverse_temperature;
  bool cosine, with_gradient;
};

template <typename W>
struct ContrastScratch {
  ContrastScratch(int64_t n, int64_t lanes)
      : stride(n + 64),
        values(n * lanes),
        sums(n * lanes),
        starts(n * lanes),
        order(stride * lanes),
        derivatives(stride * lanes),
        row_starts(stride * lanes) {}
  const int64_t stride;            // Rows as far apart as a power of two would share few places in the cache.
  std::vector<W> values, sums;     // [n][lanes], in the order of labels
  std::vector<int8_t> starts;      // [n][lanes]
  std::vector<int32_t> order;      // [lanes][stride]
  std::vector<W> derivatives;      // [lanes][stride], by position
  std::vector<int8_t> row_starts;  // [lanes][stride]
};

// Below this share of the sum of squared norms, a squared distance is formed from the difference of the features.
template <typename A, typename W>
constexpr double kDifferenceShare = kCloseShare<A>;
template <>
constexpr double kDifferenceShare<float, float> = 0.04;

// Whether float32 resolves the similarities to 4e-6 (none is below -32), and derivatives do not cancel because all are
// alike; squares must be far from the ends of its range.
inline bool float_is_enough(double largest_squared_norm, double temperature) {
  const double farthest = 2 * std::sqrt(largest_squared_norm) / temperature;
  return farthest >= 1 && farthest <= 32 && largest_squared_norm >= 1e-20 && largest_squared_norm <= 1e30;
}

// Columns [begin, end) of the mean row.
DADL_CLONES inline void average(const float* x, double* mean, int64_t n, int64_t d, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = begin; c < end; ++c) mean[c] += x[i * d + c];
  }
  for (int64_t c = begin; c < end; ++c) mean[c] /= static_cast<double>(n);
}

// centred = x less the mean row, which distances do not notice, and its squared norms, for rows [begin, end).
DADL_CLONES inline void centre(const float* x, const double* mean, float* centred, float* squared, int64_t d,
                               int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float* row = centred + i * d;
    for (int64_t c = 0; c < d; ++c) row[c] = static_cast<float>(x[i * d + c] - mean[c]);
    squared[i] = inner_product(row, row, d);
  }
}

// Inner products [begin, end) of row i become distances, or cosines.
template <typename A, typename W>
void measure_pairs(const ContrastTask<A, W>& task, int64_t i, int64_t begin, int64_t end) {
  W* row = task.pairs + i * task.n;
  const W *squared = task.squared, own = squared[i];
  if (task.cosine) {
    for (int64_t j = begin; j < end; ++j) row[j] = row[j] / std::sqrt(own * squared[j]);
    return;
  }
  constexpr W kShare = kDifferenceShare<A, W>;
  int64_t close = 0;
  for (int64_t j = begin; j < end; ++j) {
    const W both = own + squared[j], square = both - 2 * row[j];
    close += !(square >= kShare * both);
    row[j] = square;
  }
  for (int64_t j = begin; close > 0 && j < end; ++j) {
    if (row[j] >= kShare * (own + squared[j])) continue;
    const A *a = task.x + i * task.d, *b = task.x + j * task.d;
    row[j] = sum_over<W>(task.d, [&](int64_t c) {
      const W difference = static_cast<W>(a[c]) - static_cast<W>(b[c]);
      return difference * difference;
    });
  }
  for (int64_t j = begin; j < end; ++j) row[j] = std::sqrt(row[j]);
}

// Tile row `tile` up to its diagonal, and its mirror image.
template <typename A, typename W>
void measure_tile_row(const ContrastTask<A, W>& task, int64_t tile) {
  const int64_t n = task.n, i0 = tile * kTile, rows = std::min(kTile, n - i0);
  for (int64_t j0 = 0; j0 < i0; j0 += kTile) {
    for (int64_t i = i0; i < i0 + rows; ++i) measure_pairs(task, i, j0, j0 + kTile);
    transpose(task.pairs + i0 * n + j0, n, task.pairs + j0 * n + i0, n, rows, kTile);
  }
  for (int64_t i = i0; i < i0 + rows; ++i) {
    measure_pairs(task, i, i0, i);
    task.pairs[i * n + i] = 0;
    for (int64_t j = i0; j < i; ++j) task.pairs[j * n + i] = task.pairs[i * n + j];
  }
}

template <typename A, typename W>
void measure_tile_rows(const ContrastTask<A, W>& task, int64_t begin, int64_t end) {
  const int64_t tiles = (task.n + kTile - 1) / kTile;
  for (int64_t tile = begin; tile < end; ++tile) {
    measure_tile_row(task, tile);
    if (tiles - 1 - tile != tile) measure_tile_row(task, tiles - 1 - tile);
  }
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
// would underflow. Similarities are factor times the row's numbers; derivative is by position. Returns the sum of the
// logarithms, from which the loss subtracts the similarities.
template <typename W>
double contrast_in_logarithms(const W* row, double factor, const int32_t* order, const int8_t* starts, int64_t n,
                              W* derivative) {
  std::vector<double> sums(n);
  const auto similarity = [&](int64_t r) { return factor * static_cast<double>(row[order[r]]); };
  RunningLogSumExp farther, nearer;
  for (int64_t r = n - 1; r >= 1; --r) sums[r] = farther.add(similarity(r));
  double denominators = 0;
  for (int64_t r = 1; r < n; ++r) {
    if (!starts[r]) sums[r] = sums[r - 1];
    denominators += sums[r];
  }
  for (int64_t r = 1; r < n; ++r) sums[r] = nearer.add(-sums[r]);
  for (int64_t r = n - 1; r >= 1; --r) {
    if (r + 1 < n && !starts[r + 1]) sums[r] = sums[r + 1];
    derivative[order[r]] = static_cast<W>(std::exp(similarity(r) + sums[r]) - 1);
  }
  return denominators;
}

// The pairs of anchor i whose features nearly coincide.
template <typename A, typename W>
void list_close_pairs(const ContrastTask<A, W>& task, int64_t i) {
  const W *row = task.pairs + i * task.n, *squared = task.squared, own = squared[i];
  const auto is_close = [&](int64_t j) { return !(row[j] * row[j] >= W{kCloseShare<A>} * (own + squared[j])); };
  int64_t close = 0;
  for (int64_t j = 0; j < task.n; ++j) close += is_close(j);
  for (int64_t j = 0; close > 1 && j < task.n; ++j) {  // the anchor itself is one
    if (j != i && is_close(j)) (*task.close)[i].push_back(static_cast<int32_t>(j));
  }
}

// The row's distances (cosines) become the anchor's derivatives by distance over the distance (by cosine).
template <typename A, typename W>
void store_slopes(const ContrastTask<A, W>& task, int64_t i, const W* derivative) {
  W* row = task.pairs + i * task.n;
  const W scale = static_cast<W>(task.inverse_temperature);
  if (task.cosine) {
    for (int64_t j = 0; j < task.n; ++j) row[j] = derivative[j] * scale;
  } else {  // as distance_slope()
    for (int64_t j = 0; j < task.n; ++j) row[j] = row[j] > 0 ? derivative[j] * -scale / row[j] : 0;
  }
  if constexpr (!std::is_same_v<A, W>) {
    constexpr int64_t kBlock = 64;
    A block[kBlock];
    for (int64_t j0 = 0; j0 < task.n; j0 += kBlock) {
      const int64_t columns = std::min(kBlock, task.n - j0);
      for (int64_t j = 0; j < columns; ++j) block[j] = static_cast<A>(row[j0 + j]);
      std::memcpy(reinterpret_cast<char*>(row) + j0 * sizeof(A), block, columns * sizeof(A));
    }
  }
}

// body(lane, begin, end) for ranks [begin, end): few, so that those of all lanes stay in the cache.
template <typename Body>
void for_lanes(int64_t n, int64_t lanes, Body body) {
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    for (int64_t l = 0; l < lanes; ++l) body(l, begin, std::min(begin + kBlock, n));
  }
}

// Anchors first, first + 1, ..., up to `lanes`, side by side; the last one again where there are no more.
template <typename A, typename W>
void contrast_anchors(const ContrastTask<A, W>& task, AnchorOrders::Scratch& orders, const ContrastLanes<W>& lanes,
                      ContrastScratch<W>& scratch, int64_t first, int64_t count) {
  // Copies, because bytes may be part of anything: each that is written would have these loaded anew.
  const int64_t n = task.n, width = lanes.count;
  const W factor = static_cast<W>(task.cosine ? task.inverse_temperature : -task.inverse_temperature);
  const auto of_lane = [&](auto* rows, int64_t stride, int64_t l) { return rows + std::min(l, count - 1) * stride; };
  const auto row_of = [&](int64_t l) { return of_lane(task.pairs + first * n, n, l); };
  const auto order_of = [&](int64_t l) { return of_lane(scratch.order.data(), scratch.stride, l); };
  const auto starts_of = [&](int64_t l) { return of_lane(scratch.row_starts.data(), scratch.stride, l); };
  const auto derivative_of = [&](int64_t l) { return of_lane(scratch.derivatives.data(), scratch.stride, l); };
  bool equal_distances = false;
  for (int64_t l = 0; l < count; ++l) {
    if (orders.row(first + l, order_of(l), starts_of(l))) {
      equal_distances = true;
    } else {
      std::memset(starts_of(l), -1, n);
    }
    if (!task.cosine) list_close_pairs(task, first + l);
  }
  for_lanes(n, width, [&](int64_t l, int64_t begin, int64_t end) {
    const int32_t* order = order_of(l);
    const W* row = row_of(l);
    W* values = scratch.values.data() + l;
    for (int64_t r = begin; r < end; ++r) values[r * width] = row[order[r]];
    if (!equal_distances) return;
    const int8_t* row_starts = starts_of(l);
    int8_t* starts = scratch.starts.data() + l;
    for (int64_t r = begin; r < end; ++r) starts[r * width] = row_starts[r];
  });
  double nearest[kMostLanes], denominators[kMostLanes];
  const uint32_t doubtful =
      lanes.run(scratch.values.data(), scratch.sums.data(), equal_distances ? scratch.starts.data() : nullptr, factor,
                n, nearest, denominators);
  for_lanes(n, task.with_gradient ? count : 0, [&](int64_t l, int64_t begin, int64_t end) {
    const int32_t* order = order_of(l);
    const W* values = scratch.values.data() + l;
    W* derivative = derivative_of(l);
    for (int64_t r = begin; r < end; ++r) derivative[order[r]] = values[r * width];
  });
  for (int64_t l = 0; l < count; ++l) {
    const int64_t i = first + l;
    const W* row = row_of(l);
    W* derivative = derivative_of(l);
    if (doubtful >> l & 1) {
      nearest[l] = 0;
      denominators[l] =
          contrast_in_logarithms(row, static_cast<double>(factor), order_of(l), starts_of(l), n, derivative);
    }
    // Differences come first so that the loss of two rows is exactly 0. The anchor's own distance is 0.
    const double sum = sum_over<double>(n, [&](int64_t j) { return static_cast<double>(row[j]) - nearest[l]; });
    task.rows[i] = denominators[l] - static_cast<double>(factor) * (sum + nearest[l]);
    if (!task.with_gradient) continue;
    derivative[i] = 0;
    store_slopes(task, i, derivative);
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

// gradient_i = s_i sum_j w_ij - (w S)_i + sum over close j of w_ij (x_i - x_j), to the rows of the batch. S is X, or X
// less one row.
template <typename A>
void finish_distances(const A* weighed, const double* sums, const A* shifted, const A* x,
                      const std::vector<std::vector<int32_t>>& close, const std::vector<A>* close_weights,
                      const int64_t* index, A* gradient, int64_t d, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const A *own = x + i * d, *start = shifted + i * d, sum = static_cast<A>(sums[i]), *product = weighed + i * d;
    A* out = gradient + index[i] * d;
    for (int64_t c = 0; c < d; ++c) out[c] = start[c] * sum - product[c];
    for (size_t e = 0; e < close[i].size(); ++e) {
      const A *other = x + close[i][e] * d, weight = close_weights[i][e];
      for (int64_t c = 0; c < d; ++c) out[c] += weight * (own[c] - other[c]);
    }
  }
}

// target_clones does not work on templates, so each pair of types has its own functions.
#define DADL_CONTRAST_PAIRS(A, W)                                                                             \
  DADL_CLONES inline void measure(const ContrastTask<A, W>& task, int64_t begin, int64_t end) {               \
    measure_tile_rows<A, W>(task, begin, end);                                                                \
  }                                                                                                           \
  DADL_CLONES inline void contrast(const ContrastTask<A, W>& task, AnchorOrders::Scratch& orders,             \
                                   const ContrastLanes<W>& lanes, ContrastScratch<W>& scratch, int64_t first, \
                                   int64_t count) {                                                           \
    contrast_anchors<A, W>(task, orders, lanes, scratch, first, count);                                       \
  }
DADL_CONTRAST_PAIRS(float, float)
DADL_CONTRAST_PAIRS(float, double)
DADL_CONTRAST_PAIRS(double, double)
#undef DADL_CONTRAST_PAIRS

#define DADL_CONTRAST_ROWS(A)                                                                                         \
  DADL_CLONES inline void finish(const A* weighed, const double* sums, const A* shifted, const A* x,                  \
                                 const std::vector<std::vector<int32_t>>& close, const std::vector<A>* close_weights, \
                                 const int64_t* index, A* gradient, int64_t d, int64_t begin, int64_t end) {          \
    finish_distances<A>(weighed, sums, shifted, x, close, close_weights, index, gradient, d, begin, end);             \
  }
DADL_CONTRAST_ROWS(float)
DADL_CONTRAST_ROWS(double)
#undef DADL_CONTRAST_ROWS

}  // namespace dadl::cpu
