// Every operator's schema, in one place. Fake kernels and autograd stand in dadl_ext/ops/.
//
// rank                   ranks 1..n along the last dimension, descending; float32 (float64 for float64);
//                        interp_strength is for the gradient alone
// rank_backward          the blackbox gradient of rank for the upstream gradient `grad`
// ranksim_select         labels [n] or [n, k], priority [n] float64 -> index [n] (the chosen row of each subset
//                        column, 0 beyond count), order [n] (the column of the p-th smallest label), count []
// ranksim_loss           the subset's loss [] and its gradient [n, d] for an upstream gradient of 1 (no rows unless
//                        with_gradient), in float32 (float64 for float64 features)
// ranksim_loss_backward  grad * gradient, rounded once to the features' dtype (the features also make a second
//                        derivative reach this operator, which then raises)
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
// contrast_query_gradient             [B, d], grad_i slope_i, in the queries' dtype; grad [B], or [] for all rows
// pseudo_group_contrast  query, key [B, d], queue [C, D, d], target [B] -> the row losses [B], in cross-entropy form
//                        or as KL divergence, and their gradients [B, d] with respect to the queries (no rows unless
//                        with_slope); 0 where the target is ignore_index, else NaN where it is no class. For the mean
//                        both are divided by the number of rows that are not ignored
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(dadl, m) {
  m.def("rank(Tensor input, float interp_strength) -> Tensor");
  m.def("rank_backward(Tensor grad, Tensor input, Tensor ranks, float interp_strength) -> Tensor");
  m.def("ranksim_select(Tensor labels, Tensor priority) -> (Tensor index, Tensor order, Tensor count)");
  m.def(
      "ranksim_loss(Tensor features, Tensor labels, Tensor index, Tensor order, Tensor count, "
      "Tensor? label_similarity, float interp_strength, float weight, bool with_gradient) "
      "-> (Tensor loss, Tensor gradient)");
  m.def("ranksim_loss_backward(Tensor grad, Tensor gradient, Tensor features) -> Tensor");
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
      "float temperature, bool kl, int ignore_index, bool mean, bool with_slope) -> (Tensor rows, Tensor slope)");
  m.def("contrast_query_gradient(Tensor grad, Tensor slope, Tensor query) -> Tensor");
}
