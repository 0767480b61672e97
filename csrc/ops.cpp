// Every operator's schema, in one place. Fake kernels and autograd stand in dadl_ext/ops/.
//
// rank                   ranks 1..n along the last dimension, descending; float32 (float64 for float64);
//                        interp_strength is for the gradient alone
// rank_backward          the blackbox gradient of rank for the upstream gradient `grad`
// ranksim_select         labels [n] or [n, k], priority [n] float64 -> index [n] (the chosen row of each subset
//                        column, 0 beyond count), order [n] (the column of the p-th smallest label), count []
// ranksim_loss           selects, and gives the subset's loss [], the sum or the mean over its rows, and its gradient
//                        [n, d] for an upstream gradient of 1 (no rows unless with_gradient), in float32 (float64 for
//                        float64 features)
// ranksim_rows           the subset's row losses [n], 0 beyond count
// ranksim_rows_backward  the gradient [n, d] of sum(grad * rows)
//
// label_similarity is None (negative absolute difference of scalar labels) or a matrix [p, p] whose leading
// [count, count] block is used; p < count gives NaN on CUDA, where count is not known to the host.
//
// similarity_logsumexp   query [B, d], key [N, d] -> lse [B] = log sum_j exp(scale q_i k_j) over the keys that take
//                        part (key_mask [N] bool; exclude_self: not key i for query i), and slope [B, d] = scale
//                        sum_j p_ij k_j, its gradient (no rows unless with_slope), in float32 (float64 for float64)
// similarity_logsumexp_key_gradient   [N, d], scale sum_i grad_i p_ij q_i, in the keys' dtype
// pseudo_group_contrast  query, key [B, d], queue [C, D, d], target [B] -> the row losses [B] of the form cross_entropy
//                        or kl, 0 where the target is ignore_index; their sum [], or their mean [] over
//                        the rows that are not ignored; and the gradient [B, d] with respect to the queries (no rows
//                        unless with_slope). A target that is no class raises, on CUDA its loss is NaN
//
// disagreement           predictions [K, B, R, C] of K members -> the row losses [B], divided by B for the mean, and
//                        their gradient [K, B, R, C] (no members unless with_gradient), in float32 (float64 for
//                        float64). Measures over classes compare softmaxes over C, averaged over R; the others, R C
//                        outputs
// dropout_linear         features [B, F], weight [C, F], bias [C] -> [K, B, C], features under K dropout masks of the
//                        seed [] int64 times the weight, in the features' dtype
// dropout_linear_backward    the gradients [B, F] and [C, F] for the upstream gradient [K, B, C] (no rows where not
//                        asked for)
// dropout_disagreement   both, for few outputs and without either's result: the row losses [B], divided by B for the
//                        mean, and the gradients [B, F], [C, F] and [C] of their sum in float32 (float64 for float64;
//                        no rows unless with_gradient), the last two negated for minimax
//
// scale_gradient         grad * gradient, rounded once to the input's dtype; grad [] or along dimension dim. The input
//                        also makes a second derivative reach this operator, which then raises
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(dadl, m) {
  m.def("rank(Tensor input, float interp_strength) -> Tensor");
  m.def("rank_backward(Tensor grad, Tensor input, Tensor ranks, float interp_strength) -> Tensor");
  m.def("ranksim_select(Tensor labels, Tensor priority) -> (Tensor index, Tensor order, Tensor count)");
  m.def(
      "ranksim_loss(Tensor features, Tensor labels, Tensor priority, Tensor? label_similarity, "
      "float interp_strength, float weight, bool mean, bool with_gradient) "
      "-> (Tensor loss, Tensor gradient)");
  m.def(
      "ranksim_rows(Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count, "
      "Tensor? label_similarity, float interp_strength, float weight) -> Tensor");
  m.def(
      "ranksim_rows_backward(Tensor grad, Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count, "
      "Tensor? label_similarity, float interp_strength, float weight) -> Tensor");
  m.def(
      "similarity_logsumexp(Tensor query, Tensor key, Tensor? key_mask, float scale, bool exclude_self, "
      "bool with_slope) -> (Tensor lse, Tensor slope)");
  m.def(
      "similarity_logsumexp_key_gradient(Tensor grad, Tensor query, Tensor key, Tensor? key_mask, Tensor lse, "
      "float scale, bool exclude_self) -> Tensor");
  m.def(
      "pseudo_group_contrast(Tensor query, Tensor key, Tensor queue, Tensor target, Tensor? slot_count, "
      "float temperature, int form, int ignore_index, int reduction, bool with_slope) -> (Tensor loss, Tensor slope)");
  m.def(
      "disagreement(Tensor predictions, int measure, bool mean, bool with_gradient) -> (Tensor rows, Tensor gradient)");
  m.def("dropout_linear(Tensor features, Tensor weight, Tensor? bias, Tensor seed, float p, int samples) -> Tensor");
  m.def(
      "dropout_linear_backward(Tensor grad, Tensor features, Tensor weight, Tensor seed, float p, bool for_features, "
      "bool for_weight) -> (Tensor features, Tensor weight)");
  m.def(
      "dropout_disagreement(Tensor features, Tensor weight, Tensor? bias, Tensor seed, float p, int samples, "
      "int measure, bool mean, bool minimax, bool with_gradient) "
      "-> (Tensor rows, Tensor features, Tensor weight, Tensor bias)");
  m.def("scale_gradient(Tensor grad, Tensor gradient, Tensor input, int dim) -> Tensor");
}
