// Linear maps of features under many dropout masks, and the disagreement of their results. The formulas are those of
// dadl_ext/reference/dropout.py.
//
// Masks are drawn where they are needed, as csrc/core/philox.h lays them out: 16 threads draw those of 128 features,
// eight each. Only where one operator forms predictions and gradients does the first pass keep them for the second, a
// bit each. For few outputs rows are read as they are; for many, tiles of masked features go through the matrix product
// of the backend. The seed stays on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../core/philox.h"
#include "disagreement_kernels.cuh"

namespace dadl {

constexpr int kMaskTeams = kThreads / kMaskLanes;  // of threads that draw masks together, in a block
constexpr int kLaneFeatures = kMaskGroup / kMaskLanes;
constexpr int64_t kDropoutTileElements = 8LL << 20;  // of masked features
constexpr int64_t kFusedPredictions = 1024;          // of a row, in shared memory

// Features [B, F], weight [C, F] and bias [C] or null, as stored; seed [].
template <typename T>
struct DropoutLinear {
  const T *features, *weight, *bias;
  const int64_t* seed;
  uint32_t threshold;
  int64_t rows, width, outputs, members;

  __device__ __forceinline__ Dropout dropout() const { return {philox_key(*seed), threshold}; }
  double dropout_scale() const { return Dropout{{}, threshold}.scale(); }
  __device__ __host__ __forceinline__ int64_t groups() const { return (width + kMaskGroup - 1) / kMaskGroup; }
};

__device__ __forceinline__ int mask_lane() { return static_cast<int>(threadIdx.x) % kMaskLanes; }
__device__ __forceinline__ int mask_team() { return static_cast<int>(threadIdx.x) / kMaskLanes; }

// A selection is quicker than a conversion.
template <typename A>
__device__ __forceinline__ A keep_of(uint32_t kept, int j) {
  return kept >> j & 1 ? A{1} : A{0};
}

// body(j, feature) for this thread's features of a group.
template <typename Body>
__device__ __forceinline__ void for_features_of_lane(int64_t group, int64_t width, Body body) {
  const int64_t first = group * kMaskGroup + mask_lane();
  const int left = width - first < kMaskGroup ? static_cast<int>(width - first) : kMaskGroup;
#pragma unroll
  for (int j = 0; j < kLaneFeatures; ++j) {
    if (j * kMaskLanes < left) body(j, first + j * kMaskLanes);
  }
}

// This thread's features of a group, zeros beyond the end of the row.
template <typename A, typename T>
__device__ __forceinline__ void load_of_lane(const T* row, int64_t group, int64_t width, A (&values)[kLaneFeatures]) {
#pragma unroll
  for (int j = 0; j < kLaneFeatures; ++j) values[j] = 0;
  for_features_of_lane(group, width, [&](int j, int64_t f) { values[j] = static_cast<A>(to_float(row[f])); });
}

__device__ __forceinline__ uint32_t kept_of_lane(const Dropout& dropout, int64_t member, int64_t row, int64_t group) {
  return kept_features(dropout, member, row, static_cast<uint32_t>(group * kMaskLanes + mask_lane()));
}

// Where one pass keeps its masks for the next: [K, B, groups, kMaskLanes], each byte the kept_features of its block.
template <typename T>
__device__ __forceinline__ int64_t mask_byte(const DropoutLinear<T>& linear, int64_t member, int64_t row,
                                             int64_t group) {
  return ((member * linear.rows + row) * linear.groups() + group) * kMaskLanes + mask_lane();
}

// Bounds of one block for a multiprocessor let the compiler take the registers it needs: it would spill a few words for
// another block.

// ---- few outputs ----------------------------------------------------------------------------------------------------

// Members that a thread draws for and adds up side by side, so that it reads features and weights once for all of them.
template <int kOutputs>
constexpr int kOwnMembers = kOutputs == 1 ? 4 : 2;

// By a block: store(member, output, prediction) for one row, whose masks go to `masks` unless that is null. Teams share
// the members and, where these are few, the features.
template <int kOutputs, typename T, typename Store, typename A = typename Storage<T>::Arithmetic>
__device__ __forceinline__ void predict_row(const DropoutLinear<T>& linear, int64_t row, uint8_t* masks,
                                            A* parts /* shared [kMaskTeams][kOwnMembers][kOutputs] */, Store store) {
  constexpr int kOwn = kOwnMembers<kOutputs>;
  const int64_t groups = linear.groups(), width = linear.width, members = linear.members;
  const int outputs = kOutputs == 1 ? 1 : static_cast<int>(linear.outputs);
  const int most = members > kMaskTeams * kOwn ? 1 : kMaskTeams / static_cast<int>((members + kOwn - 1) / kOwn);
  const int slices = groups < most ? static_cast<int>(groups) : most, sets = kMaskTeams / slices;
  const int slice = mask_team() % slices, set = mask_team() / slices;
  const Dropout dropout = linear.dropout();
  const A scale = static_cast<A>(dropout.scale());
  for (int64_t first = 0; first < members; first += sets * kOwn) {
    // Of member first + m * sets + set.
    A sums[kOwn][kOutputs] = {};
#pragma unroll 1
    for (int64_t group = set < sets ? slice : groups; group < groups; group += slices) {
      A values[kLaneFeatures], masked[kOwn][kLaneFeatures] = {};
      load_of_lane(linear.features + row * width, group, width, values);
#pragma unroll
      for (int m = 0; m < kOwn; ++m) {
        const int64_t member = first + m * sets + set;
        if (member >= members) break;
        const uint32_t kept = kept_of_lane(dropout, member, row, group);
        if (masks) masks[mask_byte(linear, member, row, group)] = static_cast<uint8_t>(kept);
#pragma unroll
        for (int j = 0; j < kLaneFeatures; ++j) masked[m][j] = keep_of<A>(kept, j) * values[j];
      }
#pragma unroll
      for (int c = 0; c < kOutputs; ++c) {
        if (c >= outputs) break;
        A factors[kLaneFeatures];
        load_of_lane(linear.weight + c * width, group, width, factors);
#pragma unroll
        for (int m = 0; m < kOwn; ++m) {
#pragma unroll
          for (int j = 0; j < kLaneFeatures; ++j) sums[m][c] += masked[m][j] * factors[j];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kOwn; ++m) {
#pragma unroll
      for (int c = 0; c < kOutputs; ++c) {
        if (c >= outputs) break;
        for (int mask = kMaskLanes / 2; mask; mask /= 2) sums[m][c] += __shfl_xor_sync(kFullWarp, sums[m][c], mask);
        if (mask_lane() == 0) parts[(mask_team() * kOwn + m) * kOutputs + c] = sums[m][c];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < sets * kOwn * outputs; i += kThreads) {
      const int m = i / outputs / sets, of = i / outputs % sets, c = i % outputs;
      const int64_t member = first + m * sets + of;
      if (member >= members) break;
      A total = 0;
      for (int s = 0; s < slices; ++s) total += parts[((of * slices + s) * kOwn + m) * kOutputs + c];
      store(member, c, total * scale + (linear.bias ? static_cast<A>(to_float(linear.bias[c])) : A{0}));
    }
    __syncthreads();
  }
}

// result [K, B, C], and the masks unless null. One block per row.
template <int kOutputs, typename T, typename Out, typename A = typename Storage<T>::Arithmetic>
__global__ void __launch_bounds__(kThreads, 1)
    dropout_predict_kernel(DropoutLinear<T> linear, uint8_t* masks, Out* result) {
  constexpr int kParts = kOwnMembers<kOutputs> * kOutputs;  // of a team
  DADL_SHARED(parts, A[kMaskTeams * kParts]);
  const int64_t row = blockIdx.x;
  predict_row<kOutputs>(linear, row, masks, parts, [&](int64_t k, int c, A value) {
    result[(k * linear.rows + row) * linear.outputs + c] = Storage<Out>::round(value);
  });
}

// The row losses [B] and, unless null, the predictions' gradients [K, B, C], both times gain, and the masks; at most
// kFusedPredictions predictions of a row. One block per row.
template <int kOutputs, typename T, typename A = typename Storage<T>::Arithmetic>
__global__ void __launch_bounds__(kThreads, 1)
    dropout_disagree_kernel(DropoutLinear<T> linear, Measure measure, int width, A gain, uint8_t* masks, A* loss,
                            A* gradient) {
  constexpr int kParts = kOwnMembers<kOutputs> * kOutputs;  // of a team
  DADL_SHARED(predictions, A[kFusedPredictions]);
  DADL_SHARED(softmaxes, A[3 * kFusedPredictions]);
  DADL_SHARED(parts, A[kMaskTeams * kParts]);
  DADL_SHARED(sums, A[kThreads / kWarp]);
  const int64_t row = blockIdx.x, outputs = linear.outputs, members = linear.members;
  predict_row<kOutputs>(linear, row, masks, parts,
                        [&](int64_t k, int c, A value) { predictions[k * outputs + c] = value; });
  const Members<A> x{predictions, outputs, members, gradient ? gradient + row * outputs : nullptr,
                     linear.rows * outputs};
  const Team<kThreads, A> team{width, sums};
  A total = 0;
  if (is_over_classes(measure)) {
    total =
        measure_classes(team, measure, x, outputs,
                        Softmaxes<false, A>{softmaxes, softmaxes + members, softmaxes + 2 * members, nullptr}, gain);
  } else {
    const A factor = gain / static_cast<A>(outputs);
    share_elements(team, outputs, [&](int64_t c, int64_t first, int64_t step) {
      total += measure_element(measure, x, c, first, step, factor);
    });
    total = factor * team.team_sum(total);
  }
  if (threadIdx.x == 0) loss[row] = total;
}

// The gradient of the features [B, F] for the upstream gradient [K, B, C], and parts [chunks, C, F] of the weight's, of
// rows_per_chunk rows each; null where not wanted. The masks are read, or drawn where they were not kept. Grid: groups
// of features by chunks of rows. Outputs beyond kOutputs take further passes, where the features' gradient is added to
// and must be of the arithmetic type.
template <int kOutputs, bool kKept, typename T, typename Out, typename A = typename Storage<T>::Arithmetic>
__global__ void __launch_bounds__(kThreads, 1)
    dropout_gradients_kernel(DropoutLinear<T> linear, const uint8_t* masks, const A* upstream, int64_t rows_per_chunk,
                             Out* for_features, A* parts) {
  DADL_SHARED(memory, A[kMaskTeams * kMaskGroup]);
  const int64_t group = blockIdx.x, width = linear.width, rows = linear.rows;
  const int outputs = kOutputs == 1 ? 1 : static_cast<int>(linear.outputs);
  const int64_t begin = blockIdx.y * rows_per_chunk;
  const int64_t end = begin + rows_per_chunk < rows ? begin + rows_per_chunk : rows;
  const Dropout dropout = linear.dropout();
  const A scale = static_cast<A>(dropout.scale());
#pragma unroll 1
  for (int first = 0; first < outputs; first += kOutputs) {
    A weight_sums[kOutputs][kLaneFeatures] = {};
#pragma unroll 1
    for (int64_t row = begin + mask_team(); row < end; row += kMaskTeams) {
      A sums[kOutputs][kLaneFeatures] = {};
#pragma unroll(!kKept ? 1 : kOutputs == 1 ? 4 : 2)  // loads of masks are under way together
      for (int64_t k = 0; k < linear.members; ++k) {
        const uint32_t kept = kKept ? masks[mask_byte(linear, k, row, group)] : kept_of_lane(dropout, k, row, group);
        const A* factors = upstream + (k * rows + row) * outputs + first;
#pragma unroll
        for (int c = 0; c < kOutputs; ++c) {
          if (first + c >= outputs) break;
          const A factor = scale * factors[c];
#pragma unroll
          for (int j = 0; j < kLaneFeatures; ++j) sums[c][j] += keep_of<A>(kept, j) * factor;
        }
      }
      A values[kLaneFeatures], totals[kLaneFeatures] = {};
      if (parts) load_of_lane(linear.features + row * width, group, width, values);
#pragma unroll
      for (int c = 0; c < kOutputs; ++c) {
        if (first + c >= outputs) break;
        A factors[kLaneFeatures];
        if (for_features) load_of_lane(linear.weight + (first + c) * width, group, width, factors);
#pragma unroll
        for (int j = 0; j < kLaneFeatures; ++j) {
          if (parts) weight_sums[c][j] += sums[c][j] * values[j];
          if (for_features) totals[j] += sums[c][j] * factors[j];
        }
      }
      if (!for_features) continue;
      for_features_of_lane(group, width, [&](int j, int64_t f) {
        Out& out = for_features[row * width + f];
        out = Storage<Out>::round(first == 0 ? totals[j] : totals[j] + static_cast<A>(to_float(out)));
      });
    }
    if (!parts) continue;
#pragma unroll
    for (int c = 0; c < kOutputs; ++c) {
      if (first + c >= outputs) break;
#pragma unroll
      for (int j = 0; j < kLaneFeatures; ++j) {
        memory[mask_team() * kMaskGroup + j * kMaskLanes + mask_lane()] = weight_sums[c][j];
      }
      __syncthreads();
      const int64_t f = group * kMaskGroup + threadIdx.x;
      if (threadIdx.x < kMaskGroup && f < width) {
        A total = 0;
        for (int team = 0; team < kMaskTeams; ++team) total += memory[team * kMaskGroup + threadIdx.x];
        parts[(static_cast<int64_t>(blockIdx.y) * outputs + first + c) * width + f] = total;
      }
      __syncthreads();
    }
  }
}

// sign times the sums: of parts [chunks, C, F] the weight's gradient [C, F], and in the last block of each output,
// where wanted, of upstream [K B, C] the bias's [C]. Grid: chunks of features by outputs.
template <typename A, typename Out>
__global__ void __launch_bounds__(kThreads)
    dropout_combine_kernel(const A* parts, int64_t chunks, int64_t width, A sign, Out* for_weight, const A* upstream,
                           int64_t count, A* for_bias) {
  DADL_SHARED(sums, A[kThreads / kWarp]);
  const int64_t outputs = gridDim.y, c = blockIdx.y, f = element_index();
  if (for_bias && blockIdx.x == gridDim.x - 1) {
    A total = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < count; i += kThreads) total += upstream[i * outputs + c];
    total = block_join(total, sums, [](A a, A b) { return a + b; });
    if (threadIdx.x == 0) for_bias[c] = sign * total;
    return;
  }
  if (f >= width) return;
  A total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += parts[(chunk * outputs + c) * width + f];
  for_weight[c * width + f] = Storage<Out>::round(sign * total);
}

// ---- many outputs ---------------------------------------------------------------------------------------------------

// tile [count, F] = masked features, not scaled, so that they are exact in T; row i is that of (member, row) number
// first + i, counted through all rows of a member first.
template <typename T, typename A = typename Storage<T>::Arithmetic>
__global__ void __launch_bounds__(kThreads)
    dropout_mask_kernel(DropoutLinear<T> linear, int64_t first, int64_t count, T* tile) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kMaskTeams + mask_team();
  const int64_t i = item / linear.groups(), group = item % linear.groups(), width = linear.width;
  if (i >= count) return;
  const int64_t member = (first + i) / linear.rows, row = (first + i) % linear.rows;
  const Dropout dropout = linear.dropout();
  const uint32_t kept = kept_of_lane(dropout, member, row, group);
  for_features_of_lane(group, width, [&](int j, int64_t f) {
    const A value = static_cast<A>(to_float(linear.features[row * width + f]));
    tile[i * width + f] = Storage<T>::round(keep_of<A>(kept, j) * value);
  });
}

// result [count, C] = bias in each row.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    dropout_bias_kernel(const T* bias /* [C] */, int64_t size, int64_t outputs, A* result) {
  const int64_t i = element_index();
  if (i < size) result[i] = static_cast<A>(to_float(bias[i % outputs]));
}

// for_features [B, F] += mask back, with back [count, F] the scaled upstream gradients times the weight; and, unless
// null, the tile of dropout_mask_kernel. A row and group of features belongs to one team.
template <typename T, typename A = typename Storage<T>::Arithmetic>
__global__ void __launch_bounds__(kThreads, 1)
    dropout_mask_back_kernel(DropoutLinear<T> linear, int64_t first, int64_t count, const A* back, T* tile,
                             A* for_features) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kMaskTeams + mask_team();
  const int64_t start = item / linear.groups(), group = item % linear.groups(), width = linear.width;
  if (start >= linear.rows) return;
  const int64_t row = (first + start) % linear.rows;
  const Dropout dropout = linear.dropout();
  A sums[kLaneFeatures] = {};
#pragma unroll 1
  for (int64_t i = start; i < count; i += linear.rows) {
    const uint32_t kept = kept_of_lane(dropout, (first + i) / linear.rows, row, group);
    for_features_of_lane(group, width, [&](int j, int64_t f) {
      const A keep = keep_of<A>(kept, j);
      sums[j] += keep * back[i * width + f];
      if (tile)
        tile[i * width + f] = Storage<T>::round(keep * static_cast<A>(to_float(linear.features[row * width + f])));
    });
  }
  for_features_of_lane(group, width, [&](int j, int64_t f) { for_features[row * width + f] += sums[j]; });
}

// ---- the order of the launches --------------------------------------------------------------------------------------

template <int kValue>
using Count = std::integral_constant<int, kValue>;

// result [K, B, C] for few outputs, and the masks unless null
template <typename T, typename Out, typename Backend>
void dropout_predict(Backend& backend, const DropoutLinear<T>& linear, uint8_t* masks, Out* result) {
  if (linear.rows == 0) return;
  const dim3 grid(blocks_for(linear.rows, 1));
  if (linear.outputs == 1) {
    backend.launch(dropout_predict_kernel<1, T, Out>, grid, dim3(kThreads), linear, masks, result);
  } else {
    backend.launch(dropout_predict_kernel<kFewOutputs, T, Out>, grid, dim3(kThreads), linear, masks, result);
  }
}

// result [K, B, C] in the arithmetic type, for many outputs
template <typename T, typename A, typename Backend>
void dropout_multiply(Backend& backend, const DropoutLinear<T>& linear, A* result,
                      int64_t tile_elements = kDropoutTileElements) {
  const int64_t all = linear.members * linear.rows, width = linear.width, outputs = linear.outputs;
  const int64_t size = std::clamp<int64_t>(tile_elements / width, 1, std::max<int64_t>(all, 1));
  if (linear.bias && all > 0) {
    backend.launch(dropout_bias_kernel<T, A>, dim3(blocks_for(all * outputs, kThreads)), dim3(kThreads), linear.bias,
                   all * outputs, outputs, result);
  }
  auto tile = backend.template buffer<T>(all ? size * width : 0);
  for (int64_t first = 0; first < all; first += size) {
    const int64_t count = std::min(size, all - first);
    backend.launch(dropout_mask_kernel<T>, dim3(blocks_for(count * linear.groups(), kMaskTeams)), dim3(kThreads),
                   linear, first, count, tile.data());
    backend.multiply(Matrix<T>{tile.data(), count, width, width, 1}, Matrix<T>{linear.weight, width, outputs, 1, width},
                     result + first * outputs, outputs, linear.bias != nullptr, static_cast<A>(linear.dropout_scale()));
  }
}

// The gradients [B, F] and [C, F] for the upstream gradient [K, B, C], for few outputs; and that of the bias [C]. Null
// where not wanted, the bias's also without the weight's. Sums over rows are multiplied with sign. With kKept the masks
// are those that a pass before has kept.
template <bool kKept, typename T, typename A, typename Out, typename Backend>
void dropout_gradients(Backend& backend, const DropoutLinear<T>& linear, const uint8_t* masks, const A* upstream,
                       A sign, Out* for_features, Out* for_weight, A* for_bias) {
  const int64_t rows = linear.rows, outputs = linear.outputs, width = linear.width, groups = linear.groups();
  const int64_t wanted = std::clamp<int64_t>(2 * backend.multiprocessors() / groups, 1,
                                             std::max<int64_t>(blocks_for(rows, kMaskTeams), 1));
  const int64_t rows_per_chunk = std::max<int64_t>(blocks_for(rows, wanted), 1);
  const unsigned chunks = blocks_for(rows, rows_per_chunk);
  auto parts = backend.template buffer<A>(for_weight ? chunks * outputs * width : 0);
  const auto launch = [&](auto count) {
    backend.launch(dropout_gradients_kernel<decltype(count)::value, kKept, T, Out>,
                   dim3(static_cast<unsigned>(groups), chunks), dim3(kThreads), linear, masks, upstream, rows_per_chunk,
                   for_features, for_weight ? parts.data() : nullptr);
  };
  if (rows > 0) {
    if (outputs == 1) {
      launch(Count<1>{});
    } else if (outputs <= 4 || std::is_same_v<A, double>) {  // eight would not fit into the registers
      launch(Count<4>{});
    } else {
      if constexpr (!std::is_same_v<A, double>) launch(Count<kFewOutputs>{});
    }
  }
  if (!for_weight) return;
  backend.launch(dropout_combine_kernel<A, Out>,
                 dim3(blocks_for(width, kThreads) + (for_bias ? 1 : 0), static_cast<unsigned>(outputs)), dim3(kThreads),
                 parts.data(), chunks, width, sign, for_weight, upstream, linear.members * rows, for_bias);
}

// The gradients [B, F] and [C, F] in the arithmetic type for the upstream gradient [K, B, C], for many outputs; null
// where not wanted.
template <typename T, typename A, typename Backend>
void dropout_multiply_back(Backend& backend, const DropoutLinear<T>& linear, const T* upstream, A* for_features,
                           A* for_weight, int64_t tile_elements = kDropoutTileElements) {
  const int64_t all = linear.members * linear.rows, width = linear.width, outputs = linear.outputs;
  const int64_t size = std::clamp<int64_t>(tile_elements / width, 1, std::max<int64_t>(all, 1));
  const A scale = static_cast<A>(linear.dropout_scale());
  if (all == 0) {
    if (for_weight) backend.zero(for_weight, outputs * width);
    return;
  }
  if (for_features) backend.zero(for_features, linear.rows * width);
  auto back = backend.template buffer<A>(for_features ? size * width : 0);
  auto tile = backend.template buffer<T>(for_weight ? size * width : 0);
  for (int64_t first = 0; first < all; first += size) {
    const int64_t count = std::min(size, all - first), rows = std::min(count, linear.rows);
    const T* grad = upstream + first * outputs;
    if (for_features) {
      backend.multiply(Matrix<T>{grad, count, outputs, outputs, 1}, Matrix<T>{linear.weight, outputs, width, width, 1},
                       back.data(), width, false, scale);
      backend.launch(dropout_mask_back_kernel<T>, dim3(blocks_for(rows * linear.groups(), kMaskTeams)), dim3(kThreads),
                     linear, first, count, back.data(), for_weight ? tile.data() : nullptr, for_features);
    } else {
      backend.launch(dropout_mask_kernel<T>, dim3(blocks_for(count * linear.groups(), kMaskTeams)), dim3(kThreads),
                     linear, first, count, tile.data());
    }
    if (!for_weight) continue;
    backend.multiply(Matrix<T>{grad, outputs, count, 1, outputs}, Matrix<T>{tile.data(), count, width, width, 1},
                     for_weight, width, first > 0, scale);
  }
}

// For few outputs the row losses [B] times gain and, unless null, all gradients, those of the weight and the bias times
// sign.
template <typename T, typename A, typename Backend>
void dropout_disagreement(Backend& backend, const DropoutLinear<T>& linear, Measure measure, A gain, A sign, A* loss,
                          A* for_features, A* for_weight, A* for_bias) {
  const int64_t rows = linear.rows, outputs = linear.outputs, predictions = linear.members * outputs;
  auto upstream = backend.template buffer<A>(for_features ? rows * predictions : 0);
  auto kept = backend.template buffer<uint8_t>(for_features ? linear.members * rows * linear.groups() * kMaskLanes : 0);
  A* gradient = for_features ? upstream.data() : nullptr;
  uint8_t* masks = for_features ? kept.data() : nullptr;
  if (rows > 0 && predictions <= kFusedPredictions) {
    const dim3 grid(blocks_for(rows, 1));
    const int width = group_width(outputs, kWarp);
    if (outputs == 1) {
      backend.launch(dropout_disagree_kernel<1, T>, grid, dim3(kThreads), linear, measure, width, gain, masks, loss,
                     gradient);
    } else {
      backend.launch(dropout_disagree_kernel<kFewOutputs, T>, grid, dim3(kThreads), linear, measure, width, gain, masks,
                     loss, gradient);
    }
  } else if (rows > 0) {
    auto result = backend.template buffer<A>(rows * predictions);
    dropout_predict(backend, linear, masks, result.data());
    disagreement(backend,
                 Disagreement<A>{measure, result.data(), linear.members, rows, 1, outputs, gain, loss, gradient});
  }
  if (for_features) {
    dropout_gradients<true>(backend, linear, masks, static_cast<const A*>(gradient), sign, for_features, for_weight,
                            for_bias);
  }
}

}  // namespace dadl
