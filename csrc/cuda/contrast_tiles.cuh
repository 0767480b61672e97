// Matrix products of tiles in shared memory, by the FMA units or by the tensor cores.
//
// A block of four warps owns 32 rows. A tile policy says how large the tiles are and how a warp multiplies:
//   using Arithmetic, Input                                   type of the sums, and of both operands
//   kColumns                                                  columns of a tile of similarities
//   kFeatures                                                 columns of a tile of weighted sums
//   kDepth                                                    what one call sums over
//   kBlocks                                                   blocks that a multiprocessor has registers for
//   multiply_transposed(a, a_pitch, b, b_pitch, sums)         sums += a b^T: a [32, kDepth], b [8 kFragments, kDepth]
//   multiply(a, a_pitch, b, b_pitch, sums)                    sums += a b:                  b [kDepth, 8 kFragments]
// Rows of a and b begin at multiples of 16 bytes, and all pitches are 4 words more than a multiple of 32, so that the
// eight rows that a warp reads at once lie in different banks.
#pragma once

#include <math.h>

#include <cstdint>
#include <type_traits>

#include "../core/half.h"
#include "device.cuh"
#include "mma.cuh"

namespace dadl {

constexpr int kContrastWarps = 4;
constexpr int kContrastThreads = kContrastWarps * kWarp;
constexpr int kContrastRows = 32;

// A lane's part of a product with 32 rows and 8 kFragments columns; tensor cores fix the layout, see mma.cuh.
template <typename A, int kFragments>
using Sums = A[2][kFragments][4];

// body(row, column, sum)
template <typename A, int kFragments, typename Body>
__device__ __forceinline__ void for_each_sum(const Sums<A, kFragments>& sums, Body body) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) body(16 * m + 8 * (e / 2) + g, 8 * n + 2 * t + e % 2, sums[m][n][e]);
    }
  }
}

// Values that are read and written at once.
template <typename T, int kSize>
struct alignas(kSize * sizeof(T)) Pack {
  T values[kSize];
};

template <int kSize, typename T>
__device__ __forceinline__ Pack<T, kSize> load_pack(const T* first) {
  return *reinterpret_cast<const Pack<T, kSize>*>(first);
}

template <typename A>
struct FmaTile {
  using Arithmetic = A;
  using Input = A;
  static constexpr int kColumns = 256 / sizeof(A);
  static constexpr int kFeatures = 512 / sizeof(A);
  static constexpr int kDepth = 32;
  static constexpr int kBlocks = sizeof(A) == 4 ? 4 : 3;

  template <int kFragments>
  static __device__ __forceinline__ void multiply_transposed(const A* a, int a_pitch, const A* b, int b_pitch,
                                                             Sums<A, kFragments>& sums) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll 1
    for (int k = 0; k < kDepth; k += kPack) {
      Pack<A, kPack> x[4], y[2 * kFragments];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = load_pack<kPack>(a + (8 * i + g) * a_pitch + k);
#pragma unroll
      for (int j = 0; j < 2 * kFragments; ++j) {
        y[j] = load_pack<kPack>(b + (8 * (j / 2) + 2 * t + j % 2) * b_pitch + k);
      }
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        add_outer<kFragments>([&](int i) { return x[i].values[e]; }, [&](int j) { return y[j].values[e]; }, sums);
      }
    }
  }

  template <int kFragments>
  static __device__ __forceinline__ void multiply(const A* a, int a_pitch, const A* b, int b_pitch,
                                                  Sums<A, kFragments>& sums) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll 1
    for (int k = 0; k < kDepth; k += kPack) {
      Pack<A, kPack> x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = load_pack<kPack>(a + (8 * i + g) * a_pitch + k);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        Pack<A, 2> y[kFragments];
#pragma unroll
        for (int n = 0; n < kFragments; ++n) y[n] = load_pack<2>(b + (k + e) * b_pitch + 8 * n + 2 * t);
        add_outer<kFragments>([&](int i) { return x[i].values[e]; }, [&](int j) { return y[j / 2].values[j % 2]; },
                              sums);
      }
    }
  }

 private:
  static constexpr int kPack = 16 / sizeof(A);

  // Row 8 i + g times the j-th of a lane's columns.
  template <int kFragments, typename X, typename Y>
  static __device__ __forceinline__ void add_outer(X x, Y y, Sums<A, kFragments>& sums) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kFragments; ++j) {
        A& sum = sums[i / 2][j / 2][2 * (i % 2) + j % 2];
        sum = fma(x(i), y(j), sum);
      }
    }
  }
};

// T is Half or BFloat16.
template <typename T>
struct MmaTile {
  using Arithmetic = float;
  using Input = T;
  static constexpr int kColumns = 64;
  static constexpr int kFeatures = 128;
  static constexpr int kDepth = 64;
  static constexpr int kBlocks = 4;

  template <int kFragments>
  static __device__ __forceinline__ void multiply_transposed(const T* a, int a_pitch, const T* b, int b_pitch,
                                                             Sums<float, kFragments>& sums) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      add_product<kFragments>(a + k, a_pitch, sums,
                              [&](int n, int half) { return pair(b + (8 * n + g) * b_pitch + k + 8 * half + 2 * t); });
    }
  }

  template <int kFragments>
  static __device__ __forceinline__ void multiply(const T* a, int a_pitch, const T* b, int b_pitch,
                                                  Sums<float, kFragments>& sums) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      add_product<kFragments>(a + k, a_pitch, sums, [&](int n, int half) {
        const T* upper = b + (k + 8 * half + 2 * t) * b_pitch + 8 * n + g;
        return static_cast<uint32_t>(upper[0].bits) | static_cast<uint32_t>(upper[b_pitch].bits) << 16;
      });
    }
  }

 private:
  static __device__ __forceinline__ uint32_t pair(const T* first) {
    uint32_t word;
    memcpy(&word, __builtin_assume_aligned(first, sizeof word), sizeof word);
    return word;
  }

  // b(n, half): the words of fragment n.
  template <int kFragments, typename B>
  static __device__ __forceinline__ void add_product(const T* a, int a_pitch, Sums<float, kFragments>& sums, B b) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    uint32_t x[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[m][i] = pair(a + (16 * m + 8 * (i % 2) + g) * a_pitch + 8 * (i / 2) + 2 * t);
    }
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
      const uint32_t y[2] = {b(n, 0), b(n, 1)};
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply_add<T>(sums[m][n], x[m], y);
    }
  }
};

// Tensor cores where both sides are stored in one half-precision type. float32 is not rounded to what they take.
template <typename Q, typename K>
using ContrastTile =
    std::conditional_t<std::is_same_v<Q, K> && sizeof(Q) == 2, MmaTile<K>, FmaTile<typename Storage<Q>::Arithmetic>>;

// ---- a block's memory -----------------------------------------------------------------------------------------------

template <class Tile>
struct TileMemory {
  using Input = typename Tile::Input;
  using A = typename Tile::Arithmetic;
  static constexpr int kPad = 16 / sizeof(Input);
  static constexpr int kDepthPitch = Tile::kDepth + kPad;
  static constexpr int kFeaturePitch = Tile::kFeatures + kPad;
  static constexpr int kLogitPitch = Tile::kColumns + 16 / sizeof(A);
  static constexpr int kWeightPitch = kLogitPitch * sizeof(A) / sizeof(Input);
  static constexpr int kSimilarityStage = (kContrastRows + Tile::kColumns) * kDepthPitch;
  static constexpr int kWeightedStage = Tile::kDepth * kFeaturePitch;

  alignas(16) Input stage[kSimilarityStage > kWeightedStage ? kSimilarityStage : kWeightedStage];
  alignas(16) A logits[kContrastRows * kLogitPitch];
  A keep[kContrastRows], gain[kContrastRows];
  bool used[Tile::kColumns];  // columns that take part; the others count as zero vectors

  // Each row of weights replaces the logits that it is made of.
  __device__ __forceinline__ Input* weights() { return reinterpret_cast<Input*>(logits); }
};

// ---- matrices in global memory --------------------------------------------------------------------------------------

// Rows, and positions within a tile of rows, are counted in ints.
constexpr int64_t kMostRows = 1 << 30;
constexpr int64_t kMostFeatures = 1 << 23;

template <typename T>
struct Rows {
  const T* values;  // [count, d]
  int count, d;
  bool aligned;  // every row begins at a multiple of 16 bytes

  __host__ __device__ __forceinline__ const T* row(int64_t i) const { return values + i * d; }

  Rows(const T* values, int64_t count, int64_t d)
      : values(values),
        count(static_cast<int>(count)),
        d(static_cast<int>(d)),
        aligned(reinterpret_cast<uintptr_t>(values) % 16 == 0 && d * static_cast<int64_t>(sizeof(T)) % 16 == 0) {}
};

// How many of the 32 rows from `first` on there are.
template <typename T>
__device__ __forceinline__ int rows_of_tile(const Rows<T>& rows, int first) {
  return rows.count - first < kContrastRows ? rows.count - first : kContrastRows;
}

template <typename Input, typename T>
__device__ __forceinline__ Input convert(T value) {
  if constexpr (std::is_same_v<Input, T>) {
    return value;
  } else if constexpr (std::is_floating_point_v<Input>) {
    return static_cast<Input>(to_float(value));
  } else {
    return Storage<Input>::round(value);
  }
}

// tile [kHeight, kWidth] from (first_row, first_feature) on, by the block; zero where used(row of the tile) is false
// and beyond the features.
template <int kHeight, int kWidth, typename T, typename Input, typename Used>
__device__ __forceinline__ void stage(const Rows<T>& source, int first_row, int first_feature, Used used, Input* tile,
                                      int pitch) {
  const T* first = source.row(first_row);
  const auto copy = [&](auto unit) {
    constexpr int kUnit = decltype(unit)::value, kUnits = kWidth / kUnit;
#pragma unroll 4
    for (int i = threadIdx.x; i < kHeight * kUnits; i += kContrastThreads) {
      const int row = i / kUnits, column = i % kUnits * kUnit;
      const int feature = first_feature + column;
      Pack<T, kUnit> pack{};
      if (feature < source.d && used(row)) pack = load_pack<kUnit>(first + row * source.d + feature);
      Input* target = tile + row * pitch + column;
      if constexpr (std::is_same_v<T, Input>) {
        *reinterpret_cast<Pack<T, kUnit>*>(target) = pack;
      } else {
#pragma unroll
        for (int e = 0; e < kUnit; ++e) target[e] = convert<Input>(pack.values[e]);
      }
    }
  };
  if (source.aligned) {
    copy(std::integral_constant<int, 16 / sizeof(T)>{});
  } else {
    copy(std::integral_constant<int, 1>{});
  }
}

// ---- products by a block --------------------------------------------------------------------------------------------

// memory.logits = owned streamed^T for 32 rows and kColumns columns. memory.used must be visible to all threads, as the
// logits are afterwards.
template <class Tile, typename R, typename S>
__device__ __forceinline__ void similarities(const Rows<R>& owned, int first_row, const Rows<S>& streamed,
                                             int first_column, TileMemory<Tile>& memory) {
  using A = typename Tile::Arithmetic;
  using Memory = TileMemory<Tile>;
  constexpr int kWarpColumns = Tile::kColumns / kContrastWarps, kPitch = Memory::kDepthPitch;
  const int left = static_cast<int>(threadIdx.x) / kWarp * kWarpColumns;
  const int count = rows_of_tile(owned, first_row);
  auto* rows = memory.stage;
  auto* columns = memory.stage + kContrastRows * kPitch;
  Sums<A, kWarpColumns / 8> sums = {};
#pragma unroll 1
  for (int feature = 0; feature < owned.d; feature += Tile::kDepth) {
    stage<kContrastRows, Tile::kDepth>(owned, first_row, feature, [&](int row) { return row < count; }, rows, kPitch);
    stage<Tile::kColumns, Tile::kDepth>(
        streamed, first_column, feature, [&](int column) { return memory.used[column]; }, columns, kPitch);
    __syncthreads();
    Tile::template multiply_transposed<kWarpColumns / 8>(rows, kPitch, columns + left * kPitch, kPitch, sums);
    __syncthreads();
  }
  for_each_sum<A, kWarpColumns / 8>(
      sums, [&](int row, int column, A sum) { memory.logits[row * Memory::kLogitPitch + left + column] = sum; });
  __syncthreads();
}

// store(row, feature, sum) for the elements of weights times streamed, each of them by the same thread in every call.
// memory.weights() must be visible to all threads. What store reads of memory stays until the next call of
// similarities() ends.
template <class Tile, typename S, typename Store>
__device__ __forceinline__ void weighted_sums(const Rows<S>& streamed, int first_column, TileMemory<Tile>& memory,
                                              Store store) {
  using A = typename Tile::Arithmetic;
  using Memory = TileMemory<Tile>;
  constexpr int kWarpFeatures = Tile::kFeatures / kContrastWarps;
  const int left = static_cast<int>(threadIdx.x) / kWarp * kWarpFeatures;
#pragma unroll 1
  for (int feature = 0; feature < streamed.d; feature += Tile::kFeatures) {
    Sums<A, kWarpFeatures / 8> sums = {};
#pragma unroll 1
    for (int k = 0; k < Tile::kColumns; k += Tile::kDepth) {
      stage<Tile::kDepth, Tile::kFeatures>(
          streamed, first_column + k, feature, [&](int column) { return memory.used[k + column]; }, memory.stage,
          Memory::kFeaturePitch);
      __syncthreads();
      Tile::template multiply<kWarpFeatures / 8>(memory.weights() + k, Memory::kWeightPitch, memory.stage + left,
                                                 Memory::kFeaturePitch, sums);
      __syncthreads();
    }
    for_each_sum<A, kWarpFeatures / 8>(sums, [&](int row, int column, A sum) {
      const int c = feature + left + column;
      if (c < streamed.d) store(row, c, sum);
    });
  }
}

}  // namespace dadl
