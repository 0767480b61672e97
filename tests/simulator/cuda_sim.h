// CUDA's words for g++: one block at a time, every thread a fiber.
//
// A thread runs until it waits at a barrier or a warp operation, so between two of them the threads run one after the
// other, in forward or in reverse order: code that needs a barrier where there is none gives different results in the
// two orders, or reads the NaN bytes with which a block's shared memory begins. Threads that wait for others that never
// come are an error, not a hang.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DADL_SHARED(name, ...)     \
  using name##_type = __VA_ARGS__; \
  name##_type& name = *static_cast<name##_type*>(dadl::sim::shared_memory(#name, sizeof(name##_type)))

#define DADL_DYNAMIC_SHARED(name, ...) \
  auto& name = *static_cast<__VA_ARGS__*>(dadl::sim::shared_memory("dynamic", sizeof(__VA_ARGS__)))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace dadl::sim {

enum class Order { kForward, kReverse };

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 64 << 10;

// A stack and where its thread stopped.
class Fiber {
 public:
  void start(void (*entry)());
  static void switch_to(Fiber& from, Fiber& to);

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  std::unique_ptr<unsigned char[]> stack_;
#if defined(__SANITIZE_ADDRESS__)
  friend void arrived(Fiber&);
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
#endif
};

#if defined(__x86_64__)
// Saves the registers that a call keeps; swapcontext would enter the kernel on every switch.
extern "C" void dadl_sim_switch(void** save, void* resume);
asm(R"(
.text
.local dadl_sim_switch
.type dadl_sim_switch, @function
dadl_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dadl_sim_switch, .-dadl_sim_switch
)");
#endif

inline void Fiber::start(void (*entry)()) {
  if (!stack_) stack_.reset(new unsigned char[kStackBytes]);
#if defined(__SANITIZE_ADDRESS__)
  bottom_ = stack_.get();
  bytes_ = kStackBytes;
  // The last thread on this stack never returned from its first function.
  __asan_unpoison_memory_region(bottom_, bytes_);
#endif
#if defined(__x86_64__)
  auto* top = reinterpret_cast<uintptr_t*>((reinterpret_cast<uintptr_t>(stack_.get()) + kStackBytes) & ~uintptr_t{15});
  *--top = 0;  // where entry would return to, and the alignment that a call leaves
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  makecontext(&context_, entry, 0);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
inline Fiber* departed = nullptr;
// Called first thing on a stack after a switch to it.
inline void arrived(Fiber& fiber) {
  __sanitizer_finish_switch_fiber(fiber.fake_stack_, &departed->bottom_, &departed->bytes_);
}
#else
inline void arrived(Fiber&) {}
#endif

inline void Fiber::switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  departed = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.bytes_);
#endif
#if defined(__x86_64__)
  dadl_sim_switch(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
  arrived(from);
}

// Threads that meet: a block, or the lanes of a warp with what they exchange.
struct Group {
  const char* operation = nullptr;
  int arrived = 0;
  unsigned generation = 0;
  // Twice, because the first lanes may be at the next operation before the last ones have read this one's values.
  std::array<std::array<uint64_t, kLanes>, 2> values;
};

// A copy that has been asked for and arrives when its group is waited for.
struct Copy {
  void* to;
  const void* from;
  bool real;
};

struct Thread {
  std::vector<std::vector<Copy>> copies{1};  // by group, the last one open
  Fiber fiber;
  dim3 index;
  Group* waits_in = nullptr;
  bool finished = false;
};

struct SharedVariable {
  const char* name;
  std::vector<uint64_t> memory;
};

struct Block {
  std::function<void()> kernel;
  size_t size = 0;              // in threads
  std::vector<Thread> threads;  // at least as many: stacks serve one launch after the other
  std::vector<Group> warps;
  Group all;
  std::vector<SharedVariable> shared;
  Fiber scheduler;
  size_t current = 0;
  std::exception_ptr error;
};

inline Block block;

inline Thread& this_thread() { return block.threads[block.current]; }

inline void leave() { Fiber::switch_to(this_thread().fiber, block.scheduler); }

inline void thread_main() {
  arrived(this_thread().fiber);
  try {
    block.kernel();
  } catch (...) {
    block.error = std::current_exception();
  }
  this_thread().finished = true;
  leave();
}

// `operation` is one literal for each of CUDA's functions, so that the address tells them apart.
inline void wait(Group& group, size_t first, size_t size, const char* operation) {
  if (group.arrived == 0) group.operation = operation;
  if (group.operation != operation) {
    throw std::runtime_error(std::string("some threads are at ") + group.operation + ", others at " + operation);
  }
  if (static_cast<size_t>(++group.arrived) < size) {
    this_thread().waits_in = &group;
    leave();
    return;
  }
  group.arrived = 0;
  ++group.generation;
  for (size_t t = first; t < first + size; ++t) block.threads[t].waits_in = nullptr;
}

// The index of the value slot that this operation used.
inline unsigned wait_for_warp(unsigned mask, const char* operation) {
  if (mask != 0xFFFFFFFFu) throw std::runtime_error("only whole warps are simulated");
  const size_t warp = block.current / kLanes;
  Group& group = block.warps[warp];
  const unsigned slot = group.generation & 1;
  wait(group, warp * kLanes, kLanes, operation);
  return slot;
}

template <typename T>
T exchange(unsigned mask, T value, int source, const char* operation) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Group& group = block.warps[block.current / kLanes];
  std::memcpy(&group.values[group.generation & 1][block.current % kLanes], &value, sizeof value);
  const unsigned slot = wait_for_warp(mask, operation);
  std::memcpy(&value, &group.values[slot][source], sizeof value);
  return value;
}

// Names are string literals of one kernel, told apart by their text.
inline void* shared_memory(const char* name, size_t bytes) {
  for (SharedVariable& variable : block.shared) {
    if (std::strcmp(variable.name, name) == 0) return variable.memory.data();
  }
  block.shared.push_back({name, std::vector<uint64_t>((bytes + 7) / 8, ~uint64_t{0})});
  return block.shared.back().memory.data();
}

inline void copy_async(void* to, const void* from, bool real) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    throw std::runtime_error("an asynchronous copy begins at no multiple of 16 bytes");
  }
  this_thread().copies.back().push_back({to, from, real});
}

inline void commit_copies() { this_thread().copies.emplace_back(); }

inline void wait_for_copies(size_t left) {
  auto& groups = this_thread().copies;
  const size_t arrived = groups.size() - 1 > left ? groups.size() - 1 - left : 0;
  for (size_t i = 0; i < arrived; ++i) {
    for (const Copy& copy : groups[i]) {
      if (copy.real) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
  }
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(arrived));
}

inline void run_block(Order order) {
  block.shared.clear();
  block.all = Group{};
  block.warps.assign(block.size / kLanes, Group{});
  block.error = nullptr;
  const size_t size = block.size;
  for (size_t t = 0; t < size; ++t) {
    Thread& thread = block.threads[t];
    thread.waits_in = nullptr;
    thread.finished = false;
    thread.copies.assign(1, {});
    thread.index = dim3(static_cast<unsigned>(t % blockDim.x), static_cast<unsigned>(t / blockDim.x % blockDim.y),
                        static_cast<unsigned>(t / blockDim.x / blockDim.y));
    thread.fiber.start(thread_main);
  }
  size_t running = size;
  while (running > 0) {
    bool progress = false;
    for (size_t t = 0; t < size; ++t) {
      block.current = order == Order::kForward ? t : size - 1 - t;
      Thread& thread = this_thread();
      if (thread.finished || thread.waits_in) continue;
      progress = true;
      threadIdx = thread.index;
      Fiber::switch_to(block.scheduler, thread.fiber);
      if (block.error) std::rethrow_exception(block.error);
      if (thread.finished) --running;
    }
    if (!progress) {
      const Thread* waiting = &block.threads[0];
      while (!waiting->waits_in) ++waiting;
      throw std::runtime_error("deadlock: " + std::to_string(running) + " of " + std::to_string(size) +
                               " threads wait, one of them at " + waiting->waits_in->operation);
    }
  }
}

template <typename... Parameters, typename... Arguments>
void launch(Order order, void (*kernel)(Parameters...), dim3 grid, dim3 size, Arguments... arguments) {
  const size_t threads = size_t{size.x} * size.y * size.z, blocks = size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || threads % kLanes != 0) {
    throw std::runtime_error("a block must be 1 to 32 whole warps");
  }
  if (blocks == 0 || grid.y > 65535 || grid.z > 65535) throw std::runtime_error("the grid is out of CUDA's range");
  block.kernel = [&] { kernel(static_cast<Parameters>(arguments)...); };
  block.size = threads;
  if (block.threads.size() < threads) block.threads.resize(threads);
  blockDim = size;
  gridDim = grid;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t k = order == Order::kForward ? i : blocks - 1 - i;
    blockIdx = dim3(static_cast<unsigned>(k % grid.x), static_cast<unsigned>(k / grid.x % grid.y),
                    static_cast<unsigned>(k / grid.x / grid.y));
    run_block(order);
  }
}

}  // namespace dadl::sim

inline void __syncthreads() { dadl::sim::wait(dadl::sim::block.all, 0, dadl::sim::block.size, "__syncthreads"); }

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { dadl::sim::wait_for_warp(mask, "__syncwarp"); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  const int lane = static_cast<int>(dadl::sim::block.current % dadl::sim::kLanes);
  return dadl::sim::exchange(mask, value, lane ^ lanes, "__shfl_xor_sync");
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return dadl::sim::exchange(mask, value, lane % dadl::sim::kLanes, "__shfl_sync");
}

inline int __any_sync(unsigned mask, int predicate) {
  using namespace dadl::sim;
  Group& group = block.warps[block.current / kLanes];
  group.values[group.generation & 1][block.current % kLanes] = predicate != 0;
  const unsigned slot = wait_for_warp(mask, "__any_sync");
  uint64_t any = 0;
  for (const uint64_t value : group.values[slot]) any |= value;
  return any != 0;
}

inline int atomicOr(int* address, int value) {
  const int old = *address;
  *address |= value;
  return old;
}
