// Label ranks, one row at a time: merged from sorted scalar labels, or ranked from a similarity matrix.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "../core/labels.h"
#include "common.h"
#include "label_merge.h"
#include "row_ranker.h"

namespace dadl::cpu {

// Shared by all threads. Each thread has its own scratch, whose row() it calls.
class LabelRanks {
 public:
  class Scratch {
   public:
    virtual ~Scratch() = default;
    // The ranks of row i, in column order. Returns false if the labels have no order, because of NaN.
    virtual bool row(int64_t i, int32_t* ranks) = 0;
  };
  virtual ~LabelRanks() = default;
  virtual std::unique_ptr<Scratch> scratch() const = 0;

  // Finite float32 labels in ascending order, for ranking several rows at once; null pointers for other labels.
  struct Sorted {
    const float* label;       // [m]
    const uint32_t* column;   // [m]
    const int32_t* position;  // [m], of a column's label in this order
  };
  virtual Sorted sorted() const { return {}; }
};

// The keys of all distances to the label at position `own`, in label order. Returns whether two neighbours are equally
// far from it.
template <typename Label, typename Key>
bool merge_keys(const Label* sorted, const uint32_t* column, int32_t m, int32_t own, Key* keys) {
  using Distance = decltype(label_distance(Label{}, Label{}));
  constexpr int kDistanceShift = 4 * sizeof(Key);
  const Label label = sorted[own];
  for (int32_t p = 0; p < m; ++p) {
    keys[p] = MergeKey<Distance>::make(label_distance(label, sorted[p]), column[p]);
  }
  int32_t ties = 0;
  for (int32_t p = 1; p < m; ++p) ties |= ((keys[p] ^ keys[p - 1]) >> kDistanceShift) == 0;
  return ties;
}

#define DADL_MERGE_KEYS(Label, Key)                                                                          \
  DADL_CLONES inline bool merge_keys_of(const Label* sorted, const uint32_t* column, int32_t m, int32_t own, \
                                        Key* keys) {                                                         \
    return merge_keys(sorted, column, m, own, keys);                                                         \
  }
DADL_MERGE_KEYS(float, uint64_t)
DADL_MERGE_KEYS(Half, uint64_t)
DADL_MERGE_KEYS(BFloat16, uint64_t)
DADL_MERGE_KEYS(double, unsigned __int128)
DADL_MERGE_KEYS(int64_t, unsigned __int128)
#undef DADL_MERGE_KEYS

// Similarity -|y_i - y_j|. The labels are sorted once. Distances grow to both sides of a row's own label, so its ranks
// are a merge of two sorted runs.
template <typename Label>
class ScalarLabelRanks final : public LabelRanks {
 public:
  // labels [n]; index [m]: the row of each column; order [m]: the column of the p-th smallest label
  ScalarLabelRanks(const Label* labels, const int64_t* index, const int64_t* order, int64_t m)
      : sorted_(m), column_(m), position_(m) {
    for (int64_t p = 0; p < m; ++p) {
      const int64_t column = order[p];
      sorted_[p] = labels[index[column]];
      column_[p] = static_cast<uint32_t>(column);
      position_[column] = static_cast<int32_t>(p);
      finite_ = finite_ && label_is_finite(sorted_[p]);
    }
  }

  std::unique_ptr<LabelRanks::Scratch> scratch() const override { return std::make_unique<Scratch>(*this); }

  Sorted sorted() const override {
    if constexpr (std::is_same_v<Label, float>) {
      if (finite_) return {sorted_.data(), column_.data(), position_.data()};
    }
    return {};
  }

 private:
  using Key = typename MergeKey<decltype(label_distance(Label{}, Label{}))>::Type;

  class Scratch final : public LabelRanks::Scratch {
   public:
    explicit Scratch(const ScalarLabelRanks& labels)
        : labels_(labels), m_(static_cast<int32_t>(labels.sorted_.size())), keys_(m_ + 2, ~Key{0}) {}

    bool row(int64_t i, int32_t* ranks) override {
      if (!labels_.finite_) return false;
      const int32_t own = labels_.position_[i];
      Key* keys = keys_.data() + 1;
      if (merge_keys_of(labels_.sorted_.data(), labels_.column_.data(), m_, own, keys)) {
        // Rounding has made two neighbours on one side equally far, so their columns decide. A merge cannot see that.
        std::sort(keys, keys + m_);
        for (int32_t p = 0; p < m_; ++p) ranks[column(keys[p])] = p + 1;
      } else {
        merge_sides(keys, own, m_, [&](int32_t position, int32_t rank) { ranks[labels_.column_[position]] = rank; });
      }
      return true;
    }

   private:
    static uint32_t column(Key key) { return ~static_cast<uint32_t>(key); }

    const ScalarLabelRanks& labels_;
    int32_t m_;
    std::vector<Key> keys_;  // [1 + m + 1]; the first and the last are always the largest key
  };

  std::vector<Label> sorted_;
  std::vector<uint32_t> column_;
  std::vector<int32_t> position_;
  bool finite_ = true;
};

// A similarity matrix [p, p] with p >= m.
template <typename T>
class MatrixLabelRanks final : public LabelRanks {
 public:
  MatrixLabelRanks(const T* similarity, int64_t stride, int64_t m) : similarity_(similarity), stride_(stride), m_(m) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < m; ++j) ordered_ = ordered_ && similarity[i * stride + j] == similarity[i * stride + j];
    }
  }

  std::unique_ptr<LabelRanks::Scratch> scratch() const override { return std::make_unique<Scratch>(*this); }

 private:
  class Scratch final : public LabelRanks::Scratch {
   public:
    explicit Scratch(const MatrixLabelRanks& labels) : labels_(labels), ranker_(labels.m_) {}

    bool row(int64_t i, int32_t* ranks) override {
      if (!labels_.ordered_) return false;
      ranker_.rank(labels_.similarity_ + i * labels_.stride_, ranks);
      return true;
    }

   private:
    const MatrixLabelRanks& labels_;
    RowRanker<T> ranker_;
  };

  const T* similarity_;
  int64_t stride_, m_;
  bool ordered_ = true;
};

}  // namespace dadl::cpu
