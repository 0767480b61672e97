// What the kernels that stream tiles past tensor cores have in common: tiles of streamed rows come to shared memory
// asynchronously, their logits become weights in registers, and what the ranges leave goes to the partials.
#pragma once

#include <algorithm>
#include <cstdint>

#include "async_copy.cuh"
#include "contrast_stream.cuh"
#include "mma.cuh"

namespace dadl {

constexpr int kFlashWarps = 4;
constexpr int kFlashThreads = kFlashWarps * kWarp;
constexpr int kFlashFeatures = 256;  // up to which there is a kernel
constexpr int kCopied = 8;           // values of 16 bits in an asynchronous copy
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr int64_t kMostSplits = kThreads;  // the combining block has a thread for each

// ---- bringing rows to shared memory ---------------------------------------------------------------------------------

// How a block of kThreadsOfBlock brings kHeight rows of kD values to shared memory: the rows of a thread.
template <int kHeight, int kD, int kThreadsOfBlock>
struct Stage {
  static constexpr int kCopies = kD / kCopied;               // threads of a row
  static constexpr int kAtOnce = kThreadsOfBlock / kCopies;  // rows that the block copies at once
  static constexpr uint32_t kAll = 0xFFFFFFFFu;

  // Which rows of this thread there are, from `first` on, as bits in their order.
  static __device__ __forceinline__ uint32_t present(int first, int end, const float* bias) {
    if (!bias && end - first >= kHeight) return kAll;
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < kHeight / kAtOnce; ++k) {
      const int j = first + k * kAtOnce + static_cast<int>(threadIdx.x) / kCopies;
      if (j < end && !(bias && bias[j] == minus_infinity<float>())) bits |= 1u << k;
    }
    return bits;
  }

  // Of aligned rows; 16 bytes go to tile + place(row, copy). Zero for rows that are not there, and beyond the features.
  template <typename T, typename Place>
  static __device__ __forceinline__ void copies(int thread, const Rows<T>& source, int first, uint32_t present, T* tile,
                                                Place place) {
    const int copy = thread % kCopies, own = thread / kCopies, feature = copy * kCopied;
    const T* values = source.row(first + own) + feature;
#pragma unroll
    for (int k = 0; k < kHeight / kAtOnce; ++k, values += int64_t{kAtOnce} * source.d) {
      const bool real = feature < source.d && (present >> k & 1);
      copy_async(tile + place(own + k * kAtOnce, copy), real ? values : source.values, real);
    }
  }

  // The same of any rows; asynchronous where they are aligned.
  template <typename T, typename Place>
  static __device__ __forceinline__ void rows(const Rows<T>& source, int first, uint32_t present, T* tile,
                                              Place place) {
    const int thread = static_cast<int>(threadIdx.x);
    if (source.aligned) return copies(thread, source, first, present, tile, place);
    const int copy = thread % kCopies, own = thread / kCopies, feature = copy * kCopied;
    const T* values = source.row(first + own) + feature;
#pragma unroll 1
    for (int k = 0; k < kHeight / kAtOnce; ++k, values += int64_t{kAtOnce} * source.d) {
      T* target = tile + place(own + k * kAtOnce, copy);
#pragma unroll
      for (int e = 0; e < kCopied; ++e) {
        target[e] = feature + e < source.d && (present >> k & 1) ? values[e] : T{};
      }
    }
  }
};

// Where 16 bytes of a row of kD values are: eight rows of one column lie in different banks.
template <int kD>
__device__ __forceinline__ int swizzled(int row, int copy) {
  return row * kD + (copy ^ (row % 8)) * kCopied;
}

// Bias, times log2(e), and sign of kColumns streamed rows from `first` on; rows beyond `end` are absent.
template <int kColumns>
__device__ __forceinline__ void stage_terms(const Logits<float>& logits, int first, int end, float (&bias)[kColumns],
                                            float (&sign)[kColumns]) {
  const int thread = static_cast<int>(threadIdx.x), j = first + thread;
  if (thread >= kColumns) return;
  const float term = logits.bias && j < end ? logits.bias[j] * kLog2E : 0.f;
  bias[thread] = j < end ? term : minus_infinity<float>();
  sign[thread] = logits.sign && j < end ? logits.sign[j] : 1.f;
}

// ---- between the two products ---------------------------------------------------------------------------------------

// A lane's rows: 16 m + 8 h + g of its warp.
template <int kRowTiles>
struct RowStates {
  float largest[kRowTiles][2], sum[kRowTiles][2], keep[kRowTiles][2];  // in powers of 2; the sum over its own columns

  __device__ __forceinline__ RowStates() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      largest[m][0] = largest[m][1] = minus_infinity<float>();
      sum[m][0] = sum[m][1] = 0;
    }
  }
};

// From similarities to weights relative to the largest logit so far; whether that moved for some row of the warp. `row`
// and `column` are those of the first similarity, looked at where the diagonal is left out. `plain`: nothing is left
// out or added, and the scale is positive.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ bool weigh(float (&values)[kRowTiles][kColumnTiles][4], RowStates<kRowTiles>& states,
                                      float scale, const float* bias_of, bool plain, bool without_diagonal, int row,
                                      int column) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  if (!plain) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const float bias[2] = {bias_of[8 * n + 2 * t], bias_of[8 * n + 2 * t + 1]};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) values[m][n][e] = fmaf(values[m][n][e], scale, bias[e % 2]);
      }
    }
    if (without_diagonal) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const bool own = row + 16 * m + 8 * (e / 2) + g == column + 8 * n + 2 * t + e % 2;
            if (own) values[m][n][e] = minus_infinity<float>();
          }
        }
      }
    }
  }
  const float factor = plain ? scale : 1.f;
  float next[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    next[m][0] = next[m][1] = minus_infinity<float>();
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        next[m][e / 2] = fmaxf(next[m][e / 2], values[m][n][e]);  // a NaN is never larger: it shows in the sums
      }
    }
  }
  bool moved = false;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      next[m][h] = fmaxf(next[m][h], __shfl_xor_sync(kFullWarp, next[m][h], 1));
      next[m][h] = fmaxf(next[m][h], __shfl_xor_sync(kFullWarp, next[m][h], 2));
      next[m][h] = fmaxf(factor * next[m][h], states.largest[m][h]);
      base[h] = base_of(next[m][h]);
      states.keep[m][h] = fast_exp2(states.largest[m][h] - base[h]);
      moved |= next[m][h] != states.largest[m][h];
      states.largest[m][h] = next[m][h];
      states.sum[m][h] *= states.keep[m][h];
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values[m][n][e] = fast_exp2(fmaf(values[m][n][e], factor, -base[e / 2]));
        states.sum[m][e / 2] += values[m][n][e];
      }
    }
  }
  return __any_sync(kFullWarp, moved);
}

template <int kRowTiles, int kTiles>
__device__ __forceinline__ void rescale(float (&weighted)[kRowTiles][kTiles][4], const RowStates<kRowTiles>& states) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) weighted[m][n][e] *= states.keep[m][e / 2];
    }
  }
}

// By a warp whose first row is `row`, of `rows`.
template <int kRowTiles, int kTiles>
__device__ __forceinline__ void leave_partials(const float (&weighted)[kRowTiles][kTiles][4],
                                               const RowStates<kRowTiles>& states, int row, int rows, int split,
                                               const Partials<float>& partials) {
  const int g = lane_index() / 4, t = lane_index() % 4, d = partials.d;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = row + 16 * m + 8 * h + g;
      float total = states.sum[m][h];
      total += __shfl_xor_sync(kFullWarp, total, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      if (i >= rows) continue;
      const int64_t at = partials.at(split, i);
      if (t == 0) {
        partials.largest[at] = states.largest[m][h] * kLn2;
        partials.sum[at] = total;
      }
      if (!partials.weighted) continue;
      float* out = partials.weighted + at * d;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int c = 8 * n + 2 * t;
        if (c < d) out[c] = weighted[m][n][2 * h];
        if (c + 1 < d) out[c + 1] = weighted[m][n][2 * h + 1];
      }
    }
  }
}

// ---- the launch -----------------------------------------------------------------------------------------------------

// How the streamed rows are divided.
struct Ranges {
  int64_t splits, per_split;
};

// As many ranges of whole tiles as fill the device once.
inline Ranges divide(int64_t streamed, int64_t columns, int64_t row_tiles, int64_t resident) {
  const int64_t tiles = blocks_for(streamed, columns);
  const int64_t wanted = std::clamp<int64_t>(resident / row_tiles, 1, kMostSplits);
  const int64_t tiles_per_split = std::max<int64_t>((tiles + wanted - 1) / wanted, 1);
  return {blocks_for(tiles, tiles_per_split), tiles_per_split * columns};
}

// A kernel that streams tiles of `columns` rows past blocks of `rows`, both kinds of rows as a Side.
template <typename Side>
struct TileKernel {
  void (*kernel)(Side owned, Side streamed, Logits<float> logits, int streamed_per_split, Partials<float> partials);
  int threads;
  size_t bytes;  // of shared memory
  int rows, columns;
};

// finish(partials) after streaming.
template <typename Side, typename Backend, typename Finish>
void stream_tiles(Backend& backend, const TileKernel<Side>& tiles, const Side& owned, const Side& streamed,
                  const Logits<float>& logits, bool with_weighted, Finish finish) {
  const unsigned row_tiles = blocks_for(owned.count, tiles.rows);
  const Ranges ranges = divide(streamed.count, tiles.columns, row_tiles,
                               backend.resident_blocks(tiles.kernel, tiles.threads, tiles.bytes));
  const int64_t rows = ranges.splits * owned.count;
  auto statistics = backend.template buffer<float>(2 * rows);
  auto weighted = backend.template buffer<float>(with_weighted ? rows * owned.d : 0);
  const Partials<float> partials{
      static_cast<int>(ranges.splits),          owned.count, owned.d, statistics.data(), statistics.data() + rows,
      with_weighted ? weighted.data() : nullptr};
  if (ranges.splits > 0) {
    backend.launch_with(tiles.bytes, tiles.kernel, dim3(row_tiles, static_cast<unsigned>(ranges.splits)),
                        dim3(tiles.threads), owned, streamed, logits, static_cast<int>(ranges.per_split), partials);
  }
  finish(partials);
}

}  // namespace dadl
