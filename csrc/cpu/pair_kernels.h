// Work on the pairs of a batch's rows that RankSim and Rank-N-Contrast share: norms, tiles of an [m, m] matrix, and the
// gradient with respect to the rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../core/cosine.h"
#include "common.h"
#include "transpose.h"

namespace dadl::cpu {

constexpr int64_t kTile = 32;

// Rows in a panel of the Gram matrix. Fewer make the products slower; more compute more of the other triangle.
constexpr int64_t kSmallPanel = 64, kLargePanel = 128;
inline int64_t panel_rows(int64_t m) { return m <= 512 ? kSmallPanel : kLargePanel; }

// Squared norms in float64, in 16 interleaved sums: the same bits for every number of threads and instruction set.
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

// In place: sym_ij = (w_i G_ij + w_j G_ji) / |x_j|, so that sym X is, up to a factor, the gradient with respect to the
// unit rows. Tile row t begins at its diagonal; a tile row and its mirror image together are the same work for all t.
template <typename A>
void symmetrise_tile_row(A* g, int64_t stride, const A* weight, const A* inverse_norm, int64_t m, int64_t tile) {
  const int64_t i0 = tile * kTile, rows = std::min(kTile, m - i0);
  A mirror[kTile][kTile];  // transposed, so that both triangles are read and written along rows
  for (int64_t j0 = i0; j0 < m; j0 += kTile) {
    const int64_t columns = std::min(kTile, m - j0);
    transpose(g + j0 * stride + i0, stride, mirror[0], kTile, columns, rows);
    for (int64_t i = 0; i < rows; ++i) {
      A* row = g + (i0 + i) * stride + j0;
      for (int64_t j = 0; j < columns; ++j) {
        const A sum = weight[i0 + i] * row[j] + weight[j0 + j] * mirror[i][j];
        row[j] = sum * inverse_norm[j0 + j];
        mirror[i][j] = sum * inverse_norm[i0 + i];
      }
    }
    if (j0 == i0) continue;  // a diagonal tile is its own mirror image
    transpose(mirror[0], kTile, g + j0 * stride + i0, stride, rows, columns);
  }
}

template <typename A>
void symmetrise_tile_rows(A* g, int64_t stride, const A* weight, const A* inverse_norm, int64_t m, int64_t begin,
                          int64_t end) {
  const int64_t tiles = (m + kTile - 1) / kTile;
  for (int64_t tile = begin; tile < end; ++tile) {
    symmetrise_tile_row(g, stride, weight, inverse_norm, m, tile);
    if (tiles - 1 - tile != tile) symmetrise_tile_row(g, stride, weight, inverse_norm, m, tiles - 1 - tile);
  }
}

// result = w X for the rows [begin, end) of w [m, stride]. Each number is one sum in the order of the rows of X: the
// same bits for every number of threads and instruction set, which BLAS does not promise.
template <typename A>
void weigh_few_rows(const A* w, int64_t stride, const A* x, A* result, int64_t m, int64_t d, int64_t begin,
                    int64_t end) {
  constexpr int64_t kRows = 4, kVectors = 2;
  using Vector __attribute__((vector_size(32))) = A;
  constexpr int64_t kLanes = sizeof(Vector) / sizeof(A), kColumns = kVectors * kLanes;
  for (int64_t i = begin; i < end; i += kRows) {
    const A* weights[kRows];  // repeats the last row where there are no more
    for (int64_t r = 0; r < kRows; ++r) weights[r] = w + std::min(i + r, end - 1) * stride;
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

// dx = (scale g - u <scale g, u>) / |x| with u = x / |x|. As in F.normalize, a tiny norm is replaced by a constant, and
// the second term vanishes. g may be the output itself if the subset is the whole batch.
template <typename A>
void project_rows(const A* g, A scale, const A* x, const double* squared, const A* inverse_norm, const int64_t* index,
                  A* gradient, int64_t d, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const A *gr = g + row * d, *xr = x + row * d;
    const A inverse = inverse_norm[row], factor = scale * inverse;
    // The unit row first: products with rows of any finite size would overflow.
    const A along =
        squared[row] == kMinSquaredNorm ? 0 : sum_over<A>(d, [&](int64_t c) { return gr[c] * (xr[c] * inverse); });
    A* out = gradient + index[row] * d;
    for (int64_t c = 0; c < d; ++c) out[c] = (gr[c] - xr[c] * inverse * along) * factor;
  }
}

// target_clones does not work on templates, so each type has its own functions.
#define DADL_GATHER_ROWS(T, A)                                                                                 \
  DADL_CLONES inline void gather(const T* features, const int64_t* index, A* target, int64_t d, int64_t first, \
                                 int64_t columns, int64_t begin, int64_t end) {                                \
    gather_rows<T, A>(features, index, target, d, first, columns, begin, end);                                 \
  }
DADL_GATHER_ROWS(float, float)
DADL_GATHER_ROWS(float, double)
DADL_GATHER_ROWS(double, double)
DADL_GATHER_ROWS(Half, float)
DADL_GATHER_ROWS(Half, double)
DADL_GATHER_ROWS(BFloat16, float)
DADL_GATHER_ROWS(BFloat16, double)
#undef DADL_GATHER_ROWS

#define DADL_STORAGE_ROWS(T)                                                                                         \
  DADL_CLONES inline void squared_norms(const T* features, double* squared, int64_t d, int64_t begin, int64_t end) { \
    squared_norm_rows<T>(features, squared, d, begin, end);                                                          \
  }
DADL_STORAGE_ROWS(float)
DADL_STORAGE_ROWS(double)
DADL_STORAGE_ROWS(Half)
DADL_STORAGE_ROWS(BFloat16)
#undef DADL_STORAGE_ROWS

#define DADL_ARITHMETIC_PAIRS(A)                                                                                 \
  DADL_CLONES inline void symmetrise(A* g, int64_t stride, const A* weight, const A* inverse_norm, int64_t m,    \
                                     int64_t begin, int64_t end) {                                               \
    symmetrise_tile_rows<A>(g, stride, weight, inverse_norm, m, begin, end);                                     \
  }                                                                                                              \
  DADL_CLONES inline void weigh_few(const A* w, int64_t stride, const A* x, A* result, int64_t m, int64_t d,     \
                                    int64_t begin, int64_t end) {                                                \
    weigh_few_rows<A>(w, stride, x, result, m, d, begin, end);                                                   \
  }                                                                                                              \
  DADL_CLONES inline void project(const A* g, A scale, const A* x, const double* squared, const A* inverse_norm, \
                                  const int64_t* index, A* gradient, int64_t d, int64_t begin, int64_t end) {    \
    project_rows<A>(g, scale, x, squared, inverse_norm, index, gradient, d, begin, end);                         \
  }
DADL_ARITHMETIC_PAIRS(float)
DADL_ARITHMETIC_PAIRS(double)
#undef DADL_ARITHMETIC_PAIRS

}  // namespace dadl::cpu
