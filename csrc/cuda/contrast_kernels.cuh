// Streaming log-sum-exp of similarities with its gradients, and pseudo group contrast on it. The formulas are those of
// dadl_ext/reference/contrast.py.
//
// A block owns 32 queries and streams a range of the keys past them, tile by tile, as attention with values = keys:
// similarities of a tile in shared memory, weights in their place, then weights times keys added to the block's
// weighted sums. Those are in global memory, d being unbounded; each element belongs to one thread. A second kernel
// combines the ranges in order, so the result depends on shapes and the number of multiprocessors alone.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>

#include "contrast_tiles.cuh"

namespace dadl {

constexpr int64_t kMostSplits = kThreads;            // the combining block has a thread for each
constexpr int64_t kContrastStateBytes = 64LL << 20;  // of weighted sums, above which there is no further parallelism

// Which keys a query meets, and which of them are its positives.
struct KeyChoice {
  const bool* mask = nullptr;  // [N], null for all
  bool exclude_self = false;   // key i is left out for query i
  // Group contrast: N = classes * slots, and the slots of the query's class are positives.
  const int64_t* target = nullptr;      // [B], null where there are no classes
  const int64_t* slot_count = nullptr;  // [classes], valid leading slots; null for all
  int classes = 0, slots = 1;
  bool kl = false, mean = false;
  int64_t ignore_index = -1;

  __device__ __forceinline__ int valid_slots(int64_t c) const {
    if (!slot_count) return slots;
    const int64_t count = slot_count[c];
    return count < 0 ? 0 : count < slots ? static_cast<int>(count) : slots;
  }
  __device__ __forceinline__ bool takes_part(int key) const {
    return (!mask || mask[key]) && (!slot_count || key % slots < slot_count[key / slots]);
  }
  __device__ __forceinline__ bool is_class(int64_t c) const { return c >= 0 && c < classes; }
};

// What each range of keys leaves for each query. `weighted` is null where no slope is wanted.
template <typename A>
struct Partials {
  int splits, queries;
  A *largest, *sum;  // [splits, B]: largest logit, sum of exp(logit - largest)
  A* positive;       // [splits, B]: sum of the positives' logits
  A* weighted;       // [splits, B, d]: sum of exp(logit - largest) key

  __device__ __forceinline__ int64_t at(int split, int query) const {
    return static_cast<int64_t>(split) * queries + query;
  }
};

// Over the four threads of a row.
template <typename A>
__device__ __forceinline__ A row_sum(A value) {
  value += __shfl_xor_sync(kFullWarp, value, 1);
  return value + __shfl_xor_sync(kFullWarp, value, 2);
}

template <typename A>
__device__ __forceinline__ A row_largest(A value) {
  value = larger(value, __shfl_xor_sync(kFullWarp, value, 1));
  return larger(value, __shfl_xor_sync(kFullWarp, value, 2));
}

// Grid: tiles of queries by ranges of keys. Between the products four threads of a warp share a row.
template <class Tile, typename Q, typename K>
__global__ void __launch_bounds__(kContrastThreads, Tile::kBlocks)
    contrast_attend_kernel(Rows<Q> query, Rows<K> key, KeyChoice choice, typename Tile::Arithmetic scale,
                           int keys_per_split, Partials<typename Tile::Arithmetic> partials) {
  using A = typename Tile::Arithmetic;
  using Input = typename Tile::Input;
  using Memory = TileMemory<Tile>;
  constexpr int kPerThread = Tile::kColumns / 4;
  DADL_SHARED(memory, Memory);
  const int first_row = static_cast<int>(blockIdx.x) * kContrastRows, split = static_cast<int>(blockIdx.y);
  const int row = static_cast<int>(threadIdx.x) / 4, quarter = static_cast<int>(threadIdx.x) % 4;
  const int i = first_row + row, rows = rows_of_tile(query, first_row);
  const int begin = split * keys_per_split;
  const int end = begin + keys_per_split < key.count ? begin + keys_per_split : key.count;
  const int64_t target = choice.target && row < rows ? choice.target[i] : -1;
  const int positives = choice.is_class(target) ? static_cast<int>(target) * choice.slots : key.count;

  A largest = minus_infinity<A>(), sum = 0, positive = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += Tile::kColumns) {
    for (int column = threadIdx.x; column < Tile::kColumns; column += kContrastThreads) {
      memory.used[column] = first + column < end && choice.takes_part(first + column);
    }
    __syncthreads();
    similarities<Tile>(query, first_row, key, first, memory);

    A values[kPerThread];
    A next = largest;
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      const int column = 4 * e + quarter;
      const int j = first + column;
      const bool met = memory.used[column] && !(choice.exclude_self && i == j);
      values[e] = met ? scale * memory.logits[row * Memory::kLogitPitch + column] : minus_infinity<A>();
      if (met && j >= positives && j - positives < choice.slots) positive += values[e];
      next = larger(next, values[e]);
    }
    next = row_largest(next);
    const A base = next == minus_infinity<A>() ? A{0} : next;
    __syncwarp();  // the shuffles order no memory
    A total = 0;
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      const A weight = exp(values[e] - base);
      total += weight;
      memory.weights()[row * Memory::kWeightPitch + 4 * e + quarter] = convert<Input>(weight);
    }
    const A keep = exp(largest - base);
    sum = sum * keep + row_sum(total);
    largest = next;
    if (quarter == 0) memory.keep[row] = keep;
    __syncthreads();
    if (partials.weighted) {
      A* weighted = partials.weighted + partials.at(split, first_row) * query.d;
      weighted_sums<Tile>(key, first, memory, [&](int r, int c, A value) {
        if (r >= rows) return;
        A& state = weighted[r * query.d + c];
        state = first == begin ? value : state * memory.keep[r] + value;
      });
    }
  }
  positive = row_sum(positive);
  if (quarter != 0 || row >= rows) return;
  partials.largest[partials.at(split, i)] = largest;
  partials.sum[partials.at(split, i)] = sum;
  partials.positive[partials.at(split, i)] = positive;
}

// The log-sum-exp, or with `own` [B, d], an additional key of each query, the row losses of group contrast; and the
// slope [B, d], the gradient of either. Grid: queries by chunks of features.
template <typename Q, typename K, typename A>
__global__ void __launch_bounds__(kThreads)
    contrast_combine_kernel(Partials<A> partials, Rows<Q> query, Rows<K> key, KeyChoice choice, const A* own, A scale,
                            A* values /* [B] */, A* slope /* [B, d] or null */) {
  DADL_SHARED(parts, A[kThreads / kWarp]);
  DADL_SHARED(factors, A[kThreads]);
  const auto add = [](A a, A b) { return a + b; };
  const int i = static_cast<int>(blockIdx.x), d = query.d, split = static_cast<int>(threadIdx.x);
  const bool has_split = split < partials.splits;
  const int64_t at = partials.at(split, i);
  const A* own_row = own + (own ? static_cast<int64_t>(i) * d : 0);

  A own_logit = minus_infinity<A>();
  if (own) {
    A inner = 0;
    for (int c = split; c < d; c += kThreads) inner += static_cast<A>(to_float(query.row(i)[c])) * own_row[c];
    own_logit = scale * block_join(inner, parts, add);
  }
  const A split_largest = has_split ? partials.largest[at] : minus_infinity<A>();
  const A largest = larger(block_join(split_largest, parts, larger<A>), own_logit);
  const A base = largest == minus_infinity<A>() ? A{0} : largest;
  const A factor = exp(split_largest - base), own_weight = exp(own_logit - base);
  factors[threadIdx.x] = factor;
  const A total = own_weight + block_join(has_split ? factor * partials.sum[at] : A{0}, parts, add);
  const A lse = base + log(total);

  const int c = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  const int64_t target = own ? choice.target[i] : 0;
  const bool is_class = own && choice.is_class(target);
  const A share = is_class ? A{1} / static_cast<A>(1 + choice.valid_slots(target)) : A{0};
  A value = lse, gain = 1;
  if (own) {
    if (choice.mean) {
      // Every block counts for itself: few targets, and no launch of its own.
      int counted = 0;
      for (int b = split; b < query.count; b += kThreads) counted += choice.target[b] != choice.ignore_index;
      gain = A{1} / larger(block_join(static_cast<A>(counted), parts, add), A{1});
    }
    const A positive = own_logit + block_join(has_split ? partials.positive[at] : A{0}, parts, add);
    const A missing = target == choice.ignore_index ? A{0} : static_cast<A>(NAN);
    value = is_class ? (lse - positive * share + (choice.kl ? log(share) : A{0})) * gain : missing;
  }
  if (c == 0) values[i] = value;
  if (!slope || c >= d) return;

  A& out = slope[static_cast<int64_t>(i) * d + c];
  if (own && !is_class) {
    out = 0;
    return;
  }
  A weighted = own ? own_weight * own_row[c] : A{0};
  for (int k = 0; k < partials.splits; ++k) weighted += factors[k] * partials.weighted[partials.at(k, i) * d + c];
  A result = total == 0 ? A{0} : weighted * (scale / total);
  if (own) {
    A positive = own_row[c];
    const int valid = choice.valid_slots(target);
    for (int slot = 0; slot < valid; ++slot) {
      positive += static_cast<A>(to_float(key.row(target * choice.slots + slot)[c]));
    }
    result = (result - positive * share * scale) * gain;
  }
  out = result;
}

// gradient [N, d] = scale sum_i grad_i p_ij query_i. Each block takes tiles of 32 keys in turn and streams the queries
// past them; `state` [blocks, 32, d], null where one tile holds all queries, keeps its sums between tiles of queries.
template <class Tile, typename T>
__global__ void __launch_bounds__(kContrastThreads, Tile::kBlocks)
    contrast_key_gradient_kernel(Rows<T> query, Rows<T> key, KeyChoice choice,
                                 const typename Tile::Arithmetic* grad /* [B] */,
                                 const typename Tile::Arithmetic* lse /* [B] */, typename Tile::Arithmetic scale,
                                 typename Tile::Arithmetic* state, T* gradient) {
  using A = typename Tile::Arithmetic;
  using Input = typename Tile::Input;
  using Memory = TileMemory<Tile>;
  constexpr int kPerThread = Tile::kColumns / 4;
  DADL_SHARED(memory, Memory);
  const int row = static_cast<int>(threadIdx.x) / 4, quarter = static_cast<int>(threadIdx.x) % 4;
  if (state) state += static_cast<int64_t>(blockIdx.x) * kContrastRows * key.d;

#pragma unroll 1
  for (int first_row = static_cast<int>(blockIdx.x) * kContrastRows; first_row < key.count;
       first_row += static_cast<int>(gridDim.x) * kContrastRows) {
    const int j = first_row + row, rows = rows_of_tile(key, first_row);
    const bool takes_part = row < rows && choice.takes_part(j);
#pragma unroll 1
    for (int first = 0; first < query.count; first += Tile::kColumns) {
      for (int column = threadIdx.x; column < Tile::kColumns; column += kContrastThreads) {
        memory.used[column] = first + column < query.count && lse[first + column] != minus_infinity<A>();
      }
      __syncthreads();
      similarities<Tile>(key, first_row, query, first, memory);

      // Weights are relative to the largest of their row: upstream gradients may be beyond what half precision holds.
      A weights[kPerThread];
      A largest = 0;
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        const int column = 4 * e + quarter;
        const int i = first + column;
        weights[e] = 0;
        if (takes_part && memory.used[column] && !(choice.exclude_self && i == j)) {
          // Rounding can put a logit above the log-sum-exp by a hair.
          const A x = scale * memory.logits[row * Memory::kLogitPitch + column] - lse[i];
          weights[e] = grad[i] * exp(x > 0 ? A{0} : x);
        }
        largest = larger(largest, fabs(weights[e]));
      }
      largest = row_largest(largest);
      const A gain = largest > A(1e-30) ? largest : A{1}, inverse = A{1} / gain;
      __syncwarp();  // the shuffles order no memory
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        memory.weights()[row * Memory::kWeightPitch + 4 * e + quarter] = convert<Input>(weights[e] * inverse);
      }
      if (quarter == 0) memory.gain[row] = gain;
      __syncthreads();
      const bool last = first + Tile::kColumns >= query.count;
      T* out = gradient + static_cast<int64_t>(first_row) * key.d;
      weighted_sums<Tile>(query, first, memory, [&](int r, int c, A value) {
        if (r >= rows) return;
        const A sum = memory.gain[r] * value + (first == 0 ? A{0} : state[r * key.d + c]);
        if (last) {
          out[r * key.d + c] = Storage<T>::round(scale * sum);
        } else {
          state[r * key.d + c] = sum;
        }
      });
    }
  }
}

// ---- the order of the launches --------------------------------------------------------------------------------------

// values [B] and, unless null, slope [B, d]; own [B, d] or null, see contrast_combine_kernel.
template <typename Q, typename K, typename A, typename Backend>
void contrast(Backend& backend, const Rows<Q>& query, const Rows<K>& key, const KeyChoice& choice, const A* own,
              double scale, A* values, A* slope) {
  using Tile = ContrastTile<Q, K>;
  if (query.count == 0) return;
  const unsigned row_tiles = blocks_for(query.count, kContrastRows);
  const int64_t tiles = blocks_for(key.count, Tile::kColumns), size = int64_t{query.count} * query.d;
  const int64_t wanted = std::min({kMostSplits, Tile::kBlocks * backend.multiprocessors() / row_tiles,
                                   kContrastStateBytes / std::max<int64_t>(size * static_cast<int64_t>(sizeof(A)), 1)});
  const int64_t tiles_per_split = std::max<int64_t>(blocks_for(tiles, std::max<int64_t>(wanted, 1)), 1);
  const unsigned splits = blocks_for(tiles, tiles_per_split);

  const int64_t rows = int64_t{splits} * query.count;
  auto statistics = backend.template buffer<A>(3 * rows);
  auto weighted = backend.template buffer<A>(slope ? splits * size : 0);
  const Partials<A> partials{static_cast<int>(splits),
                             query.count,
                             statistics.data(),
                             statistics.data() + rows,
                             statistics.data() + 2 * rows,
                             slope ? weighted.data() : nullptr};
  if (splits > 0) {
    backend.launch(contrast_attend_kernel<Tile, Q, K>, dim3(row_tiles, splits), dim3(kContrastThreads), query, key,
                   choice, scale, tiles_per_split * Tile::kColumns, partials);
  }
  const unsigned chunks = slope && query.d > 0 ? blocks_for(query.d, kThreads) : 1;
  backend.launch(contrast_combine_kernel<Q, K, A>, dim3(static_cast<unsigned>(query.count), chunks), dim3(kThreads),
                 partials, query, key, choice, own, scale, values, slope);
}

// gradient [N, d]
template <typename T, typename A, typename Backend>
void contrast_key_gradient(Backend& backend, const Rows<T>& query, const Rows<T>& key, const KeyChoice& choice,
                           const A* grad, const A* lse, double scale, T* gradient) {
  using Tile = ContrastTile<T, T>;
  const int64_t size = int64_t{key.count} * key.d, sums_of_tile = int64_t{kContrastRows} * key.d;
  if (size == 0) return;
  if (query.count == 0) return backend.zero(gradient, size);
  const int64_t state = sums_of_tile * static_cast<int64_t>(sizeof(A));
  const int64_t wanted = std::min(Tile::kBlocks * backend.multiprocessors(), kContrastStateBytes / state);
  const int64_t blocks = std::min<int64_t>(blocks_for(key.count, kContrastRows), std::max<int64_t>(wanted, 1));
  const bool one_tile = query.count <= Tile::kColumns;
  auto sums = backend.template buffer<A>(one_tile ? 0 : blocks * sums_of_tile);
  backend.launch(contrast_key_gradient_kernel<Tile, T>, dim3(static_cast<unsigned>(blocks)), dim3(kContrastThreads),
                 query, key, choice, grad, lse, scale, one_tile ? nullptr : sums.data(), gradient);
}

}  // namespace dadl
