"""Labels for samples without a label or with several candidates, for :class:`dadl.MetaReweighter` to weight.

The labels are hard, and some are wrong; the learnt weights are there to find those.
"""

import torch
from torch import Tensor


def candidate_confidence(logits: Tensor, candidates: Tensor) -> Tensor:
    r"""The softmax over each sample's candidate labels, :math:`q_{ic} \propto e^{z_{ic}} [c \in S_i]`.

    Partial-label learning identifies the true label by these confidences (Lv et al., ICML 2020).

    Args:
        logits: ``[n, C]``.
        candidates: boolean ``[n, C]``, at least one in each row; see :func:`dadl.data.partial_labels`.

    Returns:
        ``[n, C]``, 0 for labels that are not candidates, differentiable in the logits.

    Raises:
        ValueError: wrong shapes or dtypes, or a row without a candidate.
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

    The guesses of an untrained network reinforce themselves: start with some epochs on the soft confidences,
    ``-(candidate_confidence(z, S).detach() * z.log_softmax(1)).sum(1).mean()``.

    >>> target = disambiguate(model(images).detach(), candidates[rows])
    >>> reweighter.step((images, target), next(meta_batches))
    """
    return candidate_confidence(logits.detach(), candidates).argmax(dim=1)


def pseudo_label(logits: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """The likeliest label of each unlabelled sample, ``[n]``, and whether it is likelier than ``threshold``, ``[n]``.

    For a loop that weights pseudo-labelled samples, with the labelled ones at full weight and as the meta set:

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
