// The two matrix products that RankSim and Rank-N-Contrast cannot do without.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "blas.h"
#include "common.h"
#include "pair_amx.h"
#include "pair_kernels.h"

namespace dadl::cpu {

// Columns of the rows `index` [m] of the features in the type A. In batch order, all of them are the features
// themselves.
template <typename T, typename A>
Tensor columns_of_rows(const Tensor& features, const int64_t* index, int64_t m, int64_t first, int64_t columns) {
  const int64_t d = features.size(1);
  bool in_batch_order = m == features.size(0);
  for (int64_t i = 0; i < m; ++i) in_batch_order = in_batch_order && index[i] == i;
  if (std::is_same_v<T, A> && in_batch_order && columns == d) return features;
  const Tensor x =
      new_empty(features, {m, columns}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  torch::stable::parallel_for(0, m, grain_rows(columns), [&](int64_t begin, int64_t end) {
    gather(data<T>(features), index, mutable_data<A>(x), d, first, columns, begin, end);
  });
  return x;
}

// inner = X X^T + beta inner, panel by panel up to the diagonal. A panel and its mirror image together are the same
// work for all panels. Each product is single-threaded.
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

// In float64, by blocks of columns, to avoid a large float64 copy of X.
template <typename T>
Tensor wide_gram(const Tensor& features, const int64_t* index, int64_t m) {
  const int64_t d = features.size(1);
  const int64_t block = std::is_same_v<T, double> ? std::max<int64_t>(d, 1) : std::max<int64_t>(256, m);
  const Tensor inner = new_empty(features, {m, m}, ScalarType::Double);
  for (int64_t first = 0; first == 0 || first < d; first += block) {
    add_gram_panels<double>(columns_of_rows<T, double>(features, index, m, first, std::min(block, d - first)),
                            first == 0 ? 0.0 : 1.0, inner);
  }
  return inner;
}

// From this number of rows on, products are large enough for BLAS and AMX.
constexpr int64_t kManyRows = 64;

// Whether AMX forms the products. The sum of two of RankSim's rank differences must be below 2^16.
inline bool amx_serves(int64_t m) {
#ifdef DADL_AMX
  return kManyRows <= m && m <= 1 << 14 && amx::available();
#else
  return false;
#endif
}

// Whether the Gram matrix from bfloat16 parts is as accurate as from BLAS: few groups of columns to add up, and no part
// that counts outside bfloat16's range.
template <typename Norms>
bool parts_resolve(int64_t d, const Norms& squared_norms) {
  return d <= 4096 && std::all_of(squared_norms.begin(), squared_norms.end(),
                                  [](double square) { return square == 0 || (1e-30 <= square && square <= 1e30); });
}

// In float32.
inline Tensor narrow_gram(const Tensor& x, bool by_amx) {
  const int64_t m = x.size(0);
  const Tensor inner = new_empty(x, {m, m}, ScalarType::Float);
#ifdef DADL_AMX
  if (by_amx) {
    amx::gram(data<float>(x), m, x.size(1), mutable_data<float>(inner));
    return inner;
  }
#endif
  add_gram_panels<float>(x, 0.0, inner);
  return inner;
}

// result = w X for w [m, stride], then finish(begin, end) for the rows that are done.
template <typename A, typename Finish>
void weigh(const A* w, int64_t stride, const Tensor& x, const Tensor& result, bool by_amx, Finish finish) {
  const int64_t m = x.size(0), d = x.size(1);
  A* weighed = mutable_data<A>(result);
#ifdef DADL_AMX
  if constexpr (std::is_same_v<A, float>) {
    if (by_amx) {
      amx::weigh(w, stride, data<float>(x), weighed, m, d);
      torch::stable::parallel_for(0, m, grain_rows(d), finish);
      return;
    }
  }
#endif
  if (m < kManyRows) {
    torch::stable::parallel_for(0, m, grain_rows(m * d / 16), [&](int64_t begin, int64_t end) {
      weigh_few(w, stride, data<A>(x), weighed, m, d, begin, end);
      finish(begin, end);
    });
    return;
  }
  torch::stable::parallel_for(0, m, std::max(kManyRows, grain_rows(d)), [&](int64_t begin, int64_t end) {
    add_product(matrix_view(x, w + begin * stride, end - begin, m, stride, 1), x, 1.0, 0.0,
                matrix_view(result, weighed + begin * d, end - begin, d, d, 1));
    finish(begin, end);
  });
}

// body(begin, end) over pairs of a tile row and its mirror image.
template <typename Body>
void for_tile_pairs(int64_t m, Body body) {
  const int64_t tiles = (m + kTile - 1) / kTile;
  torch::stable::parallel_for(0, (tiles + 1) / 2, grain_rows(2 * kTile * m), body);
}

}  // namespace dadl::cpu
