// The schema of every operator. Their fake kernels and autograd rules are in dadl_ext/ops/.
//
// Results called float32 are float64 where the floating-point inputs are.
#include "signatures.h"

DADL_LIBRARY(m) {
  // Ranks 1..n along the last dimension, descending, in float32. Only the gradient uses interp_strength.
  m.def("rank(Tensor input, float interp_strength) -> Tensor");

  // The blackbox gradient of rank for the upstream gradient `grad`.
  m.def("rank_backward(Tensor grad, Tensor input, Tensor ranks, float interp_strength) -> Tensor");

  // Draws one row for each distinct label: labels [n] or [n, k], priority [n] float64 -> index [n], the chosen row of
  // each column of the subset (0 beyond count); order [n], the column of the p-th smallest label; count [].
  m.def("ranksim_select(Tensor labels, Tensor priority) -> (Tensor index, Tensor order, Tensor count)");

  // label_similarity, in this operator and the next two, is None (minus the absolute difference of scalar labels) or a
  // matrix [p, p] whose leading [count, count] block is used. On CUDA, where the host does not know count, p < count
  // gives NaN.
  //
  // Selects the subset. loss [] is the sum or the mean over its rows; gradient [n, d] is for an upstream gradient of 1
  // (no rows unless with_gradient). Both are float32.
  m.def(
      "ranksim_loss(Tensor features, Tensor labels, Tensor priority, Tensor? label_similarity, "
      "float interp_strength, float weight, bool mean, bool with_gradient) "
      "-> (Tensor loss, Tensor gradient)");

  // The row losses [n] of the subset, 0 beyond count.
  m.def(
      "ranksim_rows(Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count, "
      "Tensor? label_similarity, float interp_strength, float weight) -> Tensor");

  // The gradient [n, d] of sum(grad * rows).
  m.def(
      "ranksim_rows_backward(Tensor grad, Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count, "
      "Tensor? label_similarity, float interp_strength, float weight) -> Tensor");

  // features [n, d], labels [n] or [n, k] -> the anchors' losses [n], or their mean [] or sum [], and the gradient [n,
  // d] of the sum of what is returned (no rows unless with_gradient), in float32. similarity, label_distance and
  // reduction are numbered as in core/rank_n_contrast.h.
  m.def(
      "rank_n_contrast(Tensor features, Tensor labels, float temperature, int similarity, int label_distance, "
      "int reduction, bool with_gradient) -> (Tensor loss, Tensor gradient)");

  // The gradient [n, d] of sum(grad * losses) of the anchors.
  m.def(
      "rank_n_contrast_backward(Tensor grad, Tensor features, Tensor labels, float temperature, int similarity, "
      "int label_distance) -> Tensor");

  // query [B, d], key [N, d] -> lse [B] = log sum_j exp(scale q_i k_j) over the keys that take part (key_mask [N] bool;
  // exclude_self leaves out key i for query i), and its gradient slope [B, d] = scale sum_j p_ij k_j (no rows unless
  // with_slope), in float32.
  m.def(
      "similarity_logsumexp(Tensor query, Tensor key, Tensor? key_mask, float scale, bool exclude_self, "
      "bool with_slope) -> (Tensor lse, Tensor slope)");

  // [N, d] = scale sum_i grad_i p_ij q_i, in the dtype of the keys.
  m.def(
      "similarity_logsumexp_key_gradient(Tensor grad, Tensor query, Tensor key, Tensor? key_mask, Tensor lse, "
      "float scale, bool exclude_self) -> Tensor");

  // query, key [B, d], queue [C, D, d], target [B] -> the row losses [B], 0 where the target is ignore_index; or their
  // sum [], or their mean [] over the rows that are not ignored; and the gradient [B, d] with respect to the queries
  // (no rows unless with_slope). A target outside the classes raises; on CUDA the loss of its row is NaN.
  m.def(
      "pseudo_group_contrast(Tensor query, Tensor key, Tensor queue, Tensor target, Tensor? slot_count, "
      "float temperature, int form, int ignore_index, int reduction, bool with_slope) -> (Tensor loss, Tensor slope)");

  // predictions [K, B, R, C] of K members -> the row losses [B], divided by B for the mean, and their gradient
  // [K, B, R, C] (no members unless with_gradient), in float32. Measures over classes compare softmaxes over C and
  // average over R; the others average over all R C outputs.
  m.def(
      "disagreement(Tensor predictions, int measure, bool mean, bool with_gradient) -> (Tensor rows, Tensor gradient)");

  // features [B, F], weight [C, F], bias [C] -> [K, B, C] in the dtype of the features: the features under the K
  // dropout masks of seed [] int64, times the weight.
  m.def("dropout_linear(Tensor features, Tensor weight, Tensor? bias, Tensor seed, float p, int samples) -> Tensor");

  // The gradients [B, F] and [C, F] for the upstream gradient [K, B, C] (no rows where not asked for).
  m.def(
      "dropout_linear_backward(Tensor grad, Tensor features, Tensor weight, Tensor seed, float p, bool for_features, "
      "bool for_weight) -> (Tensor features, Tensor weight)");

  // The disagreement of dropout_linear's results, for few outputs, storing neither: the row losses [B], divided by B
  // for the mean, and the gradients [B, F], [C, F] and [C] of their sum (no rows unless with_gradient), in float32.
  // minimax negates the last two.
  m.def(
      "dropout_disagreement(Tensor features, Tensor weight, Tensor? bias, Tensor seed, float p, int samples, "
      "int measure, bool mean, bool minimax, bool with_gradient) "
      "-> (Tensor rows, Tensor features, Tensor weight, Tensor bias)");

  // grad * gradient, rounded once to the dtype of the input; grad is [] or runs along dimension dim. Because the input
  // is an argument, a second derivative reaches this operator, which then raises.
  m.def("scale_gradient(Tensor grad, Tensor gradient, Tensor input, int dim) -> Tensor");
}
