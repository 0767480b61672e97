// kLanes rows of RankSim at once, on the sorting networks; included as lanes_sort.h is.
//
// A key is a value with its column, times kLanes, in the lowest bits, where it is too small to matter: what those bits
// could have decided is recognised after sorting and left to the exact rows path.

using Mask = int64_t __attribute__((vector_size(8 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Floats = float __attribute__((vector_size(4 * kLanes)));

// Says its alignment itself: a vector type of another instruction set than the default one has a smaller one.
template <typename T>
struct alignas(8 * kLanes) Aligned {
  T value;
};

struct Scratch final : LaneScratch {
  explicit Scratch(int64_t m)
      : size(std::max<int>(16, std::bit_ceil(static_cast<uint32_t>(m)))),
        keys_(size),
        similarity_(m),
        ranks_(m * kLanes),
        label_ranks_(m * kLanes),
        row_ranks(m) {}

  Vector* keys() { return &keys_.data()->value; }
  Vector* similarity() { return &similarity_.data()->value; }
  // [m][kLanes]
  int32_t* ranks() { return ranks_.data(); }
  int32_t* label_ranks() { return label_ranks_.data(); }

  // Infinite keys behind the m given ones stay behind them.
  void pad_keys(int64_t m) {
    for (int64_t p = m; p < size; ++p) keys()[p] = std::numeric_limits<double>::infinity() - Vector{};
  }

  int size;

 private:
  std::vector<Aligned<Vector>> keys_, similarity_;
  std::vector<int32_t> ranks_, label_ranks_;

 public:
  std::vector<int32_t> row_ranks;
};

inline std::unique_ptr<LaneScratch> make_scratch(int64_t m) { return std::make_unique<Scratch>(m); }

inline uint32_t lanes_in(const Mask& mask) {
  uint32_t set = 0;
  for (int l = 0; l < kLanes; ++l) set |= static_cast<uint32_t>(mask[l] != 0) << l;
  return set;
}

// Read from memory: taking a vector apart is slower.
inline const int64_t* bits_of(const Vector* keys) {
  using Bits __attribute__((may_alias)) = int64_t;
  return reinterpret_cast<const Bits*>(keys);
}

// similarity[j] of the rows; what the panels left out is on the other side of the diagonal. Returns lanes that are not
// finite.
template <typename A, typename G>
Mask load_lanes(const RowsTask<A>& task, const G* inner, const int64_t (&row)[kLanes], Vector* similarity) {
  const int64_t m = task.m, panel = panel_rows(m), valid = std::min(m, (row[0] / panel + 1) * panel);
  const bool distinct = row[kLanes - 1] == row[0] + kLanes - 1;
  Vector scale;
  for (int l = 0; l < kLanes; ++l) scale[l] = task.inverse_norm[row[l]];
  constexpr int64_t kBlock = 64;
  static_assert(kSmallPanel % kBlock == 0);
  G block[kBlock][kLanes];
  Mask broken = {};
  for (int64_t j0 = 0; j0 < m; j0 += kBlock) {
    const int64_t columns = std::min(kBlock, m - j0);
    const bool mirrored = j0 >= valid;
    if (distinct && !mirrored) {
      transpose(inner + row[0] * m + j0, m, block[0], kLanes, kLanes, columns);
    } else if (distinct) {
      for (int64_t j = 0; j < columns; ++j) std::copy_n(inner + (j0 + j) * m + row[0], kLanes, block[j]);
    } else {
      for (int64_t j = 0; j < columns; ++j) {
        for (int l = 0; l < kLanes; ++l) {
          block[j][l] = mirrored ? inner[(j0 + j) * m + row[l]] : inner[row[l] * m + j0 + j];
        }
      }
    }
    for (int64_t j = 0; j < columns; ++j) {
      Vector product;
      for (int l = 0; l < kLanes; ++l) product[l] = block[j][l];
      const Vector value = product * scale * task.inverse_norm[j0 + j] + task.poison;
      broken |= (value - value) != 0;
      similarity[j0 + j] = value;
    }
  }
  return broken;
}

// Ranks of values[j] in column order, the largest first. Returns lanes in which two neighbours are within `close`.
inline Mask rank_lanes(const Vector* values, int64_t m, double close, Scratch& scratch, int32_t* ranks) {
  const int bits = std::countr_zero(static_cast<uint32_t>(scratch.size * kLanes));
  const int64_t column_bits = (int64_t{1} << bits) - 1;
  Vector low = values[0], other = values[1];  // two chains, which do not wait for each other
  for (int64_t j = 2; j + 1 < m; j += 2) {
    Vector even = values[j], odd = values[j + 1];
    order(low, even);
    order(other, odd);
  }
  Vector last = values[m - 1];
  order(other, last);
  order(low, other);
  // Distances to the smallest have no sign and digits to spare. None is a denormal number, whatever the processor has
  // been told to do with those.
  Vector* keys = scratch.keys();
  for (int64_t j = 0; j < m; ++j) {
    keys[j] =
        reinterpret_cast<Vector>((reinterpret_cast<Mask>(values[j] - low + 0x1p-1000) & ~column_bits) | j * kLanes);
  }
  scratch.pad_keys(m);
  sort_lanes(keys, static_cast<int>(m), scratch.size);

  const double relative = std::ldexp(1.0, bits - 51);
  Mask unsure = {};
  Vector previous = -1.0 - Vector{};
  for (int64_t p = 0; p < m; ++p) {
    unsure |= ~(keys[p] - previous > close + keys[p] * relative);
    previous = keys[p];
    const int64_t* key = bits_of(keys + p);
    for (int l = 0; l < kLanes; ++l) ranks[(key[l] & column_bits) + l] = static_cast<int32_t>(m - p);
  }
  return unsure;
}

// The distances to sorted labels fall up to the row's own label and rise after it, so merging sorts them. A key is a
// positive number, not denormal, ordered by distance and then by falling column. Returns lanes in which rounding made
// neighbours on one side equally far.
inline Mask merge_labels(const LabelRanks::Sorted& labels, const int64_t (&row)[kLanes], int64_t m, Scratch& scratch,
                         int32_t* ranks) {
  constexpr int64_t kNormal = 0x00100000;
  Floats own;
  for (int l = 0; l < kLanes; ++l) own[l] = labels.label[labels.position[row[l]]];
  Vector* keys = scratch.keys();
  Mask ties = {}, previous = -1 - Mask{};
  for (int64_t p = 0; p < m; ++p) {
    const Floats difference = own - labels.label[p];
    const Mask distance = __builtin_convertvector(reinterpret_cast<Ints>(difference) & 0x7FFFFFFF, Mask);
    ties |= distance == previous;
    previous = distance;
    keys[p] = reinterpret_cast<Vector>((distance + kNormal) << 32 | static_cast<int64_t>(~(labels.column[p] * kLanes)));
  }
  scratch.pad_keys(m);
  merge_blocks(keys, static_cast<int>(m), scratch.size);
  for (int64_t p = 0; p < m; ++p) {
    const int64_t* key = bits_of(keys + p);
    for (int l = 0; l < kLanes; ++l) ranks[~static_cast<uint32_t>(key[l]) + l] = static_cast<int32_t>(p + 1);
  }
  return ties;
}

// Rows first .. first + kLanes. Returns the lanes that the rows path must do: not finite, or too close to call.
template <typename A>
uint32_t ranksim_lanes(const RowsTask<A>& task, LabelRanks::Scratch& label_rows, LaneScratch& base, int64_t first) {
  auto& scratch = static_cast<Scratch&>(base);
  const int64_t m = task.m;
  int64_t row[kLanes];  // behind the last row, the last row again
  for (int l = 0; l < kLanes; ++l) row[l] = std::min(first + l, m - 1);
  Vector* similarity = scratch.similarity();
  int32_t *ranks = scratch.ranks(), *label_ranks = scratch.label_ranks();
  Mask unsure =
      task.inner ? load_lanes(task, task.inner, row, similarity) : load_lanes(task, task.wide_inner, row, similarity);

  if (const LabelRanks::Sorted sorted = task.labels->sorted(); sorted.label) {
    unsure |= merge_labels(sorted, row, m, scratch, label_ranks);
  } else {
    for (int l = 0; l < kLanes; ++l) {
      if (!label_rows.row(row[l], scratch.row_ranks.data())) unsure[l] = -1;
      for (int64_t j = 0; j < m; ++j) label_ranks[j * kLanes + l] = scratch.row_ranks[j];
    }
  }

  unsure |= rank_lanes(similarity, m, kClose, scratch, ranks);
  Vector squares = {};
  for (int64_t j = 0; j < m; ++j) {
    Vector difference;
    for (int l = 0; l < kLanes; ++l) difference[l] = ranks[j * kLanes + l] - label_ranks[j * kLanes + l];
    squares += difference * difference;
    similarity[j] += task.constants.coefficient * difference;
  }
  for (int l = 0; l < kLanes; ++l) task.rows[row[l]] = task.constants.loss * squares[l];
  if (!task.differences) return lanes_in(unsure);

  int32_t* perturbed = label_ranks;
  unsure |= rank_lanes(similarity, m, 0.0, scratch, perturbed);
  constexpr int kBlock = 16;
  A block[kBlock * kLanes];
  for (int64_t j0 = 0; j0 < m; j0 += kBlock) {
    const int64_t columns = std::min<int64_t>(kBlock, m - j0);
    const int32_t *r = ranks + j0 * kLanes, *r_perturbed = perturbed + j0 * kLanes;
    for (int64_t e = 0; e < columns * kLanes; ++e) block[e] = static_cast<A>(r[e] - r_perturbed[e]);
    for (int l = 0; l < kLanes; ++l) {
      A* differences = task.differences + row[l] * task.stride + j0;
      for (int64_t c = 0; c < columns; ++c) differences[c] = block[c * kLanes + l];
    }
  }
  return lanes_in(unsure);
}
