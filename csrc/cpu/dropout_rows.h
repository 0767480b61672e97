// Linear maps of features under many dropout masks: the features, the masks, and the rows of few outputs.
//
// Masks are drawn where they are needed, for 128 features at a time, and kept for a row or a tile at most. With few
// outputs a row is read once for all members.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "../dropout_checks.h"
#include "common.h"
#include "dropout_masks.h"

namespace dadl::cpu {

constexpr int64_t kMostChunks = 16;  // chunks of rows, each with its own weight gradient

// Features [B, F] of their own type; weight [C, padded F] in the arithmetic type, padded with zeros.
template <typename A>
struct Linear {
  const void* features;
  ScalarType type;
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

// values = the features [first, first + count) of a row.
template <typename A>
void load(const Linear<A>& linear, int64_t row, int64_t first, int64_t count, A* values) {
  const auto convert = [&](auto tag) {
    const auto* source = static_cast<const decltype(tag)*>(linear.features) + row * linear.width + first;
    for (int64_t f = 0; f < count; ++f) values[f] = static_cast<A>(to_float(source[f]));
  };
  if constexpr (std::is_same_v<A, double>) return convert(double{});
  if (linear.type == ScalarType::Half) return convert(Half{});
  if (linear.type == ScalarType::BFloat16) return convert(BFloat16{});
  convert(float{});
}

// Draws the masks [K][padded F / 16] of a row and forms its predictions [K][C].
template <typename A>
void predict_row(const Linear<A>& linear, int64_t row, A* values, uint16_t* masks, A* result) {
  const int64_t groups = linear.padded / kGroup, outputs = linear.outputs;
  const A scale = static_cast<A>(linear.dropout.scale());
  load(linear, row, 0, linear.width, values);
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
template <typename A>
void add_row_gradients(const Linear<A>& linear, const A* values, const uint16_t* masks, const A* upstream,
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
template <typename A>
struct RowScratch {
  explicit RowScratch(const Linear<A>& linear)
      : values(linear.padded),
        result(linear.members * linear.outputs),
        upstream(linear.members * linear.outputs),
        masks(linear.members * linear.padded / kLanes) {}

  std::vector<A> values, result, upstream;
  std::vector<uint16_t> masks;
};

// Calls body(Linear<A>, A{}) with contiguous memory.
template <typename Body>
void with_linear(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& seed,
                 double p, int64_t samples, Body body) {
  const ScalarType arithmetic = arithmetic_type(features);
  const Tensor values = as_contiguous(features), wide = as_contiguous(weight, arithmetic);
  std::optional<Tensor> wide_bias;
  if (bias) wide_bias = as_contiguous(*bias, arithmetic);
  const Dropout dropout{philox_key(*data<int64_t>(seed)), dropout_threshold(p)};
  const int64_t rows = features.size(0), width = features.size(1), outputs = weight.size(0);
  const auto call = [&](auto tag) {
    using A = decltype(tag);
    const std::vector<A> padded = padded_weight(data<A>(wide), outputs, width);
    body(Linear<A>{values.const_data_ptr(), values.scalar_type(), padded.data(),
                   wide_bias ? data<A>(*wide_bias) : nullptr, rows, width, padded_features(width), outputs, samples,
                   dropout},
         tag);
  };
  arithmetic == ScalarType::Double ? call(double{}) : call(float{});
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

}  // namespace dadl::cpu
