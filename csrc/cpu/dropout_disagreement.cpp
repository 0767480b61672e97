// The disagreement of linear maps under many dropout masks, with its gradients, on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../disagreement_checks.h"
#include "../signatures.h"
#include "disagreement_measures.h"
#include "dropout_rows.h"

namespace dadl::cpu {
namespace {

// Where the results of the fused operator go. The gradients are all wanted, or all null; those of the weight
// [C, padded F] and of the bias [C] are sums over rows.
template <typename A>
struct FusedResult {
  A *loss, *for_features, *for_weight, *for_bias;
};

template <typename A>
void disagree_rows(const Linear<A>& linear, Measure measure, A gain, int64_t begin, int64_t end,
                   const FusedResult<A>& out) {
  const int64_t members = linear.members, outputs = linear.outputs;
  const bool classes = is_over_classes(measure);
  RowScratch<A> scratch(linear);
  ClassScratch<A> class_scratch(members, outputs);
  A* upstream = scratch.upstream.data();
  const Members<A> predictions{scratch.result.data(), outputs, members};
  const Gradients<A> gradient{out.for_features ? upstream : nullptr, outputs};
  const A factor = classes ? gain : gain / static_cast<A>(outputs);
  for (int64_t row = begin; row < end; ++row) {
    predict_row(linear, row, scratch.values.data(), scratch.masks.data(), scratch.result.data());
    A total = 0;
    if (classes) {
      total = measure_classes(measure, predictions, outputs, gradient, class_scratch);
    } else {
      A part[kFewOutputs];
      measure_elements(measure, predictions, outputs, part, gradient, class_scratch.elements);
      for (int64_t c = 0; c < outputs; ++c) total += part[c];
    }
    out.loss[row] = factor * total;
    if (!gradient) continue;
    for (int64_t e = 0; e < members * outputs; ++e) {
      upstream[e] *= factor;
      out.for_bias[e % outputs] += upstream[e];
    }
    add_row_gradients(linear, scratch.values.data(), scratch.masks.data(), upstream,
                      out.for_features + row * linear.width, out.for_weight);
  }
}

// target_clones does not work on templates, so each type has its own functions.
DADL_CLONES void disagree(const Linear<float>& linear, Measure measure, float gain, int64_t begin, int64_t end,
                          const FusedResult<float>& out) {
  disagree_rows(linear, measure, gain, begin, end, out);
}
DADL_CLONES void disagree(const Linear<double>& linear, Measure measure, double gain, int64_t begin, int64_t end,
                          const FusedResult<double>& out) {
  disagree_rows(linear, measure, gain, begin, end, out);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_disagreement(Tensor features, Tensor weight,
                                                                std::optional<Tensor> bias, Tensor seed, double p,
                                                                int64_t samples, int64_t measure_number, bool mean,
                                                                bool minimax, bool with_gradient) {
  const Measure measure = checked_measure(measure_number);
  check_dropout(features, weight, bias, seed, samples);
  check_few_outputs(weight);
  const ScalarType arithmetic = arithmetic_type(features);
  Tensor loss, features_gradient, weight_gradient, bias_gradient;
  with_linear(features, weight, bias, seed, p, samples, [&](const auto& linear, auto tag) {
    using A = decltype(tag);
    const int64_t rows = linear.rows, width = linear.width, outputs = linear.outputs, padded = linear.padded;
    loss = new_empty(features, {rows}, arithmetic);
    features_gradient = new_empty(features, {with_gradient ? rows : 0, width}, arithmetic);
    weight_gradient = new_empty(features, {with_gradient ? outputs : 0, width}, arithmetic);
    bias_gradient = new_empty(features, {with_gradient ? outputs : 0}, arithmetic);
    const Chunks chunks(rows, samples * padded);
    std::vector<A> weight_parts(with_gradient ? chunks.count * outputs * padded : 0);
    std::vector<A> bias_parts(chunks.count * outputs);
    const A gain = mean ? 1 / static_cast<A>(std::max<int64_t>(rows, 1)) : A{1};
    torch::stable::parallel_for(0, chunks.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        disagree(linear, measure, gain, chunk * chunks.size, std::min((chunk + 1) * chunks.size, rows),
                 {mutable_data<A>(loss), with_gradient ? mutable_data<A>(features_gradient) : nullptr,
                  with_gradient ? weight_parts.data() + chunk * outputs * padded : nullptr,
                  bias_parts.data() + chunk * outputs});
      }
    });
    if (!with_gradient) return;
    const A sign = minimax ? A{-1} : A{1};
    add_chunks(weight_parts, chunks.count, outputs, padded, width, sign, mutable_data<A>(weight_gradient));
    add_chunks(bias_parts, chunks.count, outputs, 1, 1, sign, mutable_data<A>(bias_gradient));
  });
  return {loss, features_gradient, weight_gradient, bias_gradient};
}

}  // namespace
}  // namespace dadl::cpu

DADL_LIBRARY_IMPL(CPU, m) { DADL_IMPL(m, dadl::cpu, dropout_disagreement); }
