// Work on the pairs of a batch's rows that RankSim and Rank-N-Contrast share.
#pragma once

#include <cstdint>

#include "../core/cosine.h"
#include "../core/half.h"
#include "device.cuh"

namespace dadl {

template <typename T>
__device__ __forceinline__ T nan_value() {
  return static_cast<T>(bits_to_float(0x7FC00000u));
}

template <typename F>
__device__ __forceinline__ double squared_norm(const F* row /* [d] */, int64_t d) {
  double sum = 0;
  for (int64_t c = lane_index(); c < d; c += kWarp) {
    const double value = to_float(row[c]);
    sum += value * value;
  }
  return warp_sum(sum);
}

// First position in [begin, end) where the predicate, false then true, holds; end if nowhere.
template <typename Predicate>
__device__ __forceinline__ int partition_point(int begin, int end, Predicate predicate) {
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (predicate(middle)) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

constexpr int kTile = 32;
constexpr int kTileRows = 8;
constexpr int kTileThreads = kTile * kTileRows;

// In place: g_ij = (w_i g_ij + w_j g_ji) / |x_j|, 0 beyond count, so that g X is the gradient with respect to the unit
// rows. A block reads a tile and its mirror image before it writes either. Grid: tiles by tiles, which also clear the
// gradient's rows, for those that the next launches leave out.
template <typename T, typename Out>
__global__ void __launch_bounds__(kTileThreads, 1)
    symmetrise_kernel(T* g /* [n, width] */, int64_t width, const T* row_weight /* [n] or null for ones */,
                      const T* inverse_norms /* [n] */, const int64_t* count /* [] */, int64_t n,
                      Out* cleared /* [size] */, int64_t size) {
  DADL_SHARED(tile, T[kTile][kTile + 1]);
  DADL_SHARED(mirror, T[kTile][kTile + 1]);
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * gridDim.y * kTileThreads;
#pragma unroll 1
  for (int64_t i = block * kTileThreads + threadIdx.y * kTile + threadIdx.x; i < size; i += threads) cleared[i] = Out{};
  if (blockIdx.x < blockIdx.y) return;
  const int64_t m = *count;
  const int64_t top = static_cast<int64_t>(blockIdx.y) * kTile, left = static_cast<int64_t>(blockIdx.x) * kTile;
  const int column = threadIdx.x;
  for (int row = threadIdx.y; row < kTile; row += kTileRows) {
    if (top + row < m && left + column < m) tile[row][column] = g[(top + row) * width + left + column];
    if (left + row < m && top + column < m) mirror[row][column] = g[(left + row) * width + top + column];
  }
  __syncthreads();
  const auto weight = [&](int64_t i) { return row_weight ? row_weight[i] : T{1}; };
  const auto write = [&](int64_t i, int64_t j, T g_ij, T g_ji) {
    if (i < n && j < n) {
      g[i * width + j] = i < m && j < m ? (weight(i) * g_ij + weight(j) * g_ji) * inverse_norms[j] : T{0};
    }
  };
  for (int row = threadIdx.y; row < kTile; row += kTileRows) {
    write(top + row, left + column, tile[row][column], mirror[column][row]);
    if (left != top) write(left + row, top + column, mirror[row][column], tile[column][row]);
  }
}

// dx = (g - u <g, u>) / |x| with u = x / |x|, to its row of the batch; a row so short that a constant stands for its
// norm has no second term. One warp per row.
template <typename T, typename Out>
__global__ void __launch_bounds__(kRowThreads)
    project_kernel(const T* g /* [n, d] */, const T* x /* [n, d] */, const double* squared_norms /* [n] */,
                   const T* inverse_norms /* [n] */, const int64_t* index /* [n] */, const int64_t* count /* [] */,
                   int64_t d, Out* gradient /* [n, d] */) {
  const int64_t row = warp_row();
  if (row >= *count) return;
  const int lane = lane_index();
  const T inverse = inverse_norms[row];
  T inner = 0;  // with the unit row, because products with rows of any finite size would overflow
  for (int64_t c = lane; c < d; c += kWarp) inner += g[row * d + c] * (x[row * d + c] * inverse);
  inner = warp_sum(inner);
  const T along = squared_norms[row] == kMinSquaredNorm ? T{0} : inner * inverse;
  Out* out = gradient + index[row] * d;
  for (int64_t c = lane; c < d; c += kWarp) {
    out[c] = Storage<Out>::round((g[row * d + c] - x[row * d + c] * along) * inverse);
  }
}

}  // namespace dadl
