// CUDA and PyTorch's CUDA half for the real host code of csrc/cuda on a machine without either: tensors lie in host
// memory, kernels run in the simulator, products and sorts are PyTorch's own on the CPU. Every call is checked as a
// strict CUDA would; what is wrong is noted for the test that reads it (take_complaints), and calls fail on demand.
//
// What a GPU has room for is asked of the test (host_set_rules), which knows each architecture's limits. Dry, a
// test asks for sizes that no machine computes: every call is checked and nothing is done.
//
// The library is linked so that its own definitions of PyTorch's C functions come first for its own calls alone.
#include <dlfcn.h>
#include <sys/mman.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../csrc/core/half.h"
#include "cuda_runtime.h"

namespace dadl::sim::host {
namespace {

constexpr size_t kGuard = 512;
constexpr unsigned char kGuardByte = 0xA5;
constexpr AOTITorchError kFailure = 1;

// Calls that can be made to fail.
enum Call { kAllocation, kLaunch, kMemset, kLibrary, kCalls };

struct State {
  int device = 0;  // that tensors are on unless device_of says another one
  int current = 0;
  bool side_stream = false, capturing = false;
  bool dry = false;
  int64_t multiprocessors = 132;
  int major = 8, minor = 6;
  int shared = 100 << 10;  // bytes of a multiprocessor
  Order order = Order::kForward;
  int64_t calls[kCalls] = {};    // made so far
  int64_t failing[kCalls] = {};  // the number of the call that fails; 0 for none
  int64_t allocated = 0;         // bytes that are alive
  std::map<const void*, int> device_of;
  std::map<const void*, int64_t> allowed_bytes;  // of dynamic shared memory
  int math_mode = -1;                            // cuBLAS's, until somebody sets it
  std::string complaints;
  int error = cudaSuccess;
} state;

// The test's answers. A kernel is its place in this library; an answer is cudaError_t, or a number, and one more,
// because a test that fails answers 0.
struct Rules {
  int64_t (*refuse_launch)(int64_t kernel, const int64_t* grid_and_block /* [6] */, int64_t bytes, int64_t allowed);
  int64_t (*refuse_attribute)(int64_t kernel, int64_t bytes);
  int64_t (*resident)(int64_t kernel, int64_t threads, int64_t bytes);
} rules;

int64_t place_of(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info)) std::abort();
  return static_cast<const unsigned char*>(kernel) - static_cast<const unsigned char*>(info.dli_fbase);
}

void complain(const std::string& sentence) { state.complaints += sentence + "\n"; }

int64_t answer(int64_t value) {
  if (value == 0) complain("the test's rules failed");
  return value - 1;
}

bool fails(Call call) { return ++state.calls[call] == state.failing[call]; }

// Of a device, the only one that work may go to.
cudaStream_t stream_of(int device) {
  return reinterpret_cast<cudaStream_t>(uintptr_t{0x1000} * (device + 1) + (state.side_stream ? 0x10 : 0));
}

void check_stream(cudaStream_t stream, const char* what) {
  if (state.current != state.device) complain(std::string(what) + " while another device is current");
  if (stream != stream_of(state.device)) complain(std::string(what) + " on a stream that is not the current one");
}

int64_t item_size(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float64() || dtype == aoti_torch_dtype_int64()) return 8;
  if (dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_int32()) return 4;
  if (dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16()) return 2;
  return 1;
}

void check_guard(const unsigned char* guard, const char* where) {
  for (size_t i = 0; i < kGuard; ++i) {
    if (guard[i] != kGuardByte) return complain(std::string("a kernel wrote ") + where + " an allocation");
  }
}

void release(void* data, void* size) {
  const auto bytes = reinterpret_cast<size_t>(size);
  auto* first = static_cast<unsigned char*>(data);
  check_guard(first - kGuard, "before");
  check_guard(first + bytes, "behind");
  state.allocated -= static_cast<int64_t>(bytes);
  state.device_of.erase(data);
  std::free(first - kGuard);
}

// As release, for memory that nobody wrote.
void release_pages(void* data, void* size) {
  const auto bytes = reinterpret_cast<size_t>(size);
  state.allocated -= static_cast<int64_t>(bytes);
  state.device_of.erase(data);
  munmap(data, bytes);
}

template <typename Function>
Function original(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

int device_of(AtenTensorHandle tensor) {
  void* data = nullptr;
  aoti_torch_get_data_ptr(tensor, &data);
  const auto found = state.device_of.find(data);
  return data && found != state.device_of.end() ? found->second : state.device;
}

cudaError_t failure(cudaError_t error) { return static_cast<cudaError_t>(state.error = error); }

AOTITorchError library_call(const char* name, std::initializer_list<AtenTensorHandle> tensors) {
  if (state.current != state.device) complain(std::string(name) + " while another device is current");
  for (const AtenTensorHandle tensor : tensors) {
    if (device_of(tensor) != state.device) complain(std::string(name) + " with a tensor of another device");
  }
  return fails(kLibrary) ? kFailure : AOTI_TORCH_SUCCESS;
}

}  // namespace

Order order() { return state.order; }

bool is_dry() { return state.dry; }

int resident(const void* kernel, int threads, size_t bytes) {
  return static_cast<int>(answer(rules.resident(place_of(kernel), threads, static_cast<int64_t>(bytes))));
}

cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  check_stream(config.stream, "a launch");
  if (fails(kLaunch)) return failure(cudaErrorLaunchOutOfResources);
  const auto allowed = state.allowed_bytes.find(kernel);
  const int64_t sizes[] = {config.gridDim.x,  config.gridDim.y,  config.gridDim.z,
                           config.blockDim.x, config.blockDim.y, config.blockDim.z};
  const int64_t refused =
      answer(rules.refuse_launch(place_of(kernel), sizes, static_cast<int64_t>(config.dynamicSmemBytes),
                                 allowed == state.allowed_bytes.end() ? -1 : allowed->second));
  return refused ? failure(static_cast<cudaError_t>(refused)) : cudaSuccess;
}

}  // namespace dadl::sim::host

namespace dadl {
// For the tests of the limits, which say what it needs.
__global__ void control_kernel() {}
}  // namespace dadl

using namespace dadl::sim::host;

// ---- CUDA's runtime -------------------------------------------------------------------------------------------------

cudaError_t cudaGetLastError() { return static_cast<cudaError_t>(std::exchange(state.error, cudaSuccess)); }

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  check_stream(stream, "a memset");
  if (!memory || bytes == 0) complain("a memset of no bytes");
  if (fails(kMemset)) return failure(cudaErrorInvalidValue);
  if (!state.dry) std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != state.device) complain("an attribute of another device");
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = static_cast<int>(state.multiprocessors);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = state.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = state.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = state.shared;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const int64_t refused = answer(rules.refuse_attribute(place_of(kernel), value));
  if (refused) return failure(static_cast<cudaError_t>(refused));
  state.allowed_bytes[kernel] = value;
  return cudaSuccess;
}

// ---- PyTorch's C functions ------------------------------------------------------------------------------------------

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cuda();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* index) {
  *index = device_of(tensor);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t device, AtenTensorHandle* result) {
  if (device != state.device) complain("an allocation on another device");
  if (fails(kAllocation)) return kFailure;
  int64_t elements = 1;
  for (int64_t i = 0; i < ndim; ++i)
    elements = sizes[i] == 0 ? 0 : elements + (sizes[i] - 1) * strides[i] * (elements > 0);
  const size_t bytes = elements * item_size(dtype);
  const int32_t cpu = aoti_torch_device_type_cpu();
  if (bytes == 0) {
    return original(&aoti_torch_empty_strided, __func__)(ndim, sizes, strides, dtype, cpu, -1, result);
  }
  if (state.dry) {
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return kFailure;
    state.allocated += static_cast<int64_t>(bytes);
    state.device_of[pages] = device;
    return torch_from_blob(pages, ndim, sizes, strides, 0, dtype, cpu, -1, result, aoti_torch_layout_strided(), nullptr,
                           0, release_pages, reinterpret_cast<void*>(bytes));
  }
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(kGuard, (bytes / kGuard + 3) * kGuard));
  unsigned char* first = memory + kGuard;
  std::memset(memory, kGuardByte, kGuard);
  std::memset(first, 0xFF, bytes);
  std::memset(first + bytes, kGuardByte, kGuard);
  state.allocated += static_cast<int64_t>(bytes);
  state.device_of[first] = device;
  return torch_from_blob(first, ndim, sizes, strides, 0, dtype, cpu, -1, result, aoti_torch_layout_strided(), nullptr,
                         0, release, reinterpret_cast<void*>(bytes));
}

AOTITorchError aoti_torch_create_tensor_from_blob_v2(void* data, int64_t ndim, const int64_t* sizes,
                                                     const int64_t* strides, int64_t offset, int32_t dtype, int32_t,
                                                     int32_t, AtenTensorHandle* result, int32_t layout,
                                                     const uint8_t* metadata, int64_t metadata_size) {
  complain("a tensor made from a pointer, for which PyTorch asks CUDA where it is");
  return original(&aoti_torch_create_tensor_from_blob_v2, __func__)(data, ndim, sizes, strides, offset, dtype,
                                                                    aoti_torch_device_type_cpu(), -1, result, layout,
                                                                    metadata, metadata_size);
}

AOTITorchError torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack, uint64_t version) {
  using namespace std::string_view_literals;
  for (const auto waits : {"aten::item"sv, "aten::_local_scalar_dense"sv, "aten::nonzero"sv, "aten::bincount"sv}) {
    if (state.capturing && name == waits) {
      complain(std::string(name) + " in a capture, where nothing may wait");
      return kFailure;
    }
  }
  if (state.current != state.device) complain(std::string(name) + " while another device is current");
  return original(&torch_call_dispatcher, __func__)(name, overload, stack, version);
}

AOTITorchError aoti_torch_create_device_guard(int32_t device, DeviceGuardHandle* guard) {
  *guard = reinterpret_cast<DeviceGuardHandle>(static_cast<intptr_t>(state.current) + 1);
  state.current = device;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle guard) {
  state.current = static_cast<int>(reinterpret_cast<intptr_t>(guard)) - 1;
  return AOTI_TORCH_SUCCESS;
}

extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = stream_of(device);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = nullptr;
  state.error = cudaSuccess;
  if (error != cudaSuccess) *message = strdup(("CUDA error " + std::to_string(error)).c_str());
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

AOTITorchError torch_get_current_cuda_blas_handle(void** handle) {
  if (state.current != state.device) complain("cuBLAS while another device is current");
  *handle = &state;
  state.math_mode = 3;  // TF32, as where somebody asked PyTorch for it
  return AOTI_TORCH_SUCCESS;
}

int cublasSetMathMode(void*, int mode) {
  state.math_mode = mode;
  return 0;
}

int cublasGemmEx(void*, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                 int a_type, int a_stride, const void* b, int b_type, int b_stride, const void* beta, void* c,
                 int c_type, int c_stride, int, int) {
  if (state.math_mode != 0) complain("a product that may use TF32");
  if (fails(kLibrary)) return 13;
  if (state.dry) return 0;
  const auto at = [](const void* values, int type, int64_t i) -> double {
    switch (type) {
      case 0:
        return static_cast<const float*>(values)[i];
      case 1:
        return static_cast<const double*>(values)[i];
      case 2:
        return dadl::to_float(static_cast<const dadl::Half*>(values)[i]);
      default:
        return dadl::to_float(static_cast<const dadl::BFloat16*>(values)[i]);
    }
  };
  if (a_stride < (transpose_a ? k : m) || b_stride < (transpose_b ? n : k) || c_stride < m) return 7;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += at(a, a_type, transpose_a ? l + i * a_stride : i + l * a_stride) *
               at(b, b_type, transpose_b ? j + l * b_stride : l + j * b_stride);
      }
      const int64_t place = i + j * c_stride;
      const double old = at(beta, c_type, 0) == 0 ? 0 : at(beta, c_type, 0) * at(c, c_type, place);
      const double value = at(alpha, c_type, 0) * sum + old;
      if (c_type == 0) {
        static_cast<float*>(c)[place] = static_cast<float>(value);
      } else {
        static_cast<double*>(c)[place] = value;
      }
    }
  }
  return 0;
}

AOTITorchError aoti_torch_cuda_sort_stable(AtenTensorHandle keys, int32_t* stable, int64_t dimension,
                                           int32_t descending, AtenTensorHandle* sorted, AtenTensorHandle* elements) {
  if (library_call("sort", {keys})) return kFailure;
  if (state.dry) {
    int64_t *sizes = nullptr, *strides = nullptr;
    aoti_torch_get_sizes(keys, &sizes);
    aoti_torch_get_strides(keys, &strides);
    const int32_t type = aoti_torch_dtype_int64(), cuda = aoti_torch_device_type_cuda();
    aoti_torch_new_tensor_handle(keys, sorted);
    return aoti_torch_empty_strided(2, sizes, strides, type, cuda, state.device, elements);
  }
  return aoti_torch_cpu_sort_stable(keys, stable, dimension, descending, sorted, elements);
}

// ---- for the tests --------------------------------------------------------------------------------------------------

#pragma GCC visibility push(default)

void host_reset() { state = State{.allocated = state.allocated, .device_of = state.device_of}; }
void host_set_device(int device) { state.device = device; }
void host_put(const void* data, int device) { state.device_of[data] = device; }
void host_set_order(int order) { state.order = static_cast<dadl::sim::Order>(order); }
void host_set_multiprocessors(int64_t count) { state.multiprocessors = count; }
void host_set_capability(int major, int minor, int shared) {
  state.major = major;
  state.minor = minor;
  state.shared = shared;
}
void host_set_rules(decltype(Rules::refuse_launch) launch, decltype(Rules::refuse_attribute) attribute,
                    decltype(Rules::resident) resident) {
  rules = {launch, attribute, resident};
}
void host_run_dry() { state.dry = true; }
// A launch of nothing, after the attribute unless `allowed` is negative; the first error.
int host_launch(const unsigned* grid, const unsigned* block, size_t bytes, int allowed) {
  const auto kernel = reinterpret_cast<const void*>(dadl::control_kernel);
  cudaError_t error = cudaSuccess;
  if (allowed >= 0) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config;
    config.gridDim = dim3(grid[0], grid[1], grid[2]);
    config.blockDim = dim3(block[0], block[1], block[2]);
    config.dynamicSmemBytes = bytes;
    config.stream = stream_of(state.device);
    error = cudaLaunchKernelEx(&config, dadl::control_kernel);
  }
  state.error = cudaSuccess;
  return error;
}
void host_use_side_stream() { state.side_stream = true; }
void host_begin_capture() { state.capturing = true; }
void host_fail(int call, int64_t number) { state.failing[call] = state.calls[call] + number; }
int64_t host_calls(int call) { return state.calls[call]; }
int64_t host_allocated() { return state.allocated; }
int host_current_device() { return state.current; }
int host_pending_error() { return state.error; }
// Sentences, one a line, since the last call.
const char* host_take_complaints() {
  static std::string taken;
  taken = std::exchange(state.complaints, {});
  return taken.c_str();
}
#pragma GCC visibility pop

}  // extern "C"
