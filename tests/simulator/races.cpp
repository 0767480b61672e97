// Compiled without -fsanitize=thread: what the instrumented simulator calls at every access.
#include "races.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <new>
#include <string_view>

namespace dadl::sim::races {
namespace {

constexpr size_t kWarp = 32, kMostWarps = 32;
constexpr uint16_t kAtomicFlag = 1 << 15;

// Blocks run one after the other. A segment is what a block does between two of its barriers; segments are numbered
// through all blocks and launches, so a number tells of which launch and block an access was.
struct Record {
  uint32_t segment = 0;
  uint16_t warp_step = 0;  // __syncwarps that the warp had passed
  uint16_t thread = 0;     // with kAtomicFlag
  uint32_t code = 0;       // address of the access relative to this library

  bool operator==(const Record&) const = default;
  bool is_atomic() const { return thread & kAtomicFlag; }
  uint16_t index() const { return thread & ~kAtomicFlag; }
  size_t warp() const { return index() / kWarp; }
};

// What one byte remembers: its last write and, since then, the last read of all, the last one of another thread of
// that warp, of another warp of that block and of another block.
struct Cell {
  Record write;
  std::array<Record, 4> reads;
};

struct State {
  const unsigned char *arena = nullptr, *own = nullptr;  // from `own` on memory belongs to the block
  Cell* cells = nullptr;
  uint32_t segment = 0, launch = 0, block = 0;  // the current one, the first ones of the launch and of the block
  std::array<uint16_t, kMostWarps> warp_steps{};
  uint16_t thread = 0;
  bool active = false;
  double preemption = 0;
  void (*preempt)() = nullptr;
  uint64_t random = 88172645463325252ull;
  std::string found;
} state;

uintptr_t library() {
  static const uintptr_t base = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&begin_launch), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
  }();
  return base;
}

bool ordered(const Record& before, const Record& now, bool belongs_to_block) {
  if (before.segment < (belongs_to_block ? state.block : state.launch)) return true;
  if (before.is_atomic() && now.is_atomic()) return true;
  if (before.segment < state.block) return false;
  if (before.segment != now.segment || before.index() == now.index()) return true;
  return before.warp() == now.warp() && before.warp_step != now.warp_step;
}

// The functions and lines of an access, the innermost first.
std::string source_line(uint32_t code) {
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&begin_launch), &info);
  char command[1024], line[1024];
  std::snprintf(command, sizeof command, "addr2line --inlines --basenames --exe=%s %#x 2>&1", info.dli_fname, code - 1);
  std::string lines;
  FILE* output = popen(command, "r");
  while (output && std::fgets(line, sizeof line, output)) {
    if (!lines.empty()) lines += " < ";
    const std::string_view place(line);
    lines += place.substr(0, place.find_first_of(" \n"));  // what follows tells copies of the line apart
    if (lines.find(".cuh") != std::string::npos && lines.find("device.cuh") == std::string::npos) break;
  }
  if (output) pclose(output);
  return lines;
}

std::string describe(const Record& record, const char* what) {
  return std::string(what) + " by thread " + std::to_string(record.index()) + " at " + source_line(record.code);
}

void report(const Record& before, const char* first, const Record& now, const char* second) {
  if (!state.found.empty()) return;
  const bool other_block = before.segment < state.block;
  state.found = "race: " + describe(before, first) + (other_block ? " of another block" : "") + ", " +
                describe(now, second) + ", with nothing between that orders them";
}

void read(Cell& cell, const Record& now, bool own) {
  if (!ordered(cell.write, now, own)) report(cell.write, "write", now, "read");
  auto& [last, lane, warp, block] = cell.reads;
  if (last.segment < state.block) {
    block = last;
  } else if (last.warp() != now.warp()) {
    warp = last;
  } else if (last.thread != now.thread) {
    lane = last;
  }
  last = now;
}

void write(Cell& cell, const Record& now, bool own) {
  if (!ordered(cell.write, now, own)) report(cell.write, "write", now, "write");
  for (const Record& read : cell.reads) {
    if (!ordered(read, now, own)) report(read, "read", now, "write");
  }
  cell = {now, {}};
}

void access(const void* address, size_t bytes, Access kind, const void* code) {
  if (!state.active) return;
  const size_t first = static_cast<const unsigned char*>(address) - state.arena;
  if (first >= kArenaBytes - bytes) return;
  const bool own = address >= state.own, is_write = kind != Access::kRead;
  const Record now{state.segment, state.warp_steps[state.thread / kWarp],
                   static_cast<uint16_t>(state.thread | (kind == Access::kAtomic ? kAtomicFlag : 0)),
                   static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - library())};
  for (Cell* cell = state.cells + first; cell < state.cells + first + bytes; ++cell) {
    if (is_write) {
      if (cell->write != now || cell->reads[0] != Record{}) write(*cell, now, own);
    } else if (cell->reads[0] != now) {
      read(*cell, now, own);
    }
  }
  if (state.preemption > 0) {
    state.random ^= state.random << 13;
    state.random ^= state.random >> 7;
    state.random ^= state.random << 17;
    if (static_cast<double>(state.random >> 11) * 0x1p-53 < state.preemption) state.preempt();
  }
}

}  // namespace

void watch(const unsigned char* arena) {
  void* cells = mmap(nullptr, kArenaBytes * sizeof(Cell), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (cells == MAP_FAILED) throw std::bad_alloc();
  state.arena = arena;
  state.cells = static_cast<Cell*>(cells);
}

void record_access(const void* first, size_t bytes, Access kind) {
  access(first, bytes, kind, __builtin_return_address(0));
}

void begin_launch() {
  state.launch = state.segment + 1;
  state.found.clear();
}

void begin_block(const unsigned char* own) {
  state.own = own;
  state.block = ++state.segment;
  state.warp_steps.fill(0);
}

void pass_block_barrier() { ++state.segment; }

void pass_warp_barrier(size_t warp) { ++state.warp_steps[warp]; }

void enter(size_t thread, double preemption, void (*preempt)()) {
  state.thread = static_cast<uint16_t>(thread);
  state.preemption = preemption;
  state.preempt = preempt;
  state.active = true;
}

void leave() { state.active = false; }

const std::string* found() { return state.found.empty() ? nullptr : &state.found; }

}  // namespace dadl::sim::races

// By the compiler's names.
#define DADL_ACCESSES(bytes)                                                                                     \
  void __tsan_read##bytes(void* p) { access(p, bytes, Access::kRead, __builtin_return_address(0)); }             \
  void __tsan_write##bytes(void* p) { access(p, bytes, Access::kWrite, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, Access::kRead, __builtin_return_address(0)); }   \
  void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, Access::kWrite, __builtin_return_address(0)); } \
  void __tsan_volatile_read##bytes(void* p) { access(p, bytes, Access::kRead, __builtin_return_address(0)); }    \
  void __tsan_volatile_write##bytes(void* p) { access(p, bytes, Access::kWrite, __builtin_return_address(0)); }

namespace dadl::sim::races {
extern "C" {
DADL_ACCESSES(1)
DADL_ACCESSES(2)
DADL_ACCESSES(4)
DADL_ACCESSES(8)
DADL_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, Access::kRead, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, Access::kWrite, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Of the Python binding and the C++ library, none of a kernel.
uint8_t __tsan_atomic8_load(const volatile uint8_t* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
uint32_t __tsan_atomic32_load(const volatile uint32_t* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
uint64_t __tsan_atomic64_load(const volatile uint64_t* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
void __tsan_atomic8_store(volatile uint8_t* p, uint8_t v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
uint32_t __tsan_atomic32_fetch_add(volatile uint32_t* p, uint32_t v, int) {
  return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
uint32_t __tsan_atomic32_fetch_or(volatile uint32_t* p, uint32_t v, int) {
  return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST);
}
}
}  // namespace dadl::sim::races
