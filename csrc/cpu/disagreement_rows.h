// The measures as templates, for callers whose shapes they are to be inlined with; disagreement_measures.h has them
// compiled, under the names measure_elements and measure_classes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common.h"
#include "disagreement_measures.h"

namespace dadl::cpu {

constexpr int64_t kMostPairs = 32;  // with more members, sorting is quicker than comparing all pairs

// l1 of one element, for any number of members: sum_i (2i + 1 - K) x_(i) in ascending order, i from 0.
template <typename A>
A sorted_l1(const Members<A>& x, const Gradients<A>& gradient, A gain, std::vector<A>& sorted) {
  const int64_t members = x.count;
  const A share = 2 / (static_cast<A>(members) * static_cast<A>(members - 1));
  sorted.resize(members);
  bool ordered = true;
  for (int64_t k = 0; k < members; ++k) {
    sorted[k] = *x[k];
    ordered = ordered && sorted[k] == sorted[k];
  }
  if (!ordered) {
    for (int64_t k = 0; gradient && k < members; ++k) *gradient[k] = std::numeric_limits<A>::quiet_NaN();
    return std::numeric_limits<A>::quiet_NaN();
  }
  std::sort(sorted.begin(), sorted.end());
  A loss = 0;
  for (int64_t i = 0; i < members; ++i) loss += static_cast<A>(2 * i + 1 - members) * (sorted[i] - sorted[0]);
  for (int64_t k = 0; gradient && k < members; ++k) {
    const auto below = std::lower_bound(sorted.begin(), sorted.end(), *x[k]) - sorted.begin();
    const auto above = sorted.end() - std::upper_bound(sorted.begin(), sorted.end(), *x[k]);
    *gradient[k] = gain * share * static_cast<A>(below - above);
  }
  return share * loss;
}

// loss += |a - b|. With kGradient, adds its gradients times share to first and second.
template <bool kGradient, typename A>
void add_pair(const A* a, const A* b, A share, int64_t width, A* loss, A* first, A* second) {
  for (int64_t e = 0; e < width; ++e) {
    const A difference = a[e] - b[e];
    loss[e] += difference < 0 ? -difference : difference;
    if constexpr (kGradient) {
      const A direction = share * sign(difference);
      first[e] += direction;
      second[e] -= direction;
    }
  }
}

// The gradient is that of gain times the loss: to scale it later would fetch its lines of the cache again, which
// members far apart take from each other.
template <typename A>
void elements_of_members(Measure measure, const Members<A>& x, int64_t width, A* loss, const Gradients<A>& gradient,
                         A gain, std::vector<A>& scratch) {
  const int64_t members = x.count;
  std::fill_n(loss, width, A{0});
  if (members == 1) {
    for (int64_t e = 0; e < width; ++e) {
      loss[e] = x[0][e] * 0;  // NaN where it is not finite
      if (gradient) gradient[0][e] = loss[e];
    }
  } else if (measure == Measure::kL1 && members > kMostPairs) {
    for (int64_t e = 0; e < width; ++e) loss[e] = sorted_l1(x.from(e), gradient.from(e), gain, scratch);
  } else if (measure == Measure::kL1) {
    const A share = 2 / (static_cast<A>(members) * static_cast<A>(members - 1));
    for (int64_t k = 0; gradient && k < members; ++k) std::fill_n(gradient[k], width, A{0});
    for (int64_t i = 0; i < members; ++i) {
      for (int64_t j = i + 1; j < members; ++j) {
        if (gradient) {
          add_pair<true>(x[i], x[j], gain * share, width, loss, gradient[i], gradient[j]);
        } else {
          add_pair<false, A>(x[i], x[j], share, width, loss, nullptr, nullptr);
        }
      }
    }
    for (int64_t e = 0; e < width; ++e) loss[e] *= share;
  } else {
    const A share = (measure == Measure::kMse ? A{2} : A{1}) / static_cast<A>(members - 1);
    const A slope = 2 * gain * share;
    A mean[kElements];  // relative to the first member
    std::fill_n(mean, width, A{0});
    for (int64_t k = 1; k < members; ++k) {
      for (int64_t e = 0; e < width; ++e) mean[e] += x[k][e] - x[0][e];
    }
    for (int64_t e = 0; e < width; ++e) mean[e] /= static_cast<A>(members);
    for (int64_t k = 0; k < members; ++k) {
      const A* values = x[k];
      for (int64_t e = 0; e < width; ++e) {
        const A difference = values[e] - x[0][e] - mean[e];
        loss[e] += difference * difference;
        if (gradient) gradient[k][e] = slope * difference;
      }
    }
    for (int64_t e = 0; e < width; ++e) loss[e] *= share;
  }
}

template <typename A>
void softmax_members(const Members<A>& x, int64_t classes, ClassScratch<A>& scratch) {
  constexpr int64_t kLanes = 16;
  for (int64_t k = 0; k < x.count; ++k) {
    const A* logits = x[k];
    A* p = scratch.probability.data() + k * classes;
    A lanes[kLanes], largest = -std::numeric_limits<A>::infinity();
    std::fill_n(lanes, kLanes, largest);
    int64_t c = 0;
    for (; c + kLanes <= classes; c += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] = logits[c + l] > lanes[l] ? logits[c + l] : lanes[l];
    }
    for (int64_t l = 0; l < kLanes; ++l) largest = std::max(largest, lanes[l]);
    for (; c < classes; ++c) largest = std::max(largest, logits[c]);
    for (c = 0; c < classes; ++c) p[c] = exp_nonpositive(logits[c] - largest);
    const A total = sum_over<A>(classes, [&](int64_t e) { return p[e]; }), inverse = 1 / total;
    for (c = 0; c < classes; ++c) p[c] *= inverse;
    scratch.shift[k] = largest + std::log(total);
  }
}

// With m the mean probability and D_i = log p_i - mean_j log p_j, the loss is sum_i sum_c (p_i - m) D_i / (K - 1). This
// product of two differences does not cancel where the members agree.
template <typename A>
A symmetric_kl(const Members<A>& x, int64_t classes, const Gradients<A>& gradient, ClassScratch<A>& scratch) {
  const int64_t members = x.count;
  const A share = 1 / static_cast<A>(members), pair_share = 1 / static_cast<A>(members - 1);
  A *mean = scratch.mean.data(), *mean_log = scratch.mean_log.data();
  std::fill_n(mean, classes, A{0});
  std::fill_n(mean_log, classes, A{0});
  for (int64_t k = 0; k < members; ++k) {
    const A *logits = x[k], *p = scratch.probability.data() + k * classes, shift = scratch.shift[k];
    for (int64_t c = 0; c < classes; ++c) {
      mean[c] += share * p[c];
      mean_log[c] += share * bounded_log(logits[c] - shift);
    }
  }
  A loss = 0;
  for (int64_t k = 0; k < members; ++k) {
    const A *logits = x[k], *p = scratch.probability.data() + k * classes, shift = scratch.shift[k];
    const auto distance = [&](int64_t c) { return bounded_log(logits[c] - shift) - mean_log[c]; };
    loss += pair_share * sum_over<A>(classes, [&](int64_t c) { return (p[c] - mean[c]) * distance(c); });
    if (!gradient) continue;
    const A expected = sum_over<A>(classes, [&](int64_t c) { return p[c] * distance(c); });
    A* out = gradient[k];
    for (int64_t c = 0; c < classes; ++c) out[c] = pair_share * (p[c] * (distance(c) - expected) + (p[c] - mean[c]));
  }
  return loss;
}

// With m the mean probability and r_i = p_i / m, the loss is the mean over i of sum_c m (r_i log r_i - r_i + 1), whose
// terms are not negative.
template <typename A>
A jensen_shannon(const Members<A>& x, int64_t classes, const Gradients<A>& gradient, ClassScratch<A>& scratch) {
  const int64_t members = x.count;
  const A share = 1 / static_cast<A>(members);
  A* mean = scratch.mean.data();
  std::fill_n(mean, classes, A{0});
  for (int64_t k = 0; k < members; ++k) {
    const A* p = scratch.probability.data() + k * classes;
    for (int64_t c = 0; c < classes; ++c) mean[c] += share * p[c];
  }
  A loss = 0;
  for (int64_t k = 0; k < members; ++k) {
    const A* p = scratch.probability.data() + k * classes;
    A* log = gradient ? gradient[k] : scratch.mean_log.data();
    // If all members underflow to 0, they agree.
    for (int64_t c = 0; c < classes; ++c) log[c] = mean[c] == 0 ? A{1} : p[c] / mean[c];
    loss += sum_over<A>(classes, [&](int64_t c) {
      const EntropyGap<A> gap = entropy_gap(log[c]);
      log[c] = gap.log;
      return mean[c] * gap.gap;
    });
    if (!gradient) continue;
    const A expected = sum_over<A>(classes, [&](int64_t c) { return p[c] * log[c]; });
    for (int64_t c = 0; c < classes; ++c) log[c] = share * p[c] * (log[c] - expected);
  }
  return share * loss;
}

template <typename A>
A softmax_l1(int64_t members, int64_t classes, const Gradients<A>& gradient, ClassScratch<A>& scratch) {
  const Members<A> probability{scratch.probability.data(), classes, members};
  double loss = 0;
  A part[kElements];
  for (int64_t c = 0; c < classes; c += kElements) {
    const int64_t width = std::min(kElements, classes - c);
    elements_of_members(Measure::kL1, probability.from(c), width, part, gradient.from(c), A{1}, scratch.elements);
    for (int64_t e = 0; e < width; ++e) loss += part[e];
  }
  const A share = 1 / static_cast<A>(classes);
  for (int64_t k = 0; gradient && k < members; ++k) {
    const A* p = probability[k];
    A* out = gradient[k];
    const A expected = sum_over<A>(classes, [&](int64_t c) { return p[c] * out[c]; });
    for (int64_t c = 0; c < classes; ++c) out[c] = share * p[c] * (out[c] - expected);
  }
  return share * static_cast<A>(loss);
}

template <typename A>
A classes_of_row(Measure measure, const Members<A>& x, int64_t classes, const Gradients<A>& gradient,
                 ClassScratch<A>& scratch) {
  softmax_members(x, classes, scratch);
  if (measure == Measure::kJs) return jensen_shannon(x, classes, gradient, scratch);
  if (measure == Measure::kSoftmaxL1) return softmax_l1(x.count, classes, gradient, scratch);
  if (x.count > 1) return symmetric_kl(x, classes, gradient, scratch);
  const A nothing = scratch.shift[0] * 0;
  if (gradient) std::fill_n(gradient[0], classes, nothing);
  return nothing;
}

}  // namespace dadl::cpu
