"""The measures of disagreement, and the layout of the members' predictions."""

from torch import Tensor

MEASURES = ("l1", "mse", "variance", "symmetric_kl", "js", "softmax_l1")  # in the order of csrc/core/disagreement.h
CLASS_MEASURES = ("symmetric_kl", "js", "softmax_l1")


def as_members(predictions: Tensor, measure: str) -> Tensor:
    """``[K, B, ...]`` as ``[K, B, R, C]``: R distributions over C classes, or R · C outputs."""
    members, batch, *outputs = predictions.shape
    if measure in CLASS_MEASURES and len(outputs) == 3:  # heatmaps
        return predictions.reshape(members, batch, outputs[0], outputs[1] * outputs[2])
    classes = outputs[-1] if outputs else 1
    count = 1
    for length in outputs[:-1]:
        count *= length
    return predictions.reshape(members, batch, count, classes)
