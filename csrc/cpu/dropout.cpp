// Linear maps of features under many dropout masks, and the disagreement of their results, on the CPU.
//
// Masks are drawn where they are needed, for 128 features at a time, and kept for a row or a tile at most. With few
// outputs a row is read once for all members. With many, tiles of masked features go through BLAS.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../disagreement_checks.h"
#include "../dropout_checks.h"
#include "../signatures.h"
#include "blas.h"
#include "common.h"
#include "disagreement_rows.h"
#include "dropout_masks.h"

namespace dadl::cpu {
namespace {

constexpr int64_t kTileElements = 1 << 18;  // masked features in a tile, which fits a core's L2 cache
constexpr int64_t kTileColumns = 256;       // columns in a tile of the gradients
constexpr int64_t kMostChunks = 16;         // chunks of rows, each with its own weight gradient

// Features [B, F] in their own type; weight [C, padded F] in the arithmetic type, padded with zeros.
template <typename T, typename A = typename Storage<T>::Arithmetic>
struct Linear {
  const T* features;
  const A *weight, *bias;  // bias may be null
  int64_t rows, width, padded, outputs, members;
  Dropout dropout;
};

template <typename A>
std::vector<A> padded_weight(const A* weight, int64_t outputs, int64_t width) {
  const int64_t padded = padded_features(width);
  std::vector<A> result(outputs * padded);
  for (int64_t c = 0; c < outputs; ++c) std::copy_n(weight + c * width, width, result.data() + c * padded);
  return result;
}

template <typename T, typename A>
void load_row(const Linear<T>& linear, int64_t row, A* values) {
  const T* source = linear.features + row * linear.width;
  for (int64_t f = 0; f < linear.width; ++f) values[f] = static_cast<A>(to_float(source[f]));
}

// ---- few outputs ----

// Draws the masks [K][padded F / 16] of a row and forms its predictions [K][C].
template <typename T, typename A>
void predict_row(const Linear<T>& linear, int64_t row, A* values, uint16_t* masks, A* result) {
  const int64_t groups = linear.padded / kGroup, outputs = linear.outputs;
  const A scale = static_cast<A>(linear.dropout.scale());
  load_row(linear, row, values);
  for (int64_t k = 0; k < linear.members; ++k) {
    uint16_t* bits = masks + k * groups * (kGroup / kLanes);
    draw(linear.dropout, k, row, 0, groups, bits);
    // Two alternating sums for each output, so that an addition does not wait for the previous one.
    A sums[kFewOutputs][2 * kLanes] = {};
    for (int64_t group = 0; group < groups; ++group, bits += kGroup / kLanes) {
      const A* x = values + group * kGroup;
      A keep[kGroup];
      expand(bits, keep);
      for (int64_t e = 0; e < kGroup; ++e) keep[e] *= x[e];
      for (int64_t c = 0; c < outputs; ++c) {
        const A* w = linear.weight + c * linear.padded + group * kGroup;
        for (int64_t e = 0; e < kGroup; e += 2 * kLanes) {
          for (int64_t l = 0; l < 2 * kLanes; ++l) sums[c][l] += keep[e + l] * w[e + l];
        }
      }
    }
    for (int64_t c = 0; c < outputs; ++c) {
      const A total = sum_over<A>(2 * kLanes, [&](int64_t l) { return sums[c][l]; });
      result[k * outputs + c] = total * scale + (linear.bias ? linear.bias[c] : A{0});
    }
  }
}

// From upstream [K][C]: sets the gradient for_features [F] of the row, and adds the row's part to the gradient
// for_weight [C][padded F]. Each may be null.
template <typename T, typename A>
void add_row_gradients(const Linear<T>& linear, const A* values, const uint16_t* masks, const A* upstream,
                       A* for_features, A* for_weight) {
  const int64_t outputs = linear.outputs, words = linear.padded / kLanes;
  const A scale = static_cast<A>(linear.dropout.scale());
  for (int64_t first = 0; first < linear.padded; first += kGroup) {
    A sums[kFewOutputs][kGroup] = {}, total[kGroup] = {};
    for (int64_t k = 0; k < linear.members; ++k) {
      A keep[kGroup];
      expand(masks + k * words + first / kLanes, keep);
      for (int64_t c = 0; c < outputs; ++c) {
        const A factor = upstream[k * outputs + c] * scale;
        for (int64_t e = 0; e < kGroup; ++e) sums[c][e] += keep[e] * factor;
      }
    }
    for (int64_t c = 0; c < outputs; ++c) {
      const A* w = linear.weight + c * linear.padded + first;
      for (int64_t e = 0; e < kGroup; ++e) total[e] += sums[c][e] * w[e];
      if (!for_weight) continue;
      A* out = for_weight + c * linear.padded + first;
      for (int64_t e = 0; e < kGroup; ++e) out[e] += sums[c][e] * values[first + e];
    }
    if (for_features) std::copy_n(total, std::min(kGroup, linear.width - first), for_features + first);
  }
}

// The working memory for one row.
template <typename T, typename A>
struct RowScratch {
  explicit RowScratch(const Linear<T>& linear)
      : values(linear.padded),
        result(linear.members * linear.outputs),
        upstream(linear.members * linear.outputs),
        masks(linear.members * linear.padded / kLanes) {}

  std::vector<A> values, result, upstream;
  std::vector<uint16_t> masks;
};

template <typename T, typename A = typename Storage<T>::Arithmetic>
void predict_rows(const Linear<T>& linear, int64_t begin, int64_t end, A* result /* [K, B, C] */) {
  const int64_t outputs = linear.outputs;
  RowScratch<T, A> scratch(linear);
  for (int64_t row = begin; row < end; ++row) {
    predict_row(linear, row, scratch.values.data(), scratch.masks.data(), scratch.result.data());
    for (int64_t k = 0; k < linear.members; ++k) {
      std::copy_n(scratch.result.data() + k * outputs, outputs, result + (k * linear.rows + row) * outputs);
    }
  }
}

template <typename T, typename A = typename Storage<T>::Arithmetic>
void add_rows_gradients(const Linear<T>& linear, int64_t begin, int64_t end, const A* upstream /* [K, B, C] */,
                        A* for_features, A* for_weight) {
  const int64_t outputs = linear.outputs, words = linear.padded / kLanes;
  RowScratch<T, A> scratch(linear);
  for (int64_t row = begin; row < end; ++row) {
    load_row(linear, row, scratch.values.data());
    for (int64_t k = 0; k < linear.members; ++k) {
      draw(linear.dropout, k, row, 0, linear.padded / kGroup, scratch.masks.data() + k * words);
      std::copy_n(upstream + (k * linear.rows + row) * outputs, outputs, scratch.upstream.data() + k * outputs);
    }
    add_row_gradients(linear, scratch.values.data(), scratch.masks.data(), scratch.upstream.data(),
                      for_features ? for_features + row * linear.width : nullptr, for_weight);
  }
}

// Where the results of the fused operator go. The gradients are all wanted, or all null; those of the weight
// [C, padded F] and of the bias [C] are sums over rows.
template <typename A>
struct FusedResult {
  A *loss, *for_features, *for_weight, *for_bias;
};

template <typename T, typename A = typename Storage<T>::Arithmetic>
void disagree_rows(const Linear<T>& linear, Measure measure, A gain, int64_t begin, int64_t end,
                   const FusedResult<A>& out) {
  const int64_t members = linear.members, outputs = linear.outputs;
  const bool classes = is_over_classes(measure);
  RowScratch<T, A> scratch(linear);
  ClassScratch<A> class_scratch(members, outputs);
  A* upstream = scratch.upstream.data();
  const Members<A> predictions{scratch.result.data(), outputs, members};
  const Gradients<A> gradient{out.for_features ? upstream : nullptr, outputs};
  const A factor = classes ? gain : gain / static_cast<A>(outputs);
  for (int64_t row = begin; row < end; ++row) {
    predict_row(linear, row, scratch.values.data(), scratch.masks.data(), scratch.result.data());
    A total = 0;
    if (classes) {
      total = measure_classes(measure, predictions, outputs, gradient, class_scratch);
    } else {
      A part[kFewOutputs];
      measure_elements(measure, predictions, outputs, part, gradient, class_scratch.elements);
      for (int64_t c = 0; c < outputs; ++c) total += part[c];
    }
    out.loss[row] = factor * total;
    if (!gradient) continue;
    for (int64_t e = 0; e < members * outputs; ++e) {
      upstream[e] *= factor;
      out.for_bias[e % outputs] += upstream[e];
    }
    add_row_gradients(linear, scratch.values.data(), scratch.masks.data(), upstream,
                      out.for_features + row * linear.width, out.for_weight);
  }
}

// ---- many outputs ----

// tile [count, columns] = masked and scaled features; its row i belongs to member (first + i) / B and row (first + i) %
// B. for_features [B, F] += mask * scale * back, where back [count, columns] is the upstream gradients times the
// weight. Columns are whole groups. tile and for_features may be null.
template <typename T, typename A = typename Storage<T>::Arithmetic>
void mask_tile(const Linear<T>& linear, int64_t first, int64_t count, int64_t column, int64_t columns, const A* back,
               A* tile, A* for_features) {
  const A scale = static_cast<A>(linear.dropout.scale());
  std::vector<uint16_t> bits(columns / kLanes);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t member = (first + i) / linear.rows, row = (first + i) % linear.rows;
    const T* source = linear.features + row * linear.width;
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
        for (int64_t e = 0; e < width; ++e) tile[at + e] = keep[e] * static_cast<A>(to_float(source[f + e]));
        for (int64_t e = width; e < kGroup; ++e) tile[at + e] = 0;
      }
    }
  }
}

// target_clones does not work on templates, so each type has its own functions.
#define DADL_DROPOUT(T, A)                                                                                      \
  DADL_CLONES void predict(const Linear<T>& linear, int64_t begin, int64_t end, A* result) {                    \
    predict_rows<T>(linear, begin, end, result);                                                                \
  }                                                                                                             \
  DADL_CLONES void add_gradients(const Linear<T>& linear, int64_t begin, int64_t end, const A* upstream,        \
                                 A* for_features, A* for_weight) {                                              \
    add_rows_gradients<T>(linear, begin, end, upstream, for_features, for_weight);                              \
  }                                                                                                             \
  DADL_CLONES void disagree(const Linear<T>& linear, Measure measure, A gain, int64_t begin, int64_t end,       \
                            const FusedResult<A>& out) {                                                        \
    disagree_rows<T>(linear, measure, gain, begin, end, out);                                                   \
  }                                                                                                             \
  DADL_CLONES void mask(const Linear<T>& linear, int64_t first, int64_t count, int64_t column, int64_t columns, \
                        const A* back, A* tile, A* for_features) {                                              \
    mask_tile<T>(linear, first, count, column, columns, back, tile, for_features);                              \
  }
DADL_DROPOUT(float, float)
DADL_DROPOUT(double, double)
DADL_DROPOUT(Half, float)
DADL_DROPOUT(BFloat16, float)
#undef DADL_DROPOUT

// ---- operators ----

// Calls body(Linear<T>, A{}) with contiguous memory.
template <typename Body>
void with_linear(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& seed,
                 double p, int64_t samples, Body body) {
  const ScalarType arithmetic = arithmetic_type(features);
  const Tensor values = as_contiguous(features), wide = as_contiguous(weight, arithmetic);
  std::optional<Tensor> wide_bias;
  if (bias) wide_bias = as_contiguous(*bias, arithmetic);
  const Dropout dropout{philox_key(*data<int64_t>(seed)), dropout_threshold(p)};
  const int64_t rows = features.size(0), width = features.size(1), outputs = weight.size(0);
  dispatch_floating(values, "features", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    const std::vector<A> padded = padded_weight(data<A>(wide), outputs, width);
    body(Linear<T>{data<T>(values), padded.data(), wide_bias ? data<A>(*wide_bias) : nullptr, rows, width,
                   padded_features(width), outputs, samples, dropout},
         A{});
  });
}

// Chunks of rows. They depend on shapes alone, and their sums are added in order, so results do not depend on threads.
struct Chunks {
  int64_t size, count;

  Chunks(int64_t rows, int64_t row_work)
      : size(std::max((rows + kMostChunks - 1) / kMostChunks, grain_rows(row_work))),
        count((rows + size - 1) / std::max<int64_t>(size, 1)) {}
};

template <typename A>
void add_chunks(const std::vector<A>& parts, int64_t count, int64_t outputs, int64_t padded, int64_t width, A sign,
                A* result) {
  for (int64_t c = 0; c < outputs; ++c) {
    for (int64_t f = 0; f < width; ++f) result[c * width + f] = 0;
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      const A* part = parts.data() + (chunk * outputs + c) * padded;
      for (int64_t f = 0; f < width; ++f) result[c * width + f] += sign * part[f];
    }
  }
}

// Sets result [K, B, C]. `owner` is a tensor of its device and dtype.
template <typename T, typename A>
void predict_many_outputs(const Linear<T>& linear, const Tensor& owner, A* result) {
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
template <typename T, typename A>
void few_outputs_gradients(const Linear<T>& linear, const A* upstream, A* for_features, A* for_weight) {
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

template <typename T, typename A>
void many_outputs_gradients(const Linear<T>& linear, const Tensor& owner, const A* upstream, A* for_features,
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

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_disagreement(Tensor features, Tensor weight,
                                                                std::optional<Tensor> bias, Tensor seed, double p,
                                                                int64_t samples, int64_t measure_number, bool mean,
                                                                bool minimax, bool with_gradient) {
  const Measure measure = checked_measure(measure_number);
  check_dropout(features, weight, bias, seed, samples);
  check_few_outputs(weight);
  const ScalarType arithmetic = arithmetic_type(features);
  Tensor loss, features_gradient, weight_gradient, bias_gradient;
  with_linear(features, weight, bias, seed, p, samples, [&](const auto& linear, auto tag) {
    using A = decltype(tag);
    const int64_t rows = linear.rows, width = linear.width, outputs = linear.outputs, padded = linear.padded;
    loss = new_empty(features, {rows}, arithmetic);
    features_gradient = new_empty(features, {with_gradient ? rows : 0, width}, arithmetic);
    weight_gradient = new_empty(features, {with_gradient ? outputs : 0, width}, arithmetic);
    bias_gradient = new_empty(features, {with_gradient ? outputs : 0}, arithmetic);
    const Chunks chunks(rows, samples * padded);
    std::vector<A> weight_parts(with_gradient ? chunks.count * outputs * padded : 0);
    std::vector<A> bias_parts(chunks.count * outputs);
    const A gain = mean ? 1 / static_cast<A>(std::max<int64_t>(rows, 1)) : A{1};
    torch::stable::parallel_for(0, chunks.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        disagree(linear, measure, gain, chunk * chunks.size, std::min((chunk + 1) * chunks.size, rows),
                 {mutable_data<A>(loss), with_gradient ? mutable_data<A>(features_gradient) : nullptr,
                  with_gradient ? weight_parts.data() + chunk * outputs * padded : nullptr,
                  bias_parts.data() + chunk * outputs});
      }
    });
    if (!with_gradient) return;
    const A sign = minimax ? A{-1} : A{1};
    add_chunks(weight_parts, chunks.count, outputs, padded, width, sign, mutable_data<A>(weight_gradient));
    add_chunks(bias_parts, chunks.count, outputs, 1, 1, sign, mutable_data<A>(bias_gradient));
  });
  return {loss, features_gradient, weight_gradient, bias_gradient};
}

}  // namespace
}  // namespace dadl::cpu

STABLE_TORCH_LIBRARY_IMPL(dadl, CPU, m) {
  DADL_IMPL(m, dadl::cpu, dropout_linear);
  DADL_IMPL(m, dadl::cpu, dropout_linear_backward);
  DADL_IMPL(m, dadl::cpu, dropout_disagreement);
}
