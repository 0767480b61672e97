// The Rank-N-Contrast operators on the CPU. dadl_ext/reference/rank_n_contrast.py has the definition.
#include "../core/rank_n_contrast.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../core/cosine.h"
#include "../rank_n_contrast_checks.h"
#include "../signatures.h"
#include "common.h"
#include "pair_products.h"
#include "rank_n_contrast_orders.h"
#include "rank_n_contrast_rows.h"

namespace dadl::cpu {
namespace {

std::unique_ptr<AnchorOrders> make_orders(const Tensor& labels, LabelDistance kind) {
  std::unique_ptr<AnchorOrders> orders;
  dispatch_labels(labels, [&](auto tag) {
    using Label = decltype(tag);
    if (labels.dim() == 1) {
      orders = std::make_unique<ScalarOrders<Label>>(data<Label>(labels), labels.size(0));
    } else {
      orders = std::make_unique<VectorOrders<Label>>(data<Label>(labels), labels.size(0), labels.size(1), kind);
    }
  });
  return orders;
}

// One call: the anchors' mean losses over their pairs and, if wanted, the gradient of their weighted sum.
template <typename T>
class Run {
 public:
  using A = typename Storage<T>::Arithmetic;

  std::vector<double> rows;  // [n], in batch order
  Tensor gradient;           // [n, d], [0, d] without

  // anchor_weight [n]: what the anchors' losses count for in the gradient; null without one.
  Run(const Tensor& features, const Tensor& labels, const RankNContrastSettings& settings, const double* anchor_weight)
      : n_(features.size(0)), d_(features.size(1)), cosine_(settings.similarity == Similarity::kCosine) {
    gradient = new_empty(features, {anchor_weight ? n_ : 0, d_}, arithmetic_type(features));
    rows.resize(n_);
    if (n_ == 0) return;
    const std::unique_ptr<AnchorOrders> orders = make_orders(labels, settings.label_distance);
    index_ = orders->index.data();
    if (!orders->finite || !contrast_all(features, *orders, settings, anchor_weight)) fill_with_nan();
  }

 private:
  // Returns whether the features are finite.
  bool contrast_all(const Tensor& features, const AnchorOrders& orders, const RankNContrastSettings& settings,
                    const double* anchor_weight) {
    const Tensor x = columns_of_rows<T, A>(features, index_, n_, 0, d_);
    if constexpr (std::is_same_v<A, float>) {
      if (n_ >= kManyRows && !cosine_) {
        std::vector<float> squared(n_);
        const Tensor centred = centre_rows(x, squared.data());
        // A feature that is not finite makes the mean so, and with it every norm: too large.
        const double largest = *std::max_element(squared.begin(), squared.end());
        if (float_is_enough(largest, settings.temperature)) {
          by_amx_ = amx_serves(n_) && parts_resolve(d_, squared) &&
                    (!anchor_weight || parts_hold(largest, settings.temperature, anchor_weight));
          contrast_pairs(x, narrow_gram(centred, by_amx_), squared.data(), centred, orders, settings, anchor_weight);
          return true;
        }
      }
    }
    if (!measure_norms(features)) return false;
    if (n_ == 1) {
      torch::stable::zero_(gradient);
      return true;
    }
    contrast_pairs(x, wide_gram<T>(features, index_, n_), squared_.data(), x, orders, settings, anchor_weight);
    return true;
  }

  // x less its mean row, which distances do not notice, and its squared norms.
  Tensor centre_rows(const Tensor& x, float* squared) const {
    std::vector<double> mean(d_);
    torch::stable::parallel_for(0, d_, std::max<int64_t>(16, grain_rows(n_)), [&](int64_t begin, int64_t end) {
      average(data<float>(x), mean.data(), n_, d_, begin, end);
    });
    const Tensor centred = new_empty(x, {n_, d_}, x.scalar_type());
    torch::stable::parallel_for(0, n_, grain_rows(d_), [&](int64_t begin, int64_t end) {
      centre(data<float>(x), mean.data(), mutable_data<float>(centred), squared, d_, begin, end);
    });
    return centred;
  }

  // Whether no part of a weight that counts is outside bfloat16's range; see parts_resolve().
  bool parts_hold(double largest_squared_norm, double temperature, const double* anchor_weight) const {
    double largest = 0;
    for (int64_t i = 0; i < n_; ++i) largest = std::max(largest, std::abs(anchor_weight[i]));
    return largest * pair_share(n_) >= 1e-20 * temperature * std::sqrt(largest_squared_norm);
  }

  // `inner` [n, n] are products of the rows of `shifted`, which is x, or x less one row. W is their type.
  template <typename W>
  void contrast_pairs(const Tensor& x, const Tensor& inner, const W* squared, const Tensor& shifted,
                      const AnchorOrders& orders, const RankNContrastSettings& settings, const double* anchor_weight) {
    close_.resize(n_);
    std::vector<double> losses(n_);
    const ContrastTask<A, W> task{
        mutable_data<W>(inner),  data<A>(x), squared, losses.data(), &close_, n_, d_, 1 / settings.temperature, cosine_,
        anchor_weight != nullptr};
    for_tile_pairs(n_, [&](int64_t begin, int64_t end) { measure(task, begin, end); });
    const ContrastLanes<W> lanes = select_contrast_lanes<W>();
    torch::stable::parallel_for(0, (n_ + lanes.count - 1) / lanes.count, grain_rows(16 * lanes.count * n_),
                                [&](int64_t begin, int64_t end) {
                                  const std::unique_ptr<AnchorOrders::Scratch> scratch = orders.scratch();
                                  ContrastScratch<W> own(n_, lanes.count);
                                  for (int64_t group = begin; group < end; ++group) {
                                    const int64_t first = group * lanes.count;
                                    contrast(task, *scratch, lanes, own, first, std::min(lanes.count, n_ - first));
                                  }
                                });
    for (int64_t p = 0; p < n_; ++p) rows[index_[p]] = losses[p] * pair_share(n_);
    if (anchor_weight) differentiate(x, shifted, inner, sizeof(W) / sizeof(A), anchor_weight);
  }

  // Returns whether they are finite.
  bool measure_norms(const Tensor& features) {
    std::vector<double> squared(n_);
    torch::stable::parallel_for(0, n_, grain_rows(d_), [&](int64_t begin, int64_t end) {
      squared_norms(data<T>(features), squared.data(), d_, begin, end);
    });
    bool finite = true;
    for (int64_t p = 0; p < n_; ++p) {
      const double square = squared[index_[p]];
      finite = finite && square - square == 0;
      squared_.push_back(cosine_ ? bounded_squared_norm(square) : square);
    }
    return finite;
  }

  void fill_with_nan() {
    std::fill(rows.begin(), rows.end(), std::numeric_limits<double>::quiet_NaN());
    std::fill_n(mutable_data<A>(gradient), gradient.numel(), std::numeric_limits<A>::quiet_NaN());
  }

  // The weights in `inner` are in A, their rows `step` as far apart. `shifted` is x, or x less one row.
  void differentiate(const Tensor& x, const Tensor& shifted, const Tensor& inner, int64_t step,
                     const double* anchor_weight) {
    const int64_t stride = n_ * step;
    A* weights = static_cast<A*>(inner.mutable_data_ptr());
    std::vector<A> anchor(n_), inverse_norm(n_, A{1});
    for (int64_t p = 0; p < n_; ++p) {
      anchor[p] = static_cast<A>(anchor_weight[index_[p]] * pair_share(n_));
      if (cosine_) inverse_norm[p] = static_cast<A>(1 / std::sqrt(squared_[p]));
    }
    for_tile_pairs(n_, [&](int64_t begin, int64_t end) {
      symmetrise(weights, stride, anchor.data(), inverse_norm.data(), n_, begin, end);
    });
    const Tensor weighed = new_empty(x, {n_, d_}, x.scalar_type());
    if (cosine_) {
      weigh(weights, stride, x, weighed, by_amx_, [&](int64_t begin, int64_t end) {
        project(data<A>(weighed), A{1}, data<A>(x), squared_.data(), inverse_norm.data(), index_,
                mutable_data<A>(gradient), d_, begin, end);
      });
      return;
    }
    std::vector<double> sums(n_);
    std::vector<std::vector<A>> close_weights(n_);
    torch::stable::parallel_for(0, n_, grain_rows(n_), [&](int64_t begin, int64_t end) {
      sum_weights(weights, stride, n_, close_, close_weights.data(), sums.data(), begin, end);
    });
    weigh(weights, stride, shifted, weighed, by_amx_, [&](int64_t begin, int64_t end) {
      finish(data<A>(weighed), sums.data(), data<A>(shifted), data<A>(x), close_, close_weights.data(), index_,
             mutable_data<A>(gradient), d_, begin, end);
    });
  }

  const int64_t n_, d_;
  const bool cosine_;
  bool by_amx_ = false;                      // whether AMX forms products
  const int64_t* index_ = nullptr;           // [n], rows of the batch by position
  std::vector<double> squared_;              // [n]
  std::vector<std::vector<int32_t>> close_;  // [n]
};

template <typename Finish>
void with_run(Tensor features, Tensor labels, const RankNContrastSettings& settings, const double* anchor_weight,
              Finish finish) {
  features = as_contiguous(features);
  labels = as_contiguous(labels);
  dispatch_floating(features, "features", [&](auto tag) {
    using T = decltype(tag);
    finish(typename Storage<T>::Arithmetic{}, Run<T>(features, labels, settings, anchor_weight));
  });
}

std::tuple<Tensor, Tensor> rank_n_contrast(Tensor features, Tensor labels, double temperature, int64_t similarity,
                                           int64_t label_distance, int64_t reduction, bool with_gradient) {
  const RankNContrastSettings settings =
      check_rank_n_contrast(features, labels, temperature, similarity, label_distance);
  const Reduction kind = check_reduction(reduction);
  const int64_t n = features.size(0);
  const ScalarType arithmetic = arithmetic_type(features);
  const Tensor loss =
      kind == Reduction::kNone ? new_empty(features, {n}, arithmetic) : new_empty(features, {}, arithmetic);
  const double share = kind == Reduction::kMean && n > 0 ? 1.0 / static_cast<double>(n) : 1.0;
  const std::vector<double> weight(with_gradient ? n : 0, share);
  Tensor gradient;
  with_run(features, labels, settings, with_gradient ? weight.data() : nullptr, [&](auto tag, const auto& run) {
    using A = decltype(tag);
    gradient = run.gradient;
    if (kind == Reduction::kNone) {
      std::copy(run.rows.begin(), run.rows.end(), mutable_data<A>(loss));
    } else {
      double total = 0;
      for (const double row : run.rows) total += row;
      *mutable_data<A>(loss) = static_cast<A>(total * share);
    }
  });
  return {loss, gradient};
}

Tensor rank_n_contrast_backward(Tensor grad, Tensor features, Tensor labels, double temperature, int64_t similarity,
                                int64_t label_distance) {
  const RankNContrastSettings settings =
      check_rank_n_contrast(features, labels, temperature, similarity, label_distance);
  check_rank_n_contrast_backward(grad, features);
  const Tensor wide = as_contiguous(grad, ScalarType::Double);
  Tensor gradient;
  with_run(features, labels, settings, data<double>(wide), [&](auto, const auto& run) { gradient = run.gradient; });
  return as_contiguous(gradient, features.scalar_type());
}

}  // namespace
}  // namespace dadl::cpu

DADL_LIBRARY_IMPL(CPU, m) {
  DADL_IMPL(m, dadl::cpu, rank_n_contrast);
  DADL_IMPL(m, dadl::cpu, rank_n_contrast_backward);
}
