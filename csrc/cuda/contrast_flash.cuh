// Streaming of fp16 and bf16 rows of up to 256 features in one pass, as flash attention whose values are its keys: a
// block keeps 64 or 128 owned rows in shared memory and their weighted sums in registers, brings each tile of 64
// streamed rows to shared memory once, while it computes with the one before, and uses it for both products.
//
// A warp owns rows of 16 and holds the logits of 16 or 32 streamed rows at once, so that the weights pass from the
// accumulators of the first product to the operands of the second without leaving the registers.
#pragma once

#include "contrast_tiles.cuh"
#include "wgmma.cuh"

namespace dadl {

constexpr int kFlashColumns = 64;

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

// finish(partials) after streaming.
template <int kD, typename T, typename Backend, typename Finish>
void stream_flash(Backend& backend, const Rows<T>& owned, const Rows<T>& streamed, const Logits<float>& logits,
                  bool with_weighted, Finish finish) {
  if constexpr (kD < kFlashFeatures) {
    if (owned.d > kD) return stream_flash<2 * kD>(backend, owned, streamed, logits, with_weighted, finish);
  }
  const bool hopper = backend.has_warp_group_products();
  const TileKernel<Rows<T>> tiles{hopper ? contrast_hopper_kernel<T, kD> : contrast_flash_kernel<T, kD>,
                                  hopper ? kHopperThreads : kFlashThreads,
                                  hopper ? sizeof(HopperFlash<T, kD>) : sizeof(Flash<T, kD>),
                                  hopper ? HopperFlash<T, kD>::kRows : Flash<T, kD>::kRows, kFlashColumns};
  stream_tiles(backend, tiles, owned, streamed, logits, with_weighted, finish);
}

}  // namespace dadl
