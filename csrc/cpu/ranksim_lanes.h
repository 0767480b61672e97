// RankSim on several rows at once, with the widest vectors of the processor; ranksim_rows.h does all other rows.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "common.h"
#include "ranksim_label_ranks.h"
#include "ranksim_rows.h"
#include "transpose.h"

namespace dadl::cpu {

struct LaneScratch {
  virtual ~LaneScratch() = default;
};

constexpr int64_t kMostLaneColumns = 4096;  // with more, the rows of a tile outgrow the cache

template <typename A>
struct Lanes {
  int count = 0;
  std::unique_ptr<LaneScratch> (*scratch)(int64_t m) = nullptr;
  // Handles rows first, first + 1, ... Bit i of the result is set if row first + i is left to rank_rowwise().
  uint32_t (*run)(const RowsTask<A>&, LabelRanks::Scratch&, LaneScratch&, int64_t first) = nullptr;
};

#ifdef DADL_X86
DADL_BEGIN_TARGET("arch=x86-64-v4")
namespace v4 {
constexpr int kLanes = 8;
using Vector = double __attribute__((vector_size(64)));
inline __attribute__((always_inline)) void order(Vector& low, Vector& high) {
  const Vector smaller = _mm512_min_pd(low, high);
  high = _mm512_max_pd(low, high);
  low = smaller;
}
#include "ranksim_lanes.inc"
}  // namespace v4
DADL_END_TARGET

DADL_BEGIN_TARGET("arch=x86-64-v3")
namespace v3 {
constexpr int kLanes = 4;
using Vector = double __attribute__((vector_size(32)));
inline __attribute__((always_inline)) void order(Vector& low, Vector& high) {
  const Vector smaller = _mm256_min_pd(low, high);
  high = _mm256_max_pd(low, high);
  low = smaller;
}
#include "ranksim_lanes.inc"
}  // namespace v3
DADL_END_TARGET

#endif

// None for small subsets, where counting is quicker, none for large ones, and none where the perturbation overflows.
template <typename A>
Lanes<A> select_lanes(const RowsTask<A>& task) {
  if (task.m <= kTile || task.m > kMostLaneColumns) return {};
  if (!std::isfinite(task.constants.coefficient * static_cast<double>(task.m))) return {};
#ifdef DADL_X86
  if (x86_level() == 4) return {v4::kLanes, v4::make_scratch, v4::ranksim_lanes<A>};
  if (x86_level() == 3) return {v3::kLanes, v3::make_scratch, v3::ranksim_lanes<A>};
#endif
  return {};
}

}  // namespace dadl::cpu
