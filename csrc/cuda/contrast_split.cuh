// Streaming of float32 rows of up to 256 features in one pass on the tensor cores, at the accuracy of float32: each
// number is the sum of two of fp16, and of their four products the three that count are added in float32.
//
// fp16 has few exponents, so each row is divided by a power of two of its own before it is split: an error is measured
// by the row's largest value. So are the weights of the second product, by the largest of their tile.
//
// Tensor cores cut off what does not fit in their sums (M. Fasi et al., Numerical behavior of NVIDIA tensor cores,
// PeerJ Computer Science 7, 2021). So the second product is formed for each tile on its own, and added to the others
// outside.
#pragma once

#include <cstdint>

#include "contrast_tiles.cuh"

namespace dadl {

constexpr int kSplitRows = 16 * kFlashWarps;  // that a block owns

// ---- the parts ------------------------------------------------------------------------------------------------------

// Numbers are `value` times what is split, which is less than 2^15.
struct Unit {
  float value, inverse;

  // Of numbers of up to `largest`.
  explicit __device__ __forceinline__ Unit(float largest) {
    constexpr uint32_t kOne = 127u << 23, kLeast = 15u << 23;  // 2^0 and 2^-112: `inverse` stays finite
    const uint32_t bits = float_to_bits(largest) & 0x7F800000u, power = bits < kLeast ? kLeast : bits;
    value = bits_to_float(power - (14u << 23));
    inverse = bits_to_float(2 * kOne - (power - (14u << 23)));
  }
};

// Two numbers as fp16, and what is left of them.
struct PairParts {
  uint32_t high, low;

  __device__ __forceinline__ PairParts(float first, float second) {
    high = pack_pair<Half>(first, second);
    low = pack_pair<Half>(first - to_float(Half{static_cast<uint16_t>(high)}),
                          second - to_float(Half{static_cast<uint16_t>(high >> 16)}));
  }
};

// Rows [count, d] in two parts of whole copies, times the rows' units.
struct SplitRows {
  Rows<Half> high, low;
  const float* units;  // [count]
  int count, d;        // of the features themselves

  SplitRows(const Rows<float>& rows, Half* parts, const float* units)
      : high(parts, rows.count, width(rows)),
        low(parts + rows.count * width(rows), rows.count, width(rows)),
        units(units),
        count(rows.count),
        d(rows.d) {}

  static int64_t width(const Rows<float>& rows) { return int64_t{blocks_for(rows.d, kCopied)} * kCopied; }
};

// One warp per row. A number that is not finite has parts that are not either.
__global__ void __launch_bounds__(kRowThreads)
    contrast_parts_kernel(Rows<float> source, int width, Half* parts /* [2, count, width] */, float* units) {
  constexpr int kPairs = kFlashFeatures / 2 / kWarp;
  const int64_t row = warp_row();
  if (row >= source.count) return;
  float values[kPairs][2], largest = 0;
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = 2 * (k * kWarp + lane_index()) + e;
      values[k][e] = c < source.d ? source.row(row)[c] : 0.f;
      largest = fmaxf(largest, fabsf(values[k][e]));
    }
  }
  for (int mask = kWarp / 2; mask; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, mask));
  const Unit unit(largest);
  auto* high = reinterpret_cast<uint32_t*>(parts + row * width);
  auto* low = reinterpret_cast<uint32_t*>(parts + (source.count + row) * width);
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    const int pair = k * kWarp + lane_index();
    if (2 * pair >= width) continue;
    const PairParts both(values[k][0] * unit.inverse, values[k][1] * unit.inverse);
    high[pair] = both.high;
    low[pair] = both.low;
  }
  if (lane_index() == 0) units[row] = unit.value;
}

// ---- the products ---------------------------------------------------------------------------------------------------

// Weights in two parts as the second product's operand, times the signs unless null and the units of the streamed rows;
// they are divided by units of this warp's rows. Whether some weight of the warp is not 0.
template <int kColumnTiles>
__device__ __forceinline__ bool split_weights(float (&values)[kColumnTiles][4], const float* sign_of,
                                              const float* unit_of, uint32_t (&high)[kColumnTiles / 2][4],
                                              uint32_t (&low)[kColumnTiles / 2][4], float (&units)[2]) {
  const int t = lane_index() % 4;
  float largest[2] = {};
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = 8 * n + 2 * t + e % 2;
      values[n][e] *= sign_of ? sign_of[column] * unit_of[column] : unit_of[column];
      largest[e / 2] = fmaxf(largest[e / 2], fabsf(values[n][e]));
    }
  }
  bool some = false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    largest[h] = fmaxf(largest[h], __shfl_xor_sync(kFullWarp, largest[h], 1));
    largest[h] = fmaxf(largest[h], __shfl_xor_sync(kFullWarp, largest[h], 2));
    const Unit unit(largest[h]);
    units[h] = unit.value;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const PairParts both(values[n][2 * h] * unit.inverse, values[n][2 * h + 1] * unit.inverse);
      some |= both.high != 0;
      high[n / 2][n % 2 * 2 + h] = both.high;
      low[n / 2][n % 2 * 2 + h] = both.low;
    }
  }
  return __any_sync(kFullWarp, some);
}

template <int kD>
struct Split {
  static constexpr int kColumns = 4096 / kD;  // of a tile, whose logits a warp holds at once

  alignas(16) Half owned[2][kSplitRows * kD];
  alignas(16) Half streamed[2][2][kColumns * kD];  // by buffer and part
  float bias[2][kColumns], sign[2][kColumns], unit[2][kColumns], unit_of_row[kSplitRows];
};

// From a place by swizzled() of copy 0 or 1 to the same of the copy that is 2 * steps further on.
__device__ __forceinline__ int two_copies_on(int place, int steps) {
  return (place ^ (2 * steps % 8 * kCopied)) + 2 * steps / 8 * 8 * kCopied;
}

// As contrast_flash_kernel, with 16 owned rows for each warp.
template <int kD>
__global__ void __launch_bounds__(kFlashThreads, 2)
    contrast_split_kernel(SplitRows owned, SplitRows streamed, Logits<float> logits, int streamed_per_split,
                          Partials<float> partials) {
  using Memory = Split<kD>;
  constexpr int kColumns = Memory::kColumns, kColumnTiles = kColumns / 8, kSteps = kD / 16;
  DADL_DYNAMIC_SHARED(memory, Memory);
  const int first_owned = static_cast<int>(blockIdx.x) * kSplitRows;
  const int split = blockIdx.y, begin = split * streamed_per_split;
  const int end = streamed.count - begin < streamed_per_split ? streamed.count : begin + streamed_per_split;
  const float scale = logits.scale * kLog2E;
  const bool all_plain = !logits.bias && scale > 0;

  using Owned = Stage<kSplitRows, kD, kFlashThreads>;
  using Streamed = Stage<kColumns, kD, kFlashThreads>;
  uint32_t present = Streamed::present(begin, end, logits.bias);  // of the tile that is staged next
  const auto stage_streamed = [&](int first, int buffer) {
    const int thread = recomputed(static_cast<int>(threadIdx.x)), j = first + thread;
    Streamed::copies(thread, streamed.high, first, present, memory.streamed[buffer][0], swizzled<kD>);
    Streamed::copies(thread, streamed.low, first, present, memory.streamed[buffer][1], swizzled<kD>);
    stage_terms(logits, first, end, memory.bias[buffer], memory.sign[buffer]);
    if (thread < kColumns) memory.unit[buffer][thread] = j < end ? streamed.units[j] : 1.f;
    commit_copies();
  };

  float weighted[1][kSteps * 2][4] = {};
  RowStates<1> states;
  const uint32_t owned_present = Owned::present(first_owned, owned.count, nullptr);
  Owned::copies(static_cast<int>(threadIdx.x), owned.high, first_owned, owned_present, memory.owned[0], swizzled<kD>);
  Owned::copies(static_cast<int>(threadIdx.x), owned.low, first_owned, owned_present, memory.owned[1], swizzled<kD>);
  if (threadIdx.x < kSplitRows) {
    const int i = first_owned + static_cast<int>(threadIdx.x);
    memory.unit_of_row[threadIdx.x] = i < owned.count ? owned.units[i] : 1.f;
  }
  if (begin < end) stage_streamed(begin, 0);
  present = Streamed::present(begin + kColumns, end, logits.bias);

#pragma unroll 1
  for (int first = begin; first < end; first += kColumns) {
    const int buffer = (first - begin) / kColumns % 2;
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the other buffer any more
    if (first + kColumns < end) stage_streamed(first + kColumns, buffer ^ 1);
    present = Streamed::present(first + 2 * kColumns, end, logits.bias);
    const auto& tile = memory.streamed[buffer];
    const int thread = recomputed(static_cast<int>(threadIdx.x)), lane = thread % kWarp;
    const int warp_first = thread / kWarp * 16, first_row = first_owned + warp_first;
    // A lane's places in the first loads of a, b and transposed b, see mma.cuh.
    const int first_a = swizzled<kD>(warp_first + lane % 16, lane / 16);
    const int first_b = swizzled<kD>(lane / 16 * 8 + lane % 8, lane / 8 % 2);

    float values[1][kColumnTiles][4] = {}, corrections[kColumnTiles][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int at = two_copies_on(first_a, step);
      uint32_t a_high[4], a_low[4];
      load_matrices(a_high, memory.owned[0] + at);
      load_matrices(a_low, memory.owned[1] + at);
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        const int place = 8 * n * kD + two_copies_on(first_b, step);
        uint32_t b_high[4], b_low[4];
        load_matrices(b_high, tile[0] + place);
        load_matrices(b_low, tile[1] + place);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          multiply_add<Half>(values[0][n + k], a_high, b_high[2 * k], b_high[2 * k + 1]);
          multiply_add<Half>(corrections[n + k], a_high, b_low[2 * k], b_low[2 * k + 1]);
          multiply_add<Half>(corrections[n + k], a_low, b_high[2 * k], b_high[2 * k + 1]);
        }
      }
    }
    const float* unit_of_row = memory.unit_of_row + warp_first + lane / 4;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float unit = memory.unit[buffer][8 * n + 2 * (lane % 4) + e % 2];
        values[0][n][e] = (values[0][n][e] + corrections[n][e]) * unit * unit_of_row[e / 2 * 8];
      }
    }
    const bool diagonal = logits.exclude_self && first < first_row + 16 && first_row < first + kColumns;
    const bool plain = all_plain && !diagonal && end - first >= kColumns;
    const bool moved = weigh(values, states, scale, memory.bias[buffer], plain, diagonal, first_row, first);
    if (!partials.weighted) continue;
    if (moved) rescale(weighted, states);
    const int first_transposed = swizzled<kD>(lane % 16, lane / 16);
    uint32_t w_high[kColumnTiles / 2][4], w_low[kColumnTiles / 2][4];
    float unit_of_weights[2];
    const bool some = split_weights(values[0], logits.sign ? memory.sign[buffer] : nullptr, memory.unit[buffer], w_high,
                                    w_low, unit_of_weights);
    if (!some) continue;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      float sums[2][4] = {};
      uint32_t b_high[kColumnTiles / 2][4], b_low[4];
#pragma unroll
      for (int j = 0; j < kColumnTiles / 2; ++j) {
        const int place = 16 * j * kD + two_copies_on(first_transposed, step);
        load_transposed(b_high[j], tile[0] + place);
        load_transposed(b_low, tile[1] + place);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          multiply_add<Half>(sums[k], w_low[j], b_high[j][2 * k], b_high[j][2 * k + 1]);
          multiply_add<Half>(sums[k], w_high[j], b_low[2 * k], b_low[2 * k + 1]);
        }
      }
      // Last, so that the small products are cut off at their own size.
#pragma unroll
      for (int j = 0; j < kColumnTiles / 2; ++j) {
#pragma unroll
        for (int k = 0; k < 2; ++k) multiply_add<Half>(sums[k], w_high[j], b_high[j][2 * k], b_high[j][2 * k + 1]);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& sum = weighted[0][2 * step + k][e];
          sum = fmaf(sums[k][e], unit_of_weights[e / 2], sum);
        }
      }
    }
  }
  const int first_row = first_owned + static_cast<int>(threadIdx.x) / kWarp * 16;
  leave_partials(weighted, states, first_row, owned.count, split, partials);
}

// ---- the order of the launches --------------------------------------------------------------------------------------

template <int kD, typename Backend, typename Finish>
void stream_parts(Backend& backend, const SplitRows& owned, const SplitRows& streamed, const Logits<float>& logits,
                  bool with_weighted, Finish finish) {
  if constexpr (kD < kFlashFeatures) {
    if (owned.d > kD) return stream_parts<2 * kD>(backend, owned, streamed, logits, with_weighted, finish);
  }
  const TileKernel<SplitRows> tiles{contrast_split_kernel<kD>, kFlashThreads, sizeof(Split<kD>), kSplitRows,
                                    Split<kD>::kColumns};
  stream_tiles(backend, tiles, owned, streamed, logits, with_weighted, finish);
}

// finish(partials) after streaming.
template <typename Backend, typename Finish>
void stream_split(Backend& backend, const Rows<float>& owned, const Rows<float>& streamed, const Logits<float>& logits,
                  bool with_weighted, Finish finish) {
  const int64_t width = SplitRows::width(owned);
  auto parts_of_owned = backend.template buffer<Half>(2 * width * owned.count);
  auto parts_of_streamed = backend.template buffer<Half>(2 * width * streamed.count);
  auto units = backend.template buffer<float>(int64_t{owned.count} + streamed.count);
  const auto split = [&](const Rows<float>& rows, Half* parts, float* units_of_rows) {
    if (rows.count > 0) {
      backend.launch(contrast_parts_kernel, dim3(blocks_for(rows.count, kRowWarps)), dim3(kRowThreads), rows,
                     static_cast<int>(width), parts, units_of_rows);
    }
    return SplitRows(rows, parts, units_of_rows);
  };
  const SplitRows owned_parts = split(owned, parts_of_owned.data(), units.data());
  const SplitRows streamed_parts = split(streamed, parts_of_streamed.data(), units.data() + owned.count);
  stream_parts<64>(backend, owned_parts, streamed_parts, logits, with_weighted, finish);
}

}  // namespace dadl
