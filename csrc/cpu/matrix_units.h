// Products of float32 matrices on the processor's matrix units (AMX), at float32 accuracy.
//
// The units multiply bfloat16 and add in float32. A float32 number is the sum of three bfloat16 parts, x = h + m + l,
// of 8 bits each; of the nine products of two numbers' parts, six are kept: the others are below 2^-24 of the largest.
// A word holds two parts of one number, and the units add the products of the words' lower and upper halves, so that
//   (h,m)(h,m) = hh + mm,   (h,m)(m,h) = hm + mh,   (h,l)(l,h) = hl + lh
// are three instructions, whose result does not depend on which factor comes first: x y and y x have equal bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../core/half.h"
#include "common.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DADL_MATRIX_UNITS
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dadl::cpu::matrix_units {

constexpr int64_t kSide = 16;          // of a tile, in words
constexpr int64_t kBlock = 2 * kSide;  // of a product's result
struct alignas(64) Tile {
  uint32_t words[kSide][kSide];
};

// Of a length padded to whole blocks.
inline int64_t tiles_along(int64_t length) { return (length + kBlock - 1) / kBlock * 2; }

// The steps, in tiles, from one block of 16 to the next: along the result, and along the sum.
struct Factor {
  const Tile* tiles;
  int64_t step, sum_step;
};

#ifdef DADL_MATRIX_UNITS
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own intrinsics
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,amx-tile,amx-bf16,avx512bf16")

// The system grants the units' registers on request. PyTorch's own switch narrows the choice.
inline bool available() {
  static const bool granted = [] {
    if (std::getenv("ATEN_CPU_CAPABILITY")) return false;
    unsigned eax, ebx, ecx, edx;
    if (!__builtin_cpu_supports("x86-64-v4") || !__builtin_cpu_supports("avx512bf16")) return false;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
    if ((edx & kBfloat16) == 0 || (edx & kTiles) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

// The compiler's tile instructions do not tell it what they read and write.
inline __attribute__((always_inline)) void written(const void* memory) {
  __asm__ volatile("" ::"r"(memory) : "memory");
}

// A thread's registers, 8 tiles of 16 x 16 words, for as long as this lives.
class Registers {
 public:
  Registers() {
    _tile_storeconfig(&before_);
    written(&before_);
    Configuration ours{};
    ours.palette = 1;
    for (int t = 0; t < 8; ++t) {
      ours.row_bytes[t] = sizeof(Tile::words[0]);
      ours.rows[t] = kSide;
    }
    written(&ours);
    _tile_loadconfig(&ours);
  }
  ~Registers() {
    if (before_.palette) {
      _tile_loadconfig(&before_);
    } else {
      _tile_release();
    }
  }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;

 private:
  struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  Configuration before_;
};

inline __attribute__((always_inline)) __m512 load(const float* x, __mmask16 lanes) {
  return _mm512_maskz_loadu_ps(lanes, x);
}
inline __attribute__((always_inline)) __m512 load(const BFloat16* x, __mmask16 lanes) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x)), 16));
}
inline __attribute__((always_inline)) __m512 load(const Half* x, __mmask16 lanes) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, x));
}

// How a matrix is laid out: tiles [rows / 16][columns / 16][kParts] of words, each (lower, upper) half. One factor of a
// product is plain, the other crossed.
inline __attribute__((always_inline)) __m512i word(__m512i lower, __m512i upper) {
  return _mm512_or_si512(lower, _mm512_slli_epi32(upper, 16));
}
struct Plain {
  static constexpr int64_t kParts = 2;  // (h,m), (h,l)
  static inline __attribute__((always_inline)) void store(__m512i h, __m512i m, __m512i l, Tile* tiles, int64_t row) {
    _mm512_store_si512(tiles[0].words[row], word(h, m));
    _mm512_store_si512(tiles[1].words[row], word(h, l));
  }
};
struct Crossed {
  static constexpr int64_t kParts = 3;  // (h,m), (m,h), (l,h)
  static inline __attribute__((always_inline)) void store(__m512i h, __m512i m, __m512i l, Tile* tiles, int64_t row) {
    _mm512_store_si512(tiles[0].words[row], word(h, m));
    _mm512_store_si512(tiles[1].words[row], word(m, h));
    _mm512_store_si512(tiles[2].words[row], word(l, h));
  }
};

// What multiplies words (h,m) of whole numbers below 2^16, which have no third part: the sum of the three products is
// that of the numbers, nothing left out.
struct AgainstWords {
  static constexpr int64_t kParts = 3;  // (h,m), (m,h), (l,l)
  static inline __attribute__((always_inline)) void store(__m512i h, __m512i m, __m512i l, Tile* tiles, int64_t row) {
    _mm512_store_si512(tiles[0].words[row], word(h, m));
    _mm512_store_si512(tiles[1].words[row], word(m, h));
    _mm512_store_si512(tiles[2].words[row], word(l, l));
  }
};

// The nearest bfloat16, in the low half of each lane.
inline __attribute__((always_inline)) __m512i nearest(__m512 x) {
  const __m256bh rounded = _mm512_cvtneps_pbh(x);
  __m256i bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return _mm512_cvtepu16_epi32(bits);
}

template <typename Layout>
inline __attribute__((always_inline)) void split(__m512 x, Tile* tiles, int64_t row) {
  const __m512i h = nearest(x);
  x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(h, 16)));
  const __m512i m = nearest(x);
  x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(m, 16)));
  Layout::store(h, m, nearest(x), tiles, row);
}

inline __attribute__((always_inline)) void transpose(__m512 (&x)[kSide]) {
  __m512 y[kSide];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      x[i + 2 * j] = _mm512_shuffle_ps(y[i + j], y[i + 2 + j], 0x44);
      x[i + 2 * j + 1] = _mm512_shuffle_ps(y[i + j], y[i + 2 + j], 0xee);
    }
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      y[i + j] = _mm512_shuffle_f32x4(x[i + j], x[i + 4 + j], 0x88);
      y[i + 4 + j] = _mm512_shuffle_f32x4(x[i + j], x[i + 4 + j], 0xdd);
    }
  }
  for (int j = 0; j < 8; ++j) {
    x[j] = _mm512_shuffle_f32x4(y[j], y[j + 8], 0x88);
    x[j + 8] = _mm512_shuffle_f32x4(y[j], y[j + 8], 0xdd);
  }
}

// The tiles of source [rows, columns], row r times scale(r), zero beyond it, `depth` of them in a row, at least one row
// of them; each transposed in itself where wanted.
template <typename Layout, bool kTransposed, typename T, typename Scale>
void pack(const T* source, int64_t stride, int64_t rows, int64_t columns, int64_t depth, Scale scale, Tile* tiles) {
  for (int64_t first_row = 0; first_row == 0 || first_row < rows; first_row += kSide) {
    for (int64_t first = 0; first < depth * kSide; first += kSide, tiles += Layout::kParts) {
      const int64_t width = std::clamp<int64_t>(columns - first, 0, kSide);
      const auto lanes = static_cast<__mmask16>((1u << width) - 1);
      __m512 x[kSide];
      for (int64_t r = 0; r < kSide; ++r) {
        const int64_t row = first_row + r;
        x[r] = row < rows ? load(source + row * stride + first, lanes) * scale(row) : _mm512_setzero_ps();
      }
      if constexpr (kTransposed) transpose(x);
      for (int64_t r = 0; r < kSide; ++r) split<Layout>(x[r], tiles, r);
    }
  }
}

inline float unscaled(int64_t) { return 1; }

// result [rows, columns], at most 32 each, = the products that multiply() adds up in tiles 0 to 3, or that added to it.
template <typename Multiply>
inline __attribute__((always_inline)) void accumulate(float* result, int64_t stride, int64_t rows, int64_t columns,
                                                      bool add, Multiply multiply) {
  alignas(64) float corner[kBlock * kBlock];
  const bool whole = rows == kBlock && columns == kBlock;
  float* c = whole ? result : corner;
  const int64_t c_stride = whole ? stride : kBlock, c_bytes = c_stride * static_cast<int64_t>(sizeof(float));
  if (!whole && add) {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(corner + r * kBlock, result + r * stride, columns * sizeof(float));
  }
  written(c);
  if (add) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + kSide, c_bytes);
    _tile_loadd(2, c + kSide * c_stride, c_bytes);
    _tile_loadd(3, c + kSide * c_stride + kSide, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  multiply();
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + kSide, c_bytes);
  _tile_stored(2, c + kSide * c_stride, c_bytes);
  _tile_stored(3, c + kSide * c_stride + kSide, c_bytes);
  written(c);
  if (whole) return;
  for (int64_t r = 0; r < rows; ++r) std::memcpy(result + r * stride, corner + r * kBlock, columns * sizeof(float));
}

// Tiles 0 to 3 += tiles (4, 5) of one factor times (6, 7) of the other, which comes first where kLastFirst.
template <bool kLastFirst>
inline __attribute__((always_inline)) void multiply_tiles() {
  if constexpr (kLastFirst) {
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(1, 6, 5);
    _tile_dpbf16ps(2, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
  } else {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// result [rows, columns], at most 32 each, = a b, or that added to it; `a` is the plain factor, or the crossed one.
template <bool kCrossedFirst>
void product(Factor a, Factor b, int64_t sum_tiles, float* result, int64_t stride, int64_t rows, int64_t columns,
             bool add) {
  // A missing second block is the first once more.
  const Tile *a0 = a.tiles, *a1 = rows > kSide ? a0 + a.step : a0, *b0 = b.tiles,
             *b1 = columns > kSide ? b0 + b.step : b0;
  const Tile *crossed0 = kCrossedFirst ? a0 : b0, *crossed1 = kCrossedFirst ? a1 : b1;
  const Tile *plain0 = kCrossedFirst ? b0 : a0, *plain1 = kCrossedFirst ? b1 : a1;
  const int64_t crossed_step = kCrossedFirst ? a.sum_step : b.sum_step;
  const int64_t plain_step = kCrossedFirst ? b.sum_step : a.sum_step;
  constexpr int64_t kBytes = sizeof(Tile::words[0]);
  accumulate(result, stride, rows, columns, add, [&]() __attribute__((always_inline)) {
    for (int64_t k = 0; k < sum_tiles; ++k) {
      _tile_loadd(4, plain0, kBytes);
      _tile_loadd(5, plain1, kBytes);
      _tile_loadd(6, crossed0, kBytes);
      _tile_loadd(7, crossed1, kBytes);
      multiply_tiles<kCrossedFirst>();
      _tile_loadd(6, crossed0 + 1, kBytes);
      _tile_loadd(7, crossed1 + 1, kBytes);
      multiply_tiles<kCrossedFirst>();
      _tile_loadd(4, plain0 + 1, kBytes);
      _tile_loadd(5, plain1 + 1, kBytes);
      _tile_loadd(6, crossed0 + 2, kBytes);
      _tile_loadd(7, crossed1 + 2, kBytes);
      multiply_tiles<kCrossedFirst>();
      plain0 += plain_step;
      plain1 += plain_step;
      crossed0 += crossed_step;
      crossed1 += crossed_step;
    }
  });
}

// result [rows, columns], at most 32 each, = a b, where `a` lies in rows of `a_stride` words.
inline void product_of_words(const uint32_t* a, int64_t a_stride, Factor b, int64_t sum_tiles, float* result,
                             int64_t stride, int64_t rows, int64_t columns) {
  const uint32_t *a0 = a, *a1 = rows > kSide ? a0 + kSide * a_stride : a0;
  const Tile *b0 = b.tiles, *b1 = columns > kSide ? b0 + b.step : b0;
  constexpr int64_t kBytes = sizeof(Tile::words[0]);
  const int64_t a_bytes = a_stride * static_cast<int64_t>(sizeof(uint32_t));
  for (int64_t r = 0; r < rows; ++r) {
    __builtin_prefetch(result + r * stride, 1);
    __builtin_prefetch(result + r * stride + columns - 1, 1);
  }
  accumulate(result, stride, rows, columns, false, [&]() __attribute__((always_inline)) {
    for (int64_t k = 0; k < sum_tiles; ++k) {
      _tile_loadd(4, a0, a_bytes);
      _tile_loadd(5, a1, a_bytes);
      for (int64_t part = 0; part < AgainstWords::kParts; ++part) {
        // b passes by; the cache is for the words, which meet more of it.
        _tile_stream_loadd(6, b0 + part, kBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stream_loadd(7, b1 + part, kBytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      a0 += kSide;
      a1 += kSide;
      b0 += b.sum_step;
      b1 += b.sum_step;
    }
  });
}

#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

}  // namespace dadl::cpu::matrix_units
