// Rank-N-Contrast on several anchors at once, with the widest vectors of the processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../core/exponential.h"
#include "common.h"

namespace dadl::cpu {

// Within this range of similarities, exponentials and the sum of their reciprocals are normal numbers.
template <typename W>
struct LaneRange;
template <>
struct LaneRange<float> {
  using Bits = int32_t;
  static constexpr float kMost = 64;
  static constexpr Bits kBias = 127, kMantissa = 23;
};
template <>
struct LaneRange<double> {
  using Bits = int64_t;
  static constexpr double kMost = 600;
  static constexpr Bits kBias = 1023, kMantissa = 52;
};

#ifdef DADL_X86
DADL_BEGIN_TARGET("arch=x86-64-v4,prefer-vector-width=512")
namespace v4 {
constexpr int kVectorBytes = 64;
#include "rank_n_contrast_lanes.inc"
}  // namespace v4
DADL_END_TARGET

DADL_BEGIN_TARGET("arch=x86-64-v3")
namespace v3 {
constexpr int kVectorBytes = 32;
#include "rank_n_contrast_lanes.inc"
}  // namespace v3
DADL_END_TARGET
#endif

// For all other processors.
namespace v1 {
constexpr int kVectorBytes = 16;
#include "rank_n_contrast_lanes.inc"
}  // namespace v1

constexpr int64_t kMostLanes = 16;

template <typename W>
struct ContrastLanes {
  int64_t count;
  uint32_t (*run)(W* values, W* sums, const int8_t* starts, W factor, int64_t n, double* nearest, double* denominators);
};

template <typename W>
ContrastLanes<W> select_contrast_lanes() {
#ifdef DADL_X86
  if (x86_level() == 4) return {v4::kLanes<W>, v4::contrast_lanes<W>};
  if (x86_level() == 3) return {v3::kLanes<W>, v3::contrast_lanes<W>};
#endif
  return {v1::kLanes<W>, v1::contrast_lanes<W>};
}

}  // namespace dadl::cpu
