// One row of label ranks at a time: by a merge for scalar labels, by a rank for a given similarity matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../core/labels.h"
#include "row_ranks.h"

namespace dadl::cpu {

// Shared by all threads; row() needs a scratch of its own per thread.
class LabelRanks {
 public:
  class Scratch {
   public:
    virtual ~Scratch() = default;
    // Ranks of row i in column order; false when the labels have no order (NaN).
    virtual bool row(int64_t i, int32_t* ranks) = 0;
  };
  virtual ~LabelRanks() = default;
  virtual std::unique_ptr<Scratch> scratch() const = 0;
};

// Similarity -|y_i - y_j|. The labels are sorted once; around row i the distances grow to both sides, so its ranks
// come from merging two sorted runs.
template <typename Label>
class ScalarLabelRanks final : public LabelRanks {
 public:
  // labels [n]; index [m]: row of a column; order [m]: column of the p-th smallest label
  ScalarLabelRanks(const Label* labels, const int64_t* index, const int64_t* order, int64_t m)
      : sorted_(m), column_(m), position_(m) {
    for (int64_t p = 0; p < m; ++p) {
      const int64_t column = order[p];
      sorted_[p] = labels[index[column]];
      column_[p] = static_cast<int32_t>(column);
      position_[column] = static_cast<int32_t>(p);
      finite_ = finite_ && label_is_finite(sorted_[p]);
    }
  }

  std::unique_ptr<LabelRanks::Scratch> scratch() const override { return std::make_unique<Scratch>(*this); }

 private:
  using Distance = decltype(label_distance(Label{}, Label{}));

  class Scratch final : public LabelRanks::Scratch {
   public:
    explicit Scratch(const ScalarLabelRanks& labels)
        : labels_(labels), m_(static_cast<int32_t>(labels.sorted_.size())), distance_(m_), ranker_(m_) {}

    bool row(int64_t i, int32_t* ranks) override {
      if (!labels_.finite_) return false;
      const int32_t own = labels_.position_[i];
      const Label label = labels_.sorted_[own];
      for (int32_t p = 0; p < m_; ++p) distance_[p] = label_distance(label, labels_.sorted_[p]);
      // Rounding can make neighbours on one side equally far; then the columns decide, which a merge does not see.
      bool ties = false;
      for (int32_t p = 1; p < m_; ++p) ties |= distance_[p] == distance_[p - 1];
      if (ties) {
        rank_distances(ranks);
      } else {
        merge(own, ranks);
      }
      return true;
    }

   private:
    // Two chains of dependent steps at a time: the nearest half of the columns outwards from row i, the farthest half
    // inwards from both ends. Among equals the larger column ranks first.
    void merge(int32_t own, int32_t* ranks) const {
      const int32_t* column = labels_.column_.data();
      ranks[column[own]] = 1;
      int32_t left = own - 1, right = own + 1, first = 0, last = m_ - 1;
      int32_t near_rank = 2, far_rank = m_;
      while (near_rank <= far_rank) {
        if (left < first || right > last) {
          // One side is used up: the other follows in order.
          while (left >= first) ranks[column[left--]] = near_rank++;
          while (right <= last) ranks[column[right++]] = near_rank++;
          return;
        }
        const bool near_left = nearer(left, right);
        ranks[column[near_left ? left : right]] = near_rank++;
        left -= near_left;
        right += !near_left;
        if (left < first || right > last) continue;
        const bool far_left = !nearer(first, last);
        ranks[column[far_left ? first : last]] = far_rank--;
        first += far_left;
        last -= !far_left;
      }
    }

    bool nearer(int32_t left, int32_t right) const {
      const Distance a = distance_[left], b = distance_[right];
      return (a < b) | ((a == b) & (labels_.column_[left] > labels_.column_[right]));
    }

    void rank_distances(int32_t* ranks) {
      similarity_.resize(m_);
      for (int32_t p = 0; p < m_; ++p) similarity_[labels_.column_[p]] = ~distance_key(distance_[p]);
      ranker_.rank(similarity_.data(), ranks);
    }

    static uint64_t distance_key(uint64_t distance) { return distance; }
    static uint64_t distance_key(double distance) { return ordered_key(distance); }

    const ScalarLabelRanks& labels_;
    int32_t m_;
    std::vector<Distance> distance_;
    std::vector<uint64_t> similarity_;
    RowRanker<uint64_t> ranker_;
  };

  std::vector<Label> sorted_;
  std::vector<int32_t> column_, position_;
  bool finite_ = true;
};

// A given similarity matrix [p, p], p >= m.
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
