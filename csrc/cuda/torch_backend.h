// The torch side that the CUDA operators share: checks, device and stream, buffers, library calls.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../tensors.h"
#include "device.cuh"

// Where the operators go; the tests run them on the CPU, in a library of another name.
#if !defined(DADL_CUDA_LIBRARY)
#define DADL_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dadl, CUDA, m)
#endif

namespace dadl::cuda {

inline void check_device(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.device() == like.device(), name, " must be on the device of the other arguments");
}

// Of the tensors in which buffers lie; those of other types are bytes.
template <typename T>
constexpr ScalarType kScalarType = std::is_same_v<T, float>     ? ScalarType::Float
                                   : std::is_same_v<T, double>  ? ScalarType::Double
                                   : std::is_same_v<T, int32_t> ? ScalarType::Int
                                   : std::is_same_v<T, int64_t> ? ScalarType::Long
                                                                : ScalarType::Byte;

// Launches on the current stream of a tensor's device, which it makes current for its lifetime.
class TorchBackend {
 public:
  // Uninitialised memory, returned to the caching allocator, in the order of the stream, at the end of its lifetime.
  template <typename T>
  class Buffer {
   public:
    Buffer(TorchBackend& backend, Tensor tensor) : backend_(backend), values_(backend.lend<T>(tensor)) {}
    ~Buffer() { backend_.forget(values_); }
    Buffer(const Buffer&) = delete;
    T* data() const { return values_; }

   private:
    TorchBackend& backend_;
    T* values_;
  };

  explicit TorchBackend(const Tensor& like) : guard_(like.get_device_index()), like_(like) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream_;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  template <typename T>
  Buffer<T> buffer(int64_t size) {
    constexpr int64_t kUnit = kScalarType<T> == ScalarType::Byte ? sizeof(T) : 1;
    return Buffer<T>(*this, new_empty(like_, {size * kUnit}, kScalarType<T>));
  }

  // The values of a contiguous tensor, which products may then take.
  template <typename T>
  T* lend(const Tensor& tensor) {
    T* values = mutable_data<T>(tensor);
    owners_.push_back({tensor, reinterpret_cast<const char*>(values), tensor.numel() * int64_t{sizeof(T)}});
    return values;
  }

  template <typename T>
  void zero(T* values, int64_t size) {
    if (size > 0) STD_CUDA_CHECK(cudaMemsetAsync(values, 0, size * sizeof(T), stream_));
  }

  int64_t multiprocessors() const {
    int count = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, like_.get_device_index()));
    return count;
  }

  // Positions' elements in the stable ascending order of each of `rows` rows of n keys.
  template <typename Signed>
  Buffer<int64_t> sort(Signed* keys, int64_t rows, int64_t n) {
    int32_t stable = 1;
    AtenTensorHandle sorted = nullptr, elements = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cuda_sort_stable(view(keys, rows, n, n, 1).get(), &stable, 1, 0, &sorted, &elements));
    static_cast<void>(Tensor(sorted));  // owned from here, and not needed
    return Buffer<int64_t>(*this, Tensor(elements));
  }

  // out [n, n] = x x^T
  template <typename T>
  void gram(T* x /* [n, d] */, int64_t n, int64_t d, T* out) {
    mm(view(x, n, d, d, 1), view(x, d, n, 1, d), view(out, n, n, n, 1));
  }

  // out [n, d] = a x, for the first n columns of a
  template <typename T>
  void multiply(T* a /* [n, width] */, int64_t width, T* x /* [n, d] */, int64_t n, int64_t d, T* out) {
    mm(view(a, n, n, width, 1), view(x, n, d, d, 1), view(out, n, d, d, 1));
  }

  // out = a b, plus the addend unless null, which may be out itself
  template <typename T>
  void multiply(const Matrix<T>& a, const Matrix<T>& b, const Matrix<T>& out,
                const std::type_identity_t<Matrix<T>>* addend) {
    const Tensor result = view(out);
    if (!addend) return mm(view(a), view(b), result);
    const Tensor added = addend->values == out.values ? result : view(*addend);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(result.get(), added.get(), view(a).get(), view(b).get(), 1, 1));
  }

 private:
  struct Owner {
    Tensor tensor;
    const char* first;
    int64_t bytes;
  };

  void forget(const void* values) {
    std::erase_if(owners_, [&](const Owner& owner) { return owner.first == values; });
  }

  // A part of the tensor in which the values lie: for a tensor made from a pointer PyTorch would ask CUDA where it is.
  template <typename T>
  Tensor view(const T* values, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) const {
    const std::array<int64_t, 2> sizes{rows, columns}, strides{row_stride, column_stride};
    if (rows == 0 || columns == 0) return new_empty(like_, sizes, kScalarType<T>);
    const auto* address = reinterpret_cast<const char*>(values);
    for (const auto& [tensor, first, bytes] : owners_) {
      if (address < first || address >= first + bytes) continue;
      const Tensor typed = tensor.scalar_type() == kScalarType<T> ? tensor : view_as(tensor, kScalarType<T>);
      AtenTensorHandle part = nullptr;
      TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(typed.get(), 2, sizes.data(), strides.data(),
                                                            (address - first) / int64_t{sizeof(T)}, &part));
      return Tensor(part);
    }
    STD_TORCH_CHECK(false, "a product of memory that is neither a buffer nor lent");
  }

  static Tensor view_as(const Tensor& tensor, ScalarType type) {
    std::array<StableIValue, 2> stack{torch::stable::detail::from(tensor), torch::stable::detail::from(type)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::view", "dtype", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }

  template <typename T>
  Tensor view(const Matrix<T>& matrix) const {
    return view(matrix.values, matrix.rows, matrix.columns, matrix.row_stride, matrix.column_stride);
  }

  // Not through the dispatcher, where autocast would round the matrices to half precision.
  static void mm(const Tensor& a, const Tensor& b, const Tensor& out) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
  }

  torch::stable::accelerator::DeviceGuard guard_;
  Tensor like_;
  cudaStream_t stream_;
  std::vector<Owner> owners_;
};

}  // namespace dadl::cuda
