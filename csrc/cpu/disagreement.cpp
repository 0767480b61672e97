// The disagreement between members, on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../disagreement_checks.h"
#include "../signatures.h"
#include "common.h"
#include "disagreement_rows.h"

namespace dadl::cpu {
namespace {

// Predictions [K, B, R, C], and where the results go: loss [B] and gradient [K, B, R, C] or null, both times gain.
template <typename T, typename A = typename Storage<T>::Arithmetic>
struct Task {
  Measure measure;
  const T* predictions;
  int64_t members, batch, rows, classes;
  A gain;
  A *loss, *gradient;

  int64_t outputs() const { return rows * classes; }
};

template <typename T, typename A>
void load_members(const Task<T>& task, int64_t first, int64_t count, A* block, int64_t stride) {
  for (int64_t k = 0; k < task.members; ++k) {
    const T* source = task.predictions + k * task.batch * task.outputs() + first;
    for (int64_t e = 0; e < count; ++e) block[k * stride + e] = static_cast<A>(to_float(source[e]));
  }
}

template <typename A>
void scale(const Gradients<A>& gradient, int64_t members, int64_t count, A factor) {
  for (int64_t k = 0; gradient && k < members; ++k) {
    for (int64_t e = 0; e < count; ++e) gradient[k][e] *= factor;
  }
}

// Samples [begin, end) of a measure over outputs; the outputs of all samples form one line.
template <typename T, typename A = typename Storage<T>::Arithmetic>
void measure_lines(const Task<T>& task, int64_t begin, int64_t end) {
  const int64_t outputs = task.outputs(), stride = task.batch * outputs;
  std::vector<A> block(std::is_same_v<T, A> ? 0 : task.members * kElements), scratch;
  A part[kElements];
  double total = 0;
  for (int64_t first = begin * outputs; first < end * outputs; first += kElements) {
    const int64_t width = std::min(kElements, end * outputs - first);
    Members<A> x{block.data(), kElements, task.members};
    if constexpr (std::is_same_v<T, A>) {
      x = {task.predictions + first, stride, task.members};
    } else {
      load_members(task, first, width, block.data(), kElements);
    }
    const Gradients<A> gradient = Gradients<A>{task.gradient, stride}.from(first);
    elements_of_members(task.measure, x, width, part, gradient, task.gain / static_cast<A>(outputs), scratch);
    for (int64_t e = 0; e < width;) {
      const int64_t sample = (first + e) / outputs, left = (sample + 1) * outputs - first;
      const int64_t stop = std::min(width, left);
      total += sum_over<double>(stop - e, [&](int64_t i) { return static_cast<double>(part[e + i]); });
      e = stop;
      if (stop < left) break;
      task.loss[sample] = static_cast<A>(total) * (task.gain / static_cast<A>(outputs));
      total = 0;
    }
  }
}

// Samples [begin, end) of a measure over classes.
template <typename T, typename A = typename Storage<T>::Arithmetic>
void measure_samples(const Task<T>& task, int64_t begin, int64_t end) {
  const int64_t classes = task.classes, stride = task.batch * task.outputs();
  std::vector<A> block(task.members * classes);
  ClassScratch<A> scratch(task.members, classes);
  for (int64_t b = begin; b < end; ++b) {
    double total = 0;
    for (int64_t r = 0; r < task.rows; ++r) {
      const int64_t first = (b * task.rows + r) * classes;
      load_members(task, first, classes, block.data(), classes);
      const Gradients<A> gradient = Gradients<A>{task.gradient, stride}.from(first);
      total +=
          classes_of_row(task.measure, Members<A>{block.data(), classes, task.members}, classes, gradient, scratch);
      scale(gradient, task.members, classes, task.gain / static_cast<A>(task.rows));
    }
    task.loss[b] = static_cast<A>(total) * (task.gain / static_cast<A>(task.rows));
  }
}

#define DADL_MEASURE(T)                                                       \
  DADL_CLONES void measure(const Task<T>& task, int64_t begin, int64_t end) { \
    if (is_over_classes(task.measure)) {                                      \
      measure_samples<T>(task, begin, end);                                   \
    } else {                                                                  \
      measure_lines<T>(task, begin, end);                                     \
    }                                                                         \
  }
DADL_MEASURE(float)
DADL_MEASURE(double)
DADL_MEASURE(Half)
DADL_MEASURE(BFloat16)
#undef DADL_MEASURE

std::tuple<Tensor, Tensor> disagreement(Tensor predictions, int64_t measure_number, bool mean, bool with_gradient) {
  check_disagreement(predictions);
  const Measure chosen = checked_measure(measure_number);
  predictions = as_contiguous(predictions);
  const int64_t members = predictions.size(0), batch = predictions.size(1), rows = predictions.size(2),
                classes = predictions.size(3);
  const ScalarType arithmetic = arithmetic_type(predictions);
  const Tensor loss = new_empty(predictions, {batch}, arithmetic);
  const Tensor gradient = new_empty(predictions, {with_gradient ? members : 0, batch, rows, classes}, arithmetic);
  dispatch_floating(predictions, "predictions", [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    const Task<T> task{chosen,
                       data<T>(predictions),
                       members,
                       batch,
                       rows,
                       classes,
                       mean ? 1 / static_cast<A>(std::max<int64_t>(batch, 1)) : A{1},
                       mutable_data<A>(loss),
                       with_gradient ? mutable_data<A>(gradient) : nullptr};
    torch::stable::parallel_for(0, batch, grain_rows(members * task.outputs()),
                                [&](int64_t begin, int64_t end) { measure(task, begin, end); });
  });
  return {loss, gradient};
}

}  // namespace
}  // namespace dadl::cpu

DADL_LIBRARY_IMPL(CPU, m) { DADL_IMPL(m, dadl::cpu, disagreement); }
