// The two products of pair_products.h on AMX, at float32 accuracy: the Gram matrix, and weights of pairs times rows.
//
// A float32 number is the sum h + m + l of three bfloat16 parts, as in amx.h. Here a tile holds one of these parts, and
// a word the parts of two numbers that lie 16 apart along the sum. Of the nine products of parts, three are left out,
// which are below 2^-22 of the largest.
//
// Each task packs everything that it multiplies, even if another task does too: fetching what another core has written
// takes longer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "amx.h"
#include "pair_kernels.h"

#ifdef DADL_AMX
DADL_BEGIN_TARGET(DADL_AMX_TARGET)

namespace dadl::cpu::amx {

constexpr int64_t kSum = 2 * kSide;  // numbers of a tile along the sum
constexpr int64_t kParts = 3;

// The words of the parts of 16 pairs of numbers.
inline __attribute__((always_inline)) void split_pairs(__m512 x, __m512 y, __m512i (&words)[kParts]) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
  for (int64_t part = 0; part < kParts; ++part) {
    const __m512i x_part = _mm512_and_si512(_mm512_castps_si512(x), upper);
    const __m512i y_part = _mm512_and_si512(_mm512_castps_si512(y), upper);
    words[part] = _mm512_or_si512(_mm512_srli_epi32(x_part, 16), y_part);
    x = _mm512_sub_ps(x, _mm512_castsi512_ps(x_part));
    y = _mm512_sub_ps(y, _mm512_castsi512_ps(y_part));
  }
}

inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, kSide)) - 1);
}

// Tiles [rows / 16][columns / 32][3] of source [rows, columns], zero beyond it. The sum runs along the columns. The
// tiles of a second factor are transposed.
template <bool kTransposed>
void pack_rows(const float* source, int64_t stride, int64_t rows, int64_t columns, Tile* tiles) {
  for (int64_t first_row = 0; first_row < rows; first_row += kSide) {
    for (int64_t first = 0; first < columns; first += kSum, tiles += kParts) {
      const __mmask16 lanes = first_lanes(columns - first), more_lanes = first_lanes(columns - first - kSide);
      __m512 x[kParts][kSide];
      for (int64_t r = 0; r < kSide; ++r) {
        const float* row = source + (first_row + r) * stride + first;
        __m512i words[kParts] = {};
        if (first_row + r < rows) split_pairs(load(row, lanes), load(row + kSide, more_lanes), words);
        for (int64_t part = 0; part < kParts; ++part) x[part][r] = _mm512_castsi512_ps(words[part]);
      }
      for (int64_t part = 0; part < kParts; ++part) {
        if constexpr (kTransposed) transpose(x[part]);
        for (int64_t r = 0; r < kSide; ++r) _mm512_store_ps(tiles[part].words[r], x[part][r]);
      }
    }
  }
}

// Tiles [rows / 32][columns / 16][3] of source [rows, columns], row r times scale_r, zero beyond it. The sum runs along
// the rows, and this is the second factor.
inline void pack_columns(const float* source, const float* scale, int64_t stride, int64_t rows, int64_t columns,
                         Tile* tiles) {
  for (int64_t first_row = 0; first_row < rows; first_row += kSum) {
    for (int64_t first = 0; first < columns; first += kSide, tiles += kParts) {
      const __mmask16 lanes = first_lanes(columns - first);
      const auto scaled = [&](int64_t row) __attribute__((always_inline)) {
        return row < rows ? load(source + row * stride + first, lanes) * scale[row] : _mm512_setzero_ps();
      };
      for (int64_t r = first_row; r < first_row + kSide; ++r) {
        __m512i words[kParts];
        split_pairs(scaled(r), scaled(r + kSide), words);
        for (int64_t part = 0; part < kParts; ++part) {
          _mm512_store_si512(tiles[part].words[r - first_row], words[part]);
        }
      }
    }
  }
}

// Where the parts of a factor are: the bytes from one row to the next, from one part to the next, from one tile to the
// next along the sum, and along the result.
struct Parts {
  const char* first;
  int64_t row, part, sum, result;
};

// result [rows, columns], at most 32 each, = a b. `a` has three parts if kThird, else two.
template <bool kThird>
void product_of_parts(Parts a, Parts b, int64_t sum_tiles, float* result, int64_t stride, int64_t rows,
                      int64_t columns) {
  const char *a0 = a.first, *a1 = rows > kSide ? a0 + a.result : a0;
  const char *b0 = b.first, *b1 = columns > kSide ? b0 + b.result : b0;
  const auto load_a = [&](int64_t part) __attribute__((always_inline)) {
    _tile_loadd(4, a0 + part * a.part, a.row);
    _tile_loadd(5, a1 + part * a.part, a.row);
  };
  const auto load_b = [&](int64_t part) __attribute__((always_inline)) {
    // Streamed, because the cache is for a, which is used more often.
    _tile_stream_loadd(6, b0 + part * b.part, b.row);
    _tile_stream_loadd(7, b1 + part * b.part, b.row);
  };
  for (int64_t r = 0; r < rows; ++r) {
    __builtin_prefetch(result + r * stride, 1);
    __builtin_prefetch(result + r * stride + columns - 1, 1);
  }
  accumulate(result, stride, rows, columns, false, [&]() __attribute__((always_inline)) {
    for (int64_t k = 0; k < sum_tiles; ++k) {
      // Only one side changes from product to product: l h, m h, m m, h m, h h, h l.
      if constexpr (kThird) {
        load_a(2);
        load_b(0);
        multiply_tiles();
        load_a(1);
      } else {
        load_a(1);
        load_b(0);
      }
      multiply_tiles();
      load_b(1);
      multiply_tiles();
      load_a(0);
      multiply_tiles();
      load_b(0);
      multiply_tiles();
      load_b(2);
      multiply_tiles();
      a0 += a.sum;
      a1 += a.sum;
      b0 += b.sum;
      b1 += b.sum;
    }
  });
}

inline Parts packed_rows(const Tile* tiles, int64_t block, int64_t sum_tiles) {
  constexpr int64_t kBytes = sizeof(Tile);
  return {reinterpret_cast<const char*>(tiles + block * sum_tiles * kParts), sizeof(Tile::words[0]), kBytes,
          kParts * kBytes, sum_tiles * kParts * kBytes};
}

// inner [m, m] = X X^T, panel by panel up to the diagonal. X [m, d] is taken in groups of columns that fit a core's L2
// cache, and the sums of the groups are added up at the end, which leaves smaller rounding errors. A panel and its
// mirror image together are the same work for all panels.
inline void gram(const float* x, int64_t m, int64_t d, float* inner) {
  const int64_t panel = panel_rows(m), panels = (m + panel - 1) / panel;
  const int64_t width = std::clamp(std::min(m / 2, (1 << 17) / m) / kSum * kSum, kSum, 4 * kSum);
  torch::stable::parallel_for(0, (panels + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    const Registers registers;
    const int64_t steps = width / kSum, most = std::min(m, (panels - begin) * panel);
    alignas(64) float block[kBlock * kBlock];
    const std::unique_ptr<Tile[]> own(new Tile[panel / kSide * steps * kParts]);
    const std::unique_ptr<Tile[]> all(new Tile[(most + kSide - 1) / kSide * steps * kParts]);
    for (int64_t first = 0; first == 0 || first < d; first += width) {
      const int64_t columns = std::min(width, d - first), sum_tiles = (columns + kSum - 1) / kSum;
      pack_rows<true>(x + first, d, most, columns, all.get());
      const auto multiply = [&](int64_t p) {
        const int64_t row = p * panel, rows = std::min(panel, m - row);
        pack_rows<false>(x + row * d + first, d, rows, columns, own.get());
        for (int64_t i = 0; i < rows; i += kBlock) {
          for (int64_t j = 0; j < row + rows; j += kBlock) {
            const int64_t block_rows = std::min(kBlock, rows - i), block_columns = std::min(kBlock, row + rows - j);
            float* result = inner + (row + i) * m + j;
            float* target = first == 0 ? result : block;
            const int64_t stride = first == 0 ? m : kBlock;
            product_of_parts<true>(packed_rows(own.get(), i / kSide, sum_tiles),
                                   packed_rows(all.get(), j / kSide, sum_tiles), sum_tiles, target, stride, block_rows,
                                   block_columns);
            if (first == 0) continue;
            for (int64_t r = 0; r < block_rows; ++r) {
              for (int64_t c = 0; c < block_columns; ++c) result[r * m + c] += block[r * kBlock + c];
            }
          }
        }
      };
      for (int64_t p = begin; p < end; ++p) {
        multiply(p);
        if (panels - 1 - p != p) multiply(panels - 1 - p);
      }
    }
  });
}

// target [m, d] = W X, row j of X [m, d] times scale_j. rows_of(i, memory) gives the parts of rows i to i + 32 of W
// [m, m]: three if kThird, for which there is working memory, else two.
template <bool kThird, typename RowsOf>
void weigh_rows(RowsOf rows_of, const float* x, const float* scale, float* target, int64_t m, int64_t d) {
  constexpr int64_t kWidth = 64;  // columns of X at a time, which fit a core's L2 cache
  constexpr int64_t kBytes = sizeof(Tile);
  const int64_t steps = (m + kSum - 1) / kSum;
  torch::stable::parallel_for(0, (d + kWidth - 1) / kWidth, 1, [&](int64_t begin, int64_t end) {
    const Registers registers;
    const std::unique_ptr<Tile[]> tiles(new Tile[steps * kWidth / kSide * kParts]);
    const std::unique_ptr<Tile[]> rows(new Tile[kThird ? kBlock / kSide * steps * kParts : 0]);
    const int64_t last = std::min(end * kWidth, d);
    for (int64_t first = begin * kWidth; first < last; first += kWidth) {
      const int64_t columns = std::min(kWidth, last - first), blocks = (columns + kSide - 1) / kSide;
      pack_columns(x + first, scale, d, m, columns, tiles.get());
      for (int64_t i = 0; i < m; i += kBlock) {
        // The next columns, whose rows lie too far apart for the hardware prefetcher.
        for (int64_t r = i; first + kWidth < last && r < std::min(i + kBlock, m); ++r) {
          for (int64_t c = 0; c < kWidth; c += kSide) _mm_prefetch(x + r * d + first + kWidth + c, _MM_HINT_T1);
        }
        const Parts weights = rows_of(i, rows.get());
        for (int64_t c = 0; c < columns; c += kBlock) {
          product_of_parts<kThird>(weights,
                                   {reinterpret_cast<const char*>(tiles.get() + c / kSide * kParts),
                                    sizeof(Tile::words[0]), kBytes, blocks * kParts * kBytes, kParts * kBytes},
                                   steps, target + i * d + first + c, d, std::min(kBlock, m - i),
                                   std::min(kBlock, columns - c));
        }
      }
    }
  });
}

// target [m, d] = W X for W [m, stride].
inline void weigh(const float* w, int64_t stride, const float* x, float* target, int64_t m, int64_t d) {
  const std::vector<float> ones(m, 1.0f);
  const auto rows_of = [&](int64_t i, Tile* tiles) {
    pack_rows<false>(w + i * stride, stride, std::min(kBlock, m - i), m, tiles);
    return packed_rows(tiles, 0, (m + kSum - 1) / kSum);
  };
  weigh_rows<true>(rows_of, x, ones.data(), target, m, d);
}

}  // namespace dadl::cpu::amx

DADL_END_TARGET
#endif
