// Streaming of fp16 and bf16 rows of up to 256 features in one pass, as flash attention whose values are its keys: a
// block keeps 64 or 128 owned rows in shared memory and their weighted sums in registers, brings each tile of 64
// streamed rows to shared memory once, while it computes with the one before, and uses it for both products.
//
// A warp owns rows of 16 and holds the logits of 16 or 32 streamed rows at once, so that the weights pass from the
// accumulators of the first product to the operands of the second without leaving the registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "async_copy.cuh"
#include "contrast_stream.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

namespace dadl {

constexpr int kFlashWarps = 4;
constexpr int kFlashThreads = kFlashWarps * kWarp;
constexpr int kFlashColumns = 64;
constexpr int kFlashFeatures = 256;  // up to which there is a kernel
constexpr int kCopied = 8;           // values of 16 bits in an asynchronous copy
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

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

  // Asynchronous where rows are aligned; 16 bytes go to tile + place(row, copy). Zero for rows that are not there, and
  // beyond the features.
  template <typename T, typename Place>
  static __device__ __forceinline__ void rows(const Rows<T>& source, int first, uint32_t present, T* tile,
                                              Place place) {
    const int copy = static_cast<int>(threadIdx.x) % kCopies, own = static_cast<int>(threadIdx.x) / kCopies;
    const int feature = copy * kCopied;
    const T* values = source.row(first + own) + feature;
    const int64_t step = int64_t{kAtOnce} * source.d;
    if (source.aligned) {
#pragma unroll
      for (int k = 0; k < kHeight / kAtOnce; ++k, values += step) {
        const bool real = feature < source.d && (present >> k & 1);
        copy_async(tile + place(own + k * kAtOnce, copy), real ? values : source.values, real);
      }
      return;
    }
#pragma unroll 1
    for (int k = 0; k < kHeight / kAtOnce; ++k, values += step) {
      T* target = tile + place(own + k * kAtOnce, copy);
#pragma unroll
      for (int e = 0; e < kCopied; ++e) {
        target[e] = feature + e < source.d && (present >> k & 1) ? values[e] : T{};
      }
    }
  }
};

// Bias, times log2(e), and sign of kFlashColumns streamed rows from `first` on; rows beyond `end` are absent.
__device__ __forceinline__ void stage_terms(const Logits<float>& logits, int first, int end, float* bias, float* sign) {
  const int thread = static_cast<int>(threadIdx.x), j = first + thread;
  if (thread >= kFlashColumns) return;
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

// Weights as the second product's operand, times the signs unless null; whether some weight of the warp is not 0 in T.
template <typename T, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ bool round_weights(float (&values)[kRowTiles][kColumnTiles][4], const float* sign_of,
                                              uint32_t (&weights)[kRowTiles][kColumnTiles / 2][4]) {
  const int t = lane_index() % 4;
  uint32_t some = 0;
  if (sign_of) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const float sign[2] = {sign_of[8 * n + 2 * t], sign_of[8 * n + 2 * t + 1]};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) values[m][n][e] *= sign[e % 2];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t word = pack_pair<T>(values[m][n][2 * h], values[m][n][2 * h + 1]);
        weights[m][n / 2][n % 2 * 2 + h] = word;
        some |= word;
      }
    }
  }
  return __any_sync(kFullWarp, (some & 0x7FFF7FFFu) != 0);
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

// ---- by warps, on every device --------------------------------------------------------------------------------------

template <typename T, int kD>
struct Flash {
  static constexpr int kRowTiles = kD <= 128 ? 2 : 1;  // of 16 rows, for each warp; their sums fill the registers
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kFlashWarps * kWarpRows;
  static constexpr int kPart = kD <= 64 ? 32 : 16;  // columns whose logits a warp holds at once

  alignas(16) T owned[kRows * kD];
  alignas(16) T streamed[2][kFlashColumns * kD];
  float bias[2][kFlashColumns], sign[2][kFlashColumns];
};

// Where 16 bytes of a row of kD values are: eight rows of one column lie in different banks.
template <int kD>
__device__ __forceinline__ int swizzled(int row, int copy) {
  return row * kD + (copy ^ (row % 8)) * kCopied;
}

// Grid: tiles of owned rows by ranges of streamed rows.
template <typename T, int kD>
__global__ void __launch_bounds__(kFlashThreads, 2)
    contrast_flash_kernel(Rows<T> owned, Rows<T> streamed, Logits<float> logits, int streamed_per_split,
                          Partials<float> partials) {
  using Memory = Flash<T, kD>;
  constexpr int kRowTiles = Memory::kRowTiles, kPart = Memory::kPart, kColumnTiles = kPart / 8, kSteps = kD / 16;
  DADL_DYNAMIC_SHARED(memory, Memory);
  const int lane = lane_index(), warp_first = static_cast<int>(threadIdx.x) / kWarp * Memory::kWarpRows;
  const int first_row = static_cast<int>(blockIdx.x) * Memory::kRows + warp_first, split = blockIdx.y;
  const int begin = split * streamed_per_split;
  const int end = streamed.count - begin < streamed_per_split ? streamed.count : begin + streamed_per_split;
  const float scale = logits.scale * kLog2E;
  const bool all_plain = !logits.bias && scale > 0;
  // The row and the copy of a lane's address in the loads of a, b and transposed b, see mma.cuh.
  const int low = lane % 16, high = lane / 16;
  const int b_row = lane / 16 * 8 + lane % 8, b_copy = lane / 8 % 2;

  using Owned = Stage<Memory::kRows, kD, kFlashThreads>;
  using Streamed = Stage<kFlashColumns, kD, kFlashThreads>;
  uint32_t present = Streamed::present(begin, end, logits.bias);  // of the tile that is staged next
  const auto stage_streamed = [&](int first, int buffer) {
    Streamed::rows(streamed, first, present, memory.streamed[buffer], swizzled<kD>);
    stage_terms(logits, first, end, memory.bias[buffer], memory.sign[buffer]);
    commit_copies();
  };

  float weighted[kRowTiles][kSteps * 2][4] = {};
  RowStates<kRowTiles> states;
  const int first_owned = static_cast<int>(blockIdx.x) * Memory::kRows;
  Owned::rows(owned, first_owned, Owned::present(first_owned, owned.count, nullptr), memory.owned, swizzled<kD>);
  if (begin < end) stage_streamed(begin, 0);
  present = Streamed::present(begin + kFlashColumns, end, logits.bias);
  int buffer = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += kFlashColumns, buffer ^= 1) {
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the other buffer any more
    if (first + kFlashColumns < end) stage_streamed(first + kFlashColumns, buffer ^ 1);
    present = Streamed::present(first + 2 * kFlashColumns, end, logits.bias);
#pragma unroll 1
    for (int part = 0; part < kFlashColumns; part += kPart) {
      const T* tile = memory.streamed[buffer] + part * kD;
      float values[kRowTiles][kColumnTiles][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t a[kRowTiles][4];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          load_matrices(a[m], memory.owned + swizzled<kD>(warp_first + 16 * m + low, 2 * step + high));
        }
#pragma unroll
        for (int n = 0; n < kColumnTiles; n += 2) {
          uint32_t b[4];
          load_matrices(b, tile + swizzled<kD>(8 * n + b_row, 2 * step + b_copy));
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            multiply_add<T>(values[m][n], a[m], b[0], b[1]);
            multiply_add<T>(values[m][n + 1], a[m], b[2], b[3]);
          }
        }
      }
      const int column = first + part;
      const bool diagonal = logits.exclude_self && column < first_row + Memory::kWarpRows && first_row < column + kPart;
      const bool plain = all_plain && !diagonal && end - column >= kPart;
      const bool moved = weigh(values, states, scale, memory.bias[buffer] + part, plain, diagonal, first_row, column);
      if (!partials.weighted) continue;
      if (moved) rescale(weighted, states);
      uint32_t weights[kRowTiles][kColumnTiles / 2][4];
      if (!round_weights<T>(values, logits.sign ? memory.sign[buffer] + part : nullptr, weights)) continue;
#pragma unroll
      for (int j = 0; j < kPart / 16; ++j) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t b[4];
          load_transposed(b, tile + swizzled<kD>(16 * j + low, 2 * step + high));
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            multiply_add<T>(weighted[m][2 * step], weights[m][j], b[0], b[1]);
            multiply_add<T>(weighted[m][2 * step + 1], weights[m][j], b[2], b[3]);
          }
        }
      }
    }
  }
  leave_partials(weighted, states, first_row, owned.count, split, partials);
}

// ---- by warp groups, on Hopper --------------------------------------------------------------------------------------

constexpr int kHopperGroups = 2;
constexpr int kHopperThreads = kHopperGroups * kWarpGroup;

template <typename T, int kD>
struct HopperFlash {
  static constexpr int kRows = kHopperGroups * 64;

  alignas(1024) T owned[kRows * kD];
  alignas(1024) T streamed[2][kFlashColumns * kD];
  float bias[2][kFlashColumns], sign[2][kFlashColumns];
};

// As contrast_flash_kernel, but that a warp group owns 64 rows.
template <typename T, int kD>
__global__ void __launch_bounds__(kHopperThreads, kD <= 128 ? 2 : 1)
    contrast_hopper_kernel(Rows<T> owned, Rows<T> streamed, Logits<float> logits, int streamed_per_split,
                           Partials<float> partials) {
#if defined(DADL_WGMMA)
  using Memory = HopperFlash<T, kD>;
  constexpr int kColumnTiles = kFlashColumns / 8;
  constexpr int kSums = kD < 128 ? 8 : 16, kParts = kD / 8 / kSums;  // what one product adds to, of the features
  DADL_DYNAMIC_SHARED(memory, Memory);
  const int group_first = static_cast<int>(threadIdx.x) / kWarpGroup * 64;
  const int first_row = static_cast<int>(blockIdx.x) * Memory::kRows + static_cast<int>(threadIdx.x) / kWarp * 16;
  const int split = blockIdx.y, begin = split * streamed_per_split;
  const int end = streamed.count - begin < streamed_per_split ? streamed.count : begin + streamed_per_split;
  const float scale = logits.scale * kLog2E;
  const bool all_plain = !logits.bias && scale > 0;

  using Owned = Stage<Memory::kRows, kD, kHopperThreads>;
  using Streamed = Stage<kFlashColumns, kD, kHopperThreads>;
  uint32_t present = Streamed::present(begin, end, logits.bias);  // of the tile that is staged next
  const auto stage_streamed = [&](int first, int buffer) {
    Streamed::rows(streamed, first, present, memory.streamed[buffer], panel_offset<kFlashColumns>);
    stage_terms(logits, first, end, memory.bias[buffer], memory.sign[buffer]);
    commit_copies();
  };

  float weighted[kParts][kSums][4] = {};
  RowStates<1> states;
  const int first_owned = static_cast<int>(blockIdx.x) * Memory::kRows;
  Owned::rows(owned, first_owned, Owned::present(first_owned, owned.count, nullptr), memory.owned,
              panel_offset<Memory::kRows>);
  if (begin < end) stage_streamed(begin, 0);
  present = Streamed::present(begin + kFlashColumns, end, logits.bias);
  int buffer = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += kFlashColumns, buffer ^= 1) {
    wait_for_copies<0>();
    publish_to_products();
    __syncthreads();  // this tile is there, and nobody reads the other buffer any more
    if (first + kFlashColumns < end) stage_streamed(first + kFlashColumns, buffer ^ 1);
    const T* tile = memory.streamed[buffer];

    float values[1][kColumnTiles][4];
    open_products();
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      const int panel = step / 4, column = step % 4 * 16;
      multiply_shared<T>(values[0],
                         describe(memory.owned + (panel * Memory::kRows + group_first) * kPanel + column, 16),
                         describe(tile + panel * kFlashColumns * kPanel + column, 16), step > 0);
    }
    finish_products();
    present = Streamed::present(first + 2 * kFlashColumns, end, logits.bias);
    const bool diagonal = logits.exclude_self && first < first_row + 16 && first_row < first + kFlashColumns;
    const bool plain = all_plain && !diagonal && end - first >= kFlashColumns;
    const bool moved = weigh(values, states, scale, memory.bias[buffer], plain, diagonal, first_row, first);
    if (!partials.weighted) continue;
    if (moved) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int n = 0; n < kSums; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) weighted[part][n][e] *= states.keep[0][e / 2];
        }
      }
    }
    uint32_t weights[1][kColumnTiles / 2][4];
    round_weights<T>(values, logits.sign ? memory.sign[buffer] : nullptr, weights);
    open_products();
#pragma unroll
    for (int j = 0; j < kFlashColumns / 16; ++j) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        multiply_rows<T>(
            weighted[part], weights[0][j],
            describe(tile + part * 2 * kFlashColumns * kPanel + 16 * j * kPanel, kFlashColumns * kPanel * sizeof(T)));
      }
    }
    finish_products();
  }
  leave_partials(reinterpret_cast<const float (&)[1][kParts * kSums][4]>(weighted), states, first_row, owned.count,
                 split, partials);
#endif
}

// How the streamed rows are divided.
struct Ranges {
  int64_t splits, per_split;
};

// As many ranges as fill the device once, without more than `most` of them.
inline Ranges divide(int64_t streamed, int64_t row_tiles, int64_t resident, int64_t most) {
  const int64_t tiles = blocks_for(streamed, kFlashColumns);
  const int64_t wanted = std::max<int64_t>(std::min(resident / row_tiles, most), 1);
  const int64_t tiles_per_split = std::max<int64_t>((tiles + wanted - 1) / wanted, 1);
  return {blocks_for(tiles, tiles_per_split), tiles_per_split * kFlashColumns};
}

// finish(partials) after streaming.
template <int kD, typename T, typename Backend, typename Finish>
void stream_flash(Backend& backend, const Rows<T>& owned, const Rows<T>& streamed, const Logits<float>& logits,
                  bool with_weighted, int64_t most_splits, Finish finish) {
  if constexpr (kD < kFlashFeatures) {
    if (owned.d > kD) {
      return stream_flash<2 * kD>(backend, owned, streamed, logits, with_weighted, most_splits, finish);
    }
  }
  const bool hopper = backend.has_warp_group_products();
  const auto kernel = hopper ? contrast_hopper_kernel<T, kD> : contrast_flash_kernel<T, kD>;
  const int threads = hopper ? kHopperThreads : kFlashThreads;
  const size_t bytes = hopper ? sizeof(HopperFlash<T, kD>) : sizeof(Flash<T, kD>);
  const unsigned row_tiles = blocks_for(owned.count, hopper ? HopperFlash<T, kD>::kRows : Flash<T, kD>::kRows);
  const Ranges ranges = divide(streamed.count, row_tiles, backend.resident_blocks(kernel, threads, bytes), most_splits);
  const int64_t rows = ranges.splits * owned.count;
  auto statistics = backend.template buffer<float>(2 * rows);
  auto weighted = backend.template buffer<float>(with_weighted ? rows * owned.d : 0);
  const Partials<float> partials{
      static_cast<int>(ranges.splits),          owned.count, owned.d, statistics.data(), statistics.data() + rows,
      with_weighted ? weighted.data() : nullptr};
  if (ranges.splits > 0) {
    backend.launch_with(bytes, kernel, dim3(row_tiles, static_cast<unsigned>(ranges.splits)), dim3(threads), owned,
                        streamed, logits, static_cast<int>(ranges.per_split), partials);
  }
  finish(partials);
}

}  // namespace dadl
