// A tile of keys and its logits on AMX, in float32 arithmetic. The queries are in lanes, 32 at a time.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../core/exponential.h"
#include "amx.h"
#include "contrast_keys.h"

#ifdef DADL_AMX
DADL_BEGIN_TARGET(DADL_AMX_TARGET)

namespace dadl::cpu::amx {

// exp_nonpositive() of 16 numbers, in half as many instructions.
inline __attribute__((always_inline)) __m512 exp_nonpositive(__m512 x) {
  const __m512 round = _mm512_set1_ps(12582912.0f);  // adding and subtracting 1.5 * 2^23 rounds to an integer
  const __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), round), round);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
  }
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLE_UQ), p, n);
}

// Turns the logits [keys, 32] of a block of queries into weights exp(logit - largest), packs the weights unless `tiles`
// is null, and updates the queries' largest logit and sum. Works piece by piece between the steps of another block's
// product, which is faster than all at once.
class Weighing {
 public:
  Weighing() = default;
  Weighing(float* logits, int64_t keys, float* largest, float* sum, Tile* tiles, int64_t steps)
      : logits_(logits),
        keys_(keys),
        pace_(maxima() + strips() * kPiecesOfStrip, steps),
        largest_(largest),
        sum_(sum),
        tiles_(tiles) {
    for (int h = 0; h < kHalves; ++h) {
      next_largest_[h] = _mm512_loadu_ps(largest + h * kSide);
      total_[h] = _mm512_setzero_ps();
    }
  }

  void step() {
    pace_.step([this](int64_t i) { piece(i); });
  }

  // Leaves the factor for the earlier sums of weighted keys in rescale [32].
  void finish(float* rescale) {
    pace_.finish([this](int64_t i) { piece(i); });
    for (int h = 0; h < kHalves; ++h) {
      const int64_t first = h * kSide;
      const __m512 factor = exp_nonpositive(_mm512_sub_ps(_mm512_loadu_ps(largest_ + first), base(h)));
      _mm512_storeu_ps(rescale + first, factor);
      _mm512_storeu_ps(sum_ + first, _mm512_fmadd_ps(_mm512_loadu_ps(sum_ + first), factor, total_[h]));
      _mm512_storeu_ps(largest_ + first, next_largest_[h]);
    }
  }

 private:
  static constexpr int kHalves = kBlock / kSide, kPiecesOfStrip = 1 + kHalves;

  int64_t maxima() const { return (keys_ + kBlock - 1) / kBlock; }
  int64_t strips() const { return (keys_ + kSide - 1) / kSide; }

  void piece(int64_t i) {
    if (i < maxima()) return find_largest(i * kBlock);
    i -= maxima();
    const int64_t strip = i / kPiecesOfStrip * kSide, kind = i % kPiecesOfStrip;
    kind ? pack_strip(strip, kind - 1) : exponentiate_strip(strip);
  }

  __m512 base(int half) const {
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(next_largest_[half], nothing, _CMP_NEQ_UQ), next_largest_[half]);
  }

  void find_largest(int64_t first) {
    for (int64_t j = first; j < std::min(first + kBlock, keys_); ++j) {
      for (int h = 0; h < kHalves; ++h) {
        // NaN loses here, but shows in the sum.
        next_largest_[h] = _mm512_max_ps(_mm512_load_ps(logits_ + j * kBlock + h * kSide), next_largest_[h]);
      }
    }
  }

  void exponentiate_strip(int64_t first) {
    for (int64_t j = first; j < std::min(first + kSide, keys_); ++j) {
      for (int h = 0; h < kHalves; ++h) {
        float* logit = logits_ + j * kBlock + h * kSide;
        const __m512 weight = exp_nonpositive(_mm512_sub_ps(_mm512_load_ps(logit), base(h)));
        _mm512_store_ps(logit, weight);
        total_[h] = _mm512_add_ps(total_[h], weight);
      }
    }
  }

  void pack_strip(int64_t first, int64_t half) {
    if (!tiles_) return;
    pack_tile<kCrossed, true>(logits_ + first * kBlock + half * kSide, kBlock, keys_ - first, kSide,
                              tiles_ + (first / kSide * kHalves + half) * kCrossed);
  }

  float* logits_ = nullptr;
  int64_t keys_ = 0;
  Pace pace_;
  float *largest_ = nullptr, *sum_ = nullptr;
  Tile* tiles_ = nullptr;
  __m512 next_largest_[kHalves], total_[kHalves];
};

// Turns logits [keys, 32] into factor exp(logit - base).
inline void weigh_columns(float* logits, const float* base, const float* factor, int64_t keys) {
  for (int64_t first = 0; first < kBlock; first += kSide) {
    const __m512 bases = _mm512_loadu_ps(base + first), factors = _mm512_loadu_ps(factor + first);
    for (int64_t j = 0; j < keys; ++j) {
      float* logit = logits + j * kBlock + first;
      // Rounding can leave a logit slightly above the log-sum-exp.
      const __m512 x = _mm512_min_ps(_mm512_setzero_ps(), _mm512_sub_ps(_mm512_load_ps(logit), bases));
      _mm512_store_ps(logit, _mm512_mul_ps(factors, exp_nonpositive(x)));
    }
  }
}

// The queries times the scale, padded with zeros to whole blocks.
class Query {
 public:
  Query(const Tensor& query, double scale, bool for_key_gradient)
      : count(query.size(0)),
        d(query.size(1)),
        padded((count + kBlock - 1) / kBlock * kBlock),
        depth(tiles_along(d)),
        width(depth * kSide),
        tiles_(padded / kSide * depth),
        values_(data<float>(query)),
        scale_(static_cast<float>(scale)),
        for_key_gradient_(for_key_gradient) {
    constexpr int64_t kMostCopied = 512;  // tiles
    if (own_tiles() <= kMostCopied) return;
    shared_.reset(new Tile[own_tiles()]);
    prepare(shared_.get());
  }

  // Many queries are packed once for all tasks. Few are packed by every task into its own_tiles(), because fetching
  // what another core has written takes longer.
  int64_t own_tiles() const { return crossed_ ? 0 : tiles_ * (kCrossed + (for_key_gradient_ ? kPlain : 0)); }

  void prepare(Tile* memory) {
    if (crossed_) return;
    crossed_ = memory;
    plain_ = memory + tiles_ * kCrossed;
    torch::stable::parallel_for(0, padded / kSide, grain_rows(kSide * d), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kSide, rows = std::clamp<int64_t>(count - first, 0, kSide);
        std::vector<float> scaled(kSide * d);
        for (int64_t e = 0; e < rows * d; ++e) scaled[e] = values_[first * d + e] * scale_;
        pack<kCrossed, true>(scaled.data(), d, kSide, d, depth, crossed_ + block * depth * kCrossed);
        if (for_key_gradient_) {
          pack<kPlain, false>(scaled.data(), d, kSide, d, depth, plain_ + block * depth * kPlain);
        }
      }
    });
  }

  // The product of a query and a key, without parts.
  template <typename T>
  float logit(int64_t row, const T* key) const {
    return sum_over<float>(d, [&](int64_t e) { return values_[row * d + e] * scale_ * to_float(key[e]); });
  }

  Factor crossed(int64_t first) const {
    return {crossed_ + first / kSide * depth * kCrossed, depth * kCrossed, kCrossed};
  }
  Factor plain(int64_t column) const { return {plain_ + column / kSide * kPlain, kPlain, depth * kPlain}; }

  // target [d] += factor times a row of the weighted sums. The sums lie in blocks of 32 x 32: as plain rows they would
  // share few sets of the cache.
  void add_row(const float* weighted, int64_t row, float factor, float* target, int64_t d) const {
    const float* source = weighted + row / kBlock * kBlock * width + row % kBlock * kBlock;
    for (int64_t c = 0; c < d; c += kBlock, source += kBlock * kBlock) {
      for (int64_t e = 0; e < std::min(kBlock, d - c); ++e) target[c + e] += factor * source[e];
    }
  }

  const int64_t count, d, padded, depth, width;

 private:
  int64_t tiles_;
  const float* values_;
  float scale_;
  bool for_key_gradient_;
  Tile *crossed_ = nullptr, *plain_ = nullptr;
  std::shared_ptr<Tile[]> shared_;
};

template <typename T>
class KeyTile {
 public:
  using Query = amx::Query;
  static constexpr int64_t kStep = kSide;

  // The number of keys in a tile: they fit a core's L2 cache, and there are at least eight tiles if possible, because
  // memory that the last tile has just used is faster than memory that has not been touched for long.
  static int64_t size(int64_t, int64_t d, int64_t keys) {
    constexpr int64_t kBytes = 1 << 19, kLeast = 64, kMost = 256, kTiles = 8;
    const int64_t row = tiles_along(d) * kSide * kPlain * static_cast<int64_t>(sizeof(uint32_t));
    const int64_t most = std::clamp(keys / kTiles, kLeast, kMost);
    return std::clamp(kBytes / std::max<int64_t>(row, 1), kBlock, most) / kBlock * kBlock;
  }

  KeyTile(const Query& query, const Keys<T>& keys, int64_t size)
      : query_(query),
        keys_(keys),
        memory_((2 * (key_tiles(size) + weight_tiles(size)) + query.own_tiles()) * static_cast<int64_t>(sizeof(Tile)) +
                2 * size * kBlock * static_cast<int64_t>(sizeof(float))),
        tiles_(memory_.template take<Tile>(key_tiles(size))),
        next_tiles_(memory_.template take<Tile>(key_tiles(size))) {
    for (Block& block : blocks_) {
      block.logits = memory_.template take<float>(size * kBlock);
      block.weights = memory_.template take<Tile>(weight_tiles(size));
    }
    query_.prepare(memory_.template take<Tile>(query.own_tiles()));
  }

  void attend(Range keys, Range next, const Softmax<float>& state, bool add) {
    const int64_t blocks = query_.padded / kBlock;
    if (!state.weighted) {
      take(keys, next, blocks * logit_steps(keys));
      for (int64_t b = 0; b < blocks; ++b) {
        multiply(b, packing_);
        weigh(b, state, 1);
        finish_weighing(b);
      }
      return;
    }
    // While AMX multiplies for one block of queries, the weights of the next block are formed or the next keys packed.
    take(keys, next, std::max<int64_t>(blocks - 1, 1) * logit_steps(keys) + sum_steps(keys));
    multiply(0, packing_);
    weigh(0, state, logit_steps(keys));
    if (blocks > 1) multiply(1, blocks_[0].weighing);
    finish_weighing(0);
    for (int64_t b = 0; b < blocks; ++b) {
      if (add) rescale(b, state);
      if (b + 1 < blocks) {
        weigh(b + 1, state, sum_steps(keys));
        add_weighted(b, state, add, blocks_[(b + 1) % 2].weighing);
        finish_weighing(b + 1);
      } else {
        add_weighted(b, state, add, packing_);
      }
      if (b + 2 < blocks) multiply(b + 2, packing_);
    }
  }

  void finish(const Softmax<float>&) {}  // the weighted sums are rows already

  // gradient [N, d] = scale sum_i grad_i p_ij query_i
  void key_gradient(Range keys, Range next, const float* lse, const float* grad, float* gradient) {
    const int64_t blocks = query_.padded / kBlock;
    take(keys, next, 2 * blocks * logit_steps(keys));
    for (int64_t b = 0; b < blocks; ++b) {
      float base[kBlock] = {}, factor[kBlock] = {};
      const int64_t q = b * kBlock;
      for (int64_t l = 0; l < std::min(kBlock, query_.count - q); ++l) {
        if (lse[q + l] == -std::numeric_limits<float>::infinity()) continue;
        base[l] = lse[q + l];
        factor[l] = grad[q + l];
      }
      const Block& block = blocks_[b % 2];
      multiply(b, packing_);
      weigh_columns(block.logits, base, factor, count_);
      pack<kCrossed, false>(block.logits, kBlock, count_, kBlock, 2, block.weights);
      for (int64_t j = 0; j < count_; j += kBlock) {
        for (int64_t c = 0; c < keys_.d; c += kBlock) {
          Factor queries = query_.plain(c);
          queries.tiles += q / kSide * queries.sum_step;
          product<true>({block.weights + j / kSide * 2 * kCrossed, 2 * kCrossed, kCrossed}, queries, 2,
                        gradient + (keys.first + j) * keys_.d + c, keys_.d, std::min(kBlock, count_ - j),
                        std::min(kBlock, keys_.d - c), b > 0, [this] { packing_.step(); });
        }
      }
    }
  }

 private:
  // A block of 32 queries. Two blocks are in progress at a time.
  struct Block {
    float* logits;
    Tile* weights;
    Weighing weighing;
    float rescale[kBlock];
  };

  // Makes `keys` the current ones. They were packed during the products of the previous keys, or are packed now if they
  // are the first. The next keys are packed during the coming `steps` of products.
  void take(Range keys, Range next, int64_t steps) {
    if (packed_.first != keys.first || packed_.last != keys.last) prepare(keys, 1);
    packing_.finish();
    std::swap(tiles_, next_tiles_);
    first_ = keys.first;
    count_ = keys.last - keys.first;
    // Masked keys become zeros, so that nothing they hold shows, not even as 0 * NaN.
    for (int64_t j = 0; keys_.mask && j < count_; ++j) {
      if (keys_.mask[first_ + j]) continue;
      Tile* row = tiles_ + j / kSide * query_.depth * kPlain;
      for (int64_t t = 0; t < query_.depth * kPlain; ++t) std::fill_n(row[t].words[j % kSide], kSide, 0);
    }
    prepare(next, steps);
  }

  void prepare(Range keys, int64_t steps) {
    packed_ = keys;
    packing_ = Packing<T>(keys_.values + keys.first * keys_.d, keys.last - keys.first, keys_.d, query_.depth,
                          next_tiles_, steps);
  }

  // The steps of the products of one block.
  int64_t logit_steps(Range keys) const { return (keys.last - keys.first + kBlock - 1) / kBlock * query_.depth; }
  int64_t sum_steps(Range keys) const { return (keys.last - keys.first + kSide - 1) / kSide * (query_.width / kBlock); }

  // The block's logits [keys, 32], -inf for keys that do not take part.
  template <typename Meanwhile>
  void multiply(int64_t b, Meanwhile& meanwhile) {
    constexpr float kLeftOut = -std::numeric_limits<float>::infinity();
    const int64_t q = b * kBlock;
    float* logits = blocks_[b % 2].logits;
    for (int64_t j = 0; j < count_; j += kBlock) {
      product<false>({tiles_ + j / kSide * query_.depth * kPlain, query_.depth * kPlain, kPlain}, query_.crossed(q),
                     query_.depth, logits + j * kBlock, kBlock, std::min(kBlock, count_ - j), kBlock, false,
                     [&] { meanwhile.step(); });
    }
    for (int64_t j = 0; j < count_; ++j) {
      if (!keys_.mask || keys_.mask[first_ + j]) {
        repair(logits + j * kBlock, q, first_ + j);
      } else {
        std::fill_n(logits + j * kBlock, kBlock, kLeftOut);
      }
    }
    const int64_t own = keys_.first_query + q;
    for (int64_t j = std::max(first_, own); keys_.exclude_self && j < std::min(first_ + count_, own + kBlock); ++j) {
      logits[(j - first_) * kBlock + j - own] = kLeftOut;
    }
  }

  // An infinite number falls into the parts inf, NaN and NaN. The products of its row that came out as NaN are formed
  // once more without parts.
  void repair(float* logits, int64_t query, int64_t key) const {
    for (int64_t first = 0; first < kBlock; first += kSide) {
      const __m512 row = _mm512_load_ps(logits + first);
      for (unsigned left = _mm512_cmp_ps_mask(row, row, _CMP_UNORD_Q); left; left &= left - 1) {
        const int64_t l = first + std::countr_zero(left);
        if (query + l < query_.count) logits[l] = query_.logit(query + l, keys_.values + key * keys_.d);
      }
    }
  }

  void weigh(int64_t b, const Softmax<float>& state, int64_t steps) {
    Block& block = blocks_[b % 2];
    block.weighing = Weighing(block.logits, count_, state.largest + b * kBlock, state.sum + b * kBlock,
                              state.weighted ? block.weights : nullptr, steps);
  }

  void finish_weighing(int64_t b) {
    Block& block = blocks_[b % 2];
    block.weighing.finish(block.rescale);
  }

  void rescale(int64_t b, const Softmax<float>& state) {
    float* weighted = state.weighted + b * kBlock * query_.width;
    for (int64_t l = 0; l < kBlock; ++l) {
      const float factor = blocks_[b % 2].rescale[l];
      if (factor == 1) continue;
      for (float* row = weighted + l * kBlock; row < weighted + query_.width * kBlock; row += kBlock * kBlock) {
        for (int64_t e = 0; e < kBlock; ++e) row[e] *= factor;
      }
    }
  }

  template <typename Meanwhile>
  void add_weighted(int64_t b, const Softmax<float>& state, bool add, Meanwhile& meanwhile) {
    const int64_t width = query_.width, steps = (count_ + kSide - 1) / kSide;
    float* weighted = state.weighted + b * kBlock * width;
    // In parts whose weights stay in the L1 cache.
    constexpr int64_t kMostSteps = 8;
    const int64_t parts = (steps + kMostSteps - 1) / kMostSteps;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = steps * part / parts, last = steps * (part + 1) / parts;
      const Tile* weights = blocks_[b % 2].weights + first * 2 * kCrossed;
      const Tile* values = tiles_ + first * query_.depth * kPlain;
      for (int64_t c = 0; c < width; c += kBlock) {
        product<true>({weights, kCrossed, 2 * kCrossed}, {values + c / kSide * kPlain, kPlain, query_.depth * kPlain},
                      last - first, weighted + c * kBlock, kBlock, kBlock, kBlock, add || part > 0,
                      [&] { meanwhile.step(); });
      }
    }
  }

  int64_t key_tiles(int64_t size) const { return tiles_along(size) * query_.depth * kPlain; }
  static int64_t weight_tiles(int64_t size) { return tiles_along(size) * 2 * kCrossed; }

  Query query_;
  const Keys<T>& keys_;
  WorkingMemory<KeyTile> memory_;
  Tile *tiles_, *next_tiles_;
  Block blocks_[2];
  int64_t first_ = 0, count_ = 0;
  Range packed_{0, 0};
  Packing<T> packing_;
  Registers registers_;
};

}  // namespace dadl::cpu::amx

DADL_END_TARGET
#endif
