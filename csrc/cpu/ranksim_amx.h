// RankSim's rank differences on AMX: integers below 2^16, for which two bfloat16 parts are enough.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pair_amx.h"
#include "transpose.h"

#ifdef DADL_AMX
DADL_BEGIN_TARGET(DADL_AMX_TARGET)

namespace dadl::cpu::amx {

// 32 numbers as two vectors of words: (h of the first 16, h of the last 16), and the same for m.
inline __attribute__((always_inline)) void store_differences(const float* numbers, float* words) {
  __m512i parts[kParts];
  split_pairs(_mm512_load_ps(numbers), _mm512_load_ps(numbers + kSide), parts);
  _mm512_storeu_si512(words, parts[0]);
  _mm512_storeu_si512(words + kSide, parts[1]);
}

// In place, for tile rows [begin, end) of the upper half and their mirror images: D becomes the parts of D + D^T.
inline void symmetrise(float* differences, int64_t stride, int64_t m, int64_t begin, int64_t end) {
  static_assert(kTile == kSum);
  const int64_t tiles = (m + kTile - 1) / kTile;
  const auto symmetrise_tile = [&](int64_t i0, int64_t j0) {
    const int64_t rows = std::min(kTile, m - i0), columns = std::min(kTile, m - j0);
    alignas(64) float sums[kTile][kTile] = {}, mirror[kTile][kTile] = {};
    cpu::transpose(differences + j0 * stride + i0, stride, mirror[0], kTile, columns, rows);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) sums[i][j] = differences[(i0 + i) * stride + j0 + j] + mirror[i][j];
    }
    cpu::transpose(sums[0], kTile, mirror[0], kTile, kTile, kTile);
    for (int64_t i = 0; i < rows; ++i) store_differences(sums[i], differences + (i0 + i) * stride + j0);
    for (int64_t j = 0; j < columns && i0 != j0; ++j) {
      store_differences(mirror[j], differences + (j0 + j) * stride + i0);
    }
  };
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int64_t other = tile; other < tiles; ++other) symmetrise_tile(tile * kTile, other * kTile);
    const int64_t last = tiles - 1 - tile;
    for (int64_t other = last; other < tiles && last != tile; ++other) symmetrise_tile(last * kTile, other * kTile);
  }
}

// target [m, d] = D X, row j of X [m, d] times scale_j. D [m, m] is in parts, as symmetrise() leaves it.
inline void weigh_differences(const float* differences, int64_t stride, const float* x, const float* scale,
                              float* target, int64_t m, int64_t d) {
  constexpr int64_t kBytes = sizeof(Tile::words[0]);
  const int64_t row = stride * static_cast<int64_t>(sizeof(float));
  const auto rows_of = [&](int64_t i, Tile*) {
    return Parts{reinterpret_cast<const char*>(differences + i * stride), row, kBytes, 2 * kBytes, kSide * row};
  };
  weigh_rows<false>(rows_of, x, scale, target, m, d);
}

}  // namespace dadl::cpu::amx

DADL_END_TARGET
#endif
