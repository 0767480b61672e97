// Keys, and what a pass over them leaves behind.
#pragma once

#include "common.h"

namespace dadl::cpu {

template <typename T>
struct Keys {
  const T* values;  // [count, d]
  int64_t count, d;
  const bool* mask;   // [count], null for all
  bool exclude_self;  // key i is left out for query i
};

// The same of any dtype.
template <typename A>
struct AnyKeys {
  const void* values;
  int64_t row_bytes, count, d;
  const bool* mask;
  bool exclude_self;
  // One key [d] as A, where it lies or in the buffer.
  const A* (*read)(const void* key, A* buffer, int64_t d);
};

struct Range {
  int64_t first, last;
};

// Of a chunk of keys: per query the largest logit, the sum of exp(logit - largest) and, unless null, the sum of the
// keys weighted by these, which lie as the tile's queries say.
template <typename A>
struct Softmax {
  A *largest, *sum, *weighted;
};

}  // namespace dadl::cpu
