// RankSim's kernels over rows and tiles.
#pragma once

#include <cstdint>

#include "ranksim_rows.h"

namespace dadl::cpu {

// Tiles [begin, end).
void rank_similarities(const RowsTask<float>& task, LabelRanks::Scratch& labels, int64_t begin, int64_t end);
void rank_similarities(const RowsTask<double>& task, LabelRanks::Scratch& labels, int64_t begin, int64_t end);

}  // namespace dadl::cpu
