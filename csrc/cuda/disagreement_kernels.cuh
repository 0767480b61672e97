// The disagreement between members with its gradient, in one launch where a sample needs no more than one team of
// threads. The formulas are those of dadl_ext/reference/disagreement.py in the forms of
// csrc/cpu/disagreement_measures.cpp.
//
// What is kept of a softmax are three numbers for each member and, where shared memory has room for them, the
// exponentials of its logits. Elsewhere these are computed again wherever they are needed, so that no row is too long.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../core/disagreement.h"
#include "../core/exponential.h"
#include "../core/half.h"
#include "device.cuh"

namespace dadl {

constexpr int64_t kDisagreementChunk = 4096;  // outputs of a sample that one team adds up
constexpr int64_t kWarpClasses = 512;         // up to which a row of classes is a warp's
constexpr int kMostHeld = 8;                  // members whose numbers a thread keeps in registers
constexpr int64_t kExponentialBytes = 32768;  // of a block, in shared memory: every GPU has room for two such blocks

// Blocks on a multiprocessor, which bound the registers of a thread. In float64 a bound would spill them.
template <int kSize, typename A>
constexpr int kClassBlocks = std::is_same_v<A, double> ? 1
                             : kSize > kWarp           ? 2
                                                       : 4;

// Threads that work on one row: kSize = kWarp or kThreads. They divide into groups of `width` that have a member each:
// a power of two up to kWarp, or the whole block.
template <int kSize, typename A>
struct Team {
  int width;
  A* parts;  // shared [kThreads / kWarp], for a block

  __device__ __forceinline__ int index() const { return static_cast<int>(threadIdx.x) % kSize; }
  __device__ __forceinline__ void sync() const {
    if constexpr (kSize > kWarp) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // Over a group, or the team. All threads of the team must come here, and all get the result.
  template <typename Join>
  __device__ __forceinline__ A join_group(A value, Join join) const {
    if constexpr (kSize > kWarp) {
      if (width > kWarp) return block_join(value, parts, join);
    }
    for (int mask = width / 2; mask; mask /= 2) value = join(value, __shfl_xor_sync(kFullWarp, value, mask));
    return value;
  }
  __device__ __forceinline__ A group_sum(A value) const {
    return join_group(value, [](A a, A b) { return a + b; });
  }
  __device__ __forceinline__ A team_sum(A value) const {
    if constexpr (kSize > kWarp) {
      return block_join(value, parts, [](A a, A b) { return a + b; });
    } else {
      return warp_sum(value);
    }
  }
};

inline int group_width(int64_t length, int most) {
  int width = 1;
  while (width < length && width < kWarp) width *= 2;
  return most > kWarp && length > kWarp ? most : width;
}

// Rows of members, and of their gradients where these are wanted.
template <typename T>
struct Members {
  using A = typename Storage<T>::Arithmetic;
  const T* values;
  int64_t stride, count;
  A* gradient;  // or null
  int64_t gradient_stride;

  __device__ __forceinline__ Members from(int64_t element) const {
    return {values + element, stride, count, gradient ? gradient + element : nullptr, gradient_stride};
  }
  __device__ __forceinline__ A operator()(int64_t member, int64_t element) const {
    return static_cast<A>(to_float(values[member * stride + element]));
  }
  __device__ __forceinline__ A& gradient_of(int64_t member, int64_t element) const {
    return gradient[member * gradient_stride + element];
  }
};

// Numbers of members. Up to kHeld of them are kept in registers, where every index must be known to the compiler; with
// kHeld = 0 they are computed wherever they are needed.
template <int kHeld, typename A, typename Value>
class MemberValues {
 public:
  __device__ __forceinline__ MemberValues(int64_t members, Value value) : members_(members), value_(value) {
    each([&](int64_t k) {
      if constexpr (kHeld > 0) held_[k] = value_(k);
    });
  }

  __device__ __forceinline__ A operator()(int64_t k) const {
    if constexpr (kHeld > 0) {
      return held_[k];
    } else {
      return value_(k);
    }
  }

  // body(k) for the members first, first + step, ...
  template <typename Body>
  __device__ __forceinline__ void each(int64_t first, int64_t step, Body body) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (k < members_ && k == first) {
          body(k);
          first += step;
        }
      }
    } else {
      for (int64_t k = first; k < members_; k += step) body(k);
    }
  }
  template <typename Body>
  __device__ __forceinline__ void each(Body body) const {
    each(0, 1, body);
  }

 private:
  int64_t members_;
  Value value_;
  A held_[kHeld > 0 ? kHeld : 1];
};

// body(values) of value(0), ..., value(members - 1)
template <typename A, typename Value, typename Body>
__device__ __forceinline__ A with_values(int64_t members, Value value, Body body) {
  if (members <= kMostHeld) return body(MemberValues<kMostHeld, A, Value>(members, value));
  return body(MemberValues<0, A, Value>(members, value));
}

// ---- measures of elements -------------------------------------------------------------------------------------------

template <typename A>
struct Term {
  A loss, gradient;
};

// What a member adds to the l1 of all of them, and its gradient: that is a whole number of shares.
template <typename A, typename Values>
__device__ __forceinline__ Term<A> l1_term(int64_t members, A own, const Values& value) {
  if (members == 1) return {own * 0, own * 0};  // NaN where it is not finite
  const A share = 2 / (static_cast<A>(members) * static_cast<A>(members - 1));
  A distance = 0, above = 0;
  value.each([&](int64_t j) {
    const A difference = own - value(j);
    distance += difference < 0 ? -difference : difference;
    above += sign(difference);
  });
  return {share / 2 * distance, share * above};
}

// The mean less the first value, for mse and variance.
template <typename A, typename Values>
__device__ __forceinline__ A relative_mean(int64_t members, const Values& value) {
  const A first = value(0);
  A sum = 0;
  value.each([&](int64_t k) { sum += k > 0 ? value(k) - first : A{0}; });
  return sum / static_cast<A>(members);
}

template <typename A>
__device__ __forceinline__ Term<A> square_term(Measure measure, int64_t members, A value, A first, A mean) {
  if (members == 1) return {value * 0, value * 0};
  const A share = (measure == Measure::kMse ? A{2} : A{1}) / static_cast<A>(members - 1);
  const A difference = value - first - mean;
  return {share * difference * difference, 2 * share * difference};
}

// l1, mse or variance of an element: the part of the members first, first + step, ..., with their gradients.
template <typename T, typename A = typename Storage<T>::Arithmetic>
__device__ __forceinline__ A measure_element(Measure measure, const Members<T>& x, int64_t element, int64_t first,
                                             int64_t step, A factor) {
  return with_values<A>(
      x.count, [&](int64_t k) { return x(k, element); },
      [&](const auto& value) {
        const bool is_l1 = measure == Measure::kL1;
        const A mean = is_l1 ? A{0} : relative_mean<A>(x.count, value);
        A loss = 0;
        value.each(first, step, [&](int64_t k) {
          const Term<A> term =
              is_l1 ? l1_term(x.count, value(k), value) : square_term(measure, x.count, value(k), value(0), mean);
          loss += term.loss;
          if (x.gradient) x.gradient_of(k, element) = factor * term.gradient;
        });
        return loss;
      });
}

// body(element, first member, step) so that the threads of a team share `count` elements, or where these are few, their
// members too.
template <int kSize, typename A, typename Body>
__device__ __forceinline__ void share_elements(const Team<kSize, A>& team, int64_t count, Body body) {
  const int64_t step = count < kSize ? kSize / count : 1;
  for (int64_t i = team.index(); i < count * step; i += kSize) body(i % count, i / count, step);
}

// ---- measures of classes --------------------------------------------------------------------------------------------

// Of one row. With kKept exponentials are read, without it they are computed.
template <bool kKept, typename A>
struct Softmaxes {
  A* largest;       // [K]: of a member's logits
  A* inverse;       // [K]: of the sum of exp(logit - largest)
  A* shift;         // [K]: a logit less this is a log-probability
  A* exponentials;  // with kKept [K, C]: exp(logit - largest)

  template <typename T>
  __device__ __forceinline__ A probability(const Members<T>& x, int64_t classes, int64_t k, int64_t c) const {
    const A exponential = kKept ? exponentials[k * classes + c] : exp_nonpositive(x(k, c) - largest[k]);
    return exponential * inverse[k];
  }
};

template <int kSize, bool kKept, typename T, typename A = typename Storage<T>::Arithmetic>
__device__ __forceinline__ void softmax_members(const Team<kSize, A>& team, const Members<T>& x, int64_t classes,
                                                const Softmaxes<kKept, A>& softmax) {
  const int groups = kSize / team.width, group = team.index() / team.width, lane = team.index() % team.width;
  for (int64_t first = 0; first < x.count; first += groups) {
    const int64_t k = first + group, end = k < x.count ? classes : 0;
    A largest = minus_infinity<A>(), total = 0;
    for (int64_t c = lane; c < end; c += team.width) {
      const A logit = x(k, c);
      if (kKept) softmax.exponentials[k * classes + c] = logit;
      largest = larger(largest, logit);
    }
    largest = team.join_group(largest, larger<A>);
    for (int64_t c = lane; c < end; c += team.width) {
      const A logit = kKept ? softmax.exponentials[k * classes + c] : x(k, c);
      const A exponential = exp_nonpositive(logit - largest);
      if (kKept) softmax.exponentials[k * classes + c] = exponential;
      total += exponential;
    }
    total = team.group_sum(total);
    if (lane != 0 || k >= x.count) continue;
    softmax.largest[k] = largest;
    softmax.inverse[k] = 1 / total;
    softmax.shift[k] = largest + log(total);
  }
  team.sync();
}

// The part of a class c of the members first, first + step, ... Where gradients are wanted they are left for
// finish_gradient: the slope of the loss with respect to a probability, times the probability, plus for symmetric KL
// the part that comes through the logarithm, whose sum over classes is 0.
template <bool kKept, typename T, typename A = typename Storage<T>::Arithmetic>
__device__ __forceinline__ A measure_class(Measure measure, const Members<T>& x, int64_t classes, int64_t c,
                                           int64_t first, int64_t step, const Softmaxes<kKept, A>& softmax) {
  const auto probability_of = [&](int64_t k) { return softmax.probability(x, classes, k, c); };
  const auto log_probability = [&](int64_t k) { return bounded_log(x(k, c) - softmax.shift[k]); };
  return with_values<A>(x.count, probability_of, [&](const auto& probability) {
    const A share = 1 / static_cast<A>(x.count), pair_share = 1 / static_cast<A>(x.count - 1);
    A mean = 0, mean_log = 0, loss = 0;
    if (measure != Measure::kSoftmaxL1) {
      probability.each([&](int64_t k) {
        mean += share * probability(k);
        if (measure == Measure::kSymmetricKl) mean_log += share * log_probability(k);
      });
    }
    probability.each(first, step, [&](int64_t k) {
      const A p = probability(k);
      A slope;
      if (measure == Measure::kSoftmaxL1) {
        const Term<A> term = l1_term(x.count, p, probability);
        loss += term.loss;
        slope = p * term.gradient;
      } else if (measure == Measure::kJs) {
        // Where all members underflow they agree.
        const EntropyGap<A> gap = entropy_gap(mean == 0 ? A{1} : p / mean);
        loss += share * (mean * gap.gap);
        slope = p * gap.log;
      } else {
        const A distance = log_probability(k) - mean_log;
        loss += pair_share * ((p - mean) * distance);
        slope = p * distance + (p - mean);
      }
      if (x.gradient) x.gradient_of(k, c) = slope;
    });
    return loss;
  });
}

// Through the softmaxes.
template <int kSize, bool kKept, typename T, typename A = typename Storage<T>::Arithmetic>
__device__ __forceinline__ void finish_gradient(const Team<kSize, A>& team, const Members<T>& x, int64_t classes,
                                                const Softmaxes<kKept, A>& softmax, A factor) {
  const int groups = kSize / team.width, group = team.index() / team.width, lane = team.index() % team.width;
  team.sync();
  for (int64_t first = 0; first < x.count; first += groups) {
    const int64_t k = first + group, end = k < x.count ? classes : 0;
    A expected = 0;
    for (int64_t c = lane; c < end; c += team.width) expected += x.gradient_of(k, c);
    expected = team.group_sum(expected);
    for (int64_t c = lane; c < end; c += team.width) {
      const A p = softmax.probability(x, classes, k, c);
      x.gradient_of(k, c) = factor * (x.gradient_of(k, c) - p * expected);
    }
  }
}

// symmetric_kl, js or softmax_l1 of one row, times factor, with the gradients; every thread gets the loss.
template <int kSize, bool kKept, typename T, typename A = typename Storage<T>::Arithmetic>
__device__ __forceinline__ A measure_classes(const Team<kSize, A>& team, Measure measure, const Members<T>& x,
                                             int64_t classes, const Softmaxes<kKept, A>& softmax, A factor) {
  softmax_members(team, x, classes, softmax);
  if (measure == Measure::kSymmetricKl && x.count == 1) {
    const A nothing = softmax.shift[0] * 0;  // NaN where it is not finite
    for (int64_t c = team.index(); x.gradient && c < classes; c += kSize) x.gradient_of(0, c) = nothing;
    return nothing;
  }
  A loss = 0;
  share_elements(team, classes, [&](int64_t c, int64_t first, int64_t step) {
    loss += measure_class(measure, x, classes, c, first, step, softmax);
  });
  loss = team.team_sum(loss);
  const bool is_js = measure == Measure::kJs, is_l1 = measure == Measure::kSoftmaxL1;
  const A share = 1 / static_cast<A>(classes);
  if (x.gradient) {
    const A slope_factor = is_l1 ? share : 1 / static_cast<A>(is_js ? x.count : x.count - 1);
    finish_gradient(team, x, classes, softmax, factor * slope_factor);
  }
  return is_l1 ? factor * share * loss : factor * loss;
}

// ---- kernels --------------------------------------------------------------------------------------------------------

// Predictions [K, B, R, C] and where the results go, rows [B] and gradient [K, B, R, C] or null, both times gain.
template <typename T, typename A = typename Storage<T>::Arithmetic>
struct Disagreement {
  Measure measure;
  const T* predictions;
  int64_t members, batch, rows, classes;
  A gain;
  A *loss, *gradient;

  __device__ __host__ __forceinline__ int64_t outputs() const { return rows * classes; }
  __device__ __forceinline__ Members<T> from(int64_t element) const {
    const int64_t stride = batch * outputs();
    return Members<T>{predictions, stride, members, gradient, stride}.from(element);
  }
};

// parts [B, chunks]: of each sample and chunk of its outputs. A group of `width` threads has one of them.
template <typename T, typename A = typename Storage<T>::Arithmetic>
__global__ void __launch_bounds__(kThreads, 1)
    disagreement_elements_kernel(Disagreement<T> task, int width, int64_t chunks, A* parts) {
  DADL_SHARED(sums, A[kThreads / kWarp]);
  const Team<kThreads, A> team{width, sums};
  const int64_t part = static_cast<int64_t>(blockIdx.x) * (kThreads / width) + team.index() / width;
  const int64_t sample = part / chunks, outputs = task.outputs(), begin = part % chunks * kDisagreementChunk;
  const int64_t last = begin + kDisagreementChunk < outputs ? begin + kDisagreementChunk : outputs;
  const int64_t end = sample < task.batch ? last : 0;
  const A factor = task.gain / static_cast<A>(outputs);
  A loss = 0;
  for (int64_t e = begin + team.index() % width; e < end; e += width) {
    loss += measure_element(task.measure, task.from(sample * outputs), e, 0, 1, factor);
  }
  loss = team.group_sum(loss);
  if (team.index() % width == 0 && sample < task.batch) parts[part] = factor * loss;
}

// parts [B, R], statistics [B, R, 3, K]. With kKept the block has [K, C] numbers of dynamic shared memory for each row.
template <int kSize, bool kKept, typename T, typename A = typename Storage<T>::Arithmetic>
__global__ void __launch_bounds__(kSize == kWarp ? kRowThreads : kSize, kClassBlocks<kSize, A>)
    disagreement_classes_kernel(Disagreement<T> task, int width, A* statistics, A* parts) {
  DADL_SHARED(sums, A[kThreads / kWarp]);
  const Team<kSize, A> team{width, sums};
  const int64_t row = kSize == kWarp ? warp_row() : static_cast<int64_t>(blockIdx.x), members = task.members;
  if (row >= task.batch * task.rows) return;
  A* own = statistics + row * 3 * members;
  A* kept = nullptr;
  if constexpr (kKept) {
    DADL_DYNAMIC_SHARED(exponentials, A);
    kept = &exponentials + threadIdx.x / kSize * members * task.classes;
  }
  const A loss = measure_classes(team, task.measure, task.from(row * task.classes), task.classes,
                                 Softmaxes<kKept, A>{own, own + members, own + 2 * members, kept},
                                 task.gain / static_cast<A>(task.rows));
  if (team.index() == 0) parts[row] = loss;
}

// sums [B] = sums of parts [B, count]
template <typename A>
__global__ void __launch_bounds__(kRowThreads)
    disagreement_sum_kernel(const A* parts, int64_t batch, int64_t count, A* sums) {
  const int64_t row = warp_row();
  if (row >= batch) return;
  double sum = 0;
  for (int64_t i = lane_index(); i < count; i += kWarp) sum += static_cast<double>(parts[row * count + i]);
  sum = warp_sum(sum);
  if (lane_index() == 0) sums[row] = static_cast<A>(sum);
}

// ---- the order of the launches --------------------------------------------------------------------------------------

// Of measures of classes, with kSize threads for each row.
template <int kSize, typename T, typename A, typename Backend>
void disagreement_classes(Backend& backend, const Disagreement<T>& task, A* statistics, A* parts) {
  constexpr int kBlock = kSize == kWarp ? kRowThreads : kSize, kRows = kBlock / kSize;
  const int64_t bytes = kRows * task.members * task.classes * static_cast<int64_t>(sizeof(A));
  const auto launch = [&](auto kernel, int64_t dynamic) {
    backend.launch_with(static_cast<size_t>(dynamic), kernel, dim3(blocks_for(task.batch * task.rows, kRows)),
                        dim3(kBlock), task, group_width(task.classes, kSize), statistics, parts);
  };
  if (bytes <= kExponentialBytes) return launch(disagreement_classes_kernel<kSize, true, T>, bytes);
  launch(disagreement_classes_kernel<kSize, false, T>, 0);
}

template <typename T, typename Backend>
void disagreement(Backend& backend, const Disagreement<T>& task) {
  using A = typename Storage<T>::Arithmetic;
  if (task.batch == 0) return;
  const bool over_classes = is_over_classes(task.measure);
  const int64_t chunks = over_classes ? task.rows : blocks_for(task.outputs(), kDisagreementChunk);
  auto partial = backend.template buffer<A>(chunks > 1 ? task.batch * chunks : 0);
  A* parts = chunks > 1 ? partial.data() : task.loss;
  if (!over_classes) {
    const int width = group_width(task.outputs(), kThreads);
    backend.launch(disagreement_elements_kernel<T>, dim3(blocks_for(task.batch * chunks, kThreads / width)),
                   dim3(kThreads), task, width, chunks, parts);
  } else {
    auto statistics = backend.template buffer<A>(3 * task.batch * task.rows * task.members);
    if (task.classes <= kWarpClasses) {
      disagreement_classes<kWarp>(backend, task, statistics.data(), parts);
    } else {
      disagreement_classes<kThreads>(backend, task, statistics.data(), parts);
    }
  }
  if (chunks > 1) {
    backend.launch(disagreement_sum_kernel<A>, dim3(blocks_for(task.batch, kRowWarps)), dim3(kRowThreads), parts,
                   task.batch, chunks, task.loss);
  }
}

}  // namespace dadl
