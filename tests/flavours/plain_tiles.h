// The matrix units' instructions as Intel's manual defines them, for processors with AVX-512 but without AMX. Included
// before every source by -include. What a test finds with them it would find on the matrix units.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

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
#pragma GCC target("arch=x86-64-v4")
inline __m512 low_of(__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
inline __m512 high_of(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
}

inline void multiply(int result, int a, int b) {
  constexpr unsigned kSubnormalsAreZero = 1u << 6 | 1u << 15;
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | kSubnormalsAreZero);
  Registers& r = registers;
  for (int m = 0; m < r.rows[result]; ++m) {
    __m512 low = _mm512_setzero_ps(), high = low;
    for (int k = 0; k < r.words[a]; ++k) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(r.tiles[a][m][k])), y = _mm512_loadu_si512(r.tiles[b][k]);
      low = _mm512_add_ps(low, _mm512_mul_ps(low_of(x), low_of(y)));
      high = _mm512_add_ps(high, _mm512_mul_ps(high_of(x), high_of(y)));
    }
    const auto lanes = static_cast<__mmask16>((1u << r.words[result]) - 1);
    float* out = reinterpret_cast<float*>(r.tiles[result][m]);
    _mm512_mask_storeu_ps(out, lanes, _mm512_add_ps(_mm512_loadu_ps(out), _mm512_add_ps(low, high)));
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
