// The constants of RankSim's perturbation and gradient for a subset of m rows.
#pragma once

#include <cstdint>

#include "macros.h"

namespace dadl {

// With d = R_z - R_y (integer ranks 1..m; r = R / m) and row loss (1/m) sum_j (r_z - r_y)^2:
//   row loss     weight * sum_j d^2 / m^3
//   perturbation interp_strength * g = coefficient * d,  g = weight (2/m) (r_z - r_y)
//   gradient     G = -(r_z - r') / (interp_strength + 1e-8) = -slope * (R_z - R')
template <typename T>
struct RankSimConstants {
  double loss;
  T coefficient;
  T slope;
};

struct RankSimSettings {
  double interp_strength, weight;
  bool mean;  // over the rows, which the perturbation does not know of
};

template <typename T>
DADL_HD RankSimConstants<T> ranksim_constants(int64_t m, const RankSimSettings& settings) {
  const double count = static_cast<double>(m), rows = settings.mean ? count : 1.0;
  return {settings.weight / (count * count * count * rows),
          static_cast<T>(settings.interp_strength * settings.weight * 2.0 / (count * count)),
          static_cast<T>(1.0 / (count * (settings.interp_strength + 1e-8) * rows))};
}

// Whether float32 inner products of m rows resolve the perturbation, whose typical size is strength * weight * 2 / m *
// (1 / 3). If so, the measured cosine between the gradient and the one in float64 is above .9998, whatever the
// dimension and the correlation of the features. Small subsets average over few swaps, and cost little in float64.
inline bool float32_resolves(int64_t m, const RankSimSettings& settings) {
  return m >= 64 && 2 * settings.interp_strength * settings.weight >= 1e-3 * 3 * static_cast<double>(m);
}

}  // namespace dadl
