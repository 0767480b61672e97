// The fused RankSim operators on the CPU. dadl_ext/reference/ranksim.py has the same steps and formulas.
#include "../core/ranksim.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../ranksim_checks.h"
#include "../signatures.h"
#include "common.h"
#include "pair_products.h"
#include "ranksim_amx.h"
#include "ranksim_kernels.h"

namespace dadl::cpu {
namespace {

// ---- the subset ----

// Sorts the rows by (label, priority, row) and chooses the first row of each run of equal labels.
template <typename Label>
int64_t select_rows(const Label* labels, const double* priority, int64_t n, int64_t k, int64_t* index, int64_t* order) {
  struct Row {
    uint64_t key;  // of the first label dimension
    int64_t row;
  };
  std::vector<Row> rows(n);
  for (int64_t i = 0; i < n; ++i) rows[i] = {label_key(labels[i * k]), i};
  auto compare_labels = [&](const Row& a, const Row& b) {
    if (a.key != b.key) return a.key < b.key ? -1 : 1;
    for (int64_t c = 1; c < k; ++c) {
      const uint64_t x = label_key(labels[a.row * k + c]), y = label_key(labels[b.row * k + c]);
      if (x != y) return x < y ? -1 : 1;
    }
    return 0;
  };
  std::sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    const int labels_order = compare_labels(a, b);
    if (labels_order != 0) return labels_order < 0;
    if (priority[a.row] != priority[b.row]) return priority[a.row] < priority[b.row];
    return a.row < b.row;
  });
  int64_t m = 0;
  for (int64_t p = 0; p < n; ++p) {
    if (p == 0 || compare_labels(rows[p - 1], rows[p]) != 0) index[m++] = rows[p].row;
  }
  const bool distinct = m == n;
  for (int64_t p = 0; p < n; ++p) {
    order[p] = p >= m ? 0 : distinct ? index[p] : p;
    if (p >= m) index[p] = 0;
  }
  if (distinct) {
    for (int64_t i = 0; i < n; ++i) index[i] = i;
  }
  return m;
}

int64_t select_rows(const Tensor& labels, const Tensor& priority, int64_t* index, int64_t* order) {
  check_ranksim_select(labels, priority);
  const int64_t n = labels.size(0), k = labels.dim() == 2 ? labels.size(1) : 1;
  const Tensor whole_labels = as_contiguous(labels), whole_priority = as_contiguous(priority);
  int64_t count = 0;
  dispatch_labels(labels, [&](auto tag) {
    count = select_rows(data<decltype(tag)>(whole_labels), data<double>(whole_priority), n, k, index, order);
  });
  return count;
}

std::tuple<Tensor, Tensor, Tensor> ranksim_select(Tensor labels, Tensor priority) {
  const int64_t n = labels.dim() ? labels.size(0) : 0;
  const Tensor index = new_empty(labels, {n}, ScalarType::Long);
  const Tensor order = new_empty(labels, {n}, ScalarType::Long);
  const Tensor count = new_empty(labels, {}, ScalarType::Long);
  *mutable_data<int64_t>(count) =
      select_rows(labels, priority, mutable_data<int64_t>(index), mutable_data<int64_t>(order));
  return {index, order, count};
}

// ---- the loss and its gradient ----

struct Subset {
  const int64_t *index, *order;
  int64_t count;
};

// Makes index and order contiguous; the subset points into them.
Subset make_subset(Tensor& index, Tensor& order, const Tensor& count, int64_t n) {
  check_ranksim_subset(index, order, count, n);
  const int64_t m = *data<int64_t>(count);
  STD_TORCH_CHECK(0 <= m && m <= n, "count must be in 0..", n, ", got ", m);
  index = as_contiguous(index);
  order = as_contiguous(order);
  return {data<int64_t>(index), data<int64_t>(order), m};
}

struct Arguments {
  Tensor features, labels;
  Subset subset;
  std::optional<Tensor> label_similarity;
  RankSimSettings settings;
};

std::unique_ptr<LabelRanks> make_label_ranks(const Arguments& a) {
  const int64_t m = a.subset.count;
  std::unique_ptr<LabelRanks> ranks;
  if (!a.label_similarity) {
    dispatch_labels(a.labels, [&](auto tag) {
      using Label = decltype(tag);
      ranks = std::make_unique<ScalarLabelRanks<Label>>(data<Label>(a.labels), a.subset.index, a.subset.order, m);
    });
    return ranks;
  }
  const Tensor& matrix = *a.label_similarity;
  check_label_similarity(matrix, m, a.features.size(0));
  if (is_double(matrix)) return std::make_unique<MatrixLabelRanks<double>>(data<double>(matrix), matrix.size(1), m);
  return std::make_unique<MatrixLabelRanks<float>>(data<float>(matrix), matrix.size(1), m);
}

// Whether float32 holds the inner products: neither the largest nor the smallest leave its range.
bool float32_holds(const std::vector<double>& squared_norms) {
  return std::all_of(squared_norms.begin(), squared_norms.end(),
                     [](double square) { return square == 0 || (1e-30 <= square && square <= 1e37); });
}

struct Result {
  std::vector<double> rows;  // [n], 0 beyond the subset
  Tensor gradient;           // [n, d], [0, d] without gradient
};

// One call: the row losses of the subset and, if wanted, the gradient of their weighted sum.
template <typename T>
class Run {
 public:
  using A = typename Storage<T>::Arithmetic;

  // row_weight: the upstream gradients [n] of the rows; null means ones.
  Run(const Arguments& arguments, const A* row_weight)
      : a_(arguments),
        row_weight_(row_weight),
        n_(a_.features.size(0)),
        d_(a_.features.size(1)),
        m_(a_.subset.count),
        tiles_((m_ + kTile - 1) / kTile),
        wide_(std::is_same_v<T, double> || !float32_resolves(m_, a_.settings)),
        amx_(std::is_same_v<A, float> && amx_serves(m_)),
        stride_(weighs_by_amx() ? tiles_ * kTile : m_),
        constants_(ranksim_constants<double>(m_, a_.settings)) {}

  Result operator()(bool with_gradient) {
    const ScalarType arithmetic = arithmetic_type(a_.features);
    Result result{std::vector<double>(n_), new_empty(a_.features, {with_gradient ? n_ : 0, d_}, arithmetic)};
    if (m_ == 0) return result;
    measure_norms();
    wide_ = wide_ || !float32_holds(all_squared_);
    Tensor x = a_.features;
    if (with_gradient || !wide_) x = columns_of_rows<T, A>(a_.features, a_.subset.index, m_, 0, d_);
    const Tensor differences = rank_rows(x, with_gradient, result.rows.data());
    if (!with_gradient) return result;

    const Tensor unit_gradient = m_ == n_ ? result.gradient : new_empty(a_.features, {m_, d_}, arithmetic);
    if (m_ < n_) torch::stable::zero_(result.gradient);
    const std::vector<A> inverse_norm(inverse_norm_.begin(), inverse_norm_.end());
    const auto finish = [&](int64_t begin, int64_t end) {
      project(data<A>(unit_gradient), static_cast<A>(-constants_.slope), data<A>(x), squared_norm_.data(),
              inverse_norm.data(), a_.subset.index, mutable_data<A>(result.gradient), d_, begin, end);
    };
    if (weighs_by_amx()) {
      weigh_by_amx(differences, x, inverse_norm, unit_gradient, finish);
    } else {
      weigh(differences, x, inverse_norm, unit_gradient, finish);
    }
    return result;
  }

 private:
  bool weighs_by_amx() const { return amx_ && !row_weight_; }

  void measure_norms() {
    all_squared_.resize(n_);
    torch::stable::parallel_for(0, n_, grain_rows(d_), [&](int64_t begin, int64_t end) {
      squared_norms(data<T>(a_.features), all_squared_.data(), d_, begin, end);
    });
    if (!std::all_of(all_squared_.begin(), all_squared_.end(), finite_squared_norm)) {
      poison_ = std::numeric_limits<double>::quiet_NaN();
    }
    for (int64_t j = 0; j < m_; ++j) {
      squared_norm_.push_back(bounded_squared_norm(all_squared_[a_.subset.index[j]]));
      inverse_norm_.push_back(1 / std::sqrt(squared_norm_.back()));
    }
  }

  // Of features [m, 1]: their cosines, which are products of signs. Products of the numbers would break these ties.
  Tensor gram_of_single_numbers() const {
    const Tensor x = columns_of_rows<T, double>(a_.features, a_.subset.index, m_, 0, 1);
    const Tensor inner = new_empty(a_.features, {m_, m_}, ScalarType::Double);
    std::vector<double> unit(m_);
    for (int64_t i = 0; i < m_; ++i) unit[i] = data<double>(x)[i] / std::sqrt(squared_norm_[i]);
    double* cosines = mutable_data<double>(inner);
    for (int64_t i = 0; i < m_; ++i) {
      for (int64_t j = 0; j < m_; ++j) cosines[i * m_ + j] = unit[i] * unit[j];
    }
    return inner;
  }

  // The row losses, and the rank differences [stride, stride] if wanted.
  Tensor rank_rows(const Tensor& x, bool with_differences, double* rows) const {
    const std::unique_ptr<LabelRanks> labels = make_label_ranks(a_);
    const bool single = d_ == 1;
    const Tensor inner = single  ? gram_of_single_numbers()
                         : wide_ ? wide_gram<T>(a_.features, a_.subset.index, m_)
                                 : narrow_gram(x, amx_ && parts_resolve(d_, all_squared_));
    const std::vector<double> ones(single ? m_ : 0, 1.0);
    Tensor differences;
    if (with_differences) differences = new_empty(a_.features, {stride_, stride_}, arithmetic_type(a_.features));
    const RowsTask<A> task{wide_ || single ? nullptr : data<float>(inner),
                           wide_ || single ? data<double>(inner) : nullptr,
                           with_differences ? mutable_data<A>(differences) : nullptr,
                           stride_,
                           rows,
                           single ? ones.data() : squared_norm_.data(),
                           single ? ones.data() : inverse_norm_.data(),
                           labels.get(),
                           m_,
                           poison_,
                           constants_};
    torch::stable::parallel_for(0, tiles_, grain_rows(16 * kTile * m_), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<LabelRanks::Scratch> scratch = labels->scratch();
      rank_similarities(task, *scratch, begin, end);
    });
    return differences;
  }

  template <typename Finish>
  void weigh_by_amx(const Tensor& differences, const Tensor& x, const std::vector<A>& inverse_norm,
                    const Tensor& unit_gradient, Finish finish) const {
#ifdef DADL_AMX
    if constexpr (std::is_same_v<A, float>) {
      float* parts = mutable_data<float>(differences);
      for_tile_pairs(m_, [&](int64_t begin, int64_t end) { amx::symmetrise(parts, stride_, m_, begin, end); });
      amx::weigh_differences(parts, stride_, data<float>(x), inverse_norm.data(), mutable_data<float>(unit_gradient),
                             m_, d_);
      torch::stable::parallel_for(0, m_, grain_rows(d_), finish);
    }
#endif
  }

  template <typename Finish>
  void weigh(const Tensor& differences, const Tensor& x, const std::vector<A>& inverse_norm,
             const Tensor& unit_gradient, Finish finish) const {
    std::vector<A> row_weight(m_, A{1});
    if (row_weight_) std::copy_n(row_weight_, m_, row_weight.begin());
    for_tile_pairs(m_, [&](int64_t begin, int64_t end) {
      cpu::symmetrise(mutable_data<A>(differences), m_, row_weight.data(), inverse_norm.data(), m_, begin, end);
    });
    cpu::weigh(data<A>(differences), m_, x, unit_gradient, false, finish);
  }

  const Arguments& a_;
  const A* row_weight_;
  const int64_t n_, d_, m_, tiles_;
  bool wide_;             // whether the Gram matrix is in float64
  const bool amx_;        // whether AMX forms products
  const int64_t stride_;  // of the rank differences
  const RankSimConstants<double> constants_;
  std::vector<double> all_squared_;                  // [n]
  std::vector<double> squared_norm_, inverse_norm_;  // [m], bounded
  double poison_ = 0;                                // NaN where a row of the batch is not finite
};

template <typename Finish>
void with_result(Arguments a, bool with_gradient, const std::optional<Tensor>& row_weight, Finish finish) {
  a.features = as_contiguous(a.features);
  a.labels = as_contiguous(a.labels);
  if (a.label_similarity) a.label_similarity = as_contiguous(*a.label_similarity);
  dispatch_floating(a.features, "features", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    finish(A{}, Run<T>(a, row_weight ? data<A>(*row_weight) : nullptr)(with_gradient));
  });
}

std::tuple<Tensor, Tensor> ranksim_loss(Tensor features, Tensor labels, Tensor priority,
                                        std::optional<Tensor> label_similarity, double interp_strength, double weight,
                                        bool mean, bool with_gradient) {
  check_ranksim(features, labels, label_similarity);
  const int64_t n = features.size(0);
  std::vector<int64_t> index(n), order(n);
  const Subset subset{index.data(), order.data(), select_rows(labels, priority, index.data(), order.data())};
  Tensor loss = new_empty(features, {}, arithmetic_type(features)), gradient;
  with_result({features, labels, subset, label_similarity, {interp_strength, weight, mean}}, with_gradient, {},
              [&](auto tag, const Result& result) {
                double total = 0;
                for (const double row : result.rows) total += row;
                *mutable_data<decltype(tag)>(loss) = static_cast<decltype(tag)>(total);
                gradient = result.gradient;
              });
  return {loss, gradient};
}

Tensor ranksim_rows(Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count,
                    std::optional<Tensor> label_similarity, double interp_strength, double weight) {
  check_ranksim(features, labels, label_similarity);
  const Tensor rows = new_empty(features, {features.size(0)}, arithmetic_type(features));
  with_result({features,
               labels,
               make_subset(index, order, count, features.size(0)),
               label_similarity,
               {interp_strength, weight, false}},
              false, {}, [&](auto tag, const Result& result) {
                std::copy(result.rows.begin(), result.rows.end(), mutable_data<decltype(tag)>(rows));
              });
  return rows;
}

Tensor ranksim_rows_backward(Tensor grad, Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count,
                             std::optional<Tensor> label_similarity, double interp_strength, double weight) {
  check_ranksim(features, labels, label_similarity);
  check_ranksim_rows_backward(grad, features);
  Tensor gradient;
  with_result({features,
               labels,
               make_subset(index, order, count, features.size(0)),
               label_similarity,
               {interp_strength, weight, false}},
              true, as_contiguous(grad), [&](auto, const Result& result) { gradient = result.gradient; });
  return as_contiguous(gradient, features.scalar_type());
}

}  // namespace
}  // namespace dadl::cpu

DADL_LIBRARY_IMPL(CPU, m) {
  DADL_IMPL(m, dadl::cpu, ranksim_select);
  DADL_IMPL(m, dadl::cpu, ranksim_loss);
  DADL_IMPL(m, dadl::cpu, ranksim_rows);
  DADL_IMPL(m, dadl::cpu, ranksim_rows_backward);
}
