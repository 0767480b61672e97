// A tile of keys and its logits in vector registers: queries in lanes, up to three vectors of them at a time.
// Included once per instruction set, in a namespace and under a target pragma of its own, which define kVectorBytes and
// multiply_add().
//
// All products are sums of outer products of four numbers and three vectors, which fill the registers. The numbers come
// from the keys, which lie in panels of four columns [panels][keys][4]: four keys times the queries' lanes are logits,
// four columns times their weights are columns of the weighted sums.

constexpr int kNumbers = 4, kVectors = 3;

template <typename A>
using Vector = typename VectorOf<A, kVectorBytes>::type;
template <typename A>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(A));

inline int64_t up_to(int64_t step, int64_t length) { return (length + step - 1) / step * step; }

// Lanes in blocks of up to three vectors, and of one only where there is no other: its sums wait for each other.
template <typename A>
struct Blocks {
  explicit Blocks(int64_t count)
      : padded(up_to(kLanes<A>, count)), count((padded + kVectors * kLanes<A> - 1) / (kVectors * kLanes<A>)) {}

  // Of a block, the first lane.
  int64_t operator[](int64_t block) const { return block * (padded / kLanes<A>) / count * kLanes<A>; }

  // body(first lane, number of vectors) for the blocks from begin to end
  template <typename Body>
  void each(int64_t begin, int64_t end, Body body) const {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = (*this)[block], lanes = (*this)[block + 1] - first;
      if (lanes == kVectors * kLanes<A>) {
        body(first, std::integral_constant<int, kVectors>{});
      } else if (lanes == 2 * kLanes<A>) {
        body(first, std::integral_constant<int, 2>{});
      } else {
        body(first, std::integral_constant<int, 1>{});
      }
    }
  }

  const int64_t padded, count;
};

template <typename A>
inline __attribute__((always_inline)) Vector<A> load(const A* source) {
  Vector<A> x;
  std::memcpy(&x, source, sizeof x);
  return x;
}

template <typename A>
inline __attribute__((always_inline)) void store(Vector<A> x, A* target) {
  std::memcpy(target, &x, sizeof x);
}

// x = exp(x) for arguments that are not positive, and 0 where exp_nonpositive() is. Step by step for all vectors, as
// one's steps wait for each other. The relative error grows with -x to 2e-6 in float, while exp(x) itself falls.
template <int kCount, typename A>
inline __attribute__((always_inline)) void exponentials(Vector<A> (&x)[kCount]) {
  using E = Exponential<A>;
  using Bits = typename VectorOf<typename E::Bits, kVectorBytes>::type;
  const Vector<A> zero{}, round = E::kRound - zero, log2e = E::kLog2E - zero;
  Vector<A> shifted[kCount], f[kCount], p[kCount];
#pragma GCC unroll 3
  for (int v = 0; v < kCount; ++v) shifted[v] = multiply_add(x[v], log2e, round);
#pragma GCC unroll 3
  for (int v = 0; v < kCount; ++v) f[v] = multiply_add(x[v], log2e, round - shifted[v]);
#pragma GCC unroll 3
  for (int v = 0; v < kCount; ++v) p[v] = E::kCoefficients[0] - zero;
#pragma GCC unroll 16
  for (int k = 1; k < E::kTerms; ++k) {
#pragma GCC unroll 3
    for (int v = 0; v < kCount; ++v) p[v] = multiply_add(p[v], f[v], E::kCoefficients[k] - zero);
  }
#pragma GCC unroll 3
  for (int v = 0; v < kCount; ++v) {
    const auto power = reinterpret_cast<Vector<A>>((reinterpret_cast<Bits>(shifted[v]) + E::kBias) << E::kMantissa);
    x[v] = x[v] < E::kLeast ? zero : p[v] * power;
  }
}

// result [4][vectors], rows `stride` apart, = factor [vectors] times itself, or 0 without one,
//   + sum over parts and k < length of a[part * part_step + k * kSumStep + row * kRowStep] b[part * length + k].
template <int kCount, int64_t kRowStep, int64_t kSumStep, int64_t kLength, typename A>
void product(const A* a, int64_t part_step, int64_t parts, int64_t length, const A* b, A* result, int64_t stride,
             const A* factor) {
  if (kLength > 0) length = kLength;
  Vector<A> sum[kNumbers][kCount] = {};
#pragma GCC unroll 4
  for (int r = 0; factor && r < kNumbers; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kCount; ++v) {
      sum[r][v] = load(result + r * stride + v * kLanes<A>) * load(factor + v * kLanes<A>);
    }
  }
  for (int64_t part = 0; part < parts; ++part, a += part_step) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < length; ++k, b += kCount * kLanes<A>) {
      Vector<A> x[kCount];
#pragma GCC unroll 3
      for (int v = 0; v < kCount; ++v) x[v] = load(b + v * kLanes<A>);
#pragma GCC unroll 4
      for (int r = 0; r < kNumbers; ++r) {
        const Vector<A> number = a[k * kSumStep + r * kRowStep] - Vector<A>{};
#pragma GCC unroll 3
        for (int v = 0; v < kCount; ++v) sum[r][v] = multiply_add(number, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kNumbers; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kCount; ++v) store<A>(sum[r][v], result + r * stride + v * kLanes<A>);
  }
}

// Turns logits [keys, lanes] into weights exp(logit - largest); updates the queries' largest and sum, and says what
// earlier sums of weighted keys are multiplied with.
template <int kCount, typename A>
void exponentiate(A* logits, int64_t keys, A* largest, A* sum, A* rescale) {
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  constexpr int64_t kWidth = kCount * kLanes<A>;
  Vector<A> next[kCount];
  for (int v = 0; v < kCount; ++v) next[v] = load(largest + v * kLanes<A>);
  for (int64_t j = 0; j < keys; ++j) {
    for (int v = 0; v < kCount; ++v) {
      const Vector<A> x = load(logits + j * kWidth + v * kLanes<A>);
      next[v] = x > next[v] ? x : next[v];  // NaN gives way here and comes back with the sum
    }
  }
  Vector<A> base[kCount], total[kCount] = {}, factor[kCount];
  for (int v = 0; v < kCount; ++v) base[v] = next[v] == kNothing ? Vector<A>{} : next[v];
  for (A* row = logits; row < logits + keys * kWidth; row += kWidth) {
    Vector<A> weight[kCount];
    for (int v = 0; v < kCount; ++v) weight[v] = load(row + v * kLanes<A>) - base[v];
    exponentials<kCount, A>(weight);
    for (int v = 0; v < kCount; ++v) {
      store<A>(weight[v], row + v * kLanes<A>);
      total[v] += weight[v];
    }
  }
  for (int v = 0; v < kCount; ++v) factor[v] = load(largest + v * kLanes<A>) - base[v];
  exponentials<kCount, A>(factor);
  for (int v = 0; v < kCount; ++v) {
    const int64_t first = v * kLanes<A>;
    store<A>(factor[v], rescale + first);
    store<A>(load(sum + first) * factor[v] + total[v], sum + first);
    store<A>(next[v], largest + first);
  }
}

// logits [keys, lanes] become factor exp(logit - base)
template <int kCount, typename A>
void weigh(A* logits, int64_t keys, const A* base, const A* factor) {
  for (int64_t j = 0; j < keys; ++j, logits += kCount * kLanes<A>) {
    Vector<A> weight[kCount];
    for (int v = 0; v < kCount; ++v) {
      const Vector<A> x = load(logits + v * kLanes<A>) - load(base + v * kLanes<A>);
      weight[v] = x > 0 ? Vector<A>{} : x;  // rounding can put a logit above the log-sum-exp by a hair
    }
    exponentials<kCount, A>(weight);
    for (int v = 0; v < kCount; ++v) {
      store<A>(load(factor + v * kLanes<A>) * weight[v], logits + v * kLanes<A>);
    }
  }
}

// The queries times the scale, padded with zeros to whole vectors.
template <typename A>
class Queries {
 public:
  Queries(const Tensor& query, double scale, bool for_key_gradient)
      : count(query.size(0)),
        d(query.size(1)),
        width(up_to(kNumbers, d)),
        blocks(count),
        columns(d),
        padded(blocks.padded),
        memory_(padded * (width + (for_key_gradient ? columns.padded : 0)) * static_cast<int64_t>(sizeof(A))),
        lanes_(memory_.template take<A>(padded * width)),
        columns_(memory_.template take<A>(for_key_gradient ? padded * columns.padded : 0)) {
    const A *values = data<A>(query), factor = static_cast<A>(scale);
    torch::stable::parallel_for(0, blocks.count, grain_rows(kVectors * kLanes<A> * d), [&](int64_t begin, int64_t end) {
      blocks.each(begin, end, [&](int64_t first, auto vectors) {
        constexpr int64_t kWidth = decltype(vectors)::value * kLanes<A>;
        const int64_t rows = std::min(kWidth, count - first);
        A* block = lanes_ + first * width;
        if (rows < kWidth) std::fill_n(block, kWidth * width, A{0});
        transpose(values + first * d, d, block, kWidth, rows, d);
        for (int64_t e = 0; e < kWidth * d; ++e) block[e] *= factor;
        std::fill(block + kWidth * d, block + kWidth * width, A{0});
      });
    });
    if (!for_key_gradient) return;
    torch::stable::parallel_for(0, columns.count, 1, [&](int64_t begin, int64_t end) {
      columns.each(begin, end, [&](int64_t first, auto vectors) {
        constexpr int64_t kWidth = decltype(vectors)::value * kLanes<A>;
        const int64_t taken = std::min(kWidth, d - first);
        A* target = columns_ + first * padded;
        for (int64_t row = 0; row < padded; ++row, target += kWidth) {
          for (int64_t c = 0; c < kWidth; ++c) {
            target[c] = row < count && c < taken ? values[row * d + first + c] * factor : A{0};
          }
        }
      });
    });
  }

  // [width][lanes] of the block that begins with `first`.
  const A* block(int64_t first) const { return lanes_ + first * width; }
  // [padded][lanes] of the block of columns that begins with `first`.
  const A* column_block(int64_t first) const { return columns_ + first * padded; }

  // target [d] += factor times a row of the weighted sums, when these are finished.
  void add_row(const A* weighted, int64_t row, A factor, A* target, int64_t d) const {
    for (int64_t c = 0; c < d; ++c) target[c] += factor * weighted[row * width + c];
  }

  const int64_t count, d, width;
  const Blocks<A> blocks, columns;
  const int64_t padded;

 private:
  WorkingMemory<Queries> memory_;
  A *lanes_, *columns_;
};

template <typename A>
class KeyTile {
 public:
  using Query = Queries<A>;
  static constexpr int64_t kStep = kNumbers;

  // Of tiles of which the keys stay in a core's L2 cache.
  static int64_t size(int64_t, int64_t d, int64_t) {
    constexpr int64_t kBytes = 1 << 17, kLeast = 32, kMost = 192;
    const int64_t row = std::max<int64_t>(d, 1) * static_cast<int64_t>(sizeof(A));
    return std::clamp(kBytes / row, kLeast, kMost) / kStep * kStep;
  }

  KeyTile(const Query& query, const AnyKeys<A>& keys, int64_t size)
      : query_(query),
        keys_(keys),
        rows_(std::max(up_to(kNumbers, size), kMostLanes)),
        memory_((rows_ * (query.width + kMostLanes) + kNumbers * query.width) * static_cast<int64_t>(sizeof(A))),
        panels_(memory_.template take<A>(rows_ * query.width)),
        logits_(memory_.template take<A>(rows_ * kMostLanes)),
        buffers_(memory_.template take<A>(kNumbers * query.width)) {}

  void attend(Range keys, Range next, const Softmax<A>& state, bool add) {
    pack(keys);
    look_ahead(next);
    query_.blocks.each(0, query_.blocks.count, [&](int64_t first, auto vectors) {
      constexpr int kCount = decltype(vectors)::value;
      multiply<kCount>(first);
      A rescale[kMostLanes];
      exponentiate<kCount>(logits_, count_, state.largest + first, state.sum + first, rescale);
      if (!state.weighted) return;
      constexpr int64_t kWidth = kCount * kLanes<A>;
      A* weighted = state.weighted + first * query_.width;
      for (int64_t c = 0; c < query_.width; c += kNumbers) {
        product<kCount, 1, kNumbers, 0>(panels_ + c * rows_, 0, 1, count_, logits_, weighted + c * kWidth, kWidth,
                                        add ? rescale : nullptr);
      }
    });
  }

  // Makes rows of the weighted sums, which are columns in lanes until then.
  void finish(const Softmax<A>& state) {
    if (!state.weighted) return;
    query_.blocks.each(0, query_.blocks.count, [&](int64_t first, auto vectors) {
      constexpr int64_t kWidth = decltype(vectors)::value * kLanes<A>;
      A* weighted = state.weighted + first * query_.width;
      std::copy_n(weighted, kWidth * query_.width, panels_);
      transpose(panels_, kWidth, weighted, query_.width, query_.width, kWidth);
    });
  }

  // gradient [N, d] = scale sum_i grad_i p_ij query_i
  void key_gradient(Range keys, Range next, const A* lse, const A* grad, A* gradient) {
    pack(keys);
    look_ahead(next);
    query_.blocks.each(0, query_.blocks.count, [&](int64_t first, auto vectors) {
      constexpr int kCount = decltype(vectors)::value;
      constexpr int64_t kWidth = kCount * kLanes<A>;
      A base[kWidth] = {}, factor[kWidth] = {}, one[kMostLanes];
      std::fill_n(one, kMostLanes, A{1});
      for (int64_t l = 0; l < std::min(kWidth, query_.count - first); ++l) {
        if (lse[first + l] == -std::numeric_limits<A>::infinity()) continue;
        base[l] = lse[first + l];
        factor[l] = grad[first + l];
      }
      multiply<kCount>(first);
      weigh<kCount>(logits_, count_, base, factor);
      query_.columns.each(0, query_.columns.count, [&](int64_t c, auto column_vectors) {
        constexpr int kColumnCount = decltype(column_vectors)::value;
        constexpr int64_t kColumns = kColumnCount * kLanes<A>;
        for (int64_t j = 0; j < count_; j += kNumbers) {
          A* result = gradient + (keys.first + j) * keys_.d + c;
          const int64_t rows = std::min<int64_t>(kNumbers, count_ - j), columns = std::min(kColumns, keys_.d - c);
          const bool whole = rows == kNumbers && columns == kColumns;
          A corner[kNumbers * kColumns] = {};
          if (!whole && first > 0) copy(result, keys_.d, rows, columns, corner, kColumns);
          product<kColumnCount, kWidth, 1, kWidth>(logits_ + j * kWidth, 0, 1, kWidth,
                                                   query_.column_block(c) + first * kColumns, whole ? result : corner,
                                                   whole ? keys_.d : kColumns, first > 0 ? one : nullptr);
          if (!whole) copy(corner, kColumns, rows, columns, result, keys_.d);
        }
      });
    });
  }

 private:
  static constexpr int64_t kMostLanes = kVectors * kLanes<A>, kLine = 64;

  static void copy(const A* source, int64_t source_stride, int64_t rows, int64_t columns, A* target, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r) std::copy_n(source + r * source_stride, columns, target + r * stride);
  }

  const char* key(int64_t j) const { return static_cast<const char*>(keys_.values) + j * keys_.row_bytes; }

  // Keys that do not take part become zeros: what they hold must not show, not even as 0 NaN.
  const A* row(int64_t j, A* buffer) const {
    if (j < count_ && !(keys_.mask && !keys_.mask[first_ + j])) return keys_.read(key(first_ + j), buffer, keys_.d);
    std::fill_n(buffer, keys_.d, A{0});
    return buffer;
  }

  void pack(Range keys) {
    first_ = keys.first;
    count_ = keys.last - keys.first;
    const int64_t whole = keys_.d / kNumbers * kNumbers;
    for (int64_t j = 0; j < count_; j += kNumbers) {
      const A* rows[kNumbers];
      for (int r = 0; r < kNumbers; ++r) rows[r] = row(j + r, buffers_ + r * query_.width);
      A* target = panels_ + j * kNumbers;
      for (int64_t c = 0; c < whole; c += kNumbers, target += rows_ * kNumbers) {
        // Stores wait for each other, so their lines should be there.
        __builtin_prefetch(target + kNumbers * kNumbers, 1);
        for (int r = 0; r < kNumbers; ++r) std::memcpy(target + r * kNumbers, rows[r] + c, kNumbers * sizeof(A));
      }
      for (int64_t c = whole; c < query_.width; ++c) {
        for (int r = 0; r < kNumbers; ++r) target[r * kNumbers + c - whole] = c < keys_.d ? rows[r][c] : A{0};
      }
    }
  }

  // Fetches the next keys while these are multiplied.
  void look_ahead(Range next) {
    ahead_ = key(next.first);
    ahead_end_ = key(next.last);
    const int64_t steps = std::max<int64_t>(query_.blocks.count * (count_ / kNumbers), 1);
    ahead_step_ = ((ahead_end_ - ahead_) / steps / kLine + 1) * kLine;
  }

  void fetch() {
    const char* end = std::min(ahead_ + ahead_step_, ahead_end_);
    for (; ahead_ < end; ahead_ += kLine) __builtin_prefetch(ahead_, 0, 2);
  }

  // The block's logits [keys, lanes], -inf where a key does not take part.
  template <int kCount>
  void multiply(int64_t first) {
    constexpr A kLeftOut = -std::numeric_limits<A>::infinity();
    constexpr int64_t kWidth = kCount * kLanes<A>;
    for (int64_t j = 0; j < count_; j += kNumbers) {
      product<kCount, kNumbers, 1, kNumbers>(panels_ + j * kNumbers, rows_ * kNumbers, query_.width / kNumbers,
                                             kNumbers, query_.block(first), logits_ + j * kWidth, kWidth,
                                             static_cast<const A*>(nullptr));
      fetch();
    }
    for (int64_t j = 0; keys_.mask && j < count_; ++j) {
      if (!keys_.mask[first_ + j]) std::fill_n(logits_ + j * kWidth, kWidth, kLeftOut);
    }
    for (int64_t j = std::max(first_, first); keys_.exclude_self && j < std::min(first_ + count_, first + kWidth);
         ++j) {
      logits_[(j - first_) * kWidth + j - first] = kLeftOut;
    }
  }

  const Query& query_;
  const AnyKeys<A>& keys_;
  const int64_t rows_;  // of a panel
  WorkingMemory<KeyTile> memory_;
  A *panels_, *logits_, *buffers_;
  int64_t first_ = 0, count_ = 0;
  const char *ahead_ = nullptr, *ahead_end_ = nullptr;
  int64_t ahead_step_ = 0;
};
