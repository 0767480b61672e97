// The torch side that the CUDA operators share: checks, device and stream, buffers, library calls.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../signatures.h"
#include "../tensors.h"
#include "blas.h"
#include "device.cuh"

// Where the operators go; the tests run them on the CPU, in a library of another name.
#if !defined(DADL_CUDA_LIBRARY)
#define DADL_CUDA_LIBRARY(m) DADL_LIBRARY_IMPL(CUDA, m)
#endif

namespace dadl::cuda {

inline void check_device(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.device() == like.device(), name, " must be on the device of the other arguments");
}

// Launches on the current stream of a tensor's device, which it makes current for its lifetime.
class TorchBackend {
 public:
  // Uninitialised memory, returned to the caching allocator, in the order of the stream, at the end of its lifetime.
  template <typename T>
  class Buffer {
   public:
    explicit Buffer(Tensor tensor) : tensor_(std::move(tensor)) {}
    T* data() const { return static_cast<T*>(tensor_.mutable_data_ptr()); }
    const Tensor& tensor() const { return tensor_; }

   private:
    Tensor tensor_;
  };

  explicit TorchBackend(const Tensor& like) : guard_(like.get_device_index()), like_(like) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    STD_TORCH_CHECK(
        attribute(cudaDevAttrComputeCapabilityMajor) >= 8,
        "dadl's CUDA kernels need a GPU of compute capability 8.0 (Ampere) or newer; move the tensors to the "
        "CPU with .to('cpu')");
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    launch_with(0, kernel, grid, block, arguments...);
  }

  // With `bytes` of dynamic shared memory.
  template <typename... Parameters, typename... Arguments>
  void launch_with(size_t bytes, void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    STD_TORCH_CHECK(grid.x <= 0x7FFFFFFFu && grid.y <= 65535,
                    "the tensors are too large for one launch of a CUDA kernel: ", grid.x, " by ", grid.y,
                    " blocks, of 2^31 - 1 by 65535; split the batch");
    allow(kernel, bytes);
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = bytes;
    config.stream = stream_;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  // How many blocks of a kernel the device holds at once.
  template <typename... Parameters>
  int64_t resident_blocks(void (*kernel)(Parameters...), int threads, size_t bytes) const {
    allow(kernel, bytes);
    int blocks = 0;
    STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, bytes));
    return std::max(blocks, 1) * multiprocessors();
  }

  template <typename T>
  Buffer<T> buffer(int64_t size) {
    constexpr ScalarType kType = std::is_same_v<T, int32_t>   ? ScalarType::Int
                                 : std::is_same_v<T, int64_t> ? ScalarType::Long
                                                              : ScalarType::Byte;
    constexpr int64_t kUnit = kType == ScalarType::Byte ? sizeof(T) : 1;
    return Buffer<T>(new_empty(like_, {size * kUnit}, kType));
  }

  template <typename T>
  void zero(T* values, int64_t size) {
    STD_CUDA_CHECK(cudaMemsetAsync(values, 0, size * sizeof(T), stream_));
  }

  // Whether this is a device for which the products of warp groups were built.
  bool has_warp_group_products() const {
#if defined(DADL_SM90A)
    return attribute(cudaDevAttrComputeCapabilityMajor) == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0;
#else
    return false;
#endif
  }

  // Whether its tensor cores multiply fp16 so much faster than its other units float32 that three products for one pay:
  // eight times and more, which NVIDIA gives to the GPUs whose multiprocessors have this much shared memory, where the
  // others have two to four times the speed.
  bool prefers_split_products() const { return attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) >= 160 << 10; }

  int64_t multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }

  // Positions' elements in the stable ascending order of each of `rows` rows of n keys.
  template <typename Signed>
  Buffer<int64_t> sort(const Buffer<Signed>& keys, int64_t rows, int64_t n) {
    const std::array<int64_t, 2> sizes{rows, n}, strides{n, 1};
    AtenTensorHandle matrix = nullptr, sorted = nullptr, elements = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch__reinterpret_tensor(keys.tensor().get(), 2, sizes.data(), strides.data(), 0, &matrix));
    const Tensor owned(matrix);
    int32_t stable = 1;
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_sort_stable(matrix, &stable, 1, 0, &sorted, &elements));
    static_cast<void>(Tensor(sorted));  // owned from here, and not needed
    return Buffer<int64_t>(Tensor(elements));
  }

  // See blas.h.
  template <typename T, typename A>
  void multiply(const Matrix<T>& a, const Matrix<T>& b, A* out, int64_t out_stride, bool accumulate, A factor = 1) {
    cuda::multiply(a, b, out, out_stride, accumulate, factor);
  }

 private:
  int attribute(cudaDeviceAttr name) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, like_.get_device_index()));
    return value;
  }

  // Beyond 48 KiB a kernel must be allowed its dynamic memory.
  template <typename... Parameters>
  static void allow(void (*kernel)(Parameters...), size_t bytes) {
    if (bytes <= 48 << 10) return;
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }

  torch::stable::accelerator::DeviceGuard guard_;
  Tensor like_;
  cudaStream_t stream_;
};

}  // namespace dadl::cuda
