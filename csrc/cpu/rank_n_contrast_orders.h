// Each anchor's others in the order of their label distances: merged from sorted scalar labels, or sorted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "../core/labels.h"
#include "../core/rank_n_contrast.h"
#include "common.h"
#include "label_merge.h"

namespace dadl::cpu {

// Rows are numbered by their positions: those of sorted scalar labels, or of the batch. Shared by all threads. Each
// thread has its own scratch.
class AnchorOrders {
 public:
  class Scratch {
   public:
    virtual ~Scratch() = default;
    // order [n]: the anchor, then the positions of the others from the nearest label to the farthest. starts [n]: all
    // ones where a distance differs from the one before, from 1 on. Returns whether some distances are equal; if not,
    // starts is left as it is.
    virtual bool row(int64_t anchor, int32_t* order, int8_t* starts) = 0;
  };
  virtual ~AnchorOrders() = default;
  virtual std::unique_ptr<Scratch> scratch() const = 0;

  std::vector<int64_t> index;  // [n], the row of the batch at each position
  bool finite = true;          // labels; others have no order
};

// Returns whether distances, which are above the lowest bits of a key, are equal, and if so marks where they differ
// from the one before.
template <typename Key>
bool mark_changes(const Key* keys /* [n], in order */, int64_t n, int8_t* starts) {
  constexpr int kDistanceShift = 4 * sizeof(Key);
  const auto differ = [&](int64_t r) { return (keys[r] ^ keys[r - 1]) >> kDistanceShift != 0; };
  int64_t equal = 0;
  for (int64_t r = 2; r < n; ++r) equal += !differ(r);
  if (equal == 0) return false;
  starts[0] = 0;
  starts[1] = -1;
  for (int64_t r = 2; r < n; ++r) starts[r] = static_cast<int8_t>(-differ(r));
  return true;
}

#define DADL_MARK_STARTS(Key)                                                       \
  DADL_CLONES inline bool mark_starts(const Key* keys, int64_t n, int8_t* starts) { \
    return mark_changes(keys, n, starts);                                           \
  }
DADL_MARK_STARTS(uint64_t)
DADL_MARK_STARTS(unsigned __int128)
#undef DADL_MARK_STARTS

// Of equal distances, those farther from the anchor along the sorted labels have larger keys, on both sides.
template <typename Label, typename Key>
void outward_keys(const Label* sorted, int32_t n, int32_t own, Key* keys) {
  using Distance = decltype(label_distance(Label{}, Label{}));
  const Label label = sorted[own];
  for (int32_t p = 0; p < n; ++p) {
    const uint32_t outward = 2 * static_cast<uint32_t>(p > own ? p - own : own - p) + (p > own);
    keys[p] = MergeKey<Distance>::make(label_distance(label, sorted[p]), ~outward);
  }
}

#define DADL_OUTWARD_KEYS(Label, Key)                                                               \
  DADL_CLONES inline void outward_keys_of(const Label* sorted, int32_t n, int32_t own, Key* keys) { \
    outward_keys(sorted, n, own, keys);                                                             \
  }
DADL_OUTWARD_KEYS(float, uint64_t)
DADL_OUTWARD_KEYS(Half, uint64_t)
DADL_OUTWARD_KEYS(BFloat16, uint64_t)
DADL_OUTWARD_KEYS(double, unsigned __int128)
DADL_OUTWARD_KEYS(int64_t, unsigned __int128)
#undef DADL_OUTWARD_KEYS

template <typename Label>
class ScalarOrders final : public AnchorOrders {
 public:
  explicit ScalarOrders(const Label* labels, int64_t n) : sorted_(n) {
    index.resize(n);
    std::iota(index.begin(), index.end(), int64_t{0});
    std::stable_sort(index.begin(), index.end(),
                     [&](int64_t a, int64_t b) { return label_key(labels[a]) < label_key(labels[b]); });
    for (int64_t p = 0; p < n; ++p) {
      sorted_[p] = labels[index[p]];
      finite = finite && label_is_finite(sorted_[p]);
    }
  }

  std::unique_ptr<AnchorOrders::Scratch> scratch() const override { return std::make_unique<Scratch>(sorted_); }

 private:
  using Key = typename MergeKey<decltype(label_distance(Label{}, Label{}))>::Type;

  class Scratch final : public AnchorOrders::Scratch {
   public:
    explicit Scratch(const std::vector<Label>& sorted)
        : sorted_(sorted), n_(static_cast<int32_t>(sorted.size())), keys_(n_ + 2, ~Key{0}), ordered_(n_) {}

    bool row(int64_t anchor, int32_t* order, int8_t* starts) override {
      Key* keys = keys_.data() + 1;
      outward_keys_of(sorted_.data(), n_, static_cast<int32_t>(anchor), keys);
      merge_sides(keys, static_cast<int32_t>(anchor), n_, [&](int32_t position, int32_t rank) {
        order[rank - 1] = position;
        ordered_[rank - 1] = keys[position];
      });
      return mark_starts(ordered_.data(), n_, starts);
    }

   private:
    const std::vector<Label>& sorted_;
    int32_t n_;
    std::vector<Key> keys_;  // [1 + n + 1]; the first and the last are always the largest key
    std::vector<Key> ordered_;
  };

  std::vector<Label> sorted_;
};

template <typename Label>
class VectorOrders final : public AnchorOrders {
 public:
  VectorOrders(const Label* labels, int64_t n, int64_t k, LabelDistance kind) : labels_(labels), k_(k), kind_(kind) {
    index.resize(n);
    std::iota(index.begin(), index.end(), int64_t{0});
    for (int64_t e = 0; e < n * k; ++e) finite = finite && label_is_finite(labels[e]);
  }

  std::unique_ptr<AnchorOrders::Scratch> scratch() const override { return std::make_unique<Scratch>(*this); }

 private:
  using Key = MergeKey<double>::Type;

  class Scratch final : public AnchorOrders::Scratch {
   public:
    explicit Scratch(const VectorOrders& labels) : labels_(labels), keys_(labels.index.size()) {}

    bool row(int64_t anchor, int32_t* order, int8_t* starts) override {
      const auto n = static_cast<int64_t>(keys_.size());
      const Label* own = labels_.labels_ + anchor * labels_.k_;
      for (int64_t j = 0; j < n; ++j) {
        const double distance = vector_label_distance(own, labels_.labels_ + j * labels_.k_, labels_.k_, labels_.kind_);
        keys_[j] = MergeKey<double>::make(distance, ~static_cast<uint32_t>(j));
      }
      keys_[anchor] = static_cast<uint32_t>(anchor);  // before all others
      std::sort(keys_.begin(), keys_.end());
      for (int64_t r = 0; r < n; ++r) order[r] = static_cast<int32_t>(static_cast<uint32_t>(keys_[r]));
      return mark_starts(keys_.data(), n, starts);
    }

   private:
    const VectorOrders& labels_;
    std::vector<Key> keys_;
  };

  const Label* labels_;
  int64_t k_;
  LabelDistance kind_;
};

}  // namespace dadl::cpu
