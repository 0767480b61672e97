"""Texts, as the vectors of their words, to features with a bidirectional LSTM.

The encoder of STS-B in Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019, which Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021, and RankSim use.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .text_pairs import combine, combined_width

LAYERS = 2


class BiLSTM(nn.Module):
    """Two bidirectional layers over the words of each text, and the largest value of each unit over the text.

    The texts of a sample become its features as :func:`.combine` says. What stands behind the end of a text changes
    nothing.

    Args:
        vectors: the width d of the word vectors.
        width: units in each direction of each layer.
        texts: texts per sample, T.

    Shape:
        ``[B, T, L, d + 1]``, the vectors of the words of each text; the last number is 1 for a word and 0 behind the
        end. To features ``[B, F]``, F in ``num_features``.
    """

    def __init__(self, vectors: int, width: int, texts: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(vectors, width, LAYERS, batch_first=True, bidirectional=True)
        self.num_features = combined_width(texts, 2 * width)

    def forward(self, texts: Tensor) -> Tensor:
        flat = texts.flatten(0, 1)
        words = flat[..., -1] > 0
        lengths = words.sum(dim=1).clamp_min(1).cpu()  # a text without words is one zero
        packed = pack_padded_sequence(flat[..., :-1], lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, padding_value=-torch.inf)
        return combine(states.amax(dim=1).unflatten(0, texts.shape[:2]))
