// Cosine similarity from inner products, so that ties survive rounding.
//
// Normalising the rows first would round x / |x| and so break ties between columns whose cosines are equal. From
// the Gram matrix, cos = sign(d) sqrt(d^2 / (q_i q_j)) with d = <x_i, x_j> and q = |x|^2: equal quotients of exactly
// represented numbers round to equal results, so small-integer features keep every tie.
#pragma once

#include <math.h>  // the overloads for float, in the global namespace on host and device

#include "macros.h"

namespace dadl {

// PyTorch's F.normalize divides by max(|x|, 1e-12); this is that bound, squared.
constexpr double kMinSquaredNorm = 1e-24;

// A row's power-of-two scale s ~ 1 / |x| (exact, so it moves no tie) and its scaled squared norm, near 1.
template <typename T>
struct RowNorm {
  T scale;
  T squared;
};

template <typename T>
DADL_HD RowNorm<T> row_norm(T squared_norm) {
  T squared = squared_norm < static_cast<T>(kMinSquaredNorm) ? static_cast<T>(kMinSquaredNorm) : squared_norm;
  if (!(squared - squared == 0)) return {squared, squared};  // inf or NaN: every similarity becomes NaN
  int exponent;
  frexp(squared, &exponent);
  const T scale = ldexp(static_cast<T>(1), -(exponent / 2));
  return {scale, squared * scale * scale};
}

template <typename T>
DADL_HD T cosine(T inner, RowNorm<T> row, RowNorm<T> column) {
  const T scaled = inner * row.scale * column.scale;
  const T magnitude = sqrt(scaled * scaled / (row.squared * column.squared));
  return copysign(magnitude, scaled);
}

}  // namespace dadl
