// Dropout masks of whole rows as bits: bit j of word i decides feature 16 i + j.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "../core/philox.h"
#include "common.h"

namespace dadl::cpu {

constexpr int64_t kGroup = kMaskGroup, kLanes = kMaskLanes;

inline int64_t padded_features(int64_t features) { return (features + kGroup - 1) / kGroup * kGroup; }

// Draws the mask words of one member's row for the groups [first, first + count).
inline void draw_portably(const Dropout& dropout, int64_t member, int64_t row, int64_t first, int64_t count,
                          uint16_t* masks) {
  for (int64_t group = first; group < first + count; ++group, masks += kGroup / kLanes) {
    std::fill_n(masks, kGroup / kLanes, uint16_t{0});
    for (int64_t l = 0; l < kLanes; ++l) {
      const uint32_t kept = kept_features(dropout, member, row, static_cast<uint32_t>(group * kLanes + l));
      for (int64_t j = 0; j < kGroup / kLanes; ++j) masks[j] |= static_cast<uint16_t>((kept >> j & 1) << l);
    }
  }
}

#ifdef DADL_X86
DADL_BEGIN_TARGET("arch=x86-64-v4")
// Philox words in 64-bit lanes. The upper halves hold leftovers of the products, which the multiplication ignores.
struct WideWords {
  __m512i x0, x1, x2, x3;

  void round(__m512i low, __m512i high) {
    const __m512i a = _mm512_mul_epu32(x0, _mm512_set1_epi64(0xD2511F53));
    const __m512i b = _mm512_mul_epu32(x2, _mm512_set1_epi64(0xCD9E8D57));
    x0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(b, 32), x1, low, 0x96);
    x1 = b;
    x2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(a, 32), x3, high, 0x96);
    x3 = a;
  }
};

inline void draw_avx512(const Dropout& dropout, int64_t member, int64_t row, int64_t first, int64_t count,
                        uint16_t* masks) {
  const __m512i threshold = _mm512_set1_epi32(static_cast<int>(dropout.threshold << 16));
  const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i x1 = _mm512_set1_epi64(static_cast<uint32_t>(row)), x2 = _mm512_set1_epi64(row >> 32),
                x3 = _mm512_set1_epi64(member);
  for (int64_t group = first; group < first + count; ++group, masks += kGroup / kLanes) {
    const __m512i block = _mm512_add_epi64(_mm512_set1_epi64(group * kLanes), lanes);
    WideWords a{block, x1, x2, x3}, b{_mm512_add_epi64(block, _mm512_set1_epi64(8)), x1, x2, x3};
    PhiloxKey key = dropout.key;
    for (int round = 0; round < 10; ++round) {
      const __m512i low = _mm512_set1_epi64(key.low), high = _mm512_set1_epi64(key.high);
      a.round(low, high);
      b.round(low, high);
      key.low += 0x9E3779B9;
      key.high += 0xBB67AE85;
    }
    const __m512i words[] = {_mm512_permutex2var_epi32(a.x0, even, b.x0), _mm512_permutex2var_epi32(a.x1, even, b.x1),
                             _mm512_permutex2var_epi32(a.x2, even, b.x2), _mm512_permutex2var_epi32(a.x3, even, b.x3)};
    for (int w = 0; w < 4; ++w) {
      masks[2 * w] = _mm512_cmpge_epu32_mask(_mm512_slli_epi32(words[w], 16), threshold);
      masks[2 * w + 1] = _mm512_cmpge_epu32_mask(words[w], threshold);
    }
  }
}
DADL_END_TARGET

DADL_BEGIN_TARGET("arch=x86-64-v3")
struct NarrowWords {
  __m256i x0, x1, x2, x3;

  void round(__m256i low, __m256i high) {
    const __m256i a = _mm256_mul_epu32(x0, _mm256_set1_epi64x(0xD2511F53));
    const __m256i b = _mm256_mul_epu32(x2, _mm256_set1_epi64x(0xCD9E8D57));
    x0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(b, 32), x1), low);
    x1 = b;
    x2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(a, 32), x3), high);
    x3 = a;
  }
};

// The lower halves of the lanes of two vectors.
inline __m256i lower_halves(__m256i a, __m256i b) {
  const __m256 mixed = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(mixed), 0xD8);
}

inline uint16_t at_least(__m256i words, __m256i threshold) {
  const __m256i reached = _mm256_cmpeq_epi32(_mm256_max_epu32(words, threshold), words);
  return static_cast<uint16_t>(_mm256_movemask_ps(_mm256_castsi256_ps(reached)));
}

inline void draw_avx2(const Dropout& dropout, int64_t member, int64_t row, int64_t first, int64_t count,
                      uint16_t* masks) {
  const __m256i threshold = _mm256_set1_epi32(static_cast<int>(dropout.threshold << 16));
  const __m256i lanes = _mm256_set_epi64x(3, 2, 1, 0);
  const __m256i x1 = _mm256_set1_epi64x(static_cast<uint32_t>(row)), x2 = _mm256_set1_epi64x(row >> 32),
                x3 = _mm256_set1_epi64x(member);
  for (int64_t group = first; group < first + count; ++group, masks += kGroup / kLanes) {
    std::fill_n(masks, kGroup / kLanes, uint16_t{0});
    for (int half = 0; half < 2; ++half) {
      const __m256i block = _mm256_add_epi64(_mm256_set1_epi64x(group * kLanes + 8 * half), lanes);
      NarrowWords a{block, x1, x2, x3}, b{_mm256_add_epi64(block, _mm256_set1_epi64x(4)), x1, x2, x3};
      PhiloxKey key = dropout.key;
      for (int round = 0; round < 10; ++round) {
        const __m256i low = _mm256_set1_epi64x(key.low), high = _mm256_set1_epi64x(key.high);
        a.round(low, high);
        b.round(low, high);
        key.low += 0x9E3779B9;
        key.high += 0xBB67AE85;
      }
      const __m256i words[] = {lower_halves(a.x0, b.x0), lower_halves(a.x1, b.x1), lower_halves(a.x2, b.x2),
                               lower_halves(a.x3, b.x3)};
      for (int w = 0; w < 4; ++w) {
        masks[2 * w] |= static_cast<uint16_t>(at_least(_mm256_slli_epi32(words[w], 16), threshold) << 8 * half);
        masks[2 * w + 1] |= static_cast<uint16_t>(at_least(words[w], threshold) << 8 * half);
      }
    }
  }
}
DADL_END_TARGET
#endif

inline void draw(const Dropout& dropout, int64_t member, int64_t row, int64_t first, int64_t count, uint16_t* masks) {
#ifdef DADL_X86
  if (x86_level() == 4) return draw_avx512(dropout, member, row, first, count, masks);
  if (x86_level() == 3) return draw_avx2(dropout, member, row, first, count, masks);
#endif
  draw_portably(dropout, member, row, first, count, masks);
}

// The bits of every byte as eight ones and zeros.
template <typename A>
constexpr std::array<std::array<A, 8>, 256> kBits = [] {
  std::array<std::array<A, 8>, 256> table{};
  for (int byte = 0; byte < 256; ++byte) {
    for (int bit = 0; bit < 8; ++bit) table[byte][bit] = byte >> bit & 1;
  }
  return table;
}();

// Sets keep [128] to the bits of a group as ones and zeros.
template <typename A>
inline void expand(const uint16_t* bits, A* keep) {
  for (int64_t word = 0; word < kGroup / kLanes; ++word, keep += kLanes) {
    std::copy_n(kBits<A>[bits[word] & 0xFF].data(), 8, keep);
    std::copy_n(kBits<A>[bits[word] >> 8].data(), 8, keep + 8);
  }
}

}  // namespace dadl::cpu
