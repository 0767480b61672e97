// Transposition in registers, with vectors of 16 bytes, which every SIMD instruction set has.
#pragma once

#include <cstdint>
#include <cstring>

namespace dadl::cpu {

#if __has_builtin(__builtin_shufflevector)
namespace blocks {

template <typename T>
struct Block {
  static constexpr int kSize = 16 / sizeof(T);
  using Vector __attribute__((vector_size(16))) = T;
};

inline void transpose(Block<float>::Vector (&v)[4]) {
  const auto a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5), b = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const auto c = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5), d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  v[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  v[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

inline void transpose(Block<double>::Vector (&v)[2]) {
  const auto a = v[0];
  v[0] = __builtin_shufflevector(a, v[1], 0, 2);
  v[1] = __builtin_shufflevector(a, v[1], 1, 3);
}

}  // namespace blocks
#endif

// target[column][row] = source[row][column]; a stride is the distance from one row to the next.
template <typename T>
inline void transpose(const T* source, int64_t source_stride, T* target, int64_t target_stride, int64_t rows,
                      int64_t columns) {
  int64_t whole = 0;
#if __has_builtin(__builtin_shufflevector)
  constexpr int kSize = blocks::Block<T>::kSize;
  typename blocks::Block<T>::Vector v[kSize];
  whole = rows / kSize * kSize;
  for (int64_t row = 0; row < whole; row += kSize) {
    const int64_t whole_columns = columns / kSize * kSize;
    for (int64_t column = 0; column < whole_columns; column += kSize) {
      for (int r = 0; r < kSize; ++r) std::memcpy(&v[r], source + (row + r) * source_stride + column, sizeof(v[r]));
      blocks::transpose(v);
      for (int c = 0; c < kSize; ++c) std::memcpy(target + (column + c) * target_stride + row, &v[c], sizeof(v[c]));
    }
    for (int64_t column = whole_columns; column < columns; ++column) {
      for (int64_t r = row; r < row + kSize; ++r)
        target[column * target_stride + r] = source[r * source_stride + column];
    }
  }
#endif
  for (int64_t row = whole; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      target[column * target_stride + row] = source[row * source_stride + column];
    }
  }
}

}  // namespace dadl::cpu
