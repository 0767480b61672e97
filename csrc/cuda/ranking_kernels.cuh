// Ranks along rows: rank_i = 1 + #{x_j > x_i} + #{j > i : x_j = x_i} = n - (position in the stable ascending order).
//
// What is ranked and where the ranks go is an operation `Op`, so that perturbations are fused into the load and
// differences into the store:
//   using Key                 unsigned integer whose order is the order of the values
//   int columns(row)          length of the row, 0 to skip it
//   Key key(row, i)           read once per element, all of them before the first store of the row
//   void store(row, i, rank)
//
// A backend launches kernels, owns buffers and calls the libraries; see torch_backend.h for its members.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#include <cub/block/block_radix_sort.cuh>
#endif

#include "../core/half.h"
#include "../core/order.h"
#include "device.cuh"

namespace dadl {

// A key and the index of its element; entries are distinct, so that any sort of them is stable.
template <typename Key>
struct Entry;

template <>
struct Entry<uint32_t> {
  uint64_t packed;

  static __device__ __forceinline__ Entry make(uint32_t key, uint32_t index) {
    return {static_cast<uint64_t>(key) << 32 | index};
  }
  __device__ __forceinline__ int index() const { return static_cast<int>(packed & 0xFFFFFFFFu); }
  __device__ __forceinline__ bool before(Entry other) const { return packed < other.packed; }
  __device__ __forceinline__ Entry across(int mask) const { return {__shfl_xor_sync(kFullWarp, packed, mask)}; }
};

template <>
struct Entry<uint64_t> {
  uint64_t key;
  uint32_t element;

  static __device__ __forceinline__ Entry make(uint64_t key, uint32_t index) { return {key, index}; }
  __device__ __forceinline__ int index() const { return static_cast<int>(element); }
  __device__ __forceinline__ bool before(Entry other) const {
    // Without branches, which a sort would take hundreds of.
    return (key < other.key) | ((key == other.key) & (element < other.element));
  }
  __device__ __forceinline__ Entry across(int mask) const {
    return {__shfl_xor_sync(kFullWarp, key, mask), __shfl_xor_sync(kFullWarp, element, mask)};
  }
};

template <typename E>
__device__ __forceinline__ void sort_pair(E& low, E& high) {
  if (high.before(low)) {
    const E swapped = low;
    low = high;
    high = swapped;
  }
}

template <typename E>
__device__ __forceinline__ void keep(E& mine, E theirs, bool low) {
  if (theirs.before(mine) == low) mine = theirs;
}

// Ascending merge of a bitonic run inside each lane. A template, because every index must be known to the compiler for
// the entries to stay in registers.
template <int kStride, int kItems, typename E>
__device__ __forceinline__ void merge_in_lane(E (&entries)[kItems]) {
  if constexpr (kStride > 0) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (!(i & kStride)) sort_pair(entries[i], entries[i + kStride]);
    }
    merge_in_lane<kStride / 2>(entries);
  }
}

template <int kSize, int kItems, typename E>
__device__ __forceinline__ void sort_in_lane(E (&entries)[kItems]) {
  if constexpr (kSize > 1) {
    sort_in_lane<kSize / 2>(entries);
    // Comparing with the mirror image makes both halves bitonic without a descending run.
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (!(i & (kSize / 2))) sort_pair(entries[i], entries[i ^ (kSize - 1)]);
    }
    merge_in_lane<kSize / 4>(entries);
  }
}

// Sorts the warp's entries: on return slot s of lane l holds the entry at position l * kItems + s. Most steps of a
// bitonic sort have short strides, and those stay inside a lane.
template <int kItems, typename E>
__device__ __forceinline__ void warp_sort(E (&entries)[kItems]) {
  const int lane = lane_index();
  sort_in_lane<kItems>(entries);
#pragma unroll 1
  for (int lanes = 2; lanes <= kWarp; lanes *= 2) {
    const bool low_half = !(lane & (lanes / 2));
#pragma unroll
    for (int i = 0; i < (kItems + 1) / 2; ++i) {
      const int mirror = kItems - 1 - i;
      const E first = entries[mirror].across(lanes - 1);
      if (mirror != i) keep(entries[mirror], entries[i].across(lanes - 1), low_half);
      keep(entries[i], first, low_half);
    }
#pragma unroll 1
    for (int mask = lanes / 4; mask; mask /= 2) {
      const bool low = !(lane & mask);
#pragma unroll
      for (int i = 0; i < kItems; ++i) keep(entries[i], entries[i].across(mask), low);
    }
    merge_in_lane<kItems / 2>(entries);
  }
}

// Ranks of one row of n <= 32 * kItems elements by one warp, into its shared memory; visible to all lanes on return.
template <int kItems, typename Key, typename KeyOf>
__device__ __forceinline__ void warp_ranks(KeyOf key, int n, uint16_t* ranks) {
  const int lane = lane_index();
  Entry<Key> entries[kItems];
#pragma unroll
  for (int s = 0; s < kItems; ++s) {
    const int i = s * kWarp + lane;
    entries[s] = Entry<Key>::make(i < n ? key(i) : static_cast<Key>(~Key{0}), i);
  }
  warp_sort(entries);
#pragma unroll
  for (int s = 0; s < kItems; ++s) {
    const int i = entries[s].index();
    if (i < n) ranks[i] = static_cast<uint16_t>(n - (lane * kItems + s));
  }
  __syncwarp();
}

template <int kItems, typename Op>
__global__ void __launch_bounds__(kRowThreads, 1) warp_rank_kernel(Op op, int64_t rows) {
  DADL_SHARED(ranks, uint16_t[kRowWarps][kItems * kWarp]);
  const int64_t row = warp_row();
  const int n = row < rows ? op.columns(row) : 0;
  if (n == 0) return;
  uint16_t* own = ranks[threadIdx.x / kWarp];
  warp_ranks<kItems, typename Op::Key>([&](int i) { return op.key(row, i); }, n, own);
  for (int i = lane_index(); i < n; i += kWarp) op.store(row, i, own[i]);
}

// A row of at most kBlockThreads * kItems elements by one block. With eight items a thread's registers are so few that
// a multiprocessor holds 1024 threads; for that the sort reads its counters twice and does not keep them in registers.
template <int kBlockThreads, int kItems, typename Op>
__global__ void __launch_bounds__(kBlockThreads, kItems > 8 ? 1 : 1024 / kBlockThreads) block_rank_kernel(Op op) {
  using Key = typename Op::Key;
  constexpr int kDigitBits = 4;
  constexpr bool kMemoize = false;
  using Sort = cub::BlockRadixSort<Key, kBlockThreads, kItems, uint16_t, kDigitBits, kMemoize>;
  union Memory {
    typename Sort::TempStorage sort;
    uint16_t ranks[kBlockThreads * kItems];
  };
  DADL_SHARED(memory, Memory);
  const int64_t row = blockIdx.x;
  const int n = op.columns(row), first = static_cast<int>(threadIdx.x) * kItems;
  if (n == 0) return;
  Key keys[kItems];
  uint16_t elements[kItems];
#pragma unroll
  for (int s = 0; s < kItems; ++s) {
    keys[s] = first + s < n ? op.key(row, first + s) : static_cast<Key>(~Key{0});
    elements[s] = static_cast<uint16_t>(first + s);
  }
  Sort(memory.sort).Sort(keys, elements);  // stable
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kItems; ++s) memory.ranks[elements[s]] = static_cast<uint16_t>(n - (first + s));
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kBlockThreads) op.store(row, i, memory.ranks[i]);
}

// Longer rows: signed keys for the library's sort, which knows no unsigned ones. Grid: columns by rows.
template <typename Op>
__global__ void __launch_bounds__(kThreads)
    sort_key_kernel(Op op, int64_t first_row, int64_t n, std::make_signed_t<typename Op::Key>* keys /* [rows, n] */) {
  using Key = typename Op::Key;
  const int64_t i = element_index();
  if (i >= n) return;
  const int64_t row = first_row + blockIdx.y;
  const Key key = i < op.columns(row) ? op.key(row, i) : static_cast<Key>(~Key{0});
  const Key sign = Key{1} << (8 * sizeof(Key) - 1);
  keys[blockIdx.y * n + i] = static_cast<std::make_signed_t<Key>>(key ^ sign);
}

template <typename Op>
__global__ void __launch_bounds__(kThreads)
    sort_rank_kernel(Op op, int64_t first_row, int64_t n, const int64_t* elements /* [rows, n], by position */) {
  const int64_t position = element_index();
  const int64_t row = first_row + blockIdx.y;
  const int64_t columns = op.columns(row);
  if (position >= columns) return;
  op.store(row, elements[blockIdx.y * n + position], static_cast<int>(columns - position));
}

// Where one way of ranking hands over to the next.
struct RankLimits {
  int64_t warp = 1024;
  int64_t block = 8192;                      // 6144 for keys of 64 bits: 48 KiB of them
  int64_t sort_elements = int64_t{1} << 22;  // per call of the library, which bounds its memory
};

// Calls body(std::integral_constant<int, kItems>) with the fewest items per lane that hold n elements.
template <int kItems = 1, typename Body>
void with_items(int64_t n, Body body) {
  if constexpr (kItems < 32) {
    if (n > kItems * kWarp) return with_items<2 * kItems>(n, body);
  }
  body(std::integral_constant<int, kItems>{});
}

// Ranks `rows` rows of any length n by the library's sort.
template <typename Op, typename Backend>
void launch_sorted_ranks(Backend& backend, Op op, int64_t rows, int64_t n, const RankLimits& limits) {
  using Signed = std::make_signed_t<typename Op::Key>;
  int64_t chunk = limits.sort_elements / n;
  chunk = chunk < 1 ? 1 : chunk > 65535 ? 65535 : chunk;
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t height = rows - first < chunk ? rows - first : chunk;
    const dim3 grid(blocks_for(n, kThreads), static_cast<unsigned>(height));
    auto keys = backend.template buffer<Signed>(height * n);
    backend.launch(sort_key_kernel<Op>, grid, dim3(kThreads), op, first, n, keys.data());
    const auto elements = backend.sort(keys, height, n);
    backend.launch(sort_rank_kernel<Op>, grid, dim3(kThreads), op, first, n, elements.data());
  }
}

// Ranks `rows` rows of at most n elements, without the kernels for short rows.
template <typename Op, typename Backend>
void launch_long_ranks(Backend& backend, Op op, int64_t rows, int64_t n, const RankLimits& limits) {
  using Key = typename Op::Key;
  constexpr int kMostItems = sizeof(Key) == 4 ? 16 : 12;
  const auto by_blocks = [&](auto kernel, int threads) {
    backend.launch(kernel, dim3(blocks_for(rows, 1)), dim3(threads), op);
  };
  if (n > limits.block || n > 512 * kMostItems) return launch_sorted_ranks(backend, op, rows, n, limits);
  if (n <= 256 * 8) return by_blocks(block_rank_kernel<256, 8, Op>, 256);
  if (n <= 512 * 8) return by_blocks(block_rank_kernel<512, 8, Op>, 512);
  by_blocks(block_rank_kernel<512, kMostItems, Op>, 512);
}

template <typename Op, typename Backend>
void launch_ranks(Backend& backend, Op op, int64_t rows, int64_t n, const RankLimits& limits) {
  if (rows == 0 || n == 0) return;
  if (n > limits.warp) return launch_long_ranks(backend, op, rows, n, limits);
  with_items(n, [&](auto items) {
    backend.launch(warp_rank_kernel<decltype(items)::value, Op>, dim3(blocks_for(rows, kRowWarps)), dim3(kRowThreads),
                   op, rows);
  });
}

template <typename T>
struct Rank {
  using Arithmetic = typename Storage<T>::Arithmetic;
  using Key = decltype(ordered_key(Arithmetic{}));

  const T* input;      // [rows, n]
  Arithmetic* output;  // [rows, n]
  int n;

  __device__ __forceinline__ int columns(int64_t) const { return n; }
  __device__ __forceinline__ Key key(int64_t row, int64_t i) const { return ordered_key(to_float(input[row * n + i])); }
  __device__ __forceinline__ void store(int64_t row, int64_t i, int rank) const {
    output[row * n + i] = static_cast<Arithmetic>(rank);
  }
};

// -(rank(x) - rank(x + strength * grad)) / divisor
template <typename T>
struct RankBackward {
  using Arithmetic = typename Storage<T>::Arithmetic;
  using Key = decltype(ordered_key(Arithmetic{}));

  const Arithmetic* grad;   // [rows, n]
  const T* input;           // [rows, n]
  const Arithmetic* ranks;  // [rows, n], those of input
  T* output;                // [rows, n]
  int n;
  Arithmetic strength, divisor;

  __device__ __forceinline__ int columns(int64_t) const { return n; }
  __device__ __forceinline__ Key key(int64_t row, int64_t i) const {
    return ordered_key(to_float(input[row * n + i]) + strength * grad[row * n + i]);
  }
  __device__ __forceinline__ void store(int64_t row, int64_t i, int rank) const {
    output[row * n + i] = Storage<T>::round(-(ranks[row * n + i] - static_cast<Arithmetic>(rank)) / divisor);
  }
};

}  // namespace dadl
