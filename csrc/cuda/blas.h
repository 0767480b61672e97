// The few words of cuBLAS that the operators use. PyTorch has the library loaded, and its headers are not needed.
//
// PyTorch's own products follow torch.set_float32_matmul_precision, which would bring TF32's ten bits into losses that
// promise float32. These do not: the precision is said at the call.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../core/half.h"
#include "device.cuh"

extern "C" {
int cublasSetMathMode(void* handle, int mode);
int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                 int a_type, int a_stride, const void* b, int b_type, int b_stride, const void* beta, void* c,
                 int c_type, int c_stride, int compute_type, int algorithm);
}

namespace dadl::cuda {

namespace cublas {
constexpr int kNo = 0, kTransposed = 1;            // cublasOperation_t
constexpr int kDefaultMath = 0;                    // cublasMath_t: no TF32, no emulation
constexpr int kCompute32F = 68, kCompute64F = 70;  // cublasComputeType_t
constexpr int kDefaultAlgorithm = -1;              // cublasGemmAlgo_t
template <typename T>
constexpr int kType = std::is_same_v<T, float>    ? 0
                      : std::is_same_v<T, double> ? 1
                      : std::is_same_v<T, Half>   ? 2
                                                  : 14;

// A matrix in rows as the library reads it, in columns: transposed, unless its columns are adjacent here too.
template <typename T>
struct Operand {
  int transpose, stride;

  explicit Operand(const Matrix<T>& matrix) {
    const bool in_rows = matrix.column_stride == 1;
    transpose = in_rows ? kNo : kTransposed;
    const int64_t least = in_rows ? matrix.columns : matrix.rows;
    const int64_t given = in_rows ? matrix.row_stride : matrix.column_stride;
    stride = static_cast<int>(std::max<int64_t>({given, least, 1}));
  }
};
}  // namespace cublas

// out [a.rows, b.columns], rows `out_stride` apart, = factor a b, or += where it accumulates. Half precision is summed
// and left in float32. On the current stream.
template <typename T, typename A>
void multiply(const Matrix<T>& a, const Matrix<T>& b, A* out, int64_t out_stride, bool accumulate, A factor) {
  if (a.rows == 0 || b.columns == 0) return;
  for (const int64_t size : std::array<int64_t, 8>{a.rows, a.columns, b.columns, a.row_stride, a.column_stride,
                                                   b.row_stride, b.column_stride, out_stride}) {
    const bool fits = size <= std::numeric_limits<int>::max();
    STD_TORCH_CHECK(fits, "a product of matrices with 2^31 rows or columns and more");
  }
  void* handle = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  int status = cublasSetMathMode(handle, cublas::kDefaultMath);
  if (status == 0) {
    const A beta = accumulate ? 1 : 0;
    const cublas::Operand<T> left(b), right(a);  // out^T = b^T a^T
    status =
        cublasGemmEx(handle, left.transpose, right.transpose, static_cast<int>(b.columns), static_cast<int>(a.rows),
                     static_cast<int>(a.columns), &factor, b.values, cublas::kType<T>, left.stride, a.values,
                     cublas::kType<T>, right.stride, &beta, out, cublas::kType<A>, static_cast<int>(out_stride),
                     std::is_same_v<A, double> ? cublas::kCompute64F : cublas::kCompute32F, cublas::kDefaultAlgorithm);
  }
  STD_TORCH_CHECK(status == 0, "cuBLAS failed with status ", status);
}

}  // namespace dadl::cuda
