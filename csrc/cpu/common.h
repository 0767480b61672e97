// What the CPU operators share: instruction-set clones, threads and inner products.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../tensors.h"

// One binary for every x86-64: the hot loops are compiled per instruction set and picked when the library loads.
// `flatten` pulls the templates that they call into each clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DADL_X86
#include <immintrin.h>
#define DADL_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DADL_CLONES
#endif

namespace dadl::cpu {

#ifdef DADL_X86
// The widest instruction set of ours: 4 for AVX-512, 3 for AVX2, else 0. PyTorch's own switch narrows it too.
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

// Work below this many elements is not worth a thread.
constexpr int64_t kGrainElements = 16384;

inline int64_t grain_rows(int64_t row_elements) {
  return row_elements >= kGrainElements ? 1 : kGrainElements / (row_elements > 0 ? row_elements : 1);
}

// In 16 interleaved sums, which compilers vectorise.
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
