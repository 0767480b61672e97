// Streaming log-sum-exp of similarities, and pseudo group contrast on it, on the CPU.
//
// The keys are cut into chunks and the chunks into tiles. Each chunk keeps, per query, the largest logit, the sum of
// exponentials and the sum of keys weighted by them; a tile of logits lives in the cache between its two products, so
// the keys are read once. Chunks depend on shapes alone and are combined in order.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/exponential.h"
#include "common.h"
#include "products.h"

namespace dadl::cpu {
namespace {

constexpr int64_t kTileBytes = 1 << 19;   // of a tile's keys and of its logits: both stay in a core's L2 cache
constexpr int64_t kStateBytes = 1 << 25;  // of all chunks' weighted sums
constexpr int64_t kMostChunks = 16;
constexpr int64_t kWorthChunk = 1 << 20;  // multiply-adds

// ---- kernels ----

template <typename T, typename A>
void widen_rows(const T* source, A* target, int64_t count) {
  for (int64_t e = 0; e < count; ++e) target[e] = to_float(source[e]);
}

// logits [rows, columns] become exp(logit - largest); sums and largest are updated, `rescale` is what earlier sums are
// multiplied with.
template <typename A>
void exponentiate_rows(A* logits, A* largest, A* sum, A* rescale, int64_t rows, int64_t columns) {
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  constexpr int kLanes = 16;
  for (int64_t i = 0; i < rows; ++i) {
    A* row = logits + i * columns;
    A highest[kLanes];
    for (int l = 0; l < kLanes; ++l) highest[l] = largest[i];
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      for (int l = 0; l < kLanes; ++l) highest[l] = row[j + l] > highest[l] ? row[j + l] : highest[l];
    }
    A next = largest[i];
    for (int l = 0; l < kLanes; ++l) next = highest[l] > next ? highest[l] : next;
    for (; j < columns; ++j) next = row[j] > next ? row[j] : next;
    const A base = next == kNothing ? 0 : next;
    A totals[kLanes] = {};
    j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        row[j + l] = exp_nonpositive(row[j + l] - base);
        totals[l] += row[j + l];
      }
    }
    A total = 0;
    for (; j < columns; ++j) {
      row[j] = exp_nonpositive(row[j] - base);
      total += row[j];
    }
    for (int l = 0; l < kLanes; ++l) total += totals[l];
    rescale[i] = largest[i] == kNothing ? 0 : exp_nonpositive(largest[i] - base);
    sum[i] = sum[i] * rescale[i] + total;
    largest[i] = next;
  }
}

// logits become weight_i exp(logit - lse_i)
template <typename A>
void weigh_rows(A* logits, const A* lse, const A* weight, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    A* row = logits + i * columns;
    const bool empty = lse[i] == -std::numeric_limits<A>::infinity();
    const A base = empty ? 0 : lse[i], factor = empty ? 0 : weight[i];
    for (int64_t j = 0; j < columns; ++j) {
      // Rounding can put a logit above the log-sum-exp by a hair.
      const A x = row[j] - base;
      row[j] = factor * exp_nonpositive(x > 0 ? A{0} : x);
    }
  }
}

#define DADL_CONTRAST_KERNELS(A)                                                                            \
  DADL_CLONES void exponentiate(A* logits, A* largest, A* sum, A* rescale, int64_t rows, int64_t columns) { \
    exponentiate_rows<A>(logits, largest, sum, rescale, rows, columns);                                     \
  }                                                                                                         \
  DADL_CLONES void weigh(A* logits, const A* lse, const A* weight, int64_t rows, int64_t columns) {         \
    weigh_rows<A>(logits, lse, weight, rows, columns);                                                      \
  }
DADL_CONTRAST_KERNELS(float)
DADL_CONTRAST_KERNELS(double)
#undef DADL_CONTRAST_KERNELS

#define DADL_WIDEN(T, A) \
  DADL_CLONES void widen(const T* source, A* target, int64_t count) { widen_rows<T, A>(source, target, count); }
DADL_WIDEN(Half, float)
DADL_WIDEN(BFloat16, float)
#undef DADL_WIDEN

template <typename A>
constexpr ScalarType kScalarType = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

// ---- keys ----

template <typename T>
struct Keys {
  const T* values;  // [count, d]
  int64_t count, d;
  const bool* mask;   // [count], null for all
  bool exclude_self;  // key i is left out for query i
};

struct Tiling {
  int64_t tile, chunk, chunks;
};

template <typename A>
Tiling make_tiling(int64_t queries, int64_t keys, int64_t d) {
  const int64_t state = std::max<int64_t>(queries * d * static_cast<int64_t>(sizeof(A)), 1);
  const int64_t wanted = std::min({kMostChunks, kStateBytes / state, queries * keys * d / kWorthChunk});
  const int64_t chunks = std::max<int64_t>(wanted, 1);
  const int64_t widest = kTileBytes / static_cast<int64_t>(sizeof(A)) / std::max<int64_t>({queries, d, 1});
  const int64_t tile = std::clamp<int64_t>(std::min(widest, (keys + chunks - 1) / chunks) / 16 * 16, 16, 1024);
  const int64_t tiles = (keys + tile - 1) / tile;
  const int64_t chunk = (tiles + chunks - 1) / chunks * tile;
  return {tile, chunk, chunk ? (keys + chunk - 1) / chunk : 0};
}

// One thread's view of a tile: its keys as A, and the logits of all queries.
template <typename T, typename A>
class Tile {
 public:
  Tile(const Tensor& query, const Keys<T>& keys, int64_t size, double scale)
      : query_(query), keys_(keys), scale_(scale), logits_(query.size(0) * size) {
    if constexpr (!std::is_same_v<T, A>) widened_.resize(size * keys.d);
  }

  // logits [B, last - first] = scale query keys^T, -inf where a key does not take part
  void load(int64_t first, int64_t last) {
    first_ = first;
    count_ = last - first;
    const int64_t d = keys_.d, queries = query_.size(0);
    if constexpr (std::is_same_v<T, A>) {
      values_ = keys_.values + first * d;
    } else {
      widen(keys_.values + first * d, widened_.data(), count_ * d);
      values_ = widened_.data();
    }
    add_product(query_, matrix_view(query_, values_, d, count_, 1, d), scale_, 0.0, logits());
    constexpr A kLeftOut = -std::numeric_limits<A>::infinity();
    if (keys_.mask) {
      for (int64_t j = 0; j < count_; ++j) {
        if (keys_.mask[first + j]) continue;
        for (int64_t i = 0; i < queries; ++i) logits_[i * count_ + j] = kLeftOut;
      }
    }
    if (keys_.exclude_self) {
      for (int64_t j = first; j < last; ++j) logits_[j * count_ + j - first] = kLeftOut;
    }
  }

  A* data() { return logits_.data(); }
  int64_t columns() const { return count_; }
  Tensor logits() { return matrix_view(query_, logits_.data(), query_.size(0), count_, count_, 1); }
  Tensor transposed_logits() { return matrix_view(query_, logits_.data(), count_, query_.size(0), 1, count_); }
  Tensor keys() { return matrix_view(query_, values_, count_, keys_.d, keys_.d, 1); }

 private:
  const Tensor& query_;
  const Keys<T>& keys_;
  double scale_;
  int64_t first_ = 0, count_ = 0;
  const A* values_ = nullptr;
  std::vector<A> logits_, widened_;
};

// lse [B] and, where wanted, slope [B, d] = scale sum_j p_ij key_j, its gradient. `own` is an additional key [B, d] of
// each query, or null.
template <typename T, typename A>
void attend(const Tensor& query, const Keys<T>& keys, const A* own, double scale, A* lse, A* slope) {
  const int64_t queries = query.size(0), d = keys.d;
  const Tiling tiling = make_tiling<A>(queries, keys.count, d);
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  std::vector<A> largest(tiling.chunks * queries, kNothing), sum(tiling.chunks * queries);
  const Tensor weighted = torch::stable::new_empty(query, {slope ? tiling.chunks : 0, queries, d}, kScalarType<A>);
  A* states = mutable_data<A>(weighted);

  torch::stable::parallel_for(0, tiling.chunks, 1, [&](int64_t begin, int64_t end) {
    Tile<T, A> tile(query, keys, std::min(tiling.tile, keys.count), scale);
    std::vector<A> rescale(queries);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      A *chunk_largest = largest.data() + chunk * queries, *chunk_sum = sum.data() + chunk * queries;
      A* state = states + chunk * queries * d;
      const int64_t chunk_first = chunk * tiling.chunk, chunk_last = std::min(chunk_first + tiling.chunk, keys.count);
      for (int64_t first = chunk_first; first < chunk_last; first += tiling.tile) {
        tile.load(first, std::min(first + tiling.tile, chunk_last));
        exponentiate(tile.data(), chunk_largest, chunk_sum, rescale.data(), queries, tile.columns());
        if (!slope) continue;
        if (first > chunk_first) {
          for (int64_t i = 0; i < queries; ++i) {
            if (rescale[i] == 1) continue;
            for (int64_t c = 0; c < d; ++c) state[i * d + c] *= rescale[i];
          }
        }
        add_product(tile.logits(), tile.keys(), 1.0, first > chunk_first ? 1.0 : 0.0,
                    matrix_view(query, state, queries, d, d, 1));
      }
    }
  });

  const A* q = data<A>(query);
  torch::stable::parallel_for(0, queries, grain_rows((tiling.chunks + 1) * d), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      A own_logit = kNothing;
      if (own) {
        A inner = 0;
        for (int64_t c = 0; c < d; ++c) inner += q[i * d + c] * own[i * d + c];
        own_logit = static_cast<A>(scale) * inner;
      }
      A highest = own_logit;
      for (int64_t k = 0; k < tiling.chunks; ++k) highest = std::max(highest, largest[k * queries + i]);
      const A base = highest == kNothing ? 0 : highest;
      const A own_weight = own ? exp_nonpositive(own_logit - base) : A{0};
      A total = own_weight;
      for (int64_t k = 0; k < tiling.chunks; ++k) {
        total += sum[k * queries + i] * exp_nonpositive(largest[k * queries + i] - base);
      }
      lse[i] = base + std::log(total);
      if (!slope) continue;
      A* out = slope + i * d;
      const A inverse = total == 0 ? 0 : static_cast<A>(scale) / total;
      for (int64_t c = 0; c < d; ++c) out[c] = own ? own_weight * inverse * own[i * d + c] : A{0};
      for (int64_t k = 0; k < tiling.chunks; ++k) {
        const A factor = exp_nonpositive(largest[k * queries + i] - base) * inverse;
        const A* state = states + (k * queries + i) * d;
        for (int64_t c = 0; c < d; ++c) out[c] += factor * state[c];
      }
    }
  });
}

// ---- operators ----

template <typename A>
Tensor as_arithmetic(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, kScalarType<A>));
}

void check_contrast(const Tensor& query, const Tensor& key, const std::optional<Tensor>& mask, bool exclude_self) {
  STD_TORCH_CHECK(query.dim() == 2 && key.dim() == 2 && query.size(1) == key.size(1),
                  "query must be [B, d] and key [N, d]");
  STD_TORCH_CHECK(is_double(query) == is_double(key), "query and key must both be float64, or neither");
  STD_TORCH_CHECK(!exclude_self || query.size(0) == key.size(0), "exclude_self needs one key per query");
  STD_TORCH_CHECK(
      !mask || (mask->dim() == 1 && mask->size(0) == key.size(0) && mask->scalar_type() == ScalarType::Bool),
      "key_mask must be bool [N]");
}

// body(Keys<T>, A{}) with the contiguous keys in their own dtype
template <typename Body>
void with_keys(const Tensor& key, const std::optional<Tensor>& key_mask, bool exclude_self, Body body) {
  const Tensor values = torch::stable::contiguous(key);
  std::optional<Tensor> mask;
  if (key_mask) mask = torch::stable::contiguous(*key_mask);
  dispatch_floating(values, "key", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    const int64_t d = key.size(key.dim() - 1), count = d ? key.numel() / d : key.size(0);
    body(Keys<T>{data<T>(values), count, d, mask ? data<bool>(*mask) : nullptr, exclude_self}, A{});
  });
}

std::tuple<Tensor, Tensor> similarity_logsumexp(Tensor query, Tensor key, std::optional<Tensor> key_mask, double scale,
                                                bool exclude_self, bool with_slope) {
  check_contrast(query, key, key_mask, exclude_self);
  const int64_t queries = query.size(0), d = query.size(1);
  const ScalarType arithmetic = arithmetic_type(query);
  const Tensor lse = torch::stable::new_empty(query, {queries}, arithmetic);
  const Tensor slope = torch::stable::new_empty(query, {with_slope ? queries : 0, d}, arithmetic);
  with_keys(key, key_mask, exclude_self, [&](const auto& keys, auto tag) {
    using A = decltype(tag);
    attend(as_arithmetic<A>(query), keys, static_cast<const A*>(nullptr), scale, mutable_data<A>(lse),
           with_slope ? mutable_data<A>(slope) : nullptr);
  });
  return {lse, slope};
}

// The gradient with respect to the keys: scale sum_i grad_i p_ij query_i.
Tensor similarity_logsumexp_key_gradient(Tensor grad, Tensor query, Tensor key, std::optional<Tensor> key_mask,
                                         Tensor lse, double scale, bool exclude_self) {
  check_contrast(query, key, key_mask, exclude_self);
  const int64_t queries = query.size(0), d = query.size(1);
  STD_TORCH_CHECK(grad.dim() == 1 && grad.size(0) == queries && lse.dim() == 1 && lse.size(0) == queries &&
                      grad.scalar_type() == arithmetic_type(query) && lse.scalar_type() == arithmetic_type(query),
                  "grad and lse must be [B], in the dtype of similarity_logsumexp");
  grad = torch::stable::contiguous(grad);
  lse = torch::stable::contiguous(lse);
  const Tensor gradient = torch::stable::new_empty(key, {key.size(0), d}, arithmetic_type(query));
  with_keys(key, key_mask, exclude_self, [&](const auto& keys, auto tag) {
    using A = decltype(tag);
    using T = std::remove_const_t<std::remove_pointer_t<decltype(keys.values)>>;
    const Tensor q = as_arithmetic<A>(query);
    const int64_t size = make_tiling<A>(queries, keys.count, d).tile, tiles = (keys.count + size - 1) / size;
    torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
      Tile<T, A> tile(q, keys, std::min(size, keys.count), scale);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t first = t * size;
        tile.load(first, std::min(first + size, keys.count));
        weigh(tile.data(), data<A>(lse), data<A>(grad), queries, tile.columns());
        add_product(tile.transposed_logits(), q, scale, 0.0,
                    matrix_view(q, mutable_data<A>(gradient) + first * d, tile.columns(), d, d, 1));
      }
    });
  });
  return torch::stable::to(gradient, key.scalar_type());
}

// Row losses LSE - mean positive logit over {own key} and the queue, and their gradients with respect to the queries.
std::tuple<Tensor, Tensor> pseudo_group_contrast(Tensor query, Tensor key, Tensor queue, Tensor target,
                                                 std::optional<Tensor> slot_count, double temperature,
                                                 bool with_slope) {
  STD_TORCH_CHECK(query.dim() == 2 && key.dim() == 2 && key.size(0) == query.size(0) && key.size(1) == query.size(1) &&
                      queue.dim() == 3 && queue.size(2) == query.size(1) && queue.size(0) > 0,
                  "query and key must be [B, d] and queue [C, D, d]");
  STD_TORCH_CHECK(is_double(query) == is_double(key) && is_double(query) == is_double(queue),
                  "query, key and queue must all be float64, or none");
  const int64_t queries = query.size(0), d = query.size(1), classes = queue.size(0), slots = queue.size(1);
  STD_TORCH_CHECK(target.dim() == 1 && target.size(0) == queries && target.scalar_type() == ScalarType::Long,
                  "target must be int64 [B]");
  target = torch::stable::contiguous(target);
  std::vector<int64_t> valid_slots(classes, slots);
  std::optional<Tensor> mask;
  if (slot_count) {
    STD_TORCH_CHECK(
        slot_count->dim() == 1 && slot_count->size(0) == classes && slot_count->scalar_type() == ScalarType::Long,
        "slot_count must be int64 [C]");
    const Tensor counts = torch::stable::contiguous(*slot_count);
    mask = torch::stable::new_empty(query, {classes * slots}, ScalarType::Bool);
    for (int64_t c = 0; c < classes; ++c) {
      valid_slots[c] = std::clamp<int64_t>(data<int64_t>(counts)[c], 0, slots);
      for (int64_t s = 0; s < slots; ++s) mutable_data<bool>(*mask)[c * slots + s] = s < valid_slots[c];
    }
  }
  const ScalarType arithmetic = arithmetic_type(query);
  const Tensor rows = torch::stable::new_empty(query, {queries}, arithmetic);
  const Tensor slopes = torch::stable::new_empty(query, {with_slope ? queries : 0, d}, arithmetic);
  with_keys(queue, mask, false, [&](const auto& keys, auto tag) {
    using A = decltype(tag);
    const Tensor q = as_arithmetic<A>(query), own = as_arithmetic<A>(key);
    A* loss = mutable_data<A>(rows);
    A* slope = with_slope ? mutable_data<A>(slopes) : nullptr;
    const A inverse_temperature = static_cast<A>(1 / temperature);
    attend(q, keys, data<A>(own), 1 / temperature, loss, slope);
    torch::stable::parallel_for(0, queries, grain_rows((slots + 2) * d), [&](int64_t begin, int64_t end) {
      std::vector<A> positive(d);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t c = data<int64_t>(target)[i];
        if (c < 0 || c >= classes) {  // ignored
          loss[i] = std::numeric_limits<A>::quiet_NaN();
          if (slope) std::fill_n(slope + i * d, d, A{0});
          continue;
        }
        std::copy_n(data<A>(own) + i * d, d, positive.data());
        const auto* slot = keys.values + c * slots * d;
        for (int64_t s = 0; s < valid_slots[c]; ++s, slot += d) {
          for (int64_t e = 0; e < d; ++e) positive[e] += static_cast<A>(to_float(slot[e]));
        }
        const A share = 1 / static_cast<A>(1 + valid_slots[c]);
        const A* qi = data<A>(q) + i * d;
        A inner = 0;
        for (int64_t e = 0; e < d; ++e) inner += qi[e] * positive[e];
        loss[i] -= inner * share * inverse_temperature;
        if (!slope) continue;
        A* row = slope + i * d;
        for (int64_t e = 0; e < d; ++e) row[e] -= positive[e] * share * inverse_temperature;
      }
    });
  });
  return {rows, slopes};
}

// On every device: nothing here that ATen does not do. The queries give the dtype, and make a second derivative reach
// this operator, which then raises.
Tensor contrast_query_gradient(Tensor grad, Tensor slope, Tensor query) {
  std::array<StableIValue, 2> column{torch::stable::detail::from(grad), torch::stable::detail::from(int64_t{1})};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::unsqueeze", "", column.data(), TORCH_ABI_VERSION));
  std::array<StableIValue, 2> product{torch::stable::detail::from(slope), column[0]};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", product.data(), TORCH_ABI_VERSION));
  return torch::stable::to(torch::stable::detail::to<Tensor>(product[0]), query.scalar_type());
}

}  // namespace
}  // namespace dadl::cpu

STABLE_TORCH_LIBRARY_IMPL(dadl, CompositeExplicitAutograd, m) {
  m.impl("contrast_query_gradient", TORCH_BOX(&dadl::cpu::contrast_query_gradient));
}

STABLE_TORCH_LIBRARY_IMPL(dadl, CPU, m) {
  DADL_IMPL(m, dadl::cpu, similarity_logsumexp);
  DADL_IMPL(m, dadl::cpu, similarity_logsumexp_key_gradient);
  DADL_IMPL(m, dadl::cpu, pseudo_group_contrast);
}
