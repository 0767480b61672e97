// Products of float32 matrices on the processor's matrix units (AMX), at float32 accuracy.
//
// AMX multiplies bfloat16 and adds in float32. A float32 number is the sum of three bfloat16 parts, x = h + m + l: the
// first, second and last 8 bits of the significand. Of the nine products of the parts of two numbers six are kept; the
// others are below 2^-22 of the largest. A word holds two parts of a number, and AMX adds the products of the lower and
// of the upper halves of two words, so that
//   (h,m)(h,m) = hh + mm,   (h,m)(m,h) = hm + mh,   (h,l)(l,h) = hl + lh
// are three instructions. They do not depend on the order of the factors: x y and y x have the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../core/half.h"
#include "common.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DADL_AMX
#ifndef DADL_AMX_TARGET
#define DADL_AMX_TARGET "arch=x86-64-v4,amx-tile,amx-bf16,avx512bf16,prefer-vector-width=512"
#endif
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dadl::cpu::amx {

constexpr int64_t kSide = 16;          // rows and words per row of a tile
constexpr int64_t kBlock = 2 * kSide;  // rows and columns of the result of a product
struct alignas(64) Tile {
  uint32_t words[kSide][kSide];
};

// A matrix is laid out in tiles [rows / 16][columns / 16][words per number]. One factor of a product is plain, the
// other crossed.
constexpr int64_t kPlain = 2;    // (h,m), (h,l)
constexpr int64_t kCrossed = 3;  // (h,m), (m,h), (l,h)

// The tiles along a length that is padded to whole blocks.
inline int64_t tiles_along(int64_t length) { return (length + kBlock - 1) / kBlock * 2; }

// A step is the distance in tiles from one block of 16 to the next, along the result or along the sum. The struct has
// 16 bytes: a larger one would be passed in memory, and loading it would wait until the stores of a product are done.
struct Factor {
  Factor(const Tile* tiles, int64_t step, int64_t sum_step)
      : tiles(tiles), step(static_cast<int32_t>(step)), sum_step(static_cast<int32_t>(sum_step)) {}
  const Tile* tiles;
  int32_t step, sum_step;
};

#ifdef DADL_AMX
DADL_BEGIN_TARGET(DADL_AMX_TARGET)

// The operating system grants the tile registers on request. ATEN_CPU_CAPABILITY turns AMX off.
inline bool available() {
  static const bool granted = [] {
    if (std::getenv("ATEN_CPU_CAPABILITY")) return false;
    unsigned eax, ebx, ecx, edx;
    if (!__builtin_cpu_supports("avx512bf16")) return false;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
    if ((edx & kBfloat16) == 0 || (edx & kTiles) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

// The tile intrinsics do not tell the compiler what they read and write.
inline __attribute__((always_inline)) void written(const void* memory) {
  __asm__ volatile("" ::"r"(memory) : "memory");
}

// Configures a thread's tile registers as 8 tiles of 16 x 16 words for the lifetime of this object.
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

// The leading part of `lower`, and in the upper half the one of `upper`.
inline __attribute__((always_inline)) __m512i word(__m512 lower, __m512 upper) {
  return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(_mm512_castps_si512(lower), 16),
                                 _mm512_castps_si512(upper));
}

// x without its leading bfloat16 part.
inline __attribute__((always_inline)) __m512 remainder(__m512 x) {
  const __m512i leading = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xFFFF0000)));
  return _mm512_sub_ps(x, _mm512_castsi512_ps(leading));
}

template <int64_t kParts>
inline __attribute__((always_inline)) void split(__m512 h, Tile* tiles, int64_t row) {
  const __m512 m = remainder(h), l = remainder(m);
  const __m512i hm = word(h, m);
  _mm512_store_si512(tiles[0].words[row], hm);
  if constexpr (kParts == kCrossed) {
    _mm512_store_si512(tiles[1].words[row], _mm512_rol_epi32(hm, 16));
    _mm512_store_si512(tiles[2].words[row], word(l, h));
  } else {
    _mm512_store_si512(tiles[1].words[row], word(h, l));
  }
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

// One tile of source [rows, columns], zero beyond it, and transposed if kTransposed.
template <int64_t kParts, bool kTransposed, typename T>
void pack_tile(const T* source, int64_t stride, int64_t rows, int64_t columns, Tile* tiles) {
  const auto lanes = static_cast<__mmask16>((1u << std::clamp<int64_t>(columns, 0, kSide)) - 1);
  __m512 x[kSide];
  for (int64_t r = 0; r < kSide; ++r) x[r] = r < rows ? load(source + r * stride, lanes) : _mm512_setzero_ps();
  if constexpr (kTransposed) transpose(x);
  for (int64_t r = 0; r < kSide; ++r) split<kParts>(x[r], tiles, r);
}

// All tiles of source [rows, columns], `depth` tiles per row; each tile is transposed if kTransposed.
template <int64_t kParts, bool kTransposed, typename T>
void pack(const T* source, int64_t stride, int64_t rows, int64_t columns, int64_t depth, Tile* tiles) {
  for (int64_t row = 0; row < rows; row += kSide) {
    for (int64_t column = 0; column < depth * kSide; column += kSide, tiles += kParts) {
      pack_tile<kParts, kTransposed>(source + row * stride + column, stride, rows - row, columns - column, tiles);
    }
  }
}

// Spreads pieces of other work over the steps of a product.
class Pace {
 public:
  Pace() = default;
  Pace(int64_t pieces, int64_t steps)
      : pieces_(pieces), pieces_of_step_((pieces + steps - 1) / std::max<int64_t>(steps, 1)) {}

  template <typename Work>
  void step(Work work) {
    for (const int64_t end = std::min(next_ + pieces_of_step_, pieces_); next_ < end; ++next_) work(next_);
  }
  template <typename Work>
  void finish(Work work) {
    for (; next_ < pieces_; ++next_) work(next_);
  }

 private:
  int64_t pieces_ = 0, pieces_of_step_ = 0, next_ = 0;
};

// pack<kPlain, false>(), piece by piece.
template <typename T>
class Packing {
 public:
  Packing() = default;
  Packing(const T* source, int64_t rows, int64_t columns, int64_t depth, Tile* tiles, int64_t steps)
      : source_(source),
        rows_(rows),
        columns_(columns),
        width_(depth * kSide),
        tiles_(tiles),
        pace_((rows + kSide - 1) / kSide * depth, steps),
        ahead_{0, kAhead * kSide} {
    normalise(ahead_);
  }

  void step() {
    pace_.step([this](int64_t) { pack_piece(); });
  }
  void finish() {
    pace_.finish([this](int64_t) { pack_piece(); });
  }

 private:
  static constexpr int64_t kAhead = 8;  // pieces
  struct Place {
    int64_t row, column;
  };

  void normalise(Place& place) const {
    while (place.column >= width_ && place.row < rows_) {
      place.column -= width_;
      place.row += kSide;
    }
  }

  void pack_piece() {
    for (int64_t row = ahead_.row; row < std::min(ahead_.row + kSide, rows_); ++row) {
      _mm_prefetch(source_ + row * columns_ + ahead_.column, _MM_HINT_T0);
    }
    pack_tile<kPlain, false>(source_ + next_.row * columns_ + next_.column, columns_, rows_ - next_.row,
                             columns_ - next_.column, tiles_);
    tiles_ += kPlain;
    for (Place* place : {&next_, &ahead_}) {
      place->column += kSide;
      normalise(*place);
    }
  }

  const T* source_ = nullptr;
  int64_t rows_ = 0, columns_ = 0, width_ = 0;
  Tile* tiles_ = nullptr;
  Pace pace_;
  Place next_{0, 0}, ahead_{0, 0};
};

// Tiles 0 to 3 += tiles (4, 5) times tiles (6, 7).
inline __attribute__((always_inline)) void multiply_tiles() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// result [rows, columns], at most 32 each, is set to the sum that multiply() forms in tiles 0 to 3, or increased by it.
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

// result [rows, columns], at most 32 each, is set to a b or increased by it. `a` is the crossed factor if
// kCrossedFirst, else the plain one. between() is called in every step of the sum.
template <bool kCrossedFirst, typename Between>
void product(Factor a, Factor b, int64_t sum_tiles, float* result, int64_t stride, int64_t rows, int64_t columns,
             bool add, Between between) {
  // If there is no second block, the first stands in for it.
  const Tile *a0 = a.tiles, *a1 = rows > kSide ? a0 + a.step : a0, *b0 = b.tiles,
             *b1 = columns > kSide ? b0 + b.step : b0;
  const Tile *&plain0 = kCrossedFirst ? b0 : a0, *&plain1 = kCrossedFirst ? b1 : a1;
  const Tile *&crossed0 = kCrossedFirst ? a0 : b0, *&crossed1 = kCrossedFirst ? a1 : b1;
  constexpr int64_t kBytes = sizeof(Tile::words[0]);
  const auto load_plain = [&](int64_t part) __attribute__((always_inline)) {
    // Streamed, because the cache is for the crossed factor, which is used more often.
    _tile_stream_loadd(4, plain0 + part, kBytes);
    _tile_stream_loadd(5, plain1 + part, kBytes);
  };
  const auto multiply_crossed = [&](int64_t part) __attribute__((always_inline)) {
    _tile_loadd(6, crossed0 + part, kBytes);
    _tile_loadd(7, crossed1 + part, kBytes);
    if constexpr (kCrossedFirst) {
      _tile_dpbf16ps(0, 6, 4);
      _tile_dpbf16ps(1, 6, 5);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    } else {
      multiply_tiles();
    }
  };
  accumulate(result, stride, rows, columns, add, [&]() __attribute__((always_inline)) {
    for (int64_t k = 0; k < sum_tiles; ++k) {
      between();
      load_plain(0);
      multiply_crossed(0);
      multiply_crossed(1);
      load_plain(1);
      multiply_crossed(2);
      a0 += a.sum_step;
      a1 += a.sum_step;
      b0 += b.sum_step;
      b1 += b.sum_step;
    }
  });
}

DADL_END_TARGET
#endif

}  // namespace dadl::cpu::amx
