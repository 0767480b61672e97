// The order of distances to one label, along the labels sorted once: a merge of the two sides of that label.
#pragma once

#include <cstdint>

#include "../core/labels.h"

namespace dadl::cpu {

// A distance and a number, such as a column, as one unsigned key. It orders by distance, then from the larger number
// down.
template <typename Distance>
struct MergeKey;
template <>
struct MergeKey<float> {
  using Type = uint64_t;
  static Type make(float distance, uint32_t number) {
    return static_cast<Type>(ordered_key(distance)) << 32 | static_cast<uint32_t>(~number);
  }
};
template <>
struct MergeKey<double> {
  using Type = unsigned __int128;
  static Type make(double distance, uint32_t number) {
    return static_cast<Type>(ordered_key(distance)) << 64 | static_cast<uint32_t>(~number);
  }
};
template <>
struct MergeKey<uint64_t> {
  using Type = unsigned __int128;
  static Type make(uint64_t distance, uint32_t number) {
    return static_cast<Type>(distance) << 64 | static_cast<uint32_t>(~number);
  }
};

// visit(position, rank) for all m positions of the sorted labels, rank 1 being that of `own`, the label's. The keys
// rise on both sides of it and are all different; those at -1 and m are the largest there is. Overwrites the own key.
//
// Without branches, because no processor predicts which side comes next, and as two chains of dependent steps side by
// side: one from the own label outwards through the nearer half of the labels, one from both ends inwards through the
// farther half. The largest key stands at both ends, and the smallest at the own label, so that neither chain checks
// bounds.
template <typename Key, typename Visit>
inline __attribute__((always_inline)) void merge_sides(Key* keys, int32_t own, int32_t m, Visit visit) {
  visit(own, 1);
  keys[own] = 0;
  const auto select = [](bool first_one, int32_t one, int32_t other) __attribute__((always_inline)) {
    return other ^ ((one ^ other) & -static_cast<int32_t>(first_one));
  };
  int32_t left = own - 1, right = own + 1, first = 0, last = m - 1;
  const auto near = [&](int32_t rank) __attribute__((always_inline)) {
    const bool take_left = keys[left] < keys[right];
    visit(select(take_left, left, right), rank);
    left -= take_left;
    right += !take_left;
  };
  const auto far = [&](int32_t rank) __attribute__((always_inline)) {
    const bool take_first = keys[first] > keys[last];
    visit(select(take_first, first, last), rank);
    first += take_first;
    last -= !take_first;
  };
  const int32_t pairs = (m - 1) / 2;
  for (int32_t step = 0; step < pairs; ++step) {
    near(2 + step);
    far(m - step);
  }
  if ((m - 1) % 2) near(2 + pairs);
}

}  // namespace dadl::cpu
