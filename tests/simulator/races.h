// The race detector: which accesses to a kernel's memory are ordered. It is there in the simulator's flavour "race",
// which is compiled with -fsanitize=thread for the sake of its calls at every access, without the sanitizer itself.
//
// Two accesses to a byte, one of them a write, are ordered only if they belong to one thread or to two launches, if
// both threads passed a __syncthreads of their block between them, or, for lanes of a warp, a __syncwarp. Shuffles and
// votes order no memory, and nothing orders the blocks of a launch. Atomic operations do not race with each other.
#pragma once

#include <cstddef>
#include <string>

namespace dadl::sim::races {

enum class Access { kRead, kWrite, kAtomic };

#if defined(DADL_RACES)
constexpr size_t kArenaBytes = size_t{64} << 20;

void watch(const unsigned char* arena /* [kArenaBytes] */);
// By the running thread, where no instruction of its own reads or writes the memory (a library's memcpy, a copy that
// the simulator models).
void record_access(const void* first, size_t bytes, Access access);
void begin_launch();
void begin_block(const unsigned char* own);  // where the memory begins that belongs to the block
void pass_block_barrier();
void pass_warp_barrier(size_t warp);
// Accesses count until leave(). Before each of them the thread is preempted with this probability.
void enter(size_t thread, double preemption, void (*preempt)());
void leave();
// The first race of the launch, with names of source lines, or null.
const std::string* found();
#else
constexpr size_t kArenaBytes = size_t{1} << 30;

inline void watch(const unsigned char*) {}
inline void record_access(const void*, size_t, Access) {}
inline void begin_launch() {}
inline void begin_block(const unsigned char*) {}
inline void pass_block_barrier() {}
inline void pass_warp_barrier(size_t) {}
inline void enter(size_t, double, void (*)()) {}
inline void leave() {}
inline const std::string* found() { return nullptr; }
#endif

}  // namespace dadl::sim::races
