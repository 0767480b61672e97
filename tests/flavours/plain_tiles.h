// The matrix units' instructions as Intel's manual defines them, for processors without AMX. Included before every
// source by -include. What a test finds with them it would find on the matrix units.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "plain_vectors.h"

namespace plain_tiles {

constexpr int kTiles = 8, kMostRows = 16, kMostWords = 16;

struct Registers {
  uint8_t palette = 0;
  int rows[kTiles] = {}, words[kTiles] = {};
  uint32_t tiles[kTiles][kMostRows][kMostWords] = {};
};
inline thread_local Registers registers;

inline void load_configuration(const void* memory) {
  const auto* bytes = static_cast<const uint8_t*>(memory);
  registers = {};
  registers.palette = bytes[0];
  for (int t = 0; t < kTiles; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof(row_bytes));
    registers.words[t] = row_bytes / 4;
    registers.rows[t] = bytes[48 + t];
  }
}

inline void store_configuration(void* memory) {
  auto* bytes = static_cast<uint8_t*>(memory);
  std::memset(bytes, 0, 64);
  bytes[0] = registers.palette;
  for (int t = 0; t < kTiles; ++t) {
    const auto row_bytes = static_cast<uint16_t>(4 * registers.words[t]);
    std::memcpy(bytes + 16 + 2 * t, &row_bytes, sizeof(row_bytes));
    bytes[48 + t] = static_cast<uint8_t>(registers.rows[t]);
  }
}

inline void load(int tile, const void* memory, int64_t stride) {
  for (int r = 0; r < registers.rows[tile]; ++r) {
    std::memcpy(registers.tiles[tile][r], static_cast<const char*>(memory) + r * stride, 4 * registers.words[tile]);
  }
}

inline void store(int tile, void* memory, int64_t stride) {
  for (int r = 0; r < registers.rows[tile]; ++r) {
    std::memcpy(static_cast<char*>(memory) + r * stride, registers.tiles[tile][r], 4 * registers.words[tile]);
  }
}

inline void zero(int tile) { std::memset(registers.tiles[tile], 0, sizeof(registers.tiles[tile])); }

// result += a b; a word of a and one of b each hold two numbers, whose products are summed apart. Subnormal numbers
// count as zero, and results do not become one.
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
inline float number(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline void multiply(int result, int a, int b) {
  constexpr unsigned kSubnormalsAreZero = 1u << 6 | 1u << 15;
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | kSubnormalsAreZero);
  Registers& r = registers;
  for (int m = 0; m < r.rows[result]; ++m) {
    float low[kMostWords] = {}, high[kMostWords] = {};
    for (int k = 0; k < r.words[a]; ++k) {
      const uint32_t x = r.tiles[a][m][k];
      for (int n = 0; n < kMostWords; ++n) {
        const uint32_t y = r.tiles[b][k][n];
        low[n] += number(x << 16) * number(y << 16);
        high[n] += number(x & 0xFFFF0000u) * number(y & 0xFFFF0000u);
      }
    }
    for (int n = 0; n < r.words[result]; ++n) {
      uint32_t& word = r.tiles[result][m][n];
      const float sum = number(word) + (low[n] + high[n]);
      std::memcpy(&word, &sum, sizeof(sum));
    }
  }
  _mm_setcsr(before);
}
#pragma GCC pop_options

template <typename... Arguments>
long granted(Arguments...) {
  return 0;
}

}  // namespace plain_tiles

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(memory) plain_tiles::load_configuration(memory)
#define _tile_storeconfig(memory) plain_tiles::store_configuration(memory)
#define _tile_release() (plain_tiles::registers = {})
#define _tile_loadd(tile, memory, stride) plain_tiles::load(tile, memory, stride)
#define _tile_stream_loadd(tile, memory, stride) plain_tiles::load(tile, memory, stride)
#define _tile_stored(tile, memory, stride) plain_tiles::store(tile, memory, stride)
#define _tile_zero(tile) plain_tiles::zero(tile)
#define _tile_dpbf16ps(result, a, b) plain_tiles::multiply(result, a, b)

// The processor has the matrix units, and the system grants them.
#undef __get_cpuid_count
#define __get_cpuid_count(leaf, sub, a, b, c, d) (*(a) = *(b) = *(c) = 0, *(d) = 1u << 22 | 1u << 24, 1)
#define syscall(...) plain_tiles::granted(__VA_ARGS__)
