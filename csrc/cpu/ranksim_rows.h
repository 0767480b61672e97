// RankSim row by row: exact for all values and labels, on every processor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/cosine.h"
#include "../core/ranksim.h"
#include "pair_kernels.h"
#include "ranksim_label_ranks.h"
#include "row_ranker.h"

namespace dadl::cpu {

template <typename A>
struct RowsTask {
  // The Gram matrix [m, m]; one of the two is null. Row i is valid up to the end of its panel.
  const float* inner;
  const double* wide_inner;
  A* differences;  // [m, stride], ranks minus perturbed ranks; may be null
  int64_t stride;
  double* rows;                // the losses
  const double* squared;       // [m] bounded squared norms
  const double* inverse_norm;  // [m]
  const LabelRanks* labels;
  int64_t m;
  double poison;  // 0, or NaN if a row outside the subset is not finite
  RankSimConstants<double> constants;
};

// Rows [i0, i1) of the symmetric Gram matrix. Columns beyond the panel come from the other side of the diagonal.
template <typename G>
void load_rows(const G* inner, int64_t m, int64_t i0, int64_t i1, double* rows) {
  const int64_t panel = panel_rows(m), valid = std::min(m, (i0 / panel + 1) * panel);
  for (int64_t i = i0; i < i1; ++i) std::copy_n(inner + i * m, valid, rows + (i - i0) * m);
  for (int64_t j = valid; j < m; ++j) {
    const G* column = inner + j * m;
    for (int64_t i = i0; i < i1; ++i) rows[(i - i0) * m + j] = column[i];
  }
}

struct RowsScratch {
  explicit RowsScratch(int64_t m) : ranker(m), tile(kTile * m), inner(m), feature_ranks(m), label_ranks(m) {}

  RowRanker<double> ranker;
  std::vector<double> tile, inner;
  std::vector<int32_t> feature_ranks, label_ranks;
};

// Rows [i0, i1), at most kTile of one panel: similarities, both ranks, losses, perturbed ranks and rank differences.
template <typename A>
void rank_rowwise(const RowsTask<A>& task, LabelRanks::Scratch& labels, RowsScratch& scratch, int64_t i0, int64_t i1) {
  const int64_t m = task.m;
  double *tile = scratch.tile.data(), *inner = scratch.inner.data();
  int32_t *r = scratch.feature_ranks.data(), *q = scratch.label_ranks.data();
  const double *squared = task.squared, *inverse_norm = task.inverse_norm;
  if (task.inner) {
    load_rows(task.inner, m, i0, i1, tile);
  } else {
    load_rows(task.wide_inner, m, i0, i1, tile);
  }
  for (int64_t i = i0; i < i1; ++i) {
    double* s = tile + (i - i0) * m;
    // Products with reciprocal norms are cheap but may break ties. If two of them come close, cosine() decides.
    std::copy_n(s, m, inner);
    int32_t unordered = 0;
    for (int64_t j = 0; j < m; ++j) {
      s[j] = s[j] * inverse_norm[i] * inverse_norm[j] + task.poison;
      unordered |= s[j] != s[j];
    }
    A* differences = task.differences + i * task.stride;
    if (unordered || !labels.row(i, q)) {
      task.rows[i] = std::numeric_limits<double>::quiet_NaN();
      if (task.differences) std::fill_n(differences, m, std::numeric_limits<A>::quiet_NaN());
      continue;
    }
    if (!scratch.ranker.rank(s, r)) {
      for (int64_t j = 0; j < m; ++j) s[j] = cosine(inner[j], squared[i], squared[j]);
      scratch.ranker.rank(s, r);
    }
    int64_t squares = 0;
    for (int64_t j = 0; j < m; ++j) {
      const int64_t difference = r[j] - q[j];
      squares += difference * difference;
    }
    task.rows[i] = task.constants.loss * static_cast<double>(squares);
    if (!task.differences) continue;
    for (int64_t j = 0; j < m; ++j) s[j] += task.constants.coefficient * (r[j] - q[j]);
    scratch.ranker.rank(s, q);
    for (int64_t j = 0; j < m; ++j) differences[j] = static_cast<A>(r[j] - q[j]);
  }
}

}  // namespace dadl::cpu
