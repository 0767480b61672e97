// rank and rank_backward on the CPU.
#include <torch/csrc/stable/library.h>

#include "../core/order.h"
#include "../ranking_checks.h"
#include "../signatures.h"
#include "common.h"
#include "row_ranker.h"

namespace dadl::cpu {
namespace {

template <typename T, typename A = typename Storage<T>::Arithmetic>
void rank_rows(const T* input, A* output, int64_t n, int64_t begin, int64_t end) {
  RowRanker<A> ranker(n);
  std::vector<A> values(n);
  std::vector<int32_t> ranks(n);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < n; ++i) values[i] = to_float(input[row * n + i]);
    ranker.rank(values.data(), ranks.data());
    for (int64_t i = 0; i < n; ++i) output[row * n + i] = static_cast<A>(ranks[i]);
  }
}

// -(rank(x) - rank(x + strength * grad)) / (strength + 1e-8), row by row.
template <typename T, typename A = typename Storage<T>::Arithmetic>
void rank_backward_rows(const A* grad, const T* input, const A* input_ranks, T* output, A strength, A divisor,
                        int64_t n, int64_t begin, int64_t end) {
  RowRanker<A> ranker(n);
  std::vector<A> values(n);
  std::vector<int32_t> ranks(n);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * n;
    for (int64_t i = 0; i < n; ++i) values[i] = to_float(input[offset + i]) + strength * grad[offset + i];
    ranker.rank(values.data(), ranks.data());
    for (int64_t i = 0; i < n; ++i) {
      output[offset + i] = Storage<T>::round(-(input_ranks[offset + i] - static_cast<A>(ranks[i])) / divisor);
    }
  }
}

// target_clones does not work on templates, so each storage type has its own functions.
#define DADL_RANK_ROWS(T)                                                                                              \
  DADL_CLONES void rank_chunk(const T* input, Storage<T>::Arithmetic* output, int64_t n, int64_t begin, int64_t end) { \
    rank_rows<T>(input, output, n, begin, end);                                                                        \
  }                                                                                                                    \
  DADL_CLONES void rank_backward_chunk(                                                                                \
      const Storage<T>::Arithmetic* grad, const T* input, const Storage<T>::Arithmetic* ranks, T* output,              \
      Storage<T>::Arithmetic strength, Storage<T>::Arithmetic divisor, int64_t n, int64_t begin, int64_t end) {        \
    rank_backward_rows<T>(grad, input, ranks, output, strength, divisor, n, begin, end);                               \
  }
DADL_RANK_ROWS(float)
DADL_RANK_ROWS(double)
DADL_RANK_ROWS(Half)
DADL_RANK_ROWS(BFloat16)
#undef DADL_RANK_ROWS

Tensor rank(Tensor input, double /* interp_strength */) {
  const int64_t n = row_length(input);
  input = as_contiguous(input);
  Tensor output = new_empty(input, input.sizes(), arithmetic_type(input));
  const int64_t rows = n ? input.numel() / n : 0;
  dispatch_floating(input, "input", [&](auto tag) {
    using T = decltype(tag);
    const T* x = data<T>(input);
    auto* y = mutable_data<typename Storage<T>::Arithmetic>(output);
    torch::stable::parallel_for(0, rows, grain_rows(n),
                                [=](int64_t begin, int64_t end) { rank_chunk(x, y, n, begin, end); });
  });
  return output;
}

Tensor rank_backward(Tensor grad, Tensor input, Tensor ranks, double interp_strength) {
  const int64_t n = row_length(input);
  check_rank_backward(grad, input, ranks);
  grad = as_contiguous(grad);
  input = as_contiguous(input);
  ranks = as_contiguous(ranks);
  Tensor output = new_empty(input, input.sizes(), input.scalar_type());
  const int64_t rows = n ? input.numel() / n : 0;
  dispatch_floating(input, "input", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    const A *g = data<A>(grad), *r = data<A>(ranks);
    const T* x = data<T>(input);
    T* y = mutable_data<T>(output);
    const A strength = static_cast<A>(interp_strength), divisor = static_cast<A>(interp_strength + 1e-8);
    torch::stable::parallel_for(0, rows, grain_rows(n), [=](int64_t begin, int64_t end) {
      rank_backward_chunk(g, x, r, y, strength, divisor, n, begin, end);
    });
  });
  return output;
}

}  // namespace
}  // namespace dadl::cpu

DADL_LIBRARY_IMPL(CPU, m) {
  DADL_IMPL(m, dadl::cpu, rank);
  DADL_IMPL(m, dadl::cpu, rank_backward);
}
