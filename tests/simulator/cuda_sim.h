// CUDA's words for g++: one block at a time, every thread a fiber.
//
// A thread runs until it waits at a barrier or a warp operation, so between two of them the threads run one after the
// other, in one of several orders: code that needs a barrier where there is none gives different results in two of
// them, or reads the NaN bytes with which a block's shared memory begins. Races that change no result are found by
// races.h. Threads that wait for others that never come are an error, not a hang, and so are barriers of different
// source lines that meet.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "memory.h"

#if defined(__SANITIZE_ADDRESS__)
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
  auto& name = *static_cast<__VA_ARGS__*>(dadl::sim::dynamic_memory(sizeof(__VA_ARGS__)))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace dadl::sim {

// Of the threads of a block and of the blocks of a launch. Ahead: each warp runs as far as the block's barriers let it
// before the next one begins.
enum class Order { kForward, kReverse, kAhead, kRandom };

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kSharedBytes = 48 << 10;  // that a kernel may have without asking for more
constexpr double kPreemption = 1.0 / 64;   // before an access of memory, in random order

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
  size_t bytes;
  unsigned char* memory;
};

struct Block {
  void (*kernel)(const void* call) = nullptr;
  const void* call = nullptr;   // of the kernel, with its arguments
  size_t size = 0;              // in threads
  std::vector<Thread> threads;  // at least as many: stacks serve one launch after the other
  std::vector<Group> warps;
  Group all;
  std::vector<SharedVariable> shared;
  size_t dynamic_bytes = 0;
  void* dynamic = nullptr;
  Fiber scheduler;
  size_t current = 0;
  std::exception_ptr error;
  Order order = Order::kForward;
  std::mt19937 random;
};

inline Block block;

inline Thread& this_thread() { return block.threads[block.current]; }

inline void leave() { Fiber::switch_to(this_thread().fiber, block.scheduler); }

inline void thread_main() {
  arrived(this_thread().fiber);
  try {
    block.kernel(block.call);
  } catch (...) {
    block.error = std::current_exception();
  }
  this_thread().finished = true;
  leave();
}

// Calls pass() when the last thread is there. `operation` is one literal for each of CUDA's functions, or for each
// source line of a barrier.
template <typename Pass>
void wait(Group& group, size_t first, size_t size, const char* operation, Pass pass) {
  if (group.arrived == 0) group.operation = operation;
  if (std::strcmp(group.operation, operation) != 0) {
    throw std::runtime_error(std::string("some threads are at ") + group.operation + ", others at " + operation);
  }
  if (static_cast<size_t>(++group.arrived) < size) {
    this_thread().waits_in = &group;
    leave();
    return;
  }
  group.arrived = 0;
  ++group.generation;
  pass();
  for (size_t t = first; t < first + size; ++t) block.threads[t].waits_in = nullptr;
}

// The index of the value slot that this operation used.
template <typename Pass>
unsigned wait_for_warp(unsigned mask, const char* operation, Pass pass) {
  if (mask != 0xFFFFFFFFu) throw std::runtime_error("only whole warps are simulated");
  const size_t warp = block.current / kLanes;
  Group& group = block.warps[warp];
  const unsigned slot = group.generation & 1;
  wait(group, warp * kLanes, kLanes, operation, [&] { pass(warp); });
  return slot;
}

inline unsigned wait_for_warp(unsigned mask, const char* operation) {
  return wait_for_warp(mask, operation, [](size_t) {});
}

// Whether an operation stands where tools/mutate.py asks for none: "name at file:line".
inline bool is_removed(const char* operation) {
  static const char* place = std::getenv("DADL_REMOVED_BARRIER");
  return place && std::string_view(operation).ends_with(std::string("/") + place);
}

inline void sync_threads(const char* operation) {
  if (is_removed(operation)) return;
  wait(block.all, 0, block.size, operation, races::pass_block_barrier);
}

inline void sync_warp(const char* operation, unsigned mask = 0xFFFFFFFFu) {
  if (is_removed(operation)) return;
  wait_for_warp(mask, operation, races::pass_warp_barrier);
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
  size_t used = bytes;
  for (const SharedVariable& variable : block.shared) {
    if (std::strcmp(variable.name, name) == 0) return variable.memory;
    used += variable.bytes;
  }
  if (used > kSharedBytes) {
    throw std::runtime_error(std::string("more than 48 KB of static shared memory: ") + std::to_string(used) +
                             " bytes with " + name);
  }
  block.shared.push_back({name, bytes, memory.allocate(bytes, name)});
  return block.shared.back().memory;
}

// The block's memory whose size the launch gives; the kernel needs `bytes` of it at least.
inline void* dynamic_memory(size_t bytes) {
  if (bytes > block.dynamic_bytes) {
    throw std::runtime_error("the launch gives " + std::to_string(block.dynamic_bytes) + " bytes of dynamic memory, " +
                             std::to_string(bytes) + " are used");
  }
  if (!block.dynamic) block.dynamic = memory.allocate(block.dynamic_bytes, "dynamic");
  return block.dynamic;
}

// What is copied is NaN until it arrives.
inline void copy_async(void* to, const void* from, bool real) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    throw std::runtime_error("an asynchronous copy begins at no multiple of 16 bytes");
  }
  races::record_access(to, 16, races::Access::kWrite);
  std::memset(to, 0xFF, 16);
  this_thread().copies.back().push_back({to, from, real});
}

inline void commit_copies() { this_thread().copies.emplace_back(); }

inline void wait_for_copies(size_t left) {
  auto& groups = this_thread().copies;
  const size_t arrived = groups.size() - 1 > left ? groups.size() - 1 - left : 0;
  for (size_t i = 0; i < arrived; ++i) {
    for (const Copy& copy : groups[i]) {
      races::record_access(copy.to, 16, races::Access::kWrite);
      if (copy.real) {
        races::record_access(copy.from, 16, races::Access::kRead);
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
  }
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(arrived));
}

// A sum of tensor cores: what lies below the last bit of its largest term is cut off from each, and from the sum what
// has no place in its 24 bits. Those of A100 and later keep a bit or two more.
inline float add_cut_off(float c, const float (&products)[8]) {
  double largest = std::fabs(c), plain = c;
  for (const float product : products) {
    largest = std::max(largest, std::fabs(double{product}));
    plain += product;
  }
  if (largest == 0 || !std::isfinite(plain)) return static_cast<float>(plain);
  const int shift = 23 - std::ilogb(largest);
  double sum = std::trunc(std::ldexp(c, shift));
  for (const float product : products) sum += std::trunc(std::ldexp(product, shift));
  sum = std::ldexp(sum, -shift);
  const auto rounded = static_cast<float>(sum);
  return std::fabs(rounded) > std::fabs(sum) ? std::nextafter(rounded, 0.f) : rounded;
}

// Runs a thread until it waits, ends or is preempted; false where it cannot run.
inline bool run_thread(size_t index) {
  block.current = index;
  Thread& thread = this_thread();
  if (thread.finished || thread.waits_in) return false;
  threadIdx = thread.index;
  races::enter(index, block.order == Order::kRandom ? kPreemption : 0, leave);
  Fiber::switch_to(block.scheduler, thread.fiber);
  races::leave();
  if (block.error) std::rethrow_exception(block.error);
  if (races::found()) throw std::runtime_error(*races::found());
  return true;
}

// Every thread that can run, once; or, in order of warps, each warp until none of its threads can.
inline bool run_threads() {
  const size_t size = block.size;
  bool progress = false;
  if (block.order == Order::kAhead) {
    for (size_t first = 0; first < size; first += kLanes) {
      for (bool moved = true; moved; progress |= moved) {
        moved = false;
        for (size_t t = first; t < first + kLanes; ++t) moved |= run_thread(t);
      }
    }
  } else if (block.order == Order::kRandom) {
    std::vector<size_t> threads(size);
    std::iota(threads.begin(), threads.end(), size_t{0});
    std::shuffle(threads.begin(), threads.end(), block.random);
    for (const size_t t : threads) progress |= run_thread(t);
  } else {
    for (size_t t = 0; t < size; ++t) progress |= run_thread(block.order == Order::kForward ? t : size - 1 - t);
  }
  return progress;
}

inline void run_block() {
  const Memory::Mark mark = memory.mark();
  block.shared.clear();
  block.dynamic = nullptr;
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
  races::begin_block(memory.end());
  const auto runs = [](const Thread& thread) { return !thread.finished; };
  while (const auto running = std::count_if(block.threads.begin(), block.threads.begin() + size, runs)) {
    if (run_threads()) continue;
    const Thread* waiting = &block.threads[0];
    while (!waiting->waits_in) ++waiting;
    throw std::runtime_error("deadlock: " + std::to_string(running) + " of " + std::to_string(size) +
                             " threads wait, one of them at " + waiting->waits_in->operation);
  }
  memory.check_guards(mark);
  memory.release(mark);
}

constexpr size_t kDynamicBytes = 227 << 10;  // that a block may have, of compute capability 9.0

// Runs block.kernel in every thread.
inline void run_grid(Order order, size_t dynamic_bytes, dim3 grid, dim3 size) {
  const size_t threads = size_t{size.x} * size.y * size.z, blocks = size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || threads % kLanes != 0) {
    throw std::runtime_error("a block must be 1 to 32 whole warps");
  }
  if (blocks == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("the grid is out of CUDA's range");
  }
  if (dynamic_bytes > kDynamicBytes) throw std::runtime_error("more than 227 KB of dynamic shared memory");
  block.size = threads;
  block.dynamic_bytes = dynamic_bytes;
  block.order = order;
  block.random.seed(static_cast<unsigned>(threads + blocks));
  if (block.threads.size() < threads) block.threads.resize(threads);
  blockDim = size;
  gridDim = grid;
  std::vector<size_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), size_t{0});
  if (order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
  if (order == Order::kRandom) std::shuffle(sequence.begin(), sequence.end(), block.random);
  races::begin_launch();
  for (const size_t k : sequence) {
    blockIdx = dim3(static_cast<unsigned>(k % grid.x), static_cast<unsigned>(k / grid.x % grid.y),
                    static_cast<unsigned>(k / grid.x / grid.y));
    run_block();
  }
  memory.check_guards();
}

template <typename... Parameters, typename... Arguments>
void launch(Order order, size_t dynamic_bytes, void (*kernel)(Parameters...), dim3 grid, dim3 size,
            Arguments... arguments) {
  const auto call = [&] { kernel(static_cast<Parameters>(arguments)...); };
  block.call = &call;
  block.kernel = [](const void* it) { (*static_cast<decltype(call)*>(it))(); };
  run_grid(order, dynamic_bytes, grid, size);
}

}  // namespace dadl::sim

#define DADL_TEXT_OF(x) #x
#define DADL_TEXT(x) DADL_TEXT_OF(x)
#define __syncthreads() dadl::sim::sync_threads("__syncthreads at " __FILE__ ":" DADL_TEXT(__LINE__))
#define __syncwarp(...) \
  dadl::sim::sync_warp("__syncwarp at " __FILE__ ":" DADL_TEXT(__LINE__) __VA_OPT__(, ) __VA_ARGS__)

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
  dadl::sim::races::record_access(address, sizeof value, dadl::sim::races::Access::kAtomic);
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}

namespace cub {

// As the library's: a stable sort of the block's keys with their values, thread by thread, which ends without a
// barrier.
template <typename Key, int kThreads, int kItems, typename Value, int /* bits */, bool /* memoize */>
class BlockRadixSort {
 public:
  union TempStorage {
    Key keys[kThreads * kItems];
    Value values[kThreads * kItems];
  };

  explicit BlockRadixSort(TempStorage& storage) : storage_(storage) {}

  void Sort(Key (&keys)[kItems], Value (&values)[kItems]) {
    static std::vector<size_t> order;  // of the one block at work
    permute(storage_.keys, keys, [](const Key* all) {
      order.resize(kThreads * kItems);
      std::iota(order.begin(), order.end(), size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return all[i] < all[j]; });
      return order;
    });
    __syncthreads();
    permute(storage_.values, values, [](const Value*) { return order; });
  }

 private:
  // By one thread, when all have stored their own.
  template <typename T, typename OrderOf>
  static void permute(T* all, T (&own)[kItems], OrderOf order_of) {
    const size_t first = threadIdx.x * kItems;
    std::copy_n(own, kItems, all + first);
    __syncthreads();
    if (first == 0) {
      const std::vector<T> stored(all, all + kThreads * kItems);
      size_t position = 0;
      for (const size_t i : order_of(all)) all[position++] = stored[i];
    }
    __syncthreads();
    std::copy_n(all + first, kItems, own);
  }

  TempStorage& storage_;
};

}  // namespace cub
