// Rank-N-Contrast: the anchors' losses and their gradient. The formulas are those of cpu/rank_n_contrast_rows.h, in
// logarithms with a moving maximum, so that no distance is too large.
//
// Distances and sums are float64 whatever the features are; the gradient is formed in their arithmetic type. Nothing
// waits for the host, and CUDA graphs can capture it all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../core/labels.h"
#include "../core/rank_n_contrast.h"
#include "pair_kernels.cuh"

namespace dadl {

// ---- the order of labels --------------------------------------------------------------------------------------------

// The place of a row's label among the sorted ones, by one warp; the earlier row first where labels are equal.
template <typename Label>
struct SortScalars {
  const Label* labels;  // [n]
  int64_t n;
  int64_t* order;   // [n]
  Label* sorted;    // [n]
  int32_t* poison;  // []

  __device__ __forceinline__ void operator()(int64_t i) const {
    const uint64_t own = label_key(labels[i]);
    int64_t smaller = 0;
    for (int64_t j = lane_index(); j < n; j += kWarp) {
      const uint64_t key = label_key(labels[j]);
      smaller += key < own || (key == own && j < i);
    }
    smaller = warp_sum(smaller);
    if (lane_index() != 0) return;
    order[smaller] = i;
    sorted[smaller] = labels[i];
    if (!label_is_finite(labels[i])) atomicOr(poison, 1);
  }
};

// Anchors are numbered by the places of their labels. To both sides of an anchor's place distances grow.
template <typename Label>
struct ScalarLine {
  const Label* sorted;   // [n]
  const int64_t* order;  // [n]

  __device__ __forceinline__ int64_t row(int64_t anchor) const { return order[anchor]; }
  __device__ __forceinline__ int place(int64_t anchor) const { return static_cast<int>(anchor); }
  __device__ __forceinline__ int64_t column(int64_t, int p) const { return order[p]; }
  __device__ __forceinline__ auto distance(int64_t anchor, int p) const {
    return label_distance(sorted[anchor], sorted[p]);
  }
};

// A row's distances of vector labels as keys for a sort, the anchor itself before all others, by one warp.
template <typename Label>
struct KeysOfVectors {
  const Label* labels;  // [n, k]
  int64_t n, k;
  LabelDistance kind;
  int64_t* keys;    // [n, n]
  int32_t* poison;  // []

  __device__ __forceinline__ void operator()(int64_t i) const {
    for (int64_t j = lane_index(); j < n; j += kWarp) {
      const double distance = vector_label_distance(labels + i * k, labels + j * k, k, kind);
      int64_t bits;
      memcpy(&bits, &distance, sizeof bits);  // of numbers without a sign, in their order
      keys[i * n + j] = i == j ? -1 : bits;
    }
    for (int64_t c = lane_index(); c < k; c += kWarp) {
      if (!label_is_finite(labels[i * k + c])) atomicOr(poison, 1);
    }
  }
};

// The anchor has place 0 in an order of its own, along which distances grow.
template <typename Label>
struct VectorLine {
  const Label* labels;     // [n, k]
  const int64_t* columns;  // [n, n]
  int64_t n, k;
  LabelDistance kind;

  __device__ __forceinline__ int64_t row(int64_t anchor) const { return anchor; }
  __device__ __forceinline__ int place(int64_t) const { return 0; }
  __device__ __forceinline__ int64_t column(int64_t anchor, int p) const { return columns[anchor * n + p]; }
  __device__ __forceinline__ double distance(int64_t anchor, int p) const {
    return vector_label_distance(labels + anchor * k, labels + column(anchor, p) * k, k, kind);
  }
};

// ---- features -------------------------------------------------------------------------------------------------------

// The features and labels of a row. One warp per row.
template <typename F, typename T, typename Labels>
__global__ void __launch_bounds__(kRowThreads)
    rank_n_contrast_prepare_kernel(Labels labels, const F* features /* [n, d] */, int64_t n, int64_t d, bool cosine,
                                   T* x /* [n, d] */, double* wide_x /* [n, d], may be x */,
                                   double* squared_norms /* [n] */, T* inverse_norms /* [n], ones for distances */,
                                   int64_t* index /* [n], the rows */, int64_t* count /* [] */,
                                   int32_t* poison /* [] */) {
  const int64_t i = warp_row();
  if (i >= n) return;
  labels(i);
  const F* row = features + i * d;
  const double squared = squared_norm(row, d);
  for (int64_t c = lane_index(); c < d; c += kWarp) {
    const T value = to_float(row[c]);
    x[i * d + c] = value;
    wide_x[i * d + c] = value;
  }
  if (lane_index() != 0) return;
  if (!(squared - squared == 0)) atomicOr(poison, 1);
  squared_norms[i] = cosine ? bounded_squared_norm(squared) : squared;
  inverse_norms[i] = cosine ? static_cast<T>(1 / sqrt(bounded_squared_norm(squared))) : T{1};
  index[i] = i;
  if (i == 0) *count = n;
}

// ---- anchors --------------------------------------------------------------------------------------------------------

// exp(largest) * sum
struct LogSum {
  double largest, sum;
};

__device__ __forceinline__ LogSum add(LogSum a, LogSum b) {
  const bool first = a.largest >= b.largest;
  const double high = first ? a.sum : b.sum, low = first ? b.sum : a.sum;
  const double gap = first ? b.largest - a.largest : a.largest - b.largest;
  return {first ? a.largest : b.largest, high + low * exp(gap)};
}

__device__ __forceinline__ double log_of(const LogSum& a) { return a.largest + log(a.sum); }

__device__ __forceinline__ double log_add(double a, double b) {
  const double high = a >= b ? a : b, low = a >= b ? b : a;
  return high + log1p(exp(low - high));
}

// By one warp: store(t, log sum_{u <= t} exp(at(u))) for t < count.
template <typename At, typename Store>
__device__ __forceinline__ void running_log_sums(int count, At at, Store store) {
  const LogSum nothing{minus_infinity<double>(), 0};
  const int lane = lane_index();
  LogSum before = nothing;
  for (int first = 0; first < count; first += kWarp) {
    const int t = first + lane;
    LogSum own = nothing;
    if (t < count) own = {at(t), 1};
    for (int step = 1; step < kWarp; step *= 2) {
      const int from = lane >= step ? lane - step : lane;
      const LogSum other{__shfl_sync(kFullWarp, own.largest, from), __shfl_sync(kFullWarp, own.sum, from)};
      if (lane >= step) own = add(other, own);
    }
    own = add(before, own);
    if (t < count) store(t, log_of(own));
    before = {__shfl_sync(kFullWarp, own.largest, kWarp - 1), __shfl_sync(kFullWarp, own.sum, kWarp - 1)};
  }
}

template <typename T>
struct Anchors {
  // The derivatives by an anchor's distances, over the distances, or by its cosines stand at the beginning of its row
  // of inner products.
  static constexpr int64_t kWidth = sizeof(double) / sizeof(T);

  double* inner;                // [n, n]
  T* slopes;                    // [n, kWidth * n], the same memory
  const T* x;                   // [n, d]
  const double* squared_norms;  // [n]
  const int32_t* poison;        // []
  double* farther;              // [warps, n]
  double* nearer;               // [warps, n]
  double* losses;               // [n], means over the pairs
  int64_t n, d;
  double inverse_temperature;
  double share;  // of a pair in the gradient
  bool cosine, with_gradient;
};

// In place: distances or cosines from a row of inner products, by one warp.
template <typename T>
__device__ __forceinline__ void measure_row(const Anchors<T>& a, int64_t row) {
  double* inner = a.inner + row * a.n;
  for (int64_t j = lane_index(); j < a.n; j += kWarp) {
    if (a.cosine) {
      inner[j] = inner[j] / sqrt(a.squared_norms[row] * a.squared_norms[j]);
      continue;
    }
    double square = a.squared_norms[row] + a.squared_norms[j] - 2 * inner[j];
    if (features_are_close<T>(square, a.squared_norms[row], a.squared_norms[j])) {
      square = 0;
      for (int64_t c = 0; c < a.d && j != row; ++c) {
        const double difference = static_cast<double>(a.x[row * a.d + c]) - static_cast<double>(a.x[j * a.d + c]);
        square += difference * difference;
      }
    }
    inner[j] = sqrt(square);
  }
}

// One warp per anchor at a time. Along its line, the others at least as far as one of them are two ends of the line,
// and those at most as far are a range around the anchor, or one end and a range where the anchor comes first.
template <typename T, typename Line>
__global__ void __launch_bounds__(kRowThreads) rank_n_contrast_anchor_kernel(Anchors<T> a, Line line) {
  const int n = static_cast<int>(a.n), lane = lane_index();
  double *farther = a.farther + warp_row() * a.n, *nearer = a.nearer + warp_row() * a.n;
  for (int64_t anchor = warp_row(); anchor < a.n; anchor += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const int64_t row = line.row(anchor);
    const int place = line.place(anchor);
    measure_row(a, row);
    __syncwarp();
    const double factor = a.cosine ? a.inverse_temperature : -a.inverse_temperature;
    const double* inner = a.inner + row * a.n;
    const auto similarity = [&](int p) { return factor * inner[line.column(anchor, p)]; };
    const auto distance = [&](int p) { return line.distance(anchor, p); };

    running_log_sums(place, similarity, [&](int p, double sum) { farther[p] = sum; });
    running_log_sums(
        n - 1 - place, [&](int t) { return similarity(n - 1 - t); },
        [&](int t, double sum) { farther[n - 1 - t] = sum; });
    __syncwarp();
    double loss = 0;
    for (int p = lane; p < n; p += kWarp) {
      if (p == place) continue;
      const auto own = distance(p);
      const int left = partition_point(0, place, [&](int q) { return distance(q) < own; });
      const int right = partition_point(place + 1, n, [&](int q) { return distance(q) >= own; });
      const double denominator = log_add(left > 0 ? farther[left - 1] : minus_infinity<double>(),
                                         right < n ? farther[right] : minus_infinity<double>());
      loss += denominator - similarity(p);
      nearer[p] = -denominator;
    }
    loss = warp_sum(loss);
    if (lane == 0) a.losses[row] = *a.poison ? nan_value<double>() : loss * pair_share(a.n);
    if (!a.with_gradient) continue;

    __syncwarp();
    running_log_sums(
        place, [&](int t) { return nearer[place - 1 - t]; }, [&](int t, double sum) { nearer[place - 1 - t] = sum; });
    running_log_sums(
        n - 1 - place, [&](int t) { return nearer[place + 1 + t]; },
        [&](int t, double sum) { nearer[place + 1 + t] = sum; });
    __syncwarp();
    for (int p = lane; p < n; p += kWarp) {
      double slope = 0;
      if (p != place) {
        const auto own = distance(p);
        const int left = partition_point(0, place, [&](int q) { return distance(q) <= own; });
        const int right = partition_point(place + 1, n, [&](int q) { return distance(q) > own; });
        const double weight = log_add(left < place ? nearer[left] : minus_infinity<double>(),
                                      right > place + 1 ? nearer[right - 1] : minus_infinity<double>());
        slope = (exp(similarity(p) + weight) - 1) * a.share;
        slope *=
            a.cosine ? a.inverse_temperature : distance_slope(inner[line.column(anchor, p)], a.inverse_temperature);
      }
      farther[p] = *a.poison ? nan_value<double>() : slope;  // the row is still being read
    }
    __syncwarp();
    T* slopes = a.slopes + row * Anchors<T>::kWidth * a.n;
    for (int p = lane; p < n; p += kWarp) slopes[line.column(anchor, p)] = static_cast<T>(farther[p]);
  }
}

// ---- loss and gradient ----------------------------------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kThreads)
    rank_n_contrast_rows_kernel(const double* losses /* [n] */, int64_t n, T* rows /* [n] */) {
  const int64_t i = element_index();
  if (i < n) rows[i] = static_cast<T>(losses[i]);
}

// share times the sum, by one block.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    rank_n_contrast_loss_kernel(const double* losses /* [n] */, int64_t n, double share, T* loss /* [] */) {
  DADL_SHARED(parts, double[kThreads / kWarp]);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += losses[i];
  sum = block_join(sum, parts, [](double x, double y) { return x + y; });
  if (threadIdx.x == 0) *loss = static_cast<T>(share * sum);
}

// gradient_i = sum_j w_ij (x_i - x_j): differences, because what nearly equal rows have in common would be lost in two
// products. Grid: tiles of rows by tiles of columns.
template <typename T, typename Out>
__global__ void __launch_bounds__(kTileThreads)
    rank_n_contrast_difference_kernel(const T* weights /* [n, width] */, int64_t width, const T* x /* [n, d] */,
                                      int64_t n, int64_t d, Out* gradient /* [n, d] */) {
  DADL_SHARED(tile, T[kTile][kTile + 1]);
  DADL_SHARED(others, T[kTile][kTile]);
  constexpr int kRows = kTile / kTileRows;
  const int64_t top = static_cast<int64_t>(blockIdx.x) * kTile, left = static_cast<int64_t>(blockIdx.y) * kTile;
  const int column = threadIdx.x;
  const bool inside = left + column < d;
  T own[kRows], sum[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t i = top + threadIdx.y + r * kTileRows;
    own[r] = i < n && inside ? x[i * d + left + column] : T{0};
    sum[r] = 0;
  }
  for (int64_t first = 0; first < n; first += kTile) {
    __syncthreads();
    for (int r = threadIdx.y; r < kTile; r += kTileRows) {
      tile[r][column] = top + r < n && first + column < n ? weights[(top + r) * width + first + column] : T{0};
      others[r][column] = first + r < n && inside ? x[(first + r) * d + left + column] : T{0};
    }
    __syncthreads();
    for (int j = 0; j < kTile; ++j) {
      const T other = others[j][column];
      for (int r = 0; r < kRows; ++r) sum[r] += tile[threadIdx.y + r * kTileRows][j] * (own[r] - other);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int64_t i = top + threadIdx.y + r * kTileRows;
    if (i < n && inside) gradient[i * d + left + column] = Storage<Out>::round(sum[r]);
  }
}

// ---- the order of the launches --------------------------------------------------------------------------------------

// Construct, then anchors(), then what is wanted of loss(), rows(), gradient().
template <typename F, typename Backend>
class RankNContrast {
 public:
  using T = typename Storage<F>::Arithmetic;

  // features [n, d]; n >= 1
  RankNContrast(Backend& backend, const F* features, int64_t n, int64_t d, const RankNContrastSettings& settings)
      : backend_(backend),
        features_(features),
        n_(n),
        d_(d),
        settings_(settings),
        x_(backend.template buffer<T>(n * d)),
        squared_norms_(backend.template buffer<double>(n)),
        inverse_norms_(backend.template buffer<T>(n)),
        losses_(backend.template buffer<double>(n)),
        index_(backend.template buffer<int64_t>(n)),
        count_(backend.template buffer<int64_t>(1)),
        poison_(backend.template buffer<int32_t>(1)),
        inner_(backend.template buffer<double>(n * n)) {}

  // labels [n] if k is 0, else [n, k]. share: what an anchor's loss counts for in the gradient.
  template <typename Label>
  void anchors(const Label* labels, int64_t k, double share, bool with_gradient) {
    if (k == 0) {
      auto order = backend_.template buffer<int64_t>(n_);
      auto sorted = backend_.template buffer<Label>(n_);
      prepare(SortScalars<Label>{labels, n_, order.data(), sorted.data(), poison_.data()});
      contrast(ScalarLine<Label>{sorted.data(), order.data()}, share, with_gradient);
    } else {
      auto keys = backend_.template buffer<int64_t>(n_ * n_);
      prepare(KeysOfVectors<Label>{labels, n_, k, settings_.label_distance, keys.data(), poison_.data()});
      auto columns = backend_.sort(keys, n_, n_);
      contrast(VectorLine<Label>{labels, columns.data(), n_, k, settings_.label_distance}, share, with_gradient);
    }
  }

  void loss(double share, T* loss) {
    backend_.launch(rank_n_contrast_loss_kernel<T>, dim3(1), dim3(kThreads), losses_.data(), n_, share, loss);
  }

  void rows(T* rows) {
    backend_.launch(rank_n_contrast_rows_kernel<T>, dim3(blocks_for(n_, kThreads)), dim3(kThreads), losses_.data(), n_,
                    rows);
  }

  // row_weight [n] or null for ones; gradient [n, d]
  template <typename Out>
  void gradient(const T* row_weight, Out* gradient) {
    if (d_ == 0) return;
    const unsigned tiles = blocks_for(n_, kTile);
    const int64_t width = Anchors<T>::kWidth * n_;
    backend_.launch(symmetrise_kernel<T, Out>, dim3(tiles, tiles), dim3(kTile, kTileRows), slopes(), width, row_weight,
                    inverse_norms_.data(), count_.data(), n_, gradient, int64_t{0});
    if (settings_.similarity != Similarity::kCosine) {
      return backend_.launch(rank_n_contrast_difference_kernel<T, Out>, dim3(tiles, blocks_for(d_, kTile)),
                             dim3(kTile, kTileRows), slopes(), width, x_.data(), n_, d_, gradient);
    }
    auto unit_gradient = backend_.template buffer<T>(n_ * d_);
    backend_.multiply(Matrix<T>{slopes(), n_, n_, width, 1}, Matrix<T>{x_.data(), n_, d_, d_, 1}, unit_gradient.data(),
                      d_, false);
    backend_.launch(project_kernel<T, Out>, warp_rows(), dim3(kRowThreads), unit_gradient.data(), x_.data(),
                    squared_norms_.data(), inverse_norms_.data(), index_.data(), count_.data(), d_, gradient);
  }

 private:
  template <typename Element>
  using Buffer = typename Backend::template Buffer<Element>;

  dim3 warp_rows() const { return dim3(blocks_for(n_, kRowWarps)); }
  T* slopes() const { return reinterpret_cast<T*>(inner_.data()); }

  template <typename Labels>
  void prepare(const Labels& labels) {
    if constexpr (std::is_same_v<T, double>) {
      multiply(labels, x_.data());
    } else {
      auto wide_x = backend_.template buffer<double>(n_ * d_);
      multiply(labels, wide_x.data());
    }
  }

  // wide_x [n, d]
  template <typename Labels>
  void multiply(const Labels& labels, double* wide_x) {
    backend_.zero(poison_.data(), 1);
    backend_.launch(rank_n_contrast_prepare_kernel<F, T, Labels>, warp_rows(), dim3(kRowThreads), labels, features_, n_,
                    d_, settings_.similarity == Similarity::kCosine, x_.data(), wide_x, squared_norms_.data(),
                    inverse_norms_.data(), index_.data(), count_.data(), poison_.data());
    backend_.multiply(Matrix<double>{wide_x, n_, d_, d_, 1}, Matrix<double>{wide_x, d_, n_, 1, d_}, inner_.data(), n_,
                      false);
  }

  template <typename Line>
  void contrast(const Line& line, double share, bool with_gradient) {
    const auto kernel = rank_n_contrast_anchor_kernel<T, Line>;
    const int64_t most = blocks_for(n_, kRowWarps);
    const int64_t blocks = std::min(most, backend_.resident_blocks(kernel, kRowThreads, 0));
    auto farther = backend_.template buffer<double>(blocks * kRowWarps * n_);
    auto nearer = backend_.template buffer<double>(blocks * kRowWarps * n_);
    const Anchors<T> anchors{inner_.data(),
                             slopes(),
                             x_.data(),
                             squared_norms_.data(),
                             poison_.data(),
                             farther.data(),
                             nearer.data(),
                             losses_.data(),
                             n_,
                             d_,
                             1 / settings_.temperature,
                             share * pair_share(n_),
                             settings_.similarity == Similarity::kCosine,
                             with_gradient};
    backend_.launch(kernel, dim3(blocks_for(blocks, 1)), dim3(kRowThreads), anchors, line);
  }

  Backend& backend_;
  const F* features_;
  int64_t n_, d_;
  RankNContrastSettings settings_;
  Buffer<T> x_;                   // [n, d]
  Buffer<double> squared_norms_;  // [n], bounded for cosines
  Buffer<T> inverse_norms_;       // [n]
  Buffer<double> losses_;         // [n]
  Buffer<int64_t> index_;         // [n], 0, 1, ...
  Buffer<int64_t> count_;         // [], n
  Buffer<int32_t> poison_;        // [], not 0: loss and gradient are NaN
  Buffer<double> inner_;          // [n, n]
};

}  // namespace dadl
