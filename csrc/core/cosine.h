// Cosine similarities from inner products, in float64 whatever the features are.
//
// RankSim's gradient depends on the order of nearly equal similarities: with a small weight the perturbation is below
// float32's resolution. The inner products of float32 rows are then taken in float64 too.
#pragma once

#include <math.h>  // overloads for float and double in the global namespace, on host and device

#include "macros.h"

namespace dadl {

// F.normalize divides by max(|x|, 1e-12); this is that bound, squared.
constexpr double kMinSquaredNorm = 1e-24;

// The product of two squared norms must not overflow. Rows beyond count as infinite.
constexpr double kMaxSquaredNorm = 1e154;

DADL_HD bool finite_squared_norm(double squared) { return squared < kMaxSquaredNorm; }  // false for NaN

DADL_HD double bounded_squared_norm(double squared) { return squared < kMinSquaredNorm ? kMinSquaredNorm : squared; }

// sign(d) sqrt(d^2 / (q_i q_j)): equal cosines of integer rows come out equal, because the quotient of two exactly
// represented numbers is rounded once. Products with reciprocal norms would break such ties.
DADL_HD double cosine(double inner, double squared_i, double squared_j) {
  return copysign(sqrt(inner * inner / (squared_i * squared_j)), inner);
}

}  // namespace dadl
