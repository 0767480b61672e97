// What the CPU operators share: instruction-set clones, threads and inner products.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../tensors.h"

// One binary for every x86-64: hot loops are compiled for each instruction set, and the loader picks one. `flatten`
// inlines the templates that they call into each clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DADL_X86
#include <immintrin.h>
#ifndef DADL_CLONES  // builds with a sanitizer do without, or they would take many minutes
#define DADL_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
#else
#define DADL_CLONES
#endif

// What is between them is compiled for the instruction sets that DADL_BEGIN_TARGET names.
#define DADL_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define DADL_BEGIN_TARGET(...)                                                                       \
  DADL_PRAGMA(GCC diagnostic push)                                                                   \
  DADL_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized") /* in the compiler's own intrinsics */ \
  DADL_PRAGMA(GCC diagnostic ignored "-Wuninitialized")                                              \
  DADL_PRAGMA(GCC push_options)                                                                      \
  DADL_PRAGMA(GCC target(__VA_ARGS__))
#define DADL_END_TARGET        \
  DADL_PRAGMA(GCC pop_options) \
  DADL_PRAGMA(GCC diagnostic pop)

namespace dadl::cpu {

#ifdef DADL_X86
// The x86-64 level to use: 4 (AVX-512), 3 (AVX2) or 0. ATEN_CPU_CAPABILITY limits it, as it limits PyTorch.
inline int x86_level() {
  static const int level = [] {
    const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
    const auto capped = [&](const char* name) { return cap && std::strcmp(cap, name) == 0; };
    if (capped("default")) return 0;
    if (__builtin_cpu_supports("x86-64-v4") && !capped("avx2")) return 4;
    return __builtin_cpu_supports("x86-64-v3") ? 3 : 0;
  }();
  return level;
}
#endif

template <typename A, int kBytes>
struct VectorOf {
  using type __attribute__((vector_size(kBytes))) = A;
};

// A thread's working memory, one block for each purpose. Unless it is large it is kept from call to call: fresh pages
// from the system take as long as the work on them.
template <typename Purpose>
class WorkingMemory {
 public:
  // `bytes` is the sum of all that will be taken; each part fills whole cache lines.
  explicit WorkingMemory(int64_t bytes) {
    constexpr int64_t kMostLines = 1 << 16;  // 4 MiB
    thread_local std::unique_ptr<Line[]> kept;
    thread_local int64_t kept_lines = 0;
    const int64_t lines = lines_of(bytes);
    if (lines > kMostLines) {
      own_.reset(new Line[lines]);
    } else if (lines > kept_lines) {
      kept.reset(new Line[lines]);
      kept_lines = lines;
    }
    next_ = own_ ? own_.get() : kept.get();
  }

  // Uninitialised; begins on a cache line.
  template <typename T>
  T* take(int64_t count) {
    Line* taken = next_;
    next_ += lines_of(count * static_cast<int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(taken);
  }

 private:
  static constexpr int64_t kLine = 64;
  struct alignas(kLine) Line {
    char bytes[kLine];
  };
  static constexpr int64_t lines_of(int64_t bytes) { return (bytes + kLine - 1) / kLine; }

  std::unique_ptr<Line[]> own_;
  Line* next_ = nullptr;
};

// Fewer elements than this are not worth a thread.
constexpr int64_t kGrainElements = 16384;

inline int64_t grain_rows(int64_t row_elements) {
  return row_elements >= kGrainElements ? 1 : kGrainElements / (row_elements > 0 ? row_elements : 1);
}

// Adds in 16 interleaved sums, which compilers vectorise.
template <typename A, typename Term>
A sum_over(int64_t count, Term term) {
  constexpr int64_t kLanes = 16;
  A lanes[kLanes] = {}, total = 0;
  int64_t e = 0;
  for (; e + kLanes <= count; e += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += term(e + l);
  }
  for (; e < count; ++e) total += term(e);
  for (int64_t l = 0; l < kLanes; ++l) total += lanes[l];
  return total;
}

template <typename A>
A inner_product(const A* x, const A* y, int64_t d) {
  return sum_over<A>(d, [&](int64_t e) { return x[e] * y[e]; });
}

}  // namespace dadl::cpu
