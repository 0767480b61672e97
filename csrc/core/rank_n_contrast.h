// What the Rank-N-Contrast operators share on every device.
#pragma once

#include <math.h>

#include <cstdint>

#include "half.h"
#include "macros.h"

namespace dadl {

// In the order of SIMILARITIES, LABEL_DISTANCES and REDUCTIONS in dadl_ext/_shared/checks.py.
enum class Similarity : int64_t { kNegativeL2, kCosine };
enum class LabelDistance : int64_t { kL1, kL2 };
enum class Reduction : int64_t { kNone, kMean, kSum };

struct RankNContrastSettings {
  double temperature;
  Similarity similarity;
  LabelDistance label_distance;
};

// The mean over an anchor's pairs.
DADL_HD double pair_share(int64_t n) { return n > 1 ? 1.0 / static_cast<double>(n - 1) : 0.0; }

// A squared distance from inner products loses what the squared norms have in common. Below this share of their sum it
// is formed from the difference of the features, and so is its part of the gradient. In float32 the bound is for the
// gradient's product: the distances are float64.
template <typename T>
constexpr double kCloseShare = 1e-3;
template <>
constexpr double kCloseShare<double> = 1e-2;

template <typename T>
DADL_HD bool features_are_close(double squared_distance, double squared_i, double squared_j) {
  return !(squared_distance >= kCloseShare<T> * (squared_i + squared_j));
}

// d similarity / d distance over the distance, whose subgradient at 0 is 0.
DADL_HD double distance_slope(double distance, double inverse_temperature) {
  return distance > 0 ? -inverse_temperature / distance : 0.0;
}

DADL_HD double wide_label(int64_t label) { return static_cast<double>(label); }
template <typename Label>
DADL_HD double wide_label(Label label) {
  return to_float(label);
}

// The distance of vector labels; of L2 the square, which has the same order.
template <typename Label>
DADL_HD double vector_label_distance(const Label* a, const Label* b, int64_t k, LabelDistance kind) {
  double sum = 0;
  for (int64_t c = 0; c < k; ++c) {
    const double difference = wide_label(a[c]) - wide_label(b[c]);
    sum += kind == LabelDistance::kL2 ? difference * difference : fabs(difference);
  }
  return sum;
}

}  // namespace dadl
