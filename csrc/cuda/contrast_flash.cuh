// Streaming of fp16 and bf16 rows of up to 256 features in one pass, as flash attention whose values are its keys: a
// block keeps 64 or 128 owned rows in shared memory and their weighted sums in registers, brings each tile of 64
// streamed rows to shared memory once, while it computes with the one before, and uses it for both products.
//
// A warp owns rows of 16 and holds the logits of 32 streamed rows at once, so that the weights pass from the
// accumulators of the first product to the operands of the second without leaving the registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "async_copy.cuh"
#include "contrast_stream.cuh"
#include "mma.cuh"

namespace dadl {

constexpr int kFlashWarps = 4;
constexpr int kFlashThreads = kFlashWarps * kWarp;
constexpr int kFlashColumns = 64;
constexpr int kFlashPart = 32;       // columns whose logits a warp holds at once
constexpr int kFlashFeatures = 256;  // up to which there is a kernel
constexpr int kCopied = 8;           // values of 16 bits in an asynchronous copy
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <typename T, int kD>
struct Flash {
  static constexpr int kRowTiles = kD <= 128 ? 2 : 1;  // of 16 rows, for each warp; their sums fill the registers
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kFlashWarps * kWarpRows;

  alignas(16) T owned[kRows * kD];
  alignas(16) T streamed[2][kFlashColumns * kD];
  alignas(16) float bias[2][kFlashColumns];  // times log2(e)
  alignas(16) float sign[2][kFlashColumns];
};

// Where 16 bytes of a row of kD values are: eight rows of one column lie in different banks.
template <int kD>
__device__ __forceinline__ int swizzled(int row, int copy) {
  return row * kD + (copy ^ (row % 8)) * kCopied;
}

// tile [kHeight, kD] from `first` on, by the block, asynchronously where rows are aligned. Zero beyond `end`, beyond
// the features, and for absent rows.
template <int kHeight, int kD, typename T>
__device__ __forceinline__ void stage_rows(const Rows<T>& source, int first, int end, const float* bias, T* tile) {
  constexpr int kCopies = kD / kCopied;
#pragma unroll
  for (int i = threadIdx.x; i < kHeight * kCopies; i += kFlashThreads) {
    const int row = i / kCopies, copy = i % kCopies, j = first + row, feature = copy * kCopied;
    const bool present = j < end && !(bias && bias[j] == minus_infinity<float>());
    T* target = tile + swizzled<kD>(row, copy);
    const T* values = source.row(present ? j : 0);
    if (source.aligned) {
      const bool real = present && feature < source.d;
      copy_async(target, real ? values + feature : source.values, real);
    } else {
#pragma unroll
      for (int e = 0; e < kCopied; ++e) {
        target[e] = present && feature + e < source.d ? values[feature + e] : T{};
      }
    }
  }
}

// Grid: tiles of owned rows by ranges of streamed rows.
template <typename T, int kD>
__global__ void __launch_bounds__(kFlashThreads, 2)
    contrast_flash_kernel(Rows<T> owned, Rows<T> streamed, Logits<float> logits, int streamed_per_split,
                          Partials<float> partials) {
  using Memory = Flash<T, kD>;
  constexpr int kRowTiles = Memory::kRowTiles, kColumnTiles = kFlashPart / 8, kSteps = kD / 16;
  DADL_DYNAMIC_SHARED(memory, Memory);
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), g = lane / 4, t = lane % 4;
  const int warp_first = thread / kWarp * Memory::kWarpRows;
  const int first_row = static_cast<int>(blockIdx.x) * Memory::kRows, split = static_cast<int>(blockIdx.y);
  const int begin = split * streamed_per_split;
  const int end = streamed.count - begin < streamed_per_split ? streamed.count : begin + streamed_per_split;
  const float scale = logits.scale * kLog2E;
  // The row and the copy of a lane's address in the loads of a, b and transposed b, see mma.cuh.
  const int low = lane % 16, high = lane / 16;
  const int b_row = lane / 16 * 8 + lane % 8, b_copy = lane / 8 % 2;

  const auto stage_streamed = [&](int first, int buffer) {
    stage_rows<kFlashColumns, kD>(streamed, first, end, logits.bias, memory.streamed[buffer]);
    if (thread < kFlashColumns) {
      const int j = first + thread;
      const float bias = logits.bias && j < end ? logits.bias[j] * kLog2E : 0.f;
      memory.bias[buffer][thread] = j < end ? bias : minus_infinity<float>();
      memory.sign[buffer][thread] = logits.sign && j < end ? logits.sign[j] : 1.f;
    }
    commit_copies();
  };

  float weighted[kRowTiles][kSteps * 2][4] = {};
  float largest[kRowTiles][2], sum[kRowTiles][2] = {};
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) largest[m][0] = largest[m][1] = minus_infinity<float>();

  stage_rows<Memory::kRows, kD>(owned, first_row, owned.count, nullptr, memory.owned);
  if (begin < end) stage_streamed(begin, 0);
  int buffer = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += kFlashColumns, buffer ^= 1) {
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the other buffer any more
    if (first + kFlashColumns < end) stage_streamed(first + kFlashColumns, buffer ^ 1);
#pragma unroll 1
    for (int part = 0; part < kFlashColumns; part += kFlashPart) {
      const T* tile = memory.streamed[buffer] + part * kD;
      const float *bias_of = memory.bias[buffer] + part, *sign_of = memory.sign[buffer] + part;
      const int column = first + part;

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

      // Logits in powers of 2, and their largest.
      float next[kRowTiles][2];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) next[m][0] = largest[m][0], next[m][1] = largest[m][1];
      const bool diagonal =
          logits.exclude_self && column < first_row + Memory::kRows && first_row < column + kFlashPart;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const float bias[2] = {bias_of[8 * n + 2 * t], bias_of[8 * n + 2 * t + 1]};
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& value = values[m][n][e];
            value = fmaf(value, scale, bias[e % 2]);
            if (diagonal && first_row + warp_first + 16 * m + 8 * (e / 2) + g == column + 8 * n + 2 * t + e % 2) {
              value = minus_infinity<float>();
            }
            next[m][e / 2] = fmaxf(next[m][e / 2], value);  // a NaN is never larger: it shows in the sums
          }
        }
      }
      float base[kRowTiles][2], keep[kRowTiles][2];
      bool moved = false;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          next[m][h] = fmaxf(next[m][h], __shfl_xor_sync(kFullWarp, next[m][h], 1));
          next[m][h] = fmaxf(next[m][h], __shfl_xor_sync(kFullWarp, next[m][h], 2));
          base[m][h] = base_of(next[m][h]);
          keep[m][h] = fast_exp2(largest[m][h] - base[m][h]);
          moved |= next[m][h] != largest[m][h];
          largest[m][h] = next[m][h];
          sum[m][h] *= keep[m][h];
        }
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            values[m][n][e] = fast_exp2(values[m][n][e] - base[m][e / 2]);
            sum[m][e / 2] += values[m][n][e];
          }
        }
      }
      if (!partials.weighted) continue;
      if (__any_sync(kFullWarp, moved)) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int n = 0; n < 2 * kSteps; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) weighted[m][n][e] *= keep[m][e / 2];
          }
        }
      }
      uint32_t weights[kRowTiles][kColumnTiles / 2][4], some = 0;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        float sign[2] = {1, 1};
        if (logits.sign) {
          sign[0] = sign_of[8 * n + 2 * t];
          sign[1] = sign_of[8 * n + 2 * t + 1];
        }
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t word = pack_pair<T>(sign[0] * values[m][n][2 * h], sign[1] * values[m][n][2 * h + 1]);
            weights[m][n / 2][n % 2 * 2 + h] = word;
            some |= word;
          }
        }
      }
      // Weights that all vanish in T add nothing.
      if (!__any_sync(kFullWarp, (some & 0x7FFF7FFFu) != 0)) continue;
#pragma unroll
      for (int j = 0; j < kFlashPart / 16; ++j) {
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

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = first_row + warp_first + 16 * m + 8 * h + g;
      float total = sum[m][h];
      total += __shfl_xor_sync(kFullWarp, total, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      if (i >= owned.count) continue;
      const int64_t at = partials.at(split, i);
      if (t == 0) {
        partials.largest[at] = largest[m][h] * kLn2;
        partials.sum[at] = total;
      }
      if (!partials.weighted) continue;
      float* out = partials.weighted + at * owned.d;
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        const int c = 8 * n + 2 * t;
        if (c < owned.d) out[c] = weighted[m][n][2 * h];
        if (c + 1 < owned.d) out[c + 1] = weighted[m][n][2 * h + 1];
      }
    }
  }
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
  using Memory = Flash<T, kD>;
  const auto kernel = contrast_flash_kernel<T, kD>;
  const unsigned row_tiles = blocks_for(owned.count, Memory::kRows);
  const Ranges ranges =
      divide(streamed.count, row_tiles, backend.resident_blocks(kernel, kFlashThreads, sizeof(Memory)), most_splits);
  const int64_t rows = ranges.splits * owned.count;
  auto statistics = backend.template buffer<float>(2 * rows);
  auto weighted = backend.template buffer<float>(with_weighted ? rows * owned.d : 0);
  const Partials<float> partials{
      static_cast<int>(ranges.splits),          owned.count, owned.d, statistics.data(), statistics.data() + rows,
      with_weighted ? weighted.data() : nullptr};
  if (ranges.splits > 0) {
    backend.launch_with(sizeof(Memory), kernel, dim3(row_tiles, static_cast<unsigned>(ranges.splits)),
                        dim3(kFlashThreads), owned, streamed, logits, static_cast<int>(ranges.per_split), partials);
  }
  finish(partials);
}

}  // namespace dadl
