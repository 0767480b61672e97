// Streaming of rows of any dtype and any number of features: the two products by the library, for chunks whose
// similarities stay in the cache, and a kernel of ours for what stands between them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "contrast_stream.cuh"

namespace dadl {

constexpr int64_t kProductColumns = 8192;             // streamed rows of a chunk
constexpr int64_t kProductBytes = int64_t{32} << 20;  // of a chunk's similarities

// target [count, d] = rows of the source from `first` on, zeros for absent ones.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    contrast_present_kernel(Rows<T> source, const A* bias, int first, int64_t size, T* target) {
  const int64_t i = element_index();
  if (i >= size) return;
  const int row = first + static_cast<int>(i / source.d);
  target[i] = bias[row] == minus_infinity<A>() ? T{} : source.values[int64_t{first} * source.d + i];
}

// The range of streamed rows that a chunk of similarities is of, and where its rows stand among the owned ones.
struct Chunk {
  int first_row, first_column, columns;
  bool opens, weigh;  // the first range of its rows; whether weights are wanted
};

// Of a row of similarities [columns]: weights relative to the largest logit so far, rounded to T, in a row of `width`
// values of T; `partials`, of one split, is brought up to date. One block per row.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads, 1)
    contrast_weigh_kernel(const A* similarities /* [rows, columns] */, T* weights /* [rows, columns], may be those */,
                          Logits<A> logits, Chunk chunk, Partials<A> partials) {
  DADL_SHARED(parts, A[kThreads / kWarp]);
  const int row = static_cast<int>(blockIdx.x), i = chunk.first_row + row, thread = static_cast<int>(threadIdx.x);
  const int64_t offset = static_cast<int64_t>(row) * chunk.columns;
  const auto logit = [&](int column) {
    const int j = chunk.first_column + column;
    const A bias = logits.bias ? logits.bias[j] : A{0};
    const bool absent = bias == minus_infinity<A>() || (logits.exclude_self && i == j);
    return absent ? minus_infinity<A>() : fma(similarities[offset + column], logits.scale, bias);
  };
  const A before = chunk.opens ? minus_infinity<A>() : partials.largest[i];
  A largest = before;
  for (int column = thread; column < chunk.columns; column += kThreads) largest = larger(largest, logit(column));
  largest = block_join(largest, parts, larger<A>);
  const A base = base_of(largest), keep = exp(before - base);
  A total = 0;
  for (int column = thread; column < chunk.columns; column += kThreads) {
    const A weight = exp(logit(column) - base);
    total += weight;
    if (!chunk.weigh) continue;
    const A sign = logits.sign ? logits.sign[chunk.first_column + column] : A{1};
    weights[offset + column] = Storage<T>::round(sign * weight);
  }
  total = block_join(total, parts, [](A a, A b) { return a + b; });
  if (chunk.weigh && !chunk.opens && keep != 1) {
    A* weighted = partials.weighted + static_cast<int64_t>(i) * partials.d;
    for (int c = thread; c < partials.d; c += kThreads) weighted[c] *= keep;
  }
  if (thread != 0) return;
  partials.largest[i] = largest;
  partials.sum[i] = (chunk.opens ? A{0} : partials.sum[i] * keep) + total;
}

// finish(partials) after streaming.
template <typename T, typename A, typename Backend, typename Finish>
void stream_products(Backend& backend, const Rows<T>& owned, const Rows<T>& streamed, const Logits<A>& logits,
                     bool with_weighted, Finish finish) {
  const int64_t n = owned.count, m = streamed.count, d = owned.d;
  auto statistics = backend.template buffer<A>(2 * n);
  auto weighted = backend.template buffer<A>(with_weighted ? n * d : 0);
  const Partials<A> partials{
      m > 0, owned.count, owned.d, statistics.data(), statistics.data() + n, with_weighted ? weighted.data() : nullptr};
  const int64_t columns = std::min(m, kProductColumns);
  const int64_t most_rows = kProductBytes / (std::max<int64_t>(columns, 1) * static_cast<int64_t>(sizeof(A)));
  const int64_t rows = std::clamp<int64_t>(most_rows, 1, n);
  constexpr bool kRounded = !std::is_same_v<T, A>;
  auto similarities = backend.template buffer<A>(rows * columns);
  auto rounded = backend.template buffer<T>(kRounded && with_weighted ? rows * columns : 0);
  auto present = backend.template buffer<T>(logits.bias ? columns * d : 0);
  T* weights = nullptr;
  if constexpr (kRounded) {
    weights = rounded.data();
  } else {
    weights = similarities.data();
  }
  for (int64_t column = 0; column < m; column += columns) {
    const int64_t width = std::min(columns, m - column);
    const T* chunk_values = streamed.row(column);
    if (logits.bias && d > 0) {
      backend.launch(contrast_present_kernel<T, A>, dim3(blocks_for(width * d, kThreads)), dim3(kThreads), streamed,
                     logits.bias, static_cast<int>(column), width * d, present.data());
      chunk_values = present.data();
    }
    for (int64_t row = 0; row < n; row += rows) {
      const int64_t height = std::min(rows, n - row);
      backend.multiply(Matrix<T>{owned.row(row), height, d, d, 1}, Matrix<T>{chunk_values, d, width, 1, d},
                       similarities.data(), width, false);
      const Chunk chunk{static_cast<int>(row), static_cast<int>(column), static_cast<int>(width), column == 0,
                        with_weighted};
      backend.launch(contrast_weigh_kernel<T, A>, dim3(static_cast<unsigned>(height)), dim3(kThreads),
                     similarities.data(), weights, logits, chunk, partials);
      if (!with_weighted) continue;
      backend.multiply(Matrix<T>{weights, height, width, width, 1}, Matrix<T>{chunk_values, width, d, d, 1},
                       weighted.data() + row * d, d, column > 0);
    }
  }
  finish(partials);
}

}  // namespace dadl
