// Linear maps of features under many dropout masks, on the CPU. With many outputs, tiles of masked features go through
// BLAS.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../signatures.h"
#include "blas.h"
#include "dropout_rows.h"

namespace dadl::cpu {
namespace {

constexpr int64_t kTileElements = 1 << 18;  // masked features in a tile, which fits a core's L2 cache
constexpr int64_t kTileColumns = 256;       // columns in a tile of the gradients

// ---- few outputs ----

template <typename A>
void predict_rows(const Linear<A>& linear, int64_t begin, int64_t end, A* result /* [K, B, C] */) {
  const int64_t outputs = linear.outputs;
  RowScratch<A> scratch(linear);
  for (int64_t row = begin; row < end; ++row) {
    predict_row(linear, row, scratch.values.data(), scratch.masks.data(), scratch.result.data());
    for (int64_t k = 0; k < linear.members; ++k) {
      std::copy_n(scratch.result.data() + k * outputs, outputs, result + (k * linear.rows + row) * outputs);
    }
  }
}

template <typename A>
void add_rows_gradients(const Linear<A>& linear, int64_t begin, int64_t end, const A* upstream /* [K, B, C] */,
                        A* for_features, A* for_weight) {
  const int64_t outputs = linear.outputs, words = linear.padded / kLanes;
  RowScratch<A> scratch(linear);
  for (int64_t row = begin; row < end; ++row) {
    load(linear, row, 0, linear.width, scratch.values.data());
    for (int64_t k = 0; k < linear.members; ++k) {
      draw(linear.dropout, k, row, 0, linear.padded / kGroup, scratch.masks.data() + k * words);
      std::copy_n(upstream + (k * linear.rows + row) * outputs, outputs, scratch.upstream.data() + k * outputs);
    }
    add_row_gradients(linear, scratch.values.data(), scratch.masks.data(), scratch.upstream.data(),
                      for_features ? for_features + row * linear.width : nullptr, for_weight);
  }
}

// ---- many outputs ----

// tile [count, columns] = masked and scaled features; its row i belongs to member (first + i) / B and row (first + i) %
// B. for_features [B, F] += mask * scale * back, where back [count, columns] is the upstream gradients times the
// weight. Columns are whole groups. tile and for_features may be null.
template <typename A>
void mask_tile(const Linear<A>& linear, int64_t first, int64_t count, int64_t column, int64_t columns, const A* back,
               A* tile, A* for_features) {
  const A scale = static_cast<A>(linear.dropout.scale());
  std::vector<uint16_t> bits(columns / kLanes);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t member = (first + i) / linear.rows, row = (first + i) % linear.rows;
    draw(linear.dropout, member, row, column / kGroup, columns / kGroup, bits.data());
    for (int64_t f = column; f < column + columns; f += kGroup) {
      A keep[kGroup];
      expand(bits.data() + (f - column) / kLanes, keep);
      for (int64_t e = 0; e < kGroup; ++e) keep[e] *= scale;
      const int64_t width = std::min(kGroup, linear.width - f), at = i * columns + f - column;
      if (for_features) {
        A* out = for_features + row * linear.width + f;
        for (int64_t e = 0; e < width; ++e) out[e] += keep[e] * back[at + e];
      }
      if (tile) {
        load(linear, row, f, width, tile + at);
        for (int64_t e = 0; e < width; ++e) tile[at + e] *= keep[e];
        for (int64_t e = width; e < kGroup; ++e) tile[at + e] = 0;
      }
    }
  }
}

// target_clones does not work on templates, so each type has its own functions.
#define DADL_DROPOUT(A)                                                                                         \
  DADL_CLONES void predict(const Linear<A>& linear, int64_t begin, int64_t end, A* result) {                    \
    predict_rows(linear, begin, end, result);                                                                   \
  }                                                                                                             \
  DADL_CLONES void add_gradients(const Linear<A>& linear, int64_t begin, int64_t end, const A* upstream,        \
                                 A* for_features, A* for_weight) {                                              \
    add_rows_gradients(linear, begin, end, upstream, for_features, for_weight);                                 \
  }                                                                                                             \
  DADL_CLONES void mask(const Linear<A>& linear, int64_t first, int64_t count, int64_t column, int64_t columns, \
                        const A* back, A* tile, A* for_features) {                                              \
    mask_tile(linear, first, count, column, columns, back, tile, for_features);                                 \
  }
DADL_DROPOUT(float)
DADL_DROPOUT(double)
#undef DADL_DROPOUT

// Sets result [K, B, C]. `owner` is a tensor of its device and dtype.
template <typename A>
void predict_many_outputs(const Linear<A>& linear, const Tensor& owner, A* result) {
  const int64_t outputs = linear.outputs, padded = linear.padded, all = linear.members * linear.rows;
  const int64_t size = std::clamp<int64_t>(kTileElements / padded, 16, 512);
  torch::stable::parallel_for(0, (all + size - 1) / size, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<A[]> tile(new A[size * padded]);
    for (int64_t first = begin * size; first < std::min(end * size, all); first += size) {
      const int64_t count = std::min(size, all - first);
      mask(linear, first, count, 0, padded, nullptr, tile.get(), nullptr);
      A* to = result + first * outputs;
      for (int64_t i = 0; i < count; ++i) {
        if (linear.bias) {
          std::copy_n(linear.bias, outputs, to + i * outputs);
        } else {
          std::fill_n(to + i * outputs, outputs, A{0});
        }
      }
      add_product(matrix_view(owner, tile.get(), count, padded, padded, 1),
                  matrix_view(owner, linear.weight, padded, outputs, 1, padded), 1.0, 1.0,
                  matrix_view(owner, to, count, outputs, outputs, 1));
    }
  });
}

// Sets the gradients [B, F] and [C, F] for the upstream gradients [K, B, C]. Each may be null.
template <typename A>
void few_outputs_gradients(const Linear<A>& linear, const A* upstream, A* for_features, A* for_weight) {
  const int64_t rows = linear.rows, outputs = linear.outputs, padded = linear.padded;
  const Chunks chunks(rows, linear.members * padded);
  std::vector<A> parts(for_weight ? chunks.count * outputs * padded : 0);
  torch::stable::parallel_for(0, chunks.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      add_gradients(linear, chunk * chunks.size, std::min((chunk + 1) * chunks.size, rows), upstream, for_features,
                    for_weight ? parts.data() + chunk * outputs * padded : nullptr);
    }
  });
  if (for_weight) add_chunks(parts, chunks.count, outputs, padded, linear.width, A{1}, for_weight);
}

template <typename A>
void many_outputs_gradients(const Linear<A>& linear, const Tensor& owner, const A* upstream, A* for_features,
                            A* for_weight) {
  const int64_t rows = linear.rows, outputs = linear.outputs, padded = linear.padded, all = linear.members * rows;
  const int64_t tiles = (padded + kTileColumns - 1) / kTileColumns;
  const int64_t size = std::clamp<int64_t>(kTileElements / kTileColumns / 2, 16, std::max<int64_t>(all, 16));
  if (for_features) std::fill_n(for_features, rows * linear.width, A{0});
  std::vector<A> padded_gradient(for_weight ? outputs * padded : 0);
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<A[]> tile(new A[for_weight ? size * kTileColumns : 0]),
        back(new A[for_features ? size * kTileColumns : 0]);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t column = t * kTileColumns, columns = std::min(kTileColumns, padded - column);
      for (int64_t first = 0; first < all; first += size) {
        const int64_t count = std::min(size, all - first);
        if (for_features) {
          add_product(matrix_view(owner, upstream + first * outputs, count, outputs, outputs, 1),
                      matrix_view(owner, linear.weight + column, outputs, columns, padded, 1), 1.0, 0.0,
                      matrix_view(owner, back.get(), count, columns, columns, 1));
        }
        mask(linear, first, count, column, columns, back.get(), for_weight ? tile.get() : nullptr, for_features);
        if (for_weight) {
          add_product(matrix_view(owner, upstream + first * outputs, outputs, count, 1, outputs),
                      matrix_view(owner, tile.get(), count, columns, columns, 1), 1.0, first == 0 ? 0.0 : 1.0,
                      matrix_view(owner, padded_gradient.data() + column, outputs, columns, padded, 1));
        }
      }
    }
  });
  if (for_weight) add_chunks(padded_gradient, 1, outputs, padded, linear.width, A{1}, for_weight);
}

Tensor dropout_linear(Tensor features, Tensor weight, std::optional<Tensor> bias, Tensor seed, double p,
                      int64_t samples) {
  check_dropout(features, weight, bias, seed, samples);
  Tensor result;
  with_linear(features, weight, bias, seed, p, samples, [&](const auto& linear, auto tag) {
    using A = decltype(tag);
    const int64_t rows = linear.rows, outputs = linear.outputs, padded = linear.padded;
    result = new_empty(features, {samples, rows, outputs}, arithmetic_type(features));
    A* out = mutable_data<A>(result);
    if (outputs <= kFewOutputs) {
      torch::stable::parallel_for(0, rows, grain_rows(samples * padded),
                                  [&](int64_t begin, int64_t end) { predict(linear, begin, end, out); });
      return;
    }
    predict_many_outputs(linear, new_empty(features, {0}, arithmetic_type(features)), out);
  });
  return as_contiguous(result, features.scalar_type());
}

std::tuple<Tensor, Tensor> dropout_linear_backward(Tensor grad, Tensor features, Tensor weight, Tensor seed, double p,
                                                   bool for_features, bool for_weight) {
  check_dropout_backward(grad, features, weight, seed);
  const ScalarType arithmetic = arithmetic_type(features);
  const Tensor upstream = as_contiguous(grad, arithmetic);
  const int64_t members = grad.size(0);
  Tensor features_gradient, weight_gradient;
  with_linear(features, weight, {}, seed, p, members, [&](const auto& linear, auto tag) {
    using A = decltype(tag);
    const int64_t rows = linear.rows, width = linear.width, outputs = linear.outputs;
    features_gradient = new_empty(features, {for_features ? rows : 0, width}, arithmetic);
    weight_gradient = new_empty(features, {for_weight ? outputs : 0, width}, arithmetic);
    A* to_features = for_features ? mutable_data<A>(features_gradient) : nullptr;
    A* to_weight = for_weight ? mutable_data<A>(weight_gradient) : nullptr;
    if (outputs <= kFewOutputs) {
      few_outputs_gradients(linear, data<A>(upstream), to_features, to_weight);
    } else {
      many_outputs_gradients(linear, new_empty(features, {0}, arithmetic), data<A>(upstream), to_features, to_weight);
    }
  });
  return {as_contiguous(features_gradient, features.scalar_type()),
          as_contiguous(weight_gradient, weight.scalar_type())};
}

}  // namespace
}  // namespace dadl::cpu

DADL_LIBRARY_IMPL(CPU, m) {
  DADL_IMPL(m, dadl::cpu, dropout_linear);
  DADL_IMPL(m, dadl::cpu, dropout_linear_backward);
}
