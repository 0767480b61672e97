// Ranks of one row from its ordered keys: rank = n - position in the stable ascending order.
#pragma once

#include <cstdint>
#include <vector>

namespace dadl::cpu {

template <typename Key>
class RowRanker {
 public:
  explicit RowRanker(int64_t n) : n_(static_cast<uint32_t>(n)) {
    if (n_ > kCountingLimit) {
      front_.resize(n_);
      back_.resize(n_);
    }
    // Whole vectors; no value has the padding's key 0.
    keys_.resize((n_ + kLanes - 1) / kLanes * kLanes);
  }

  // Written by the caller, in column order, before rank().
  Key* keys() { return keys_.data(); }

  void rank(int32_t* ranks) {
    if (n_ <= kCountingLimit) {
      count(ranks);
    } else if (n_ <= kSmallRadixLimit) {
      radix<8>(ranks);
    } else {
      radix<11>(ranks);
    }
  }

 private:
  struct Item {
    Key key;
    uint32_t column;
  };
  static constexpr uint32_t kLanes = 64 / sizeof(Key);
  static constexpr uint32_t kCountingLimit = 64;
  static constexpr uint32_t kSmallRadixLimit = 1024;

  // rank_i = #{j : key_j > key_i} + #{j >= i : key_j = key_i}. Written for the auto-vectoriser: explicit vector types
  // are lowered for the baseline instruction set before they reach the clones.
  void count(int32_t* ranks) const {
    const Key* keys = keys_.data();
    const Key padded = static_cast<Key>(keys_.size());
    for (Key i = 0; i < n_; ++i) {
      const Key own = keys[i];
      Key rank = 0;
      for (Key j = 0; j < padded; ++j) rank += (keys[j] > own) | ((keys[j] == own) & (j >= i));
      ranks[i] = static_cast<int32_t>(rank);
    }
  }

  // Least-significant-digit radix sort. Digits that all keys share are skipped, the first pass numbers the columns,
  // and the last one writes ranks instead of items.
  template <int kBits>
  void radix(int32_t* ranks) {
    constexpr int kDigits = (8 * sizeof(Key) + kBits - 1) / kBits;
    constexpr uint32_t kBuckets = 1u << kBits;
    uint32_t counts[kDigits][kBuckets] = {};
    const Key* keys = keys_.data();
    for (uint32_t i = 0; i < n_; ++i) {
      for (int d = 0; d < kDigits; ++d) ++counts[d][(keys[i] >> (d * kBits)) & (kBuckets - 1)];
    }
    int active[kDigits];
    int passes = 0;
    for (int d = 0; d < kDigits; ++d) {
      if (counts[d][(keys[0] >> (d * kBits)) & (kBuckets - 1)] != n_) active[passes++] = d;
    }
    if (passes == 0) {
      for (uint32_t i = 0; i < n_; ++i) ranks[i] = static_cast<int32_t>(n_ - i);
      return;
    }
    const Item* source = nullptr;
    Item* target = front_.data();
    for (int pass = 0; pass < passes; ++pass) {
      const int shift = active[pass] * kBits;
      uint32_t* count = counts[active[pass]];
      uint32_t start = 0;
      for (uint32_t b = 0; b < kBuckets; ++b) {
        const uint32_t size = count[b];
        count[b] = start;
        start += size;
      }
      const bool last = pass + 1 == passes;
      auto place = [&](Key key, uint32_t column) {
        const uint32_t position = count[(key >> shift) & (kBuckets - 1)]++;
        if (last) {
          ranks[column] = static_cast<int32_t>(n_ - position);
        } else {
          target[position] = {key, column};
        }
      };
      if (source == nullptr) {
        for (uint32_t i = 0; i < n_; ++i) place(keys[i], i);
      } else {
        for (uint32_t i = 0; i < n_; ++i) place(source[i].key, source[i].column);
      }
      source = target;
      target = target == front_.data() ? back_.data() : front_.data();
    }
  }

  uint32_t n_;
  std::vector<Key> keys_;
  std::vector<Item> front_, back_;
};

}  // namespace dadl::cpu
