// What the contrasts have in common: owned rows x_i [n, d] meet streamed rows y_j [m, d] in logits
//   l_ij = scale x_i y_j + bias_j,
// and streaming leaves, for each owned row,
//   largest_i = max_j l_ij,   sum_i = sum_j exp(l_ij - largest_i),   weighted_i = sum_j sign_j exp(l_ij - largest_i)
//   y_j.
// With queries owned and keys streamed these are the log-sum-exp and its gradient. With keys owned, queries streamed,
// bias_j = log |g_j| - lse_j and sign_j that of the upstream gradient g_j, they are the gradient of the keys.
//
// contrast_flash.cuh and contrast_products.cuh do it in two ways.
#pragma once

#include <math.h>

#include <cstdint>

#include "../core/half.h"
#include "device.cuh"

namespace dadl {

// Rows, and positions within a tile of rows, are counted in ints.
constexpr int64_t kMostRows = 1 << 30;
constexpr int64_t kMostFeatures = 1 << 23;

template <typename T>
struct Rows {
  const T* values;  // [count, d]
  int count, d;
  bool aligned;  // every row begins at a multiple of 16 bytes

  __host__ __device__ __forceinline__ const T* row(int64_t i) const { return values + i * d; }

  Rows(const T* values, int64_t count, int64_t d)
      : values(values),
        count(static_cast<int>(count)),
        d(static_cast<int>(d)),
        aligned(reinterpret_cast<uintptr_t>(values) % 16 == 0 && d * static_cast<int64_t>(sizeof(T)) % 16 == 0) {}
};

template <typename A>
struct Logits {
  A scale;
  const A* bias = nullptr;    // [m]; -inf: the row counts as absent, whatever its values are. Null for zeros
  const A* sign = nullptr;    // [m], null for ones
  bool exclude_self = false;  // j = i is left out
};

// What each of `splits` ranges of the streamed rows leaves for each owned row. `weighted` is null where not wanted.
template <typename A>
struct Partials {
  int splits, rows, d;
  A *largest, *sum;  // [splits, n]
  A* weighted;       // [splits, n, d]

  __device__ __forceinline__ int64_t at(int split, int row) const { return static_cast<int64_t>(split) * rows + row; }
};

template <typename A>
__device__ __forceinline__ A base_of(A largest) {
  return largest == minus_infinity<A>() ? A{0} : largest;
}

// How many rows from `first` on there are, of at most `most`.
template <typename T>
__device__ __forceinline__ int rows_from(const Rows<T>& rows, int first, int most) {
  return rows.count - first < most ? rows.count - first : most;
}

}  // namespace dadl
