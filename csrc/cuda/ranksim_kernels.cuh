// RankSim: the subset, and the loss with its gradient. The formulas are those of dadl_ext/reference/ranksim.py.
//
// Similarities and their order are float64 whatever the features are, but inner products are float32 where those
// resolve the perturbation: most GPUs do little float64. The gradient is formed in the features' arithmetic type.
//
// The size m of the subset ("count") stays on the device. Every buffer is sized for the batch of n rows, and rows and
// columns beyond count are skipped, so that nothing waits for the host and CUDA graphs can capture it all.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../core/cosine.h"
#include "../core/labels.h"
#include "../core/ranksim.h"
#include "pair_kernels.cuh"
#include "ranking_kernels.cuh"

namespace dadl {

// ---- the subset -------------------------------------------------------------------------------------------------

// Sign of label a - label b, lexicographic.
template <typename Label>
__device__ __forceinline__ int compare_labels(const Label* a /* [k] */, const Label* b /* [k] */, int64_t k) {
  for (int64_t c = 0; c < k; ++c) {
    const uint64_t x = label_key(a[c]), y = label_key(b[c]);
    if (x != y) return x < y ? -1 : 1;
  }
  return 0;
}

// chosen[i] = row i has the lowest priority among the rows of its label. One warp per row.
template <typename Label>
__global__ void __launch_bounds__(kRowThreads)
    ranksim_choose_kernel(const Label* labels /* [n, k] */, const double* priority /* [n] */, int64_t n, int64_t k,
                          uint8_t* chosen /* [n] */) {
  const int64_t i = warp_row();
  if (i >= n) return;
  bool beaten = false;
  for (int64_t first = 0; first < n && !beaten; first += kWarp) {
    const int64_t j = first + lane_index();
    const bool beats = j < n && (priority[j] < priority[i] || (priority[j] == priority[i] && j < i)) &&
                       compare_labels(labels + i * k, labels + j * k, k) == 0;
    beaten = __any_sync(kFullWarp, beats);
  }
  if (lane_index() == 0) chosen[i] = !beaten;
}

// One warp per row. Of index and order each warp writes the entry of its own row's place.
template <typename Label>
__global__ void __launch_bounds__(kRowThreads)
    ranksim_place_kernel(const Label* labels /* [n, k] */, const uint8_t* chosen /* [n] */, int64_t n, int64_t k,
                         int64_t* index /* [n] */, int64_t* order /* [n] */, int64_t* count /* [] */) {
  const int64_t i = warp_row();
  if (i >= n) return;
  int64_t m = 0, smaller = 0;
  for (int64_t j = lane_index(); j < n; j += kWarp) {
    if (!chosen[j]) continue;
    ++m;
    smaller += compare_labels(labels + j * k, labels + i * k, k) < 0;
  }
  m = warp_sum(m);
  smaller = warp_sum(smaller);
  if (lane_index() != 0) return;
  if (i == 0) *count = m;
  if (i >= m) index[i] = order[i] = 0;
  if (!chosen[i]) return;
  const bool all_distinct = m == n;
  index[all_distinct ? i : smaller] = i;
  order[smaller] = all_distinct ? i : smaller;
}

template <typename Label, typename Backend>
void ranksim_select(Backend& backend, const Label* labels, const double* priority, int64_t n, int64_t k, int64_t* index,
                    int64_t* order, int64_t* count) {
  if (n == 0) return backend.zero(count, 1);
  auto chosen = backend.template buffer<uint8_t>(n);
  const dim3 grid(blocks_for(n, kRowWarps)), block(kRowThreads);
  backend.launch(ranksim_choose_kernel<Label>, grid, block, labels, priority, n, k, chosen.data());
  backend.launch(ranksim_place_kernel<Label>, grid, block, labels, chosen.data(), n, k, index, order, count);
}

// ---- features and labels of the subset ------------------------------------------------------------------------------

// The labels of the subset, to be put in their order.
template <typename Label>
struct SortedLabels {
  const Label* labels;   // [n]
  const int64_t* order;  // [n]
  Label* sorted;         // [n]

  // Puts the label of place p < count there, and says whether it is finite.
  __device__ __forceinline__ bool put(int64_t p, const int64_t* index /* [n] */) const {
    const Label label = labels[index[order[p]]];
    sorted[p] = label;
    return label_is_finite(label);
  }
};

// Where a similarity matrix stands for the labels.
struct NoLabels {
  __device__ __forceinline__ bool put(int64_t, const int64_t*) const { return true; }
};

// Rows of the subset for products in float32: times a power of two that brings their norms between 1 and 2, so that no
// product leaves float32's range, and those of small integers stay exact. Null for products in float64.
struct NarrowRows {
  float* x;         // [n, d], null without dimensions too
  double* unscale;  // [n], the reciprocal of the power
};

// Row p of the subset, zero beyond count, and the check of row p of the batch: a value that is not finite must show
// also where the subset left its row out. One warp per row.
template <typename F, typename T, typename Labels>
__global__ void __launch_bounds__(kRowThreads)
    ranksim_gather_kernel(Labels labels, const F* features /* [n, d] */, const int64_t* index /* [n] */,
                          const int64_t* count /* [] */, RankSimSettings settings, int64_t n, int64_t d,
                          T* x /* [n, d] */, double* wide_x /* [n, d], may be x, or null */, NarrowRows narrow,
                          double* squared_norms /* [n], bounded */, T* inverse_norms /* [n] */,
                          RankSimConstants<double>* constants /* [] */, int32_t* poison /* [n], of each row */) {
  const int64_t p = warp_row();
  if (p >= n) return;
  const int lane = lane_index();
  double squared = squared_norm(features + p * d, d);
  const bool used = p < *count;
  if (lane == 0) {
    const bool finite_label = !used || labels.put(p, index);
    poison[p] = !finite_label || !finite_squared_norm(squared);
  }
  const F* row = features + (used ? index[p] : p) * d;
  if (used && index[p] != p) squared = squared_norm(row, d);
  const int exponent = squared > 0 && finite_squared_norm(squared) ? ilogb(squared) >> 1 : 0;
  const double scale = scalbn(1.0, -exponent);
  for (int64_t c = lane; c < d; c += kWarp) {
    const T value = used ? to_float(row[c]) : T{0};
    x[p * d + c] = value;
    if (wide_x) wide_x[p * d + c] = value;
    if (narrow.unscale) narrow.x[p * d + c] = static_cast<float>(value * scale);
  }
  if (lane != 0) return;
  if (narrow.unscale) narrow.unscale[p] = scalbn(1.0, exponent);
  squared_norms[p] = bounded_squared_norm(squared);
  inverse_norms[p] = static_cast<T>(1 / sqrt(bounded_squared_norm(squared)));
  if (p == 0) *constants = ranksim_constants<double>(*count, settings);
}

// Inner products [n, n] in float64, or, with `unscale` [n], those of NarrowRows in float32, each row in the upper half
// of its memory. They become cosine similarities.
struct Products {
  double* values;         // [n, n]
  const double* unscale;  // [n] or null

  __device__ __forceinline__ double at(int64_t row, int64_t i, int64_t n) const {
    if (!unscale) return values[row * n + i];
    return reinterpret_cast<const float*>(values)[(2 * row + 1) * n + i] * (unscale[row] * unscale[i]);
  }
};

// In place, by one block: cosine similarities of a row from inner products. Those of single numbers are products of
// signs, which rounded products would not keep equal.
__device__ __forceinline__ void similarities(const double* squared_norms /* [n] */, int64_t m, int64_t row, int64_t n,
                                             int64_t d, const Products& inner) {
  for (int64_t first = 0; first < m; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const double product = i < m ? inner.at(row, i, n) : 0;
    if (inner.unscale) __syncthreads();  // What is written overlaps products that other threads have read by now.
    if (i >= m) break;
    const double squared_i = squared_norms[row], squared_j = squared_norms[i];
    const bool signs = d == 1 && squared_i > kMinSquaredNorm && squared_j > kMinSquaredNorm;
    inner.values[row * n + i] = signs ? copysign(1.0, product) : cosine(product, squared_i, squared_j);
  }
}

// Before the rows are ranked, and apart from that because the slow path of a division would cost the sorts registers.
// One block per row.
static __global__ void __launch_bounds__(kThreads)
    ranksim_similarity_kernel(const double* squared_norms /* [n] */, const int64_t* count /* [] */, int64_t n,
                              int64_t d, Products inner) {
  if (blockIdx.x < *count) similarities(squared_norms, *count, blockIdx.x, n, d, inner);
}

// As before, and ranks of -|y_i - y_j|. Along the sorted labels the distance to the centre, rounding included, falls up
// to it and rises after it, so the closer elements are a range and those at an equal distance the ranges on both sides
// of it. One block per row and centre.
template <typename Label>
__global__ void __launch_bounds__(kThreads)
    ranksim_pair_kernel(const double* squared_norms /* [n] */, const Label* sorted /* [n] */,
                        const int64_t* order /* [n] */, const int64_t* count /* [] */, int64_t n, int64_t d,
                        Products inner, int32_t* ranks /* [n, n] */) {
  const int m = static_cast<int>(*count), centre = static_cast<int>(blockIdx.x);
  if (centre >= m) return;
  similarities(squared_norms, m, centre, n, d, inner);
  int32_t* row = ranks + order[centre] * n;
  for (int q = threadIdx.x; q < m; q += kThreads) {
    const auto distance = label_distance(sorted[centre], sorted[q]);
    const auto to = [&](int p) { return label_distance(sorted[centre], sorted[p]); };
    const int first_tie = partition_point(0, centre + 1, [&](int p) { return to(p) <= distance; });
    const int first = partition_point(first_tie, centre + 1, [&](int p) { return to(p) < distance; });
    const int last = partition_point(centre + 1, m, [&](int p) { return to(p) >= distance; });
    const int last_tie = partition_point(last, m, [&](int p) { return to(p) > distance; });
    const int64_t column = order[q];
    int rank = 1 + last - first;
    for (int p = first_tie; p < first; ++p) rank += order[p] > column;
    for (int p = last; p < last_tie; ++p) rank += order[p] > column;
    row[column] = rank;
  }
}

// Ranks of the leading [count, count] block of a given similarity matrix.
template <typename S>
struct MatrixRank {
  using Key = decltype(ordered_key(S{}));

  const S* matrix;       // [size, size]
  const int64_t* count;  // []
  int32_t* poison;       // [n]
  int32_t* ranks;        // [n, n]
  int64_t size, n;

  __device__ __forceinline__ int columns(int64_t row) const {
    const int64_t m = *count;
    if (m > size) atomicOr(poison, 1);
    return row < m && m <= size ? static_cast<int>(m) : 0;
  }
  __device__ __forceinline__ Key key(int64_t row, int64_t i) const {
    const S similarity = matrix[row * size + i];
    if (similarity != similarity) atomicOr(poison, 1);
    return ordered_key(similarity);
  }
  __device__ __forceinline__ void store(int64_t row, int64_t i, int rank) const {
    ranks[row * n + i] = static_cast<int32_t>(rank);
  }
};

// ---- rows of the similarity matrix --------------------------------------------------------------------------------

template <typename T>
struct RankSimRows {
  using Key = uint64_t;
  // The gradient with respect to a row of similarities stands at the beginning of that row's memory.
  static constexpr int64_t kWidth = sizeof(double) / sizeof(T);

  double* similarity;                         // [n, n]
  T* gradient;                                // [n, kWidth * n], the same memory
  const int32_t* label_ranks;                 // [n, n]
  double* squares;                            // [n], sums of squared differences of ranks; NaN where there is no order
  const RankSimConstants<double>* constants;  // []
  const int64_t* count;                       // []
  const int32_t* poison;                      // [n], not 0 in any row: there is no order
  int64_t n;

  __device__ __forceinline__ int columns(int64_t row) const { return row < *count ? static_cast<int>(*count) : 0; }
  __device__ __forceinline__ Key key(int64_t row, int64_t i) const { return ordered_key(similarity[row * n + i]); }

  // By one warp: the row's squares, returned too, and the perturbation of its similarities. `feature_ranks` is one row.
  template <typename R>
  __device__ __forceinline__ double compare(int64_t row, int m, const R* feature_ranks, bool perturb) const {
    int64_t sum = 0;
    bool unordered = false;
    for (int64_t i = lane_index(); i < n; i += kWarp) unordered |= poison[i] != 0;
    for (int i = lane_index(); i < m; i += kWarp) {
      double& value = similarity[row * n + i];
      const int64_t difference = static_cast<int64_t>(feature_ranks[i]) - label_ranks[row * n + i];
      sum += difference * difference;
      unordered |= value != value;
      if (perturb) value += constants->coefficient * static_cast<double>(difference);
    }
    const double total = static_cast<double>(warp_sum(sum));
    const double result = __any_sync(kFullWarp, unordered) ? nan_value<double>() : total;
    if (lane_index() == 0) squares[row] = result;
    return result;
  }

  __device__ __forceinline__ void store_gradient(int64_t row, int64_t i, double row_squares, int feature_rank,
                                                 int perturbed_rank) const {
    const T value = static_cast<T>(-constants->slope * static_cast<double>(feature_rank - perturbed_rank));
    gradient[row * kWidth * n + i] = row_squares == row_squares ? value : nan_value<T>();
  }
};

// Everything about a row, n <= 32 * kItems: ranks, squared difference, ranks of the perturbed similarities, gradient.
template <int kItems, typename T>
__global__ void __launch_bounds__(kRowThreads, 1) ranksim_row_kernel(RankSimRows<T> rows, bool with_gradient) {
  DADL_SHARED(ranks, uint16_t[2][kRowWarps][kItems * kWarp]);
  const int64_t row = warp_row();
  const int m = row < rows.n ? rows.columns(row) : 0;
  if (m == 0) return;
  const int warp = threadIdx.x / kWarp;
  uint16_t *feature_ranks = ranks[0][warp], *perturbed_ranks = ranks[1][warp];
  const auto key = [&](int i) { return rows.key(row, i); };
  warp_ranks<kItems, uint64_t>(key, m, feature_ranks);
  // Each lane perturbs what it reads back. To perturb while the sort loads would take more registers than there are.
  const double squares = rows.compare(row, m, feature_ranks, with_gradient);
  if (!with_gradient) return;
  warp_ranks<kItems, uint64_t>(key, m, perturbed_ranks);
  for (int i = lane_index(); i < m; i += kWarp) {
    rows.store_gradient(row, i, squares, feature_ranks[i], perturbed_ranks[i]);
  }
}

// The same in separate launches for longer rows.
template <typename T>
struct SimilarityRank {
  using Key = typename RankSimRows<T>::Key;

  RankSimRows<T> rows;
  int32_t* feature_ranks;  // [n, n]
  bool perturbed;          // false: writes feature_ranks; true: reads them and writes the gradient

  __device__ __forceinline__ int columns(int64_t row) const { return rows.columns(row); }
  __device__ __forceinline__ Key key(int64_t row, int64_t i) const { return rows.key(row, i); }
  __device__ __forceinline__ void store(int64_t row, int64_t i, int rank) const {
    int32_t& feature_rank = feature_ranks[row * rows.n + i];
    if (perturbed) {
      rows.store_gradient(row, i, rows.squares[row], feature_rank, rank);
    } else {
      feature_rank = rank;
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    ranksim_compare_kernel(RankSimRows<T> rows, const int32_t* feature_ranks /* [n, n] */, bool perturb) {
  const int64_t row = warp_row();
  const int m = row < rows.n ? rows.columns(row) : 0;
  if (m != 0) rows.compare(row, m, feature_ranks + row * rows.n, perturb);
}

// ---- loss and gradient ----------------------------------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ranksim_rows_kernel(const double* squares /* [n] */, const RankSimConstants<double>* constants /* [] */,
                        const int64_t* count /* [] */, int64_t n, T* rows /* [n] */) {
  const int64_t i = element_index();
  if (i < n) rows[i] = i < *count ? static_cast<T>(constants->loss * squares[i]) : T{0};
}

// By one block, in one fixed order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ranksim_loss_kernel(const double* squares /* [n] */, const RankSimConstants<double>* constants /* [] */,
                        const int64_t* count /* [] */, T* loss /* [] */) {
  DADL_SHARED(warp_sums, double[kThreads / kWarp]);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < *count; i += kThreads) sum += squares[i];
  sum = warp_sum(sum);
  if (lane_index() == 0) warp_sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0;
  for (const double part : warp_sums) total += part;
  *loss = static_cast<T>(constants->loss * total);
}

// ---- the order of the launches --------------------------------------------------------------------------------------

// Construct, then label_ranks() or matrix_ranks(), then rank_rows(), then what is wanted of loss(), rows(), gradient().
template <typename F, typename Backend>
class RankSim {
 public:
  using T = typename Storage<F>::Arithmetic;

  // features [n, d]; index [n], order [n], count [] from ranksim_select; n >= 1
  RankSim(Backend& backend, const F* features, const int64_t* index, const int64_t* order, const int64_t* count,
          int64_t n, int64_t d, const RankSimSettings& settings, const RankLimits& limits)
      : backend_(backend),
        index_(index),
        order_(order),
        count_(count),
        n_(n),
        d_(d),
        limits_(limits),
        x_(backend.template buffer<T>(n * d)),
        squared_norms_(backend.template buffer<double>(n)),
        inverse_norms_(backend.template buffer<T>(n)),
        constants_(backend.template buffer<RankSimConstants<double>>(1)),
        poison_(backend.template buffer<int32_t>(n)),
        similarity_(backend.template buffer<double>(n * n)),
        label_ranks_(backend.template buffer<int32_t>(n * n)),
        squares_(backend.template buffer<double>(n)),
        narrow_(std::is_same_v<T, float> && float32_resolves(n, settings)),
        unscale_(backend.template buffer<double>(narrow_ ? n : 0)),
        features_(features),
        settings_(settings) {}

  // labels [n]
  template <typename Label>
  void label_ranks(const Label* labels) {
    auto sorted = backend_.template buffer<Label>(n_);
    gather(SortedLabels<Label>{labels, order_, sorted.data()});
    backend_.launch(ranksim_pair_kernel<Label>, row_blocks(), dim3(kThreads), squared_norms_.data(), sorted.data(),
                    order_, count_, n_, d_, products(), label_ranks_.data());
  }

  // matrix [size, size]
  template <typename S>
  void matrix_ranks(const S* matrix, int64_t size) {
    gather(NoLabels{});
    backend_.launch(ranksim_similarity_kernel, row_blocks(), dim3(kThreads), squared_norms_.data(), count_, n_, d_,
                    products());
    launch_ranks(backend_, MatrixRank<S>{matrix, count_, poison_.data(), label_ranks_.data(), size, n_}, n_, n_,
                 limits_);
  }

  void rank_rows(bool with_gradient) {
    const RankSimRows<T> rows{similarity_.data(),  gradient_matrix(),
                              label_ranks_.data(), squares_.data(),
                              constants_.data(),   count_,
                              poison_.data(),      n_};
    if (n_ <= limits_.warp) {
      with_items(n_, [&](auto items) {
        backend_.launch(ranksim_row_kernel<decltype(items)::value, T>, warp_rows(), dim3(kRowThreads), rows,
                        with_gradient);
      });
      return;
    }
    auto feature_ranks = backend_.template buffer<int32_t>(n_ * n_);
    launch_long_ranks(backend_, SimilarityRank<T>{rows, feature_ranks.data(), false}, n_, n_, limits_);
    backend_.launch(ranksim_compare_kernel<T>, warp_rows(), dim3(kRowThreads), rows, feature_ranks.data(),
                    with_gradient);
    if (with_gradient)
      launch_long_ranks(backend_, SimilarityRank<T>{rows, feature_ranks.data(), true}, n_, n_, limits_);
  }

  // loss []
  void loss(T* loss) {
    backend_.launch(ranksim_loss_kernel<T>, dim3(1), dim3(kThreads), squares_.data(), constants_.data(), count_, loss);
  }

  // rows [n]
  void rows(T* rows) {
    backend_.launch(ranksim_rows_kernel<T>, element_grid(), dim3(kThreads), squares_.data(), constants_.data(), count_,
                    n_, rows);
  }

  // row_weight [n] or null for ones; gradient [n, d]
  template <typename Out>
  void gradient(const T* row_weight, Out* gradient) {
    const unsigned tiles = blocks_for(n_, kTile);
    const int64_t width = RankSimRows<T>::kWidth * n_;
    backend_.launch(symmetrise_kernel<T, Out>, dim3(tiles, tiles), dim3(kTile, kTileRows), gradient_matrix(), width,
                    row_weight, inverse_norms_.data(), count_, n_, gradient, n_ * d_);
    auto unit_gradient = backend_.template buffer<T>(n_ * d_);
    backend_.multiply(Matrix<T>{gradient_matrix(), n_, n_, width, 1}, Matrix<T>{x_.data(), n_, d_, d_, 1},
                      unit_gradient.data(), d_, false);
    backend_.launch(project_kernel<T, Out>, warp_rows(), dim3(kRowThreads), unit_gradient.data(), x_.data(),
                    squared_norms_.data(), inverse_norms_.data(), index_, count_, d_, gradient);
  }

 private:
  template <typename Element>
  using Buffer = typename Backend::template Buffer<Element>;

  dim3 warp_rows() const { return dim3(blocks_for(n_, kRowWarps)); }
  dim3 row_blocks() const { return dim3(blocks_for(n_, 1)); }
  dim3 element_grid() const { return dim3(blocks_for(n_, kThreads)); }
  Products products() const { return {similarity_.data(), narrow_ ? unscale_.data() : nullptr}; }
  T* gradient_matrix() const { return reinterpret_cast<T*>(similarity_.data()); }

  // The rows of the subset, and their inner products.
  template <typename Labels>
  void gather(const Labels& labels) {
    if constexpr (std::is_same_v<T, double>) {
      gather_rows(labels, x_.data(), {});
      multiply(x_.data(), similarity_.data(), n_);
    } else if (narrow_) {
      auto x = backend_.template buffer<float>(n_ * d_);
      gather_rows(labels, nullptr, {x.data(), unscale_.data()});
      multiply(x.data(), reinterpret_cast<float*>(similarity_.data()) + n_, 2 * n_);
    } else {
      auto x = backend_.template buffer<double>(n_ * d_);
      gather_rows(labels, x.data(), {});
      multiply(x.data(), similarity_.data(), n_);
    }
  }

  template <typename Labels>
  void gather_rows(const Labels& labels, double* wide_x, const NarrowRows& narrow) {
    backend_.launch(ranksim_gather_kernel<F, T, Labels>, warp_rows(), dim3(kRowThreads), labels, features_, index_,
                    count_, settings_, n_, d_, x_.data(), wide_x, narrow, squared_norms_.data(), inverse_norms_.data(),
                    constants_.data(), poison_.data());
  }

  // inner = X X^T, its rows `stride` apart
  template <typename W>
  void multiply(const W* x /* [n, d] */, W* inner, int64_t stride) {
    backend_.multiply(Matrix<W>{x, n_, d_, d_, 1}, Matrix<W>{x, d_, n_, 1, d_}, inner, stride, false);
  }

  Backend& backend_;
  const int64_t *index_, *order_, *count_;
  int64_t n_, d_;
  RankLimits limits_;
  Buffer<T> x_;                                 // [n, d], rows of the subset
  Buffer<double> squared_norms_;                // [n]
  Buffer<T> inverse_norms_;                     // [n]
  Buffer<RankSimConstants<double>> constants_;  // []
  Buffer<int32_t> poison_;                      // [n], any not 0: loss and gradient are NaN
  Buffer<double> similarity_;                   // [n, n]
  Buffer<int32_t> label_ranks_;                 // [n, n]
  Buffer<double> squares_;                      // [n]
  bool narrow_;                                 // whether inner products are float32
  Buffer<double> unscale_;                      // [n] if so; see NarrowRows
  const F* features_;
  RankSimSettings settings_;
};

}  // namespace dadl
