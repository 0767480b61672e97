// A tile of keys and its logits on the matrix units: float32 arithmetic, queries in lanes, 32 at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../core/exponential.h"
#include "contrast_keys.h"
#include "matrix_units.h"

#ifdef DADL_MATRIX_UNITS
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own intrinsics
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,amx-tile,amx-bf16,avx512bf16,prefer-vector-width=512")

namespace dadl::cpu::matrix_units {

// logits [keys, 32] become exp(logit - largest); sums and largest are updated, `rescale` is what earlier sums are
// multiplied with.
inline void exponentiate_columns(float* logits, float* largest, float* sum, float* rescale, int64_t keys) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  float next[kBlock], base[kBlock], total[kBlock] = {};
  std::copy_n(largest, kBlock, next);
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t l = 0; l < kBlock; ++l) {
      const float logit = logits[j * kBlock + l];
      next[l] = logit > next[l] ? logit : next[l];
    }
  }
  for (int64_t l = 0; l < kBlock; ++l) base[l] = next[l] == kNothing ? 0 : next[l];
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t l = 0; l < kBlock; ++l) {
      const float weight = exp_nonpositive(logits[j * kBlock + l] - base[l]);
      logits[j * kBlock + l] = weight;
      total[l] += weight;
    }
  }
  for (int64_t l = 0; l < kBlock; ++l) {
    rescale[l] = largest[l] == kNothing ? 0 : exp_nonpositive(largest[l] - base[l]);
    sum[l] = sum[l] * rescale[l] + total[l];
    largest[l] = next[l];
  }
}

// logits [keys, 32] become factor exp(logit - base)
inline void weigh_columns(float* logits, const float* base, const float* factor, int64_t keys) {
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t l = 0; l < kBlock; ++l) {
      // Rounding can put a logit above the log-sum-exp by a hair.
      const float x = logits[j * kBlock + l] - base[l];
      logits[j * kBlock + l] = factor[l] * exp_nonpositive(x > 0 ? 0.0f : x);
    }
  }
}

// The queries times the scale, padded with zeros to whole blocks.
class Query {
 public:
  Query(const Tensor& query, double scale, bool for_key_gradient)
      : count(query.size(0)),
        padded((count + kBlock - 1) / kBlock * kBlock),
        depth(tiles_along(query.size(1))),
        width(depth * kSide) {
    const int64_t d = query.size(1);
    const float* values = data<float>(query);
    const int64_t blocks = padded / kSide;
    crossed_.reset(new Tile[blocks * depth * kCrossed]);
    if (for_key_gradient) plain_.reset(new Tile[blocks * depth * kPlain]);
    torch::stable::parallel_for(0, blocks, grain_rows(kSide * d), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kSide, rows = std::clamp<int64_t>(count - first, 0, kSide);
        std::vector<float> scaled(kSide * d);
        for (int64_t e = 0; e < rows * d; ++e) scaled[e] = values[first * d + e] * static_cast<float>(scale);
        pack<kCrossed, true>(scaled.data(), d, kSide, d, depth, crossed_.get() + block * depth * kCrossed);
        if (plain_) pack<kPlain, false>(scaled.data(), d, kSide, d, depth, plain_.get() + block * depth * kPlain);
      }
    });
  }

  Factor crossed(int64_t first) const {
    return {crossed_.get() + first / kSide * depth * kCrossed, depth * kCrossed, kCrossed};
  }
  Factor plain(int64_t column) const { return {plain_.get() + column / kSide * kPlain, kPlain, depth * kPlain}; }

  // The weighted sums lie in blocks of 32 x 32: in rows, their lines would meet in few sets of the cache.
  static constexpr int64_t kSegment = kBlock;
  int64_t offset(int64_t row, int64_t column) const {
    return row / kBlock * kBlock * width + column / kBlock * kBlock * kBlock + row % kBlock * kBlock;
  }

  const int64_t count, padded, depth, width;

 private:
  std::unique_ptr<Tile[]> crossed_, plain_;
};

template <typename T>
class KeyTile {
 public:
  using Query = matrix_units::Query;

  static int64_t size(int64_t, int64_t d) {
    constexpr int64_t kBytes = 1 << 19;  // of a tile's keys: they stay in a core's L2 cache
    const int64_t row = tiles_along(d) * kSide * kPlain * static_cast<int64_t>(sizeof(uint32_t));
    return std::clamp<int64_t>(kBytes / std::max<int64_t>(row, 1) / kBlock * kBlock, kBlock, 256);
  }

  KeyTile(const Query& query, const Keys<T>& keys, int64_t size)
      : query_(query),
        keys_(keys),
        tiles_(new Tile[tiles_along(size) * query.depth * kPlain]),
        weights_(new Tile[tiles_along(size) * 2 * kCrossed]),
        logits_(new Row[size]) {}

  void attend(int64_t first, int64_t last, const Softmax<float>& state, bool add) {
    load(first, last);
    const int64_t width = query_.width;
    for (int64_t q = 0; q < query_.padded; q += kBlock) {
      float rescale[kBlock];
      float* logits = multiply(q);
      exponentiate_columns(logits, state.largest + q, state.sum + q, rescale, count_);
      if (!state.weighted) continue;
      float* weighted = state.weighted + q * width;
      if (add && std::any_of(rescale, rescale + kBlock, [](float factor) { return factor != 1; })) {
        for (int64_t row = 0; row < width; ++row) {  // 32 for each block of columns
          const float factor = rescale[row % kBlock];
          for (int64_t e = 0; e < kBlock; ++e) weighted[row * kBlock + e] *= factor;
        }
      }
      pack<kCrossed, true>(logits, kBlock, count_, kBlock, 2, weights_.get());
      for (int64_t c = 0; c < width; c += kBlock) {
        product<true>({weights_.get(), kCrossed, 2 * kCrossed},
                      {tiles_.get() + c / kSide * kPlain, kPlain, query_.depth * kPlain}, (count_ + kSide - 1) / kSide,
                      weighted + c * kBlock, kBlock, kBlock, kBlock, add);
      }
    }
  }

  // gradient [N, d] = scale sum_i grad_i p_ij query_i
  void key_gradient(int64_t first, int64_t last, const float* lse, const float* grad, float* gradient) {
    load(first, last);
    for (int64_t q = 0; q < query_.padded; q += kBlock) {
      float base[kBlock] = {}, factor[kBlock] = {};
      for (int64_t l = 0; l < std::min(kBlock, query_.count - q); ++l) {
        if (lse[q + l] == -std::numeric_limits<float>::infinity()) continue;
        base[l] = lse[q + l];
        factor[l] = grad[q + l];
      }
      float* logits = multiply(q);
      weigh_columns(logits, base, factor, count_);
      pack<kCrossed, false>(logits, kBlock, count_, kBlock, 2, weights_.get());
      for (int64_t j = 0; j < count_; j += kBlock) {
        for (int64_t c = 0; c < keys_.d; c += kBlock) {
          Factor queries = query_.plain(c);
          queries.tiles += q / kSide * queries.sum_step;
          product<true>({weights_.get() + j / kSide * 2 * kCrossed, 2 * kCrossed, kCrossed}, queries, 2,
                        gradient + (first + j) * keys_.d + c, keys_.d, std::min(kBlock, count_ - j),
                        std::min(kBlock, keys_.d - c), q > 0);
        }
      }
    }
  }

 private:
  // Keys that do not take part become zeros: what they hold must not show, not even as 0 NaN.
  void load(int64_t first, int64_t last) {
    first_ = first;
    count_ = last - first;
    pack<kPlain, false>(keys_.values + first * keys_.d, keys_.d, count_, keys_.d, query_.depth, tiles_.get());
    for (int64_t j = 0; keys_.mask && j < count_; ++j) {
      if (keys_.mask[first + j]) continue;
      Tile* row = tiles_.get() + j / kSide * query_.depth * kPlain;
      for (int64_t t = 0; t < query_.depth * kPlain; ++t) std::fill_n(row[t].words[j % kSide], kSide, 0);
    }
  }

  // logits [keys, 32] of the queries from q on, -inf where a key does not take part
  float* multiply(int64_t q) {
    constexpr float kLeftOut = -std::numeric_limits<float>::infinity();
    float* logits = logits_[0].values;
    for (int64_t j = 0; j < count_; j += kBlock) {
      product<false>({tiles_.get() + j / kSide * query_.depth * kPlain, query_.depth * kPlain, kPlain},
                     query_.crossed(q), query_.depth, logits + j * kBlock, kBlock, std::min(kBlock, count_ - j), kBlock,
                     false);
    }
    for (int64_t j = 0; keys_.mask && j < count_; ++j) {
      if (!keys_.mask[first_ + j]) std::fill_n(logits + j * kBlock, kBlock, kLeftOut);
    }
    for (int64_t j = std::max(first_, q); keys_.exclude_self && j < std::min(first_ + count_, q + kBlock); ++j) {
      logits[(j - first_) * kBlock + j - q] = kLeftOut;
    }
    return logits;
  }

  struct alignas(64) Row {
    float values[kBlock];
  };

  const Query& query_;
  const Keys<T>& keys_;
  std::unique_ptr<Tile[]> tiles_, weights_;
  std::unique_ptr<Row[]> logits_;
  int64_t first_ = 0, count_ = 0;
  Registers registers_;
};

}  // namespace dadl::cpu::matrix_units

#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
