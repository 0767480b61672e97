// What csrc/cuda calls of CUDA's runtime, for the simulator: a launch runs at once, and host.cpp checks every call.
#pragma once

#include <cstddef>

#include "cuda_sim.h"

using cudaStream_t = struct CudaStream*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorLaunchOutOfResources = 701,
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

cudaError_t cudaGetLastError();
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

namespace dadl::sim::host {
cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel);
Order order();
// Whether launches are checked alone.
bool is_dry();
// How many blocks of a kernel a multiprocessor holds.
int resident(const void* kernel, int threads, size_t bytes);
}  // namespace dadl::sim::host

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Parameters...), int threads,
                                                          size_t bytes) {
  *blocks = dadl::sim::host::resident(reinterpret_cast<const void*>(kernel), threads, bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const cudaError_t error = dadl::sim::host::check_launch(*config, reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess || dadl::sim::host::is_dry()) return error;
  dadl::sim::launch(dadl::sim::host::order(), config->dynamicSmemBytes, kernel, config->gridDim, config->blockDim,
                    arguments...);
  return cudaSuccess;
}
