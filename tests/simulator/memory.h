// The memory that kernels may touch: inputs, buffers, results and shared variables, with guards between them.
//
// All of it lies in one arena, so that whatever else is in there is out of bounds: AddressSanitizer stops there, reads
// get NaN bytes, and writes are found after the launch. For the race detector see races.h.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "races.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(first, bytes) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(first, bytes) static_cast<void>(0)
#endif

namespace dadl::sim {

class Memory {
 public:
  // Allocations end in the reverse order: release(mark) ends all since mark().
  using Mark = size_t;
  Mark mark() const { return regions_.size(); }
  const unsigned char* end() const { return end_; }
  void release(Mark mark) {
    if (mark == regions_.size()) return;
    ASAN_POISON_MEMORY_REGION(regions_[mark].first, end_ - regions_[mark].first);
    regions_.resize(mark);
    end_ = regions_.empty() ? arena_ : regions_.back().end;
  }

  // NaN bytes that begin `offset` bytes after a multiple of 256, as CUDA's own allocations do without offset.
  unsigned char* allocate(size_t bytes, const char* name, size_t offset = 0) {
    reserve();
    const auto boundary = (reinterpret_cast<uintptr_t>(end_) + kGuard + kAlignment - 1) / kAlignment * kAlignment;
    auto* first = reinterpret_cast<unsigned char*>(boundary) + offset;
    if (bytes > static_cast<size_t>(arena_ + races::kArenaBytes - kGuard - first)) throw std::bad_alloc();
    ASAN_UNPOISON_MEMORY_REGION(end_, first + bytes + kGuard - end_);
    std::memset(end_, kFill, first + bytes + kGuard - end_);
    ASAN_POISON_MEMORY_REGION(end_, first - end_);
    ASAN_POISON_MEMORY_REGION(first + bytes, kGuard);
    regions_.push_back({name, first, first + bytes});
    end_ = first + bytes;
    return first;
  }

  // Throws where what lies between allocations was written to, from the guard before the one of `mark` on.
  void check_guards(Mark mark = 0) const {
#if !defined(__SANITIZE_ADDRESS__)
    for (Mark i = mark; !regions_.empty() && i <= regions_.size(); ++i) {
      const unsigned char* guard = i == 0 ? arena_ : regions_[i - 1].end;
      if (is_broken(guard, i == regions_.size() ? end_ + kGuard : regions_[i].first)) {
        throw std::runtime_error(std::string("a kernel wrote behind ") + (i == 0 ? "nothing" : regions_[i - 1].name) +
                                 " and before " + (i == regions_.size() ? "nothing" : regions_[i].name));
      }
    }
#endif
  }

 private:
  static constexpr size_t kGuard = 1024, kAlignment = 256;
  static constexpr unsigned char kFill = 0xFF;

  struct Region {
    const char* name;
    unsigned char *first, *end;
  };

  void reserve() {
    if (arena_) return;
    void* arena =
        mmap(nullptr, races::kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) throw std::bad_alloc();
    arena_ = end_ = static_cast<unsigned char*>(arena);
    races::watch(arena_);
  }

  static bool is_broken(const unsigned char* first, const unsigned char* end) {
    return *first != kFill || std::memcmp(first, first + 1, end - first - 1) != 0;
  }

  std::vector<Region> regions_;
  unsigned char *arena_ = nullptr, *end_ = nullptr;
};

inline Memory memory;

}  // namespace dadl::sim
