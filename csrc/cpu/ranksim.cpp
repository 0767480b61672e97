// The fused RankSim operators on the CPU. The steps and the formulas are those of dadl_ext/reference/ranksim.py.
#include "../core/ranksim.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common.h"
#include "ranksim_lanes.h"
#include "blas.h"
#include "ranksim_amx.h"
#include "transpose.h"

namespace dadl::cpu {
namespace {

// ---- select ---------------------------------------------------------------------------------------------------

// Sorts the rows by (label, priority, row). The first row of each run of equal labels is the chosen one.
template <typename Label>
int64_t select_rows(const Label* labels, const double* priority, int64_t n, int64_t k, int64_t* index, int64_t* order) {
  struct Row {
    uint64_t key;  // of the first label dimension
    int64_t row;
  };
  std::vector<Row> rows(n);
  for (int64_t i = 0; i < n; ++i) rows[i] = {label_key(labels[i * k]), i};
  auto compare_labels = [&](const Row& a, const Row& b) {
    if (a.key != b.key) return a.key < b.key ? -1 : 1;
    for (int64_t c = 1; c < k; ++c) {
      const uint64_t x = label_key(labels[a.row * k + c]), y = label_key(labels[b.row * k + c]);
      if (x != y) return x < y ? -1 : 1;
    }
    return 0;
  };
  std::sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    const int labels_order = compare_labels(a, b);
    if (labels_order != 0) return labels_order < 0;
    if (priority[a.row] != priority[b.row]) return priority[a.row] < priority[b.row];
    return a.row < b.row;
  });
  int64_t m = 0;
  for (int64_t p = 0; p < n; ++p) {
    if (p == 0 || compare_labels(rows[p - 1], rows[p]) != 0) index[m++] = rows[p].row;
  }
  const bool distinct = m == n;
  for (int64_t p = 0; p < n; ++p) {
    order[p] = p >= m ? 0 : distinct ? index[p] : p;
    if (p >= m) index[p] = 0;
  }
  if (distinct) {
    for (int64_t i = 0; i < n; ++i) index[i] = i;
  }
  return m;
}

int64_t select_rows(const Tensor& labels, const Tensor& priority, int64_t* index, int64_t* order) {
  STD_TORCH_CHECK(labels.dim() == 1 || labels.dim() == 2, "labels must be [n] or [n, k]");
  const int64_t n = labels.size(0), k = labels.dim() == 2 ? labels.size(1) : 1;
  STD_TORCH_CHECK(priority.dim() == 1 && priority.size(0) == n && is_double(priority), "priority must be float64 [n]");
  const Tensor whole_labels = as_contiguous(labels), whole_priority = as_contiguous(priority);
  int64_t count = 0;
  dispatch_labels(labels, [&](auto tag) {
    count = select_rows(data<decltype(tag)>(whole_labels), data<double>(whole_priority), n, k, index, order);
  });
  return count;
}

std::tuple<Tensor, Tensor, Tensor> ranksim_select(Tensor labels, Tensor priority) {
  const int64_t n = labels.dim() ? labels.size(0) : 0;
  const Tensor index = new_empty(labels, {n}, ScalarType::Long);
  const Tensor order = new_empty(labels, {n}, ScalarType::Long);
  const Tensor count = new_empty(labels, {}, ScalarType::Long);
  *mutable_data<int64_t>(count) =
      select_rows(labels, priority, mutable_data<int64_t>(index), mutable_data<int64_t>(order));
  return {index, order, count};
}

// ---- row kernels ----

// Squared norms in float64, in 16 interleaved sums: the same for every thread count and instruction set.
template <typename T>
void squared_norm_rows(const T* features, double* squared, int64_t d, int64_t begin, int64_t end) {
  constexpr int kLanes = 16;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = features + row * d;
    double sums[kLanes] = {};
    int64_t c = 0;
    for (; c + kLanes <= d; c += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        const double value = to_float(x[c + l]);
        sums[l] += value * value;
      }
    }
    double total = 0;
    for (; c < d; ++c) {
      const double value = to_float(x[c]);
      total += value * value;
    }
    for (int l = 0; l < kLanes; ++l) total += sums[l];
    squared[row] = total;
  }
}

// target[r, c] = features[index[r], first + c]
template <typename T, typename A>
void gather_rows(const T* features, const int64_t* index, A* target, int64_t d, int64_t first, int64_t columns,
                 int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = features + index[row] * d + first;
    for (int64_t c = 0; c < columns; ++c) target[row * columns + c] = to_float(x[c]);
  }
}

// Tiles [begin, end): many rows at once where the processor has the instructions, the doubtful ones row by row.
template <typename A>
void ranksim_tiles(const RowsTask<A>& task, LabelRanks::Scratch& labels, int64_t begin, int64_t end) {
  RowsScratch scratch(task.m);
  Lanes<A> lanes = select_lanes<A>(task);
  const std::unique_ptr<LaneScratch> lane_scratch = lanes.run ? lanes.scratch(task.m) : nullptr;
  for (int64_t i0 = begin * kTile; i0 < std::min(end * kTile, task.m); i0 += kTile) {
    const int64_t i1 = std::min(i0 + kTile, task.m);
    if (!lanes.run) {
      rank_rowwise(task, labels, scratch, i0, i1);
      continue;
    }
    uint32_t doubtful = 0;
    for (int64_t i = i0; i < i1; i += lanes.count) doubtful |= lanes.run(task, labels, *lane_scratch, i) << (i - i0);
    for (int64_t i = i0; i < i1; ++i) {
      if (doubtful >> (i - i0) & 1) rank_rowwise(task, labels, scratch, i, i + 1);
    }
    // Features that tie in most rows will go on doing so.
    if (2 * std::popcount(doubtful) > kTile) lanes.run = nullptr;
  }
}

// In place, by tiles of pairs: sym_ij = (w_i G_ij + w_j G_ji) / |x_j|, so that sym X is, but for a factor, the
// gradient with respect to the unit rows. Tile row t works from its diagonal on; t and its mirror image together are
// equal work for everyone.
template <typename A>
void symmetrise_tile_row(A* g, const A* weight, const A* inverse_norm, int64_t m, int64_t tile) {
  const int64_t i0 = tile * kTile, rows = std::min(kTile, m - i0);
  A mirror[kTile][kTile];  // transposed, so that both sides are read and written along rows
  for (int64_t j0 = i0; j0 < m; j0 += kTile) {
    const int64_t columns = std::min(kTile, m - j0);
    transpose(g + j0 * m + i0, m, mirror[0], kTile, columns, rows);
    for (int64_t i = 0; i < rows; ++i) {
      A* row = g + (i0 + i) * m + j0;
      for (int64_t j = 0; j < columns; ++j) {
        const A sum = weight[i0 + i] * row[j] + weight[j0 + j] * mirror[i][j];
        row[j] = sum * inverse_norm[j0 + j];
        mirror[i][j] = sum * inverse_norm[i0 + i];
      }
    }
    if (j0 == i0) continue;  // a diagonal tile is its own mirror image
    transpose(mirror[0], kTile, g + j0 * m + i0, m, rows, columns);
  }
}

template <typename A>
void symmetrise_tile_rows(A* g, const A* weight, const A* inverse_norm, int64_t m, int64_t begin, int64_t end) {
  const int64_t tiles = (m + kTile - 1) / kTile;
  for (int64_t tile = begin; tile < end; ++tile) {
    symmetrise_tile_row(g, weight, inverse_norm, m, tile);
    if (tiles - 1 - tile != tile) symmetrise_tile_row(g, weight, inverse_norm, m, tiles - 1 - tile);
  }
}

// result = w X for the rows [begin, end) of w [m, m]. Every number is one sum in the order of the rows of X: the same
// for every thread count and instruction set, which BLAS does not promise.
template <typename A>
void weigh_few_rows(const A* w, const A* x, A* result, int64_t m, int64_t d, int64_t begin, int64_t end) {
  constexpr int64_t kRows = 4, kVectors = 2;
  using Vector __attribute__((vector_size(32))) = A;
  constexpr int64_t kLanes = sizeof(Vector) / sizeof(A), kColumns = kVectors * kLanes;
  for (int64_t i = begin; i < end; i += kRows) {
    const A* weights[kRows];  // the last row again where there are no more
    for (int64_t r = 0; r < kRows; ++r) weights[r] = w + std::min(i + r, end - 1) * m;
    for (int64_t next = 0; next < d; next += kColumns) {
      const int64_t first = std::max<int64_t>(std::min(next, d - kColumns), 0), columns = std::min(kColumns, d);
      A block[kRows][kColumns] = {};
      if (columns == kColumns) {
        Vector sums[kRows][kVectors] = {};
        for (int64_t j = 0; j < m; ++j) {
          Vector row[kVectors];
          std::memcpy(row, x + j * d + first, sizeof row);
#pragma GCC unroll 4
          for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int64_t v = 0; v < kVectors; ++v) sums[r][v] += weights[r][j] * row[v];
          }
        }
        std::memcpy(block, sums, sizeof block);
      } else {
        for (int64_t j = 0; j < m; ++j) {
          for (int64_t r = 0; r < kRows; ++r) {
            for (int64_t c = 0; c < columns; ++c) block[r][c] += weights[r][j] * x[j * d + c];
          }
        }
      }
      for (int64_t r = 0; r < std::min(kRows, end - i); ++r) {
        std::copy_n(block[r], columns, result + (i + r) * d + first);
      }
    }
  }
}

// dx = (g - u <g, u>) / |x| with g = scale times the given one and u = x / |x|, without the second term where a
// constant stands for the norm, as in F.normalize. g may be the output itself where the subset is the batch.
template <typename A>
void project_rows(const A* g, A scale, const A* x, const double* squared, const A* inverse_norm, const int64_t* index,
                  A* gradient, int64_t d, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const A *gr = g + row * d, *xr = x + row * d;
    const A inner = inner_product(gr, xr, d);
    const A inverse = inverse_norm[row], along = squared[row] == kMinSquaredNorm ? 0 : inner * inverse * inverse;
    const A factor = scale * inverse;
    A* out = gradient + index[row] * d;
    for (int64_t c = 0; c < d; ++c) out[c] = (gr[c] - xr[c] * along) * factor;
  }
}

// target_clones does not apply to templates, so each type has its own functions.
#define DADL_GATHER_ROWS(T, A)                                                                          \
  DADL_CLONES void gather(const T* features, const int64_t* index, A* target, int64_t d, int64_t first, \
                          int64_t columns, int64_t begin, int64_t end) {                                \
    gather_rows<T, A>(features, index, target, d, first, columns, begin, end);                          \
  }
DADL_GATHER_ROWS(float, float)
DADL_GATHER_ROWS(float, double)
DADL_GATHER_ROWS(double, double)
DADL_GATHER_ROWS(Half, float)
DADL_GATHER_ROWS(Half, double)
DADL_GATHER_ROWS(BFloat16, float)
DADL_GATHER_ROWS(BFloat16, double)
#undef DADL_GATHER_ROWS

#define DADL_STORAGE_ROWS(T)                                                                                  \
  DADL_CLONES void squared_norms(const T* features, double* squared, int64_t d, int64_t begin, int64_t end) { \
    squared_norm_rows<T>(features, squared, d, begin, end);                                                   \
  }
DADL_STORAGE_ROWS(float)
DADL_STORAGE_ROWS(double)
DADL_STORAGE_ROWS(Half)
DADL_STORAGE_ROWS(BFloat16)
#undef DADL_STORAGE_ROWS

#define DADL_ARITHMETIC_ROWS(A)                                                                                     \
  DADL_CLONES void rank_similarities(const RowsTask<A>& task, LabelRanks::Scratch& labels, int64_t begin,           \
                                     int64_t end) {                                                                 \
    ranksim_tiles<A>(task, labels, begin, end);                                                                     \
  }                                                                                                                 \
  DADL_CLONES void symmetrise(A* differences, const A* weight, const A* inverse_norm, int64_t m, int64_t begin,     \
                              int64_t end) {                                                                        \
    symmetrise_tile_rows<A>(differences, weight, inverse_norm, m, begin, end);                                      \
  }                                                                                                                 \
  DADL_CLONES void weigh_few(const A* w, const A* x, A* result, int64_t m, int64_t d, int64_t begin, int64_t end) { \
    weigh_few_rows<A>(w, x, result, m, d, begin, end);                                                              \
  }                                                                                                                 \
  DADL_CLONES void project(const A* g, A scale, const A* x, const double* squared, const A* inverse_norm,           \
                           const int64_t* index, A* gradient, int64_t d, int64_t begin, int64_t end) {              \
    project_rows<A>(g, scale, x, squared, inverse_norm, index, gradient, d, begin, end);                            \
  }
DADL_ARITHMETIC_ROWS(float)
DADL_ARITHMETIC_ROWS(double)
#undef DADL_ARITHMETIC_ROWS

// ---- the operators ----

struct Subset {
  const int64_t *index, *order;
  int64_t count;
};

Subset make_subset(const Tensor& index, const Tensor& order, const Tensor& count, int64_t n) {
  const int64_t m = *data<int64_t>(count);
  STD_TORCH_CHECK(0 <= m && m <= n && index.size(0) == n && order.size(0) == n,
                  "index, order and count must come from ranksim_select on the same batch");
  return {data<int64_t>(index), data<int64_t>(order), m};
}

struct Arguments {
  Tensor features, labels;
  Subset subset;
  std::optional<Tensor> label_similarity;
  RankSimSettings settings;
};

std::unique_ptr<LabelRanks> make_label_ranks(const Arguments& a, int64_t m) {
  std::unique_ptr<LabelRanks> ranks;
  if (a.label_similarity) {
    const Tensor& matrix = *a.label_similarity;
    STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(0) == matrix.size(1) && matrix.size(0) >= m,
                    "the label-similarity matrix must be [m, m] with one row for each of the ", m,
                    " distinct labels of the batch, got [", matrix.size(0), ", ", matrix.size(1), "]");
    dispatch_floating(matrix, "label_similarity", [&](auto tag) {
      using T = decltype(tag);
      if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
        ranks = std::make_unique<MatrixLabelRanks<T>>(data<T>(matrix), matrix.size(1), m);
      } else {
        STD_TORCH_CHECK(false, "label_similarity must be float32 or float64");
      }
    });
  } else {
    STD_TORCH_CHECK(a.labels.dim() == 1, "vector labels need a label-similarity matrix");
    dispatch_labels(a.labels, [&](auto tag) {
      using Label = decltype(tag);
      ranks = std::make_unique<ScalarLabelRanks<Label>>(data<Label>(a.labels), a.subset.index, a.subset.order, m);
    });
  }
  return ranks;
}

// The features of the subset as a matrix of A, the features themselves where they are that already.
template <typename T, typename A>
Tensor subset_columns(const Tensor& features, const int64_t* index, int64_t m, int64_t first, int64_t columns) {
  const int64_t d = features.size(1);
  if (std::is_same_v<T, A> && m == features.size(0) && columns == d) return features;
  const Tensor x =
      new_empty(features, {m, columns}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  torch::stable::parallel_for(0, m, grain_rows(columns), [&](int64_t begin, int64_t end) {
    gather(data<T>(features), index, mutable_data<A>(x), d, first, columns, begin, end);
  });
  return x;
}

// inner = X X^T + beta inner, panel by panel up to the diagonal. A panel and its mirror image together are equal work
// for everyone; products within are single-threaded.
template <typename G>
void add_gram_panels(const Tensor& x, double beta, const Tensor& inner) {
  const int64_t m = x.size(0), d = x.size(1), panel = panel_rows(m), panels = (m + panel - 1) / panel;
  const G* values = data<G>(x);
  const auto add_panel = [&](int64_t p) {
    const int64_t row = p * panel, rows = std::min(panel, m - row), columns = row + rows;
    add_product(matrix_view(x, values + row * d, rows, d, d, 1), matrix_view(x, values, d, columns, 1, d), 1.0, beta,
                matrix_view(inner, data<G>(inner) + row * m, rows, columns, m, 1));
  };
  torch::stable::parallel_for(0, (panels + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      add_panel(p);
      if (panels - 1 - p != p) add_panel(panels - 1 - p);
    }
  });
}

// In float64 by blocks of columns, so that no large float64 copy of X is held.
template <typename T>
Tensor wide_gram(const Tensor& features, const int64_t* index, int64_t m) {
  const int64_t d = features.size(1);
  const int64_t block = std::is_same_v<T, double> ? std::max<int64_t>(d, 1) : std::max<int64_t>(256, m);
  const Tensor inner = new_empty(features, {m, m}, ScalarType::Double);
  for (int64_t first = 0; first == 0 || first < d; first += block) {
    add_gram_panels<double>(subset_columns<T, double>(features, index, m, first, std::min(block, d - first)),
                            first == 0 ? 0.0 : 1.0, inner);
  }
  return inner;
}

// From here on products are large enough for BLAS and for the matrix units.
constexpr int64_t kManyRows = 64;

// Whether float32 inner products resolve the perturbation, whose typical size is strength * weight * 2 / m * (1 / 3).
// Measured against float64, the gradient's cosine then stays above .9998, whatever the dimension and the correlation of
// the features. Small subsets have few swaps to average over, and cost little in float64.
bool float32_resolves(int64_t m, const RankSimSettings& settings) {
  return m >= kManyRows && 2 * settings.interp_strength * settings.weight >= 1e-3 * 3 * static_cast<double>(m);
}

// Whether the matrix units form the products. The sum of two rank differences is less than 2^16.
bool matrix_units_serve(int64_t m) {
#ifdef DADL_MATRIX_UNITS
  return kManyRows <= m && m <= 1 << 14 && matrix_units::available();
#else
  return false;
#endif
}

// Whether the Gram matrix by parts is as good as by BLAS: few groups of columns to add up, and no part of a number that
// counts outside bfloat16's range.
bool parts_resolve(int64_t d, const std::vector<double>& squared_norms) {
  return d <= 4096 && std::all_of(squared_norms.begin(), squared_norms.end(),
                                  [](double square) { return square == 0 || (1e-30 <= square && square <= 1e30); });
}

void narrow_gram(const Tensor& x, bool units, const Tensor& inner) {
#ifdef DADL_MATRIX_UNITS
  if (units) return matrix_units::gram(data<float>(x), x.size(0), x.size(1), mutable_data<float>(inner));
#endif
  add_gram_panels<float>(x, 0.0, inner);
}

struct Result {
  std::vector<double> rows;  // [n], 0 beyond the subset
  Tensor gradient;           // [n, d], [0, d] without gradient
};

// row_weight: [n] upstream gradients of the rows, null for ones.
template <typename T, typename A = typename Storage<T>::Arithmetic>
Result run(const Arguments& a, bool with_gradient, const A* row_weight) {
  const int64_t n = a.features.size(0), d = a.features.size(1), m = a.subset.count;
  const ScalarType arithmetic = arithmetic_type(a.features);
  Result result{std::vector<double>(n), new_empty(a.features, {with_gradient ? n : 0, d}, arithmetic)};
  if (m == 0) return result;
  const int64_t* index = a.subset.index;

  std::vector<double> all_squared(n);
  torch::stable::parallel_for(0, n, grain_rows(d), [&](int64_t begin, int64_t end) {
    squared_norms(data<T>(a.features), all_squared.data(), d, begin, end);
  });
  double poison = 0;
  for (const double square : all_squared) poison += square * 0;
  std::vector<double> squared(m), wide_inverse_norm(m);
  for (int64_t j = 0; j < m; ++j) {
    squared[j] = bounded_squared_norm(all_squared[index[j]]);
    wide_inverse_norm[j] = 1 / std::sqrt(squared[j]);
  }

  const std::unique_ptr<LabelRanks> labels = make_label_ranks(a, m);
  const int64_t tiles = (m + kTile - 1) / kTile;
  const bool wide = std::is_same_v<T, double> || !float32_resolves(m, a.settings);
  const bool units = std::is_same_v<A, float> && matrix_units_serve(m), weighed_by_units = units && !row_weight;
  const int64_t stride = weighed_by_units ? tiles * kTile : m;  // of the rank differences
  const RankSimConstants<double> constants = ranksim_constants<double>(m, a.settings);
  Tensor x = a.features, differences = result.gradient;
  if (with_gradient || !wide) x = subset_columns<T, A>(a.features, index, m, 0, d);
  {
    Tensor inner;
    if (wide) {
      inner = wide_gram<T>(a.features, index, m);
    } else {
      inner = new_empty(a.features, {m, m}, ScalarType::Float);
      narrow_gram(x, units && parts_resolve(d, all_squared), inner);
    }
    if (with_gradient) differences = new_empty(a.features, {stride, stride}, arithmetic);
    const RowsTask<A> task{wide ? nullptr : data<float>(inner),
                           wide ? data<double>(inner) : nullptr,
                           with_gradient ? mutable_data<A>(differences) : nullptr,
                           stride,
                           result.rows.data(),
                           squared.data(),
                           wide_inverse_norm.data(),
                           labels.get(),
                           m,
                           poison,
                           constants};
    torch::stable::parallel_for(0, tiles, grain_rows(16 * kTile * m), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<LabelRanks::Scratch> scratch = labels->scratch();
      rank_similarities(task, *scratch, begin, end);
    });
  }
  if (!with_gradient) return result;

  const std::vector<A> inverse_norm(wide_inverse_norm.begin(), wide_inverse_norm.end());
  const Tensor unit_gradient = m == n ? result.gradient : new_empty(a.features, {m, d}, arithmetic);
  if (m < n) torch::stable::zero_(result.gradient);
  const auto for_pairs = [&](auto body) {
    torch::stable::parallel_for(0, (tiles + 1) / 2, grain_rows(2 * kTile * m), body);
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    project(data<A>(unit_gradient), static_cast<A>(-constants.slope), data<A>(x), squared.data(), inverse_norm.data(),
            index, mutable_data<A>(result.gradient), d, begin, end);
  };
#ifdef DADL_MATRIX_UNITS
  if constexpr (std::is_same_v<A, float>) {
    if (weighed_by_units) {
      float* parts = mutable_data<float>(differences);
      for_pairs([&](int64_t begin, int64_t end) { matrix_units::symmetrise(parts, stride, m, begin, end); });
      matrix_units::weigh_rows(parts, stride, data<float>(x), inverse_norm.data(), mutable_data<float>(unit_gradient),
                               m, d);
      torch::stable::parallel_for(0, m, grain_rows(d), finish);
      return result;
    }
  }
#endif
  std::vector<A> weight(m, A{1});
  if (row_weight) std::copy_n(row_weight, m, weight.begin());
  for_pairs([&](int64_t begin, int64_t end) {
    symmetrise(mutable_data<A>(differences), weight.data(), inverse_norm.data(), m, begin, end);
  });
  const A* pair_weights = data<A>(differences);
  A* weighed = mutable_data<A>(unit_gradient);
  if (m < kManyRows) {
    torch::stable::parallel_for(0, m, grain_rows(m * d / 16), [&](int64_t begin, int64_t end) {
      weigh_few(pair_weights, data<A>(x), weighed, m, d, begin, end);
      finish(begin, end);
    });
    return result;
  }
  torch::stable::parallel_for(0, m, std::max(kManyRows, grain_rows(d)), [&](int64_t begin, int64_t end) {
    add_product(matrix_view(differences, pair_weights + begin * m, end - begin, m, m, 1), x, 1.0, 0.0,
                matrix_view(unit_gradient, weighed + begin * d, end - begin, d, d, 1));
    finish(begin, end);
  });
  return result;
}

template <typename Finish>
void with_result(Arguments a, bool with_gradient, const std::optional<Tensor>& row_weight, Finish finish) {
  STD_TORCH_CHECK(a.features.dim() == 2, "features must be [n, d]");
  a.features = as_contiguous(a.features);
  a.labels = as_contiguous(a.labels);
  if (a.label_similarity) a.label_similarity = as_contiguous(*a.label_similarity);
  dispatch_floating(a.features, "features", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    finish(A{}, run<T>(a, with_gradient, row_weight ? data<A>(*row_weight) : nullptr));
  });
}

std::tuple<Tensor, Tensor> ranksim_loss(Tensor features, Tensor labels, Tensor priority,
                                        std::optional<Tensor> label_similarity, double interp_strength, double weight,
                                        bool mean, bool with_gradient) {
  const int64_t n = features.dim() ? features.size(0) : 0;
  std::vector<int64_t> index(n), order(n);
  STD_TORCH_CHECK(labels.dim() && labels.size(0) == n, "features and labels must have one row per sample");
  const Subset subset{index.data(), order.data(), select_rows(labels, priority, index.data(), order.data())};
  Tensor loss = new_empty(features, {}, arithmetic_type(features)), gradient;
  with_result({features, labels, subset, label_similarity, {interp_strength, weight, mean}}, with_gradient, {},
              [&](auto tag, const Result& result) {
                double total = 0;
                for (const double row : result.rows) total += row;
                *mutable_data<decltype(tag)>(loss) = static_cast<decltype(tag)>(total);
                gradient = result.gradient;
              });
  return {loss, gradient};
}

Tensor ranksim_rows(Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count,
                    std::optional<Tensor> label_similarity, double interp_strength, double weight) {
  const Tensor rows = new_empty(features, {features.size(0)}, arithmetic_type(features));
  with_result({features,
               labels,
               make_subset(index, order, count, features.size(0)),
               label_similarity,
               {interp_strength, weight, false}},
              false, {}, [&](auto tag, const Result& result) {
                std::copy(result.rows.begin(), result.rows.end(), mutable_data<decltype(tag)>(rows));
              });
  return rows;
}

Tensor ranksim_rows_backward(Tensor grad, Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count,
                             std::optional<Tensor> label_similarity, double interp_strength, double weight) {
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.size(0) == features.size(0) && grad.scalar_type() == arithmetic_type(features),
      "grad must be [n], in the dtype of ranksim_rows");
  Tensor gradient;
  with_result({features,
               labels,
               make_subset(index, order, count, features.size(0)),
               label_similarity,
               {interp_strength, weight, false}},
              true, as_contiguous(grad), [&](auto, const Result& result) { gradient = result.gradient; });
  return as_contiguous(gradient, features.scalar_type());
}

}  // namespace
}  // namespace dadl::cpu

STABLE_TORCH_LIBRARY_IMPL(dadl, CPU, m) {
  DADL_IMPL(m, dadl::cpu, ranksim_select);
  DADL_IMPL(m, dadl::cpu, ranksim_loss);
  DADL_IMPL(m, dadl::cpu, ranksim_rows);
  DADL_IMPL(m, dadl::cpu, ranksim_rows_backward);
}
