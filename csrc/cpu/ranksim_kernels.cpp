// RankSim's kernels over rows and tiles.
#include "ranksim_kernels.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>

#include "common.h"
#include "ranksim_lanes.h"

namespace dadl::cpu {
namespace {

// Tiles [begin, end): several rows at once where the processor can, the doubtful ones row by row.
template <typename A>
void ranksim_tiles(const RowsTask<A>& task, LabelRanks::Scratch& labels, int64_t begin, int64_t end) {
  RowsScratch scratch(task.m);
  Lanes<A> lanes = select_lanes<A>(task);
  const std::unique_ptr<LaneScratch> lane_scratch = lanes.run ? lanes.scratch(task.m) : nullptr;
  for (int64_t i0 = begin * kTile; i0 < std::min(end * kTile, task.m); i0 += kTile) {
    const int64_t i1 = std::min(i0 + kTile, task.m);
    if (!lanes.run) {
      rank_rowwise(task, labels, scratch, i0, i1);
      continue;
    }
    uint32_t doubtful = 0;
    for (int64_t i = i0; i < i1; i += lanes.count) doubtful |= lanes.run(task, labels, *lane_scratch, i) << (i - i0);
    for (int64_t i = i0; i < i1; ++i) {
      if (doubtful >> (i - i0) & 1) rank_rowwise(task, labels, scratch, i, i + 1);
    }
    // Features that tie in most rows of a tile will tie in the next.
    if (2 * std::popcount(doubtful) > kTile) lanes.run = nullptr;
  }
}

}  // namespace

// target_clones does not work on templates, so each type has its own functions.
#define DADL_ARITHMETIC_ROWS(A)                                                                           \
  DADL_CLONES void rank_similarities(const RowsTask<A>& task, LabelRanks::Scratch& labels, int64_t begin, \
                                     int64_t end) {                                                       \
    ranksim_tiles<A>(task, labels, begin, end);                                                           \
  }
DADL_ARITHMETIC_ROWS(float)
DADL_ARITHMETIC_ROWS(double)
#undef DADL_ARITHMETIC_ROWS

}  // namespace dadl::cpu
