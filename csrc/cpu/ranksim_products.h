// The two matrix products of RankSim: the Gram matrix X X^T, and the rank differences times the unit rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "matrix_units.h"
#include "products.h"
#include "ranksim_rows.h"

namespace dadl::cpu {

// inner = X X^T + beta inner, panel by panel up to the diagonal. A panel and its mirror image together are equal work
// for everyone; products within are single-threaded.
template <typename G>
void add_gram(const Tensor& x, double beta, const Tensor& inner) {
  const int64_t m = x.size(0), d = x.size(1), panel = panel_rows(m), panels = (m + panel - 1) / panel;
  const G* values = data<G>(x);
  const auto add_panel = [&](int64_t p) {
    const int64_t row = p * panel, rows = std::min(panel, m - row), columns = row + rows;
    add_product(matrix_view(x, values + row * d, rows, d, d, 1), matrix_view(x, values, d, columns, 1, d), 1.0, beta,
                matrix_view(inner, data<G>(inner) + row * m, rows, columns, m, 1));
  };
  torch::stable::parallel_for(0, (panels + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      add_panel(p);
      if (panels - 1 - p != p) add_panel(panels - 1 - p);
    }
  });
}

// Rows [begin, end) of target [m, d] = weights [m, m] X
template <typename A>
void weigh_rows(const Tensor& weights, const Tensor& x, A* target, int64_t begin, int64_t end) {
  const int64_t m = x.size(0), d = x.size(1);
  add_product(matrix_view(weights, data<A>(weights) + begin * m, end - begin, m, m, 1), x, 1.0, 0.0,
              matrix_view(x, target + begin * d, end - begin, d, d, 1));
}

// Whether the matrix units multiply the rank differences as words: twice one of them fits.
template <typename A>
bool words_are_quicker(int64_t m) {
#ifdef DADL_MATRIX_UNITS
  return std::is_same_v<A, float> && 64 <= m && m <= 1 << 14 && matrix_units::available();
#else
  return false;
#endif
}

#ifdef DADL_MATRIX_UNITS
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own intrinsics
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,amx-tile,amx-bf16,avx512bf16,prefer-vector-width=512")

// target [m, d] = words [m, m] X [m, d], row j of X times scale_j. The words lie in rows of `stride`.
inline void weigh_rows(const uint32_t* words, int64_t stride, const float* x, const float* scale, float* target,
                       int64_t m, int64_t d) {
  using namespace matrix_units;
  const int64_t blocks = (m + kSide - 1) / kSide;
  constexpr int64_t kWidth = 64, kDepth = kWidth / kSide;  // columns of X at a time, which stay in a core's L2 cache
  torch::stable::parallel_for(0, (d + kWidth - 1) / kWidth, 1, [&](int64_t begin, int64_t end) {
    const Registers registers;
    const std::unique_ptr<Tile[]> factor(new Tile[blocks * kDepth * AgainstWords::kParts]);
    const int64_t last = std::min(end * kWidth, d);
    for (int64_t first = begin * kWidth; first < last; first += kWidth) {
      const int64_t columns = std::min(kWidth, last - first);
      pack<AgainstWords, false>(
          x + first, d, m, columns, kDepth, [=](int64_t row) { return scale[row]; }, factor.get());
      for (int64_t i = 0; i < m; i += kBlock) {
        // Of the next columns, which lie too far apart for the processor to foresee.
        for (int64_t row = i; first + kWidth < last && row < std::min(i + kBlock, m); ++row) {
          for (int64_t c = 0; c < kWidth; c += kSide) _mm_prefetch(x + row * d + first + kWidth + c, _MM_HINT_T1);
        }
        for (int64_t c = 0; c < columns; c += kBlock) {
          product_of_words(
              words + i * stride, stride,
              {factor.get() + c / kSide * AgainstWords::kParts, AgainstWords::kParts, kDepth * AgainstWords::kParts},
              blocks, target + i * d + first + c, d, std::min(kBlock, m - i), std::min(kBlock, columns - c));
        }
      }
    }
  });
}

#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

}  // namespace dadl::cpu
