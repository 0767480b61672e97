// The AVX-512 instructions beside those of the matrix units, as Intel's manual defines them, for processors with AVX2.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC diagnostic ignored "-Wpsabi"  // nothing of these types leaves the library

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace plain_vectors {

using Floats = __m512;
using Words = __m512i;
constexpr int kLanes = 16;
using Word = uint32_t __attribute__((vector_size(64)));

template <typename To, typename From>
inline To as(const From& x) {
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// f(lane) for every lane.
template <typename F>
inline Floats each(F f) {
  Floats y;
  for (int l = 0; l < kLanes; ++l) y[l] = f(l);
  return y;
}
template <typename F>
inline Words each_word(F f) {
  Word y;
  for (int l = 0; l < kLanes; ++l) y[l] = f(l);
  return as<Words>(y);
}
template <typename F>
inline __mmask16 mask_of(F f) {
  unsigned mask = 0;
  for (int l = 0; l < kLanes; ++l) mask |= static_cast<unsigned>(f(l)) << l;
  return static_cast<__mmask16>(mask);
}

template <typename To>
inline To load(const void* memory) {
  To x;
  std::memcpy(&x, memory, sizeof(x));
  return x;
}
template <typename From>
inline void store(void* memory, const From& x) {
  std::memcpy(memory, &x, sizeof(x));
}
inline Floats load_lanes(__mmask16 mask, const float* memory) {
  return each([&](int l) { return mask >> l & 1 ? memory[l] : 0.0f; });
}
inline __m256i load_halves(__mmask16 mask, const void* memory) {
  uint16_t halves[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) {
    if (mask >> l & 1) std::memcpy(halves + l, static_cast<const char*>(memory) + 2 * l, 2);
  }
  return load<__m256i>(halves);
}
inline Words widen(__m256i x) {
  const auto halves = as<uint16_t __attribute__((vector_size(32)))>(x);
  return each_word([&](int l) { return static_cast<uint32_t>(halves[l]); });
}
inline Floats from_half(__m256i x) {
  float y[kLanes];
  _mm256_storeu_ps(y, _mm256_cvtph_ps(_mm256_castsi256_si128(x)));
  _mm256_storeu_ps(y + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
  return load<Floats>(y);
}

// A missing number in the comparison or a tie gives the second.
inline Floats larger(Floats x, Floats y) {
  return each([&](int l) { return x[l] > y[l] ? x[l] : y[l]; });
}
inline Floats smaller(Floats x, Floats y) {
  return each([&](int l) { return x[l] < y[l] ? x[l] : y[l]; });
}
inline Floats multiply_add(Floats x, Floats y, Floats z) {
  return each([&](int l) { return __builtin_fmaf(x[l], y[l], z[l]); });
}
inline Floats choose(__mmask16 mask, Floats x) {
  return each([&](int l) { return mask >> l & 1 ? x[l] : 0.0f; });
}
inline Floats scale(__mmask16 mask, Floats x, Floats exponent) {
  return each(
      [&](int l) { return mask >> l & 1 ? std::ldexp(x[l], static_cast<int>(std::floor(exponent[l]))) : 0.0f; });
}
template <int kKind>
inline __mmask16 compare(Floats x, Floats y) {
  static_assert(kKind == _CMP_NLE_UQ || kKind == _CMP_NEQ_UQ || kKind == _CMP_UNORD_Q);
  return mask_of([&](int l) {
    return kKind == _CMP_NLE_UQ   ? !(x[l] <= y[l])
           : kKind == _CMP_NEQ_UQ ? x[l] != y[l]
                                  : __builtin_isunordered(x[l], y[l]);
  });
}

template <typename F>
inline Words word_by_word(Words x, F f) {
  const Word words = as<Word>(x);
  return each_word([&](int l) { return f(words[l]); });
}
inline Words blend_halves(uint32_t mask, Words x, Words y) {
  const Word a = as<Word>(x), b = as<Word>(y);
  return each_word([&](int l) {
    const uint32_t bits = (mask >> 2 * l & 1 ? 0xFFFFu : 0u) | (mask >> 2 * l & 2 ? 0xFFFF0000u : 0u);
    return (a[l] & ~bits) | (b[l] & bits);
  });
}
// Within each group of four lanes.
inline Floats unpack(Floats x, Floats y, int first) {
  return each([&](int l) { return (l % 2 == 0 ? x : y)[l / 4 * 4 + first + l % 4 / 2]; });
}
inline Floats shuffle(Floats x, Floats y, int order) {
  return each([&](int l) { return (l % 4 < 2 ? x : y)[l / 4 * 4 + (order >> 2 * (l % 4) & 3)]; });
}
inline Floats shuffle_groups(Floats x, Floats y, int order) {
  return each([&](int l) { return (l < 8 ? x : y)[(order >> 2 * (l / 4) & 3) * 4 + l % 4]; });
}

inline bool equal(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

}  // namespace plain_vectors
#pragma GCC pop_options

#define DADL_AMX_TARGET "arch=x86-64-v3"
#define __builtin_cpu_supports(feature) (plain_vectors::equal(feature, "avx512bf16") || __builtin_cpu_supports(feature))

#define _mm512_setzero_ps() (__m512{})
#define _mm512_set1_ps(x) ((x) - __m512{})
#define _mm512_set1_epi32(x) plain_vectors::each_word([&](int) { return static_cast<uint32_t>(x); })
#define _mm512_castps_si512(x) plain_vectors::as<__m512i>(x)
#define _mm512_castsi512_ps(x) plain_vectors::as<__m512>(x)
#define _mm512_load_ps(memory) plain_vectors::load<__m512>(memory)
#define _mm512_loadu_ps(memory) plain_vectors::load<__m512>(memory)
#define _mm512_maskz_loadu_ps(mask, memory) plain_vectors::load_lanes(mask, memory)
#define _mm512_store_ps(memory, x) plain_vectors::store(memory, x)
#define _mm512_storeu_ps(memory, x) plain_vectors::store(memory, x)
#define _mm512_store_si512(memory, x) plain_vectors::store(memory, x)
#define _mm512_storeu_si512(memory, x) plain_vectors::store(memory, x)
#define _mm256_maskz_loadu_epi16(mask, memory) plain_vectors::load_halves(mask, memory)
#define _mm512_cvtepu16_epi32(x) plain_vectors::widen(x)
#define _mm512_cvtph_ps(x) plain_vectors::from_half(x)
#define _mm512_add_ps(x, y) ((x) + (y))
#define _mm512_sub_ps(x, y) ((x) - (y))
#define _mm512_mul_ps(x, y) ((x) * (y))
#define _mm512_max_ps(x, y) plain_vectors::larger(x, y)
#define _mm512_min_ps(x, y) plain_vectors::smaller(x, y)
#define _mm512_fmadd_ps(x, y, z) plain_vectors::multiply_add(x, y, z)
#define _mm512_fnmadd_ps(x, y, z) plain_vectors::multiply_add(-(x), y, z)
#define _mm512_maskz_mov_ps(mask, x) plain_vectors::choose(mask, x)
#define _mm512_maskz_scalef_ps(mask, x, y) plain_vectors::scale(mask, x, y)
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(x, y, kind) plain_vectors::compare<kind>(x, y)
#define _mm512_and_si512(x, y) ((x) & (y))
#define _mm512_or_si512(x, y) ((x) | (y))
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#undef _mm512_rol_epi32
#define _mm512_slli_epi32(x, bits) plain_vectors::word_by_word(x, [](uint32_t w) { return w << (bits); })
#define _mm512_srli_epi32(x, bits) plain_vectors::word_by_word(x, [](uint32_t w) { return w >> (bits); })
#define _mm512_rol_epi32(x, bits) \
  plain_vectors::word_by_word(x, [](uint32_t w) { return w << (bits) | w >> (32 - (bits)); })
#define _mm512_mask_blend_epi16(mask, x, y) plain_vectors::blend_halves(mask, x, y)
#define _mm512_unpacklo_ps(x, y) plain_vectors::unpack(x, y, 0)
#define _mm512_unpackhi_ps(x, y) plain_vectors::unpack(x, y, 2)
#undef _mm512_shuffle_ps
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_ps(x, y, order) plain_vectors::shuffle(x, y, order)
#define _mm512_shuffle_f32x4(x, y, order) plain_vectors::shuffle_groups(x, y, order)
