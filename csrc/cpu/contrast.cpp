// Streaming log-sum-exp of similarities, and pseudo group contrast on top of it, on the CPU.
//
// The keys are divided into chunks, which the threads take one after the other, and a chunk into tiles. For each query
// a chunk keeps the largest logit, the sum of the exponentials, and the sum of the keys weighted by them. A tile of
// logits stays in the cache between its two products, so the keys are read once. The results of the chunks are combined
// in order. Products run on AMX where the processor has it and the arithmetic is float32, otherwise in vector
// registers.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../contrast_checks.h"
#include "../core/exponential.h"
#include "../signatures.h"
#include "contrast_amx.h"
#include "contrast_lanes.h"

namespace dadl::cpu {
namespace {

constexpr int64_t kStateBytes = 1 << 25;  // for the weighted sums of all chunks
constexpr int64_t kManyChunks = 16;
constexpr int64_t kWorthThread = 1 << 20, kWorthChunk = 1 << 25;  // multiply-adds
constexpr int64_t kLeastKeys = 64;      // in a chunk; with fewer, adding up the weighted sums takes too long
constexpr int64_t kStep = 16;           // chunks begin at a multiple of this
constexpr int64_t kManyQueries = 1024;  // in a block

template <typename A>
constexpr ScalarType kScalarType = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

template <typename KeysType>
using key_type = std::remove_const_t<std::remove_pointer_t<decltype(std::declval<KeysType>().values)>>;

// ---- passes over the keys ----

#define DADL_WIDEN(T)                                                             \
  DADL_CLONES const float* widen(const T* source, float* target, int64_t count) { \
    for (int64_t e = 0; e < count; ++e) target[e] = to_float(source[e]);          \
    return target;                                                                \
  }
DADL_WIDEN(Half)
DADL_WIDEN(BFloat16)
#undef DADL_WIDEN

template <typename T>
auto as_any(const Keys<T>& keys) {
  using A = typename Storage<T>::Arithmetic;
  AnyKeys<A> any{
      keys.values, keys.d * static_cast<int64_t>(sizeof(T)), keys.count, keys.d, keys.mask, keys.exclude_self, nullptr};
  any.read = [](const void* key, A* buffer, int64_t d) -> const A* {
    const T* row = static_cast<const T*>(key);
    if constexpr (std::is_same_v<T, A>) {
      return row;
    } else {
      return widen(row, buffer, d);
    }
  };
  return any;
}

// Calls body with the type of the fastest tile on this processor, and with the keys in the form that it takes.
template <typename T, typename Body>
void with_tile(const Keys<T>& keys, Body body) {
#ifdef DADL_AMX
  if constexpr (!std::is_same_v<T, double>) {
    if (amx::available()) return body(std::type_identity<amx::KeyTile<T>>{}, keys);
  }
#endif
  using A = typename Storage<T>::Arithmetic;
#ifdef DADL_X86
  if (x86_level() == 4) return body(std::type_identity<v4::KeyTile<A>>{}, as_any(keys));
  if (x86_level() == 3) return body(std::type_identity<v3::KeyTile<A>>{}, as_any(keys));
#endif
  body(std::type_identity<v1::KeyTile<A>>{}, as_any(keys));
}

// Shares out the numbers 0, ..., count - 1 to threads. Each calls body(first, next) with a first number of its own, so
// that none waits for another to start; next() is a number that no thread has taken, or at least count if there is
// none. A thread that is slowed down leaves more to the others.
template <typename Body>
void share_out(int64_t count, Body body) {
  const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), count);
  std::atomic<int64_t> taken{workers};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; ++first) body(first, [&] { return taken++; });
  });
}

// Chunks of equal size: one for each worthwhile thread, or several where there is much work.
class Chunks {
 public:
  Chunks(int64_t queries, int64_t keys, int64_t d) : keys_(keys) {
    const int64_t state = std::max<int64_t>(queries * d * static_cast<int64_t>(sizeof(double)), 1);
    const int64_t work = queries * keys * d, most = std::min(kStateBytes / state, keys / kLeastKeys);
    const int64_t threads = std::min<int64_t>({torch::stable::get_num_threads(), work / kWorthThread, most});
    if (keys == 0) return;
    count = std::max<int64_t>(threads, 1);
    count *= std::max<int64_t>(std::min({work / kWorthChunk, kManyChunks, most}) / count, 1);
  }

  Range operator[](int64_t chunk) const { return {begin(chunk), begin(chunk + 1)}; }

  int64_t count = 0;

 private:
  int64_t begin(int64_t chunk) const { return chunk == count ? keys_ : chunk * keys_ / count / kStep * kStep; }

  int64_t keys_;
};

// Tiles of equal size, at most `widest`, of the keys from first to last.
class Tiling {
 public:
  Tiling(Range keys, int64_t widest, int64_t step) : keys_(keys) {
    const int64_t count = keys.last - keys.first, tiles = (count + widest - 1) / widest;
    size = ((count + tiles - 1) / tiles + step - 1) / step * step;
  }

  Range first() const { return after({keys_.first, keys_.first}); }
  // Empty after the last tile.
  Range after(Range tile) const { return {tile.last, std::min(tile.last + size, keys_.last)}; }

  int64_t size;

 private:
  Range keys_;
};

// The results of the chunks [chunks, rows], to be combined. combine() sets lse, and replaces the largest logits by the
// factors of the weighted sums, scale exp(largest - lse). In the same way it replaces `own`, the logits of the queries'
// own additional keys, by the factors of these keys.
template <typename A>
struct Parts {
  int64_t chunks, rows;
  A *largest, *sum, *own, *lse;
  A scale;
};

template <typename A>
void combine_rows(const Parts<A>& parts, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = 16;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t lanes = std::min(kLanes, end - first);
    A base[kLanes], total[kLanes];
    A *own = parts.own + first, *lse = parts.lse + first;
    for (int64_t l = 0; l < lanes; ++l) base[l] = own[l];
    for (int64_t k = 0; k < parts.chunks; ++k) {
      const A* largest = parts.largest + k * parts.rows + first;
      for (int64_t l = 0; l < lanes; ++l) base[l] = largest[l] > base[l] ? largest[l] : base[l];
    }
    for (int64_t l = 0; l < lanes; ++l) {
      base[l] = base[l] == -std::numeric_limits<A>::infinity() ? 0 : base[l];
      own[l] = total[l] = exp_nonpositive(own[l] - base[l]);
    }
    for (int64_t k = 0; k < parts.chunks; ++k) {
      A* largest = parts.largest + k * parts.rows + first;
      const A* sum = parts.sum + k * parts.rows + first;
      for (int64_t l = 0; l < lanes; ++l) {
        largest[l] = exp_nonpositive(largest[l] - base[l]);
        total[l] += sum[l] * largest[l];
      }
    }
    for (int64_t l = 0; l < lanes; ++l) {
      lse[l] = base[l] + std::log(total[l]);
      total[l] = total[l] == 0 ? 0 : parts.scale / total[l];
      own[l] *= total[l];
    }
    for (int64_t k = 0; k < parts.chunks; ++k) {
      A* factor = parts.largest + k * parts.rows + first;
      for (int64_t l = 0; l < lanes; ++l) factor[l] *= total[l];
    }
  }
}

template <typename A>
void add_scaled_values(const A* source, A factor, A* target, int64_t count) {
  for (int64_t e = 0; e < count; ++e) target[e] += factor * source[e];
}

#define DADL_COMBINE(A)                                                                                               \
  DADL_CLONES void combine(const Parts<A>& parts, int64_t begin, int64_t end) { combine_rows<A>(parts, begin, end); } \
  DADL_CLONES void add_scaled(const A* source, A factor, A* target, int64_t count) {                                  \
    add_scaled_values<A>(source, factor, target, count);                                                              \
  }                                                                                                                   \
  DADL_CLONES A dot(const A* x, const A* y, int64_t count) { return inner_product<A>(x, y, count); }
DADL_COMBINE(float)
DADL_COMBINE(double)
#undef DADL_COMBINE

// lse [B] and, unless null, slope [B, d] = scale sum_j p_ij key_j, its gradient. `own` is an additional key [B, d] for
// each query, or null. finish(begin, end) is called once for each row, as soon as it is ready.
template <typename KeyTile, typename SomeKeys, typename A>
void attend_block(const Tensor& query, const SomeKeys& keys, const A* own, double scale, A* lse, A* slope,
                  const std::function<void(int64_t, int64_t)>& finish) {
  const int64_t queries = query.size(0), d = keys.d;
  if (queries == 0) return;
  const typename KeyTile::Query scaled(query, scale, false);
  const int64_t rows = scaled.padded, width = scaled.width;
  const Chunks chunks(queries, keys.count, d);
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  std::vector<A> largest(chunks.count * rows, kNothing), sum(chunks.count * rows), own_factor(queries, kNothing);
  const int64_t weighted = slope ? chunks.count * rows * width : 0;
  WorkingMemory<Softmax<A>> memory(weighted * static_cast<int64_t>(sizeof(A)));
  A* states = memory.template take<A>(weighted);

  const auto tiling = [&](int64_t chunk) {
    const Range whole = chunks[chunk];
    return Tiling(whole, KeyTile::size(queries, d, whole.last - whole.first), KeyTile::kStep);
  };
  int64_t widest = 0;
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) widest = std::max(widest, tiling(chunk).size);
  share_out(chunks.count, [&](int64_t chunk, auto next_chunk) {
    KeyTile tile(scaled, keys, widest);
    while (chunk < chunks.count) {
      const Softmax<A> state{largest.data() + chunk * rows, sum.data() + chunk * rows,
                             slope ? states + chunk * rows * width : nullptr};
      const Tiling tiles = tiling(chunk);
      bool add = false;
      for (Range now = tiles.first(), next; now.first < now.last; now = next, add = true) {
        next = tiles.after(now);
        Range ahead = next;
        if (next.first == next.last) {
          chunk = next_chunk();
          if (chunk < chunks.count) ahead = tiling(chunk).first();
        }
        tile.attend(now, ahead, state, add);
      }
      tile.finish(state);
    }
  });

  const A* q = data<A>(query);
  torch::stable::parallel_for(0, queries, grain_rows((chunks.count + 1) * d), [&](int64_t begin, int64_t end) {
    const A own_scale = static_cast<A>(scale);
    for (int64_t i = begin; own && i < end; ++i) own_factor[i] = own_scale * dot(q + i * d, own + i * d, d);
    combine(Parts<A>{chunks.count, rows, largest.data(), sum.data(), own_factor.data(), lse, own_scale}, begin, end);
    for (int64_t i = begin; slope && i < end; ++i) {
      A* out = slope + i * d;
      std::fill_n(out, d, A{0});
      if (own) add_scaled(own + i * d, own_factor[i], out, d);
      for (int64_t k = 0; k < chunks.count; ++k) {
        const A factor = largest[k * rows + i];
        if (factor != 0) scaled.add_row(states + k * rows * width, i, factor, out, d);
      }
    }
    finish(begin, end);
  });
}

// The same. Where there are many queries, threads take blocks of queries, whose weighted sums are small, instead of
// chunks of keys.
template <typename KeyTile, typename SomeKeys, typename A>
void attend(const Tensor& query, const SomeKeys& keys, const A* own, double scale, A* lse, A* slope,
            const std::function<void(int64_t, int64_t)>& finish) {
  const int64_t queries = query.size(0), d = keys.d;
  if (queries < kManyQueries * torch::stable::get_num_threads()) {
    return attend_block<KeyTile>(query, keys, own, scale, lse, slope, finish);
  }
  Tensor whole = query;
  std::vector<Tensor> blocks;
  for (int64_t first = 0; first < queries; first += kManyQueries) {
    blocks.push_back(torch::stable::narrow(whole, 0, first, std::min(kManyQueries, queries - first)));
  }
  share_out(static_cast<int64_t>(blocks.size()), [&](int64_t block, auto next_block) {
    for (; block < static_cast<int64_t>(blocks.size()); block = next_block()) {
      const int64_t first = block * kManyQueries;
      SomeKeys mine = keys;
      mine.first_query = first;
      attend_block<KeyTile>(blocks[block], mine, own ? own + first * d : nullptr, scale, lse + first,
                            slope ? slope + first * d : nullptr,
                            [&](int64_t begin, int64_t end) { finish(first + begin, first + end); });
    }
  });
}

// The second half of pseudo group contrast: from log-sum-exps to losses.
template <typename T>
struct Positives {
  using A = typename Storage<T>::Arithmetic;
  const A *query, *own;
  const T* queue;
  const int64_t* target;
  const int64_t* valid_slots;
  int64_t slots, d, ignore_index;
  A inverse_temperature, gain;
  bool kl;
  A *loss, *slope;
};

// Prefetches a class, because half of the slots are in another core's cache, and classes come in random order.
template <typename T>
void fetch_slots(const Positives<T>& p, int64_t c) {
  if (c == p.ignore_index) return;
  constexpr int64_t kLine = 64 / sizeof(T);
  const T* first = p.queue + c * p.slots * p.d;
  for (int64_t e = 0; e < p.valid_slots[c] * p.d; e += kLine) __builtin_prefetch(first + e);
}

template <typename T>
void subtract_positive_rows(const Positives<T>& p, int64_t begin, int64_t end) {
  using A = typename Storage<T>::Arithmetic;
  const int64_t d = p.d;
  std::vector<A> positive(d);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t c = p.target[i];
    if (c == p.ignore_index) {
      p.loss[i] = 0;
      if (p.slope) std::fill_n(p.slope + i * d, d, A{0});
      continue;
    }
    if (i + 1 < end) fetch_slots(p, p.target[i + 1]);
    std::copy_n(p.own + i * d, d, positive.data());
    const T* slot = p.queue + c * p.slots * d;
    for (int64_t s = 0; s < p.valid_slots[c]; ++s, slot += d) {
      for (int64_t e = 0; e < d; ++e) positive[e] += static_cast<A>(to_float(slot[e]));
    }
    const A share = 1 / static_cast<A>(1 + p.valid_slots[c]);
    p.loss[i] -= inner_product(p.query + i * d, positive.data(), d) * share * p.inverse_temperature;
    if (p.kl) p.loss[i] += std::log(share);
    p.loss[i] *= p.gain;
    if (!p.slope) continue;
    A* row = p.slope + i * d;
    for (int64_t e = 0; e < d; ++e) row[e] = (row[e] - positive[e] * share * p.inverse_temperature) * p.gain;
  }
}

#define DADL_POSITIVES(T)                                                                     \
  DADL_CLONES void subtract_positives(const Positives<T>& task, int64_t begin, int64_t end) { \
    subtract_positive_rows<T>(task, begin, end);                                              \
  }
DADL_POSITIVES(float)
DADL_POSITIVES(double)
DADL_POSITIVES(Half)
DADL_POSITIVES(BFloat16)
#undef DADL_POSITIVES

// ---- operators ----

template <typename A>
Tensor as_arithmetic(const Tensor& tensor) {
  return as_contiguous(tensor, kScalarType<A>);
}

// Calls body(Keys<T>, A{}) with the contiguous keys in their own dtype.
template <typename Body>
void with_keys(const Tensor& key, const std::optional<Tensor>& key_mask, bool exclude_self, Body body) {
  const Tensor values = as_contiguous(key);
  std::optional<Tensor> mask;
  if (key_mask) mask = as_contiguous(*key_mask);
  dispatch_floating(values, "key", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    const int64_t d = key.size(key.dim() - 1);
    int64_t count = 1;
    for (int64_t dim = 0; dim + 1 < key.dim(); ++dim) count *= key.size(dim);
    body(Keys<T>{data<T>(values), count, d, mask ? data<bool>(*mask) : nullptr, exclude_self}, A{});
  });
}

std::tuple<Tensor, Tensor> similarity_logsumexp(Tensor query, Tensor key, std::optional<Tensor> key_mask, double scale,
                                                bool exclude_self, bool with_slope) {
  check_contrast(query, key, key_mask, scale, exclude_self);
  const int64_t queries = query.size(0), d = query.size(1);
  const ScalarType arithmetic = arithmetic_type(query);
  const Tensor lse = new_empty(query, {queries}, arithmetic);
  const Tensor slope = new_empty(query, {with_slope ? queries : 0, d}, arithmetic);
  with_keys(key, key_mask, exclude_self, [&](const auto& keys, auto tag) {
    using A = decltype(tag);
    with_tile(keys, [&](auto tile, const auto& keys) {
      attend<typename decltype(tile)::type>(as_arithmetic<A>(query), keys, static_cast<const A*>(nullptr), scale,
                                            mutable_data<A>(lse), with_slope ? mutable_data<A>(slope) : nullptr,
                                            [](int64_t, int64_t) {});
    });
  });
  return {lse, slope};
}

// The gradient with respect to the keys: scale sum_i grad_i p_ij query_i.
Tensor similarity_logsumexp_key_gradient(Tensor grad, Tensor query, Tensor key, std::optional<Tensor> key_mask,
                                         Tensor lse, double scale, bool exclude_self) {
  check_contrast(query, key, key_mask, scale, exclude_self);
  const int64_t queries = query.size(0), d = query.size(1);
  check_upstream(grad, lse, query);
  grad = as_contiguous(grad);
  lse = as_contiguous(lse);
  const Tensor gradient = new_empty(key, {key.size(0), d}, arithmetic_type(query));
  with_keys(key, key_mask, exclude_self, [&](const auto& keys, auto tag) {
    using A = decltype(tag);
    if (queries == 0) {
      std::fill_n(mutable_data<A>(gradient), keys.count * d, A{0});
      return;
    }
    with_tile(keys, [&](auto tag, const auto& keys) {
      using KeyTile = typename decltype(tag)::type;
      const Tensor values = as_arithmetic<A>(query);
      const typename KeyTile::Query scaled(values, scale, true);
      // Tiles are smaller than the cache allows if there would be too few for the threads.
      const int64_t share = std::max(keys.count / kManyChunks, kLeastKeys) / 32 * 32;
      const int64_t size = std::min({KeyTile::size(queries, d, keys.count), share, keys.count});
      const int64_t tiles = size ? (keys.count + size - 1) / size : 0;
      const auto keys_of = [&](int64_t tile) {
        return Range{std::min(tile * size, keys.count), std::min((tile + 1) * size, keys.count)};
      };
      share_out(tiles, [&](int64_t now, auto next_tile) {
        KeyTile tile(scaled, keys, size);
        while (now < tiles) {
          const int64_t next = next_tile();
          tile.key_gradient(keys_of(now), keys_of(next), data<A>(lse), data<A>(grad), mutable_data<A>(gradient));
          now = next;
        }
      });
    });
  });
  return as_contiguous(gradient, key.scalar_type());
}

// The number of targets that are not ignored.
int64_t count_targets(const int64_t* target, int64_t queries, int64_t classes, int64_t ignore_index) {
  int64_t counted = 0;
  for (int64_t i = 0; i < queries; ++i) {
    if (target[i] == ignore_index) continue;
    STD_TORCH_CHECK(0 <= target[i] && target[i] < classes, "target must hold classes 0..", classes - 1,
                    " or ignore_index=", ignore_index, ", got ", target[i]);
    ++counted;
  }
  return counted;
}

// Row losses LSE - mean positive logit over {own key} and the queue, and their gradients with respect to the queries.
std::tuple<Tensor, Tensor> pseudo_group_contrast(Tensor query, Tensor key, Tensor queue, Tensor target,
                                                 std::optional<Tensor> slot_count, double temperature, int64_t form,
                                                 int64_t ignore_index, int64_t reduction, bool with_slope) {
  check_group_contrast(query, key, queue, target, slot_count, temperature, form, ignore_index, reduction);
  const int64_t queries = query.size(0), d = query.size(1), classes = queue.size(0), slots = queue.size(1);
  target = as_contiguous(target);
  std::vector<int64_t> valid_slots(classes, slots);
  std::optional<Tensor> mask;
  if (slot_count) {
    const Tensor counts = as_contiguous(*slot_count);
    mask = new_empty(query, {classes * slots}, ScalarType::Bool);
    for (int64_t c = 0; c < classes; ++c) {
      valid_slots[c] = std::clamp<int64_t>(data<int64_t>(counts)[c], 0, slots);
      for (int64_t s = 0; s < slots; ++s) mutable_data<bool>(*mask)[c * slots + s] = s < valid_slots[c];
    }
  }
  const ScalarType arithmetic = arithmetic_type(query);
  const bool by_row = reduction == kNone;
  const Tensor loss = by_row ? new_empty(query, {queries}, arithmetic) : new_empty(query, {}, arithmetic);
  const Tensor slopes = new_empty(query, {with_slope ? queries : 0, d}, arithmetic);
  with_keys(queue, mask, false, [&](const auto& keys, auto tag) {
    using A = decltype(tag);
    const Tensor q = as_arithmetic<A>(query), own = as_arithmetic<A>(key);
    const int64_t counted = count_targets(data<int64_t>(target), queries, classes, ignore_index);
    const A empty{};  // stands for the own keys where d is 0, of which there are some all the same
    Positives<key_type<decltype(keys)>> positives;
    positives.query = data<A>(q);
    positives.own = d ? data<A>(own) : &empty;
    positives.queue = keys.values;
    positives.target = data<int64_t>(target);
    positives.valid_slots = valid_slots.data();
    positives.slots = slots;
    positives.d = d;
    positives.ignore_index = ignore_index;
    positives.inverse_temperature = static_cast<A>(1 / temperature);
    positives.gain = reduction == kMean ? 1 / static_cast<A>(std::max<int64_t>(counted, 1)) : A{1};
    positives.kl = form == kKl;
    std::vector<A> rows(by_row ? 0 : queries);
    positives.loss = by_row ? mutable_data<A>(loss) : rows.data();
    positives.slope = with_slope ? mutable_data<A>(slopes) : nullptr;
    with_tile(keys, [&](auto tile, const auto& keys) {
      attend<typename decltype(tile)::type>(
          q, keys, positives.own, 1 / temperature, positives.loss, positives.slope,
          [&](int64_t begin, int64_t end) { subtract_positives(positives, begin, end); });
    });
    if (by_row) return;
    *mutable_data<A>(loss) = static_cast<A>(sum_over<double>(queries, [&](int64_t i) { return rows[i]; }));
  });
  return {loss, slopes};
}

}  // namespace
}  // namespace dadl::cpu

DADL_LIBRARY_IMPL(CPU, m) {
  DADL_IMPL(m, dadl::cpu, similarity_logsumexp);
  DADL_IMPL(m, dadl::cpu, similarity_logsumexp_key_gradient);
  DADL_IMPL(m, dadl::cpu, pseudo_group_contrast);
}
