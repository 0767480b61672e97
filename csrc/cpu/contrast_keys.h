// The keys, and the results of a pass over them.
#pragma once

#include "common.h"

namespace dadl::cpu {

template <typename T>
struct Keys {
  const T* values;  // [count, d]
  int64_t count, d;
  const bool* mask;         // [count], null for all
  bool exclude_self;        // leaves out key i for query i
  int64_t first_query = 0;  // of a block of queries, among all
};

// Keys of any dtype.
template <typename A>
struct AnyKeys {
  const void* values;
  int64_t row_bytes, count, d;
  const bool* mask;
  bool exclude_self;
  // Returns a key [d] as A: in place, or converted into the buffer.
  const A* (*read)(const void* key, A* buffer, int64_t d);
  int64_t first_query = 0;  // of a block of queries, among all
};

struct Range {
  int64_t first, last;
};

// The state of a pass over a chunk of keys: for each query the largest logit, the sum of exp(logit - largest) and,
// unless null, the sum of the keys weighted by these exponentials. KeyTile::Query::add_row() knows the layout of the
// latter.
template <typename A>
struct Softmax {
  A *largest, *sum, *weighted;
};

}  // namespace dadl::cpu
