"""Labels for samples that have none of their own, or several: what :class:`dadl.MetaReweighter` then weighs.

Each gives hard labels for a batch; wrong ones among them are what the learnt weights are there to find.
"""

import torch
from torch import Tensor


def candidate_confidence(logits: Tensor, candidates: Tensor) -> Tensor:
    r"""The softmax over each sample's candidate labels, :math:`q_{ic} \propto e^{z_{ic}} [c \in S_i]`.

    The confidences that partial-label learning identifies the true label by (Lv et al., ICML 2020).

    Args:
        logits: ``[n, C]``.
        candidates: boolean ``[n, C]``, as :func:`dadl.data.partial_labels` draws them; at least one in each row.

    Returns:
        ``[n, C]``, 0 for labels that are no candidates, differentiable in the logits.

    Raises:
        ValueError: other shapes or dtypes, or a row without a candidate.
    """
    if candidates.shape != logits.shape or logits.dim() != 2 or candidates.dtype != torch.bool:
        raise ValueError(
            f"expected logits and boolean candidates [n, C], got {tuple(logits.shape)} and {candidates.dtype} "
            f"{tuple(candidates.shape)}"
        )
    alone = ~candidates.any(dim=1)
    if alone.any():
        raise ValueError(f"row {int(alone.nonzero()[0])} has no candidate label; each sample needs at least one")
    return logits.masked_fill(~candidates, -torch.inf).softmax(dim=1)


def disambiguate(logits: Tensor, candidates: Tensor) -> Tensor:
    """The likeliest candidate label of each sample, ``[n]``; see :func:`candidate_confidence`.

    The guesses of an untrained network confirm themselves: begin with some epochs on the soft confidences,
    ``-(candidate_confidence(z, S).detach() * z.log_softmax(1)).sum(1).mean()``.

    >>> target = disambiguate(model(images).detach(), candidates[rows])
    >>> reweighter.step((images, target), next(meta_batches))
    """
    return candidate_confidence(logits.detach(), candidates).argmax(dim=1)


def pseudo_label(logits: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """The likeliest label of each unlabelled sample, ``[n]``, and whether it is likelier than ``threshold``, ``[n]``.

    In a loop whose pseudo-labelled samples are weighed and whose labelled ones are the meta set and count in full:

    >>> target, sure = pseudo_label(model(weak(unlabelled)), threshold=0.7)
    >>> weighed = reweighter.loss((strong(unlabelled)[sure], target[sure]), (images, labels))
    >>> (F.cross_entropy(model(images), labels) + weighed.loss).backward()

    Raises:
        ValueError: logits that are not ``[n, C]``, or a threshold outside [0, 1].
    """
    if logits.dim() != 2:
        raise ValueError(f"expected logits [n, C], got {tuple(logits.shape)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    confidence, target = logits.detach().softmax(dim=1).max(dim=1)
    return target, confidence > threshold
