// Sorting networks over columns: key[p][lane] for p in 0..n is sorted for every lane at once, branch-free.
// Included once per instruction set, in a namespace and under a target pragma of its own, which define kLanes, Vector
// and order(): explicit vector types do not survive target_clones.
//
// Bitonic sorting with all comparators ascending (the first layer of each merge compares mirror images), so elements
// behind n that hold +inf stay where they are and n need not be a power of two. `size` is the power of two that the
// memory holds; up to 16 vectors are held in registers over several layers.

// Layers with strides size/2, size/4, ... of `Held` vectors that lie `stride` apart; (b, i) runs over all such groups.
template <int Held>
inline __attribute__((always_inline)) void halve(Vector (&x)[Held]) {
#pragma GCC unroll 8
  for (int stride = Held / 2; stride >= 1; stride /= 2) {
#pragma GCC unroll 32
    for (int i = 0; i < Held; ++i) {
      if (!(i & stride)) order(x[i], x[i | stride]);
    }
  }
}

template <int Held>
void halve_layers(Vector* keys, int n, int stride) {
  for (int b = 0; b < n; b += Held * stride) {
    for (int i = b; i < b + stride && i < n; ++i) {
      Vector x[Held];
#pragma GCC unroll 32
      for (int r = 0; r < Held; ++r) x[r] = keys[i + r * stride];
      halve(x);
#pragma GCC unroll 32
      for (int r = 0; r < Held; ++r) keys[i + r * stride] = x[r];
    }
  }
}

// The first layers of merging the sorted halves of each block of `size`: mirror images, then strides down to
// size / Held. A group {i + r stride} meets the group of its mirror images.
template <int Held>
void mirror_layers(Vector* keys, int n, int size) {
  const int stride = size / Held;
  for (int b = 0; b < n; b += size) {
    for (int i = 0; i < stride / 2; ++i) {
      Vector *low = keys + b + i, *high = keys + b + stride - 1 - i;
      Vector x[Held], y[Held];
#pragma GCC unroll 32
      for (int r = 0; r < Held; ++r) {
        x[r] = low[r * stride];
        y[r] = high[r * stride];
      }
#pragma GCC unroll 32
      for (int r = 0; r < Held / 2; ++r) {
        order(x[r], y[Held - 1 - r]);
        order(y[r], x[Held - 1 - r]);
      }
#pragma GCC unroll 8
      for (int h = Held / 4; h >= 1; h /= 2) {
#pragma GCC unroll 32
        for (int r = 0; r < Held; ++r) {
          if (r & h) continue;
          order(x[r], x[r | h]);
          order(y[r], y[r | h]);
        }
      }
#pragma GCC unroll 32
      for (int r = 0; r < Held; ++r) {
        low[r * stride] = x[r];
        high[r * stride] = y[r];
      }
    }
  }
}

inline void sort_sixteens(Vector* keys, int n) {
  constexpr int kHeld = 16;
  for (int b = 0; b < n; b += kHeld) {
    Vector x[kHeld];
#pragma GCC unroll 32
    for (int r = 0; r < kHeld; ++r) x[r] = keys[b + r];
#pragma GCC unroll 8
    for (int size = 2; size <= kHeld; size *= 2) {
#pragma GCC unroll 32
      for (int r = 0; r < kHeld; ++r) {
        const int mirror = r ^ (size - 1);
        if (r < mirror) order(x[r], x[mirror]);
      }
#pragma GCC unroll 8
      for (int h = size / 4; h >= 1; h /= 2) {
#pragma GCC unroll 32
        for (int r = 0; r < kHeld; ++r) {
          if (!(r & h)) order(x[r], x[r | h]);
        }
      }
    }
#pragma GCC unroll 32
    for (int r = 0; r < kHeld; ++r) keys[b + r] = x[r];
  }
}

constexpr int kCacheSize = 128;  // blocks from here on are finished one by one, while they are in the cache

// How many layers to take at once so that the last four, held in registers, remain.
inline int head_layers(int size) {
  const int layers = __builtin_ctz(size) - 4;
  return layers % 3 ? layers % 3 : 3;
}

// Sorts each block of `size` in [0, n) that falls and then rises, or rises and then falls.
inline void merge_blocks(Vector* keys, int n, int size) {
  if (size <= 16) return halve_layers<16>(keys, n, 1);
  const int head = head_layers(size);
  if (head == 1) {
    halve_layers<2>(keys, n, size / 2);
  } else if (head == 2) {
    halve_layers<4>(keys, n, size / 4);
  } else {
    halve_layers<8>(keys, n, size / 8);
  }
  size >>= head;
  if (size < kCacheSize) return merge_blocks(keys, n, size);
  for (int b = 0; b < n; b += size) merge_blocks(keys + b, std::min(size, n - b), size);
}

inline void merge_sorted_halves(Vector* keys, int n, int size) {
  const int head = head_layers(size);
  if (head == 1) {
    mirror_layers<2>(keys, n, size);
  } else if (head == 2) {
    mirror_layers<4>(keys, n, size);
  } else {
    mirror_layers<8>(keys, n, size);
  }
  size >>= head;
  for (int b = 0; b < n; b += std::max(size, kCacheSize)) {
    merge_blocks(keys + b, std::min(std::max(size, kCacheSize), n - b), size);
  }
}

inline void sort_lanes(Vector* keys, int n, int size) {
  if (size > 2 * kCacheSize) {
    const int half = size / 2;
    sort_lanes(keys, std::min(n, half), half);
    if (n <= half) return;
    sort_lanes(keys + half, n - half, half);
    return merge_sorted_halves(keys, n, size);
  }
  sort_sixteens(keys, n);
  for (int block = 32; block / 2 < n; block *= 2) merge_sorted_halves(keys, n, block);
}
