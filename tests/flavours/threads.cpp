// Threads that ThreadSanitizer sees, in place of PyTorch's; and a race, so that a test can see that one is found.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc function,
                                             void* context) {
  constexpr int64_t kThreads = 3;
  const int64_t size = std::max<int64_t>({(end - begin + kThreads - 1) / kThreads, grain, 1});
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += size) {
    threads.emplace_back([=] { function(first, std::min(first + size, end), context); });
  }
  for (std::thread& thread : threads) thread.join();
  return AOTI_TORCH_SUCCESS;
}

extern "C" __attribute__((visibility("default"))) int64_t dadl_race() {
  int64_t count = 0;
  std::thread one([&] { ++count; }), other([&] { ++count; });
  one.join();
  other.join();
  return count;
}
