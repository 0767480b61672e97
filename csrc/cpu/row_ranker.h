// Ranks of one row: n minus the position in the stable ascending order, where NaN is the largest value.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/order.h"

namespace dadl::cpu {

// The order of values this close is left to the caller, who can compute them more exactly.
constexpr double kClose = 1e-13;

// Not shared between threads. Value is float or double.
template <typename Value>
class RowRanker {
 public:
  explicit RowRanker(int64_t n)
      : n_(static_cast<uint32_t>(n)), keys_((n_ + kLanes - 1) / kLanes * kLanes), front_(n_), back_(n_) {}

  // Returns true if all values are known to lie more than kClose apart.
  bool rank(const Value* values, int32_t* ranks) {
    if (n_ > kCountingLimit && n_ <= kBucketLimit) {
      const Outcome outcome = rank_by_buckets(values, ranks);
      if (outcome != Outcome::kGaveUp) return outcome == Outcome::kSeparated;
    }
    for (uint32_t i = 0; i < n_; ++i) keys_[i] = ordered_key(values[i]);
    if (n_ <= kCountingLimit) {
      count(ranks);
    } else {
      radix(ranks);
    }
    return false;
  }

 private:
  using Key = decltype(ordered_key(Value{}));
  struct Item {
    Key key;
    uint32_t column;
  };
  static constexpr uint32_t kLanes = 64 / sizeof(Key);
  static constexpr uint32_t kCountingLimit = 256 / sizeof(Key);
  static constexpr uint32_t kBucketLimit = 1 << 16;
  enum class Outcome { kSeparated, kTooClose, kGaveUp };

  // rank_i = #{j : key_j > key_i} + #{j >= i : key_j = key_i}, over whole vectors: the key 0 of the padding is below
  // all others. Written for the auto-vectoriser, because explicit vector types are lowered before the function is
  // cloned for each instruction set.
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

  // The usual case. Quantises the values between minimum and maximum to 16 bits, sorts by them in two radix passes, and
  // repairs the few inversions by insertion sort on the values. Gives up on NaN, on infinities, and on rows so uneven
  // that insertion would be slow.
  Outcome rank_by_buckets(const Value* values, int32_t* ranks) {
    const uint32_t n = n_;
    Value low = values[0], high = values[0];
    int32_t unordered = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(| : unordered)
    for (uint32_t i = 0; i < n; ++i) {
      low = values[i] < low ? values[i] : low;
      high = values[i] > high ? values[i] : high;
      unordered |= values[i] != values[i];
    }
    constexpr Value kLargest = std::numeric_limits<Value>::max();
    const Value scale = high > low ? 65535 / (high - low) : 0;
    if (unordered || !(scale <= kLargest) || !(high - low <= kLargest)) return Outcome::kGaveUp;

    // An item holds its bucket in the upper half and its column in the lower.
    uint32_t* front = front_.data();
    uint32_t* back = back_.data();
    for (uint32_t i = 0; i < n; ++i) {
      front[i] = static_cast<uint32_t>(static_cast<int32_t>((values[i] - low) * scale)) << 16 | i;
    }
    const auto low_digit = [](uint32_t item) { return item >> 16 & 255; };
    const auto high_digit = [](uint32_t item) { return item >> 24; };
    uint32_t low_counts[256] = {}, high_counts[256] = {};
    for (uint32_t i = 0; i < n; ++i) {
      ++low_counts[low_digit(front[i])];
      ++high_counts[high_digit(front[i])];
    }
    uint32_t low_start = 0, high_start = 0;
    for (int b = 0; b < 256; ++b) {
      const uint32_t low_count = low_counts[b], high_count = high_counts[b];
      low_counts[b] = low_start;
      high_counts[b] = high_start;
      low_start += low_count;
      high_start += high_count;
    }
    for (uint32_t i = 0; i < n; ++i) back[low_counts[low_digit(front[i])]++] = front[i];
    for (uint32_t i = 0; i < n; ++i) front[high_counts[high_digit(back[i])]++] = back[i] & 0xFFFF;

    int64_t moves_left = 8 * static_cast<int64_t>(n);
    bool close = false;
    Value previous = values[front[0]];
    for (uint32_t p = 1; p < n; ++p) {
      const uint32_t column = front[p];
      const Value value = values[column];
      if (!(value < previous)) {
        close |= value - previous <= static_cast<Value>(kClose);
        previous = value;
        continue;
      }
      uint32_t q = p;
      do {
        front[q] = front[q - 1];
        --q;
      } while (q > 0 && values[front[q - 1]] > value);
      front[q] = column;
      close |= values[front[q + 1]] - value <= static_cast<Value>(kClose) ||
               (q > 0 && value - values[front[q - 1]] <= static_cast<Value>(kClose));
      moves_left -= p - q;
      if (moves_left < 0) return Outcome::kGaveUp;
    }
    for (uint32_t p = 0; p < n; ++p) ranks[front[p]] = static_cast<int32_t>(n - p);
    return close ? Outcome::kTooClose : Outcome::kSeparated;
  }

  // For any row: a least-significant-digit radix sort of the ordered keys, which skips digits that all keys share.
  void radix(int32_t* ranks) {
    constexpr int kBits = 11;
    constexpr int kDigits = (8 * sizeof(Key) + kBits - 1) / kBits;
    constexpr uint32_t kBuckets = 1u << kBits;
    source_.resize(n_);
    target_.resize(n_);
    uint32_t counts[kDigits][kBuckets] = {};
    for (uint32_t i = 0; i < n_; ++i) {
      source_[i] = {keys_[i], i};
      for (int d = 0; d < kDigits; ++d) ++counts[d][keys_[i] >> (d * kBits) & (kBuckets - 1)];
    }
    Item *source = source_.data(), *target = target_.data();
    for (int d = 0; d < kDigits; ++d) {
      const int shift = d * kBits;
      uint32_t* count = counts[d];
      if (count[keys_[0] >> shift & (kBuckets - 1)] == n_) continue;
      uint32_t start = 0;
      for (uint32_t b = 0; b < kBuckets; ++b) {
        const uint32_t size = count[b];
        count[b] = start;
        start += size;
      }
      for (uint32_t i = 0; i < n_; ++i) target[count[source[i].key >> shift & (kBuckets - 1)]++] = source[i];
      Item* swapped = source;
      source = target;
      target = swapped;
    }
    for (uint32_t p = 0; p < n_; ++p) ranks[source[p].column] = static_cast<int32_t>(n_ - p);
  }

  uint32_t n_;
  std::vector<Key> keys_;
  std::vector<uint32_t> front_, back_;
  std::vector<Item> source_, target_;
};

}  // namespace dadl::cpu
