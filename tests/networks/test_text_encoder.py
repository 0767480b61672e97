"""MiniLM against sentence-transformers, and the features of pairs."""

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs pip install 'dadl[train]'")

from dadl.networks.text_encoder import MAX_TOKENS, TextEncoder, encode, model_folder, num_features, tokenize
from dadl.networks.text_pairs import combine
from torch import nn

PAIRS = [
    ("A boat leaves the harbour.", "The boat sails away."),
    ("Two cats sleep.", "Zwei Katzen schlafen, während es draußen regnet und stürmt — wie immer im November."),
    ("Rain", "Snow"),
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder().eval()


def test_embeddings_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder()), device="cpu", local_files_only=True)
    texts = [text for pair in PAIRS for text in pair] + ["word " * 300]
    expected = model.encode(texts, convert_to_tensor=True) * 384**0.5
    done: list[int] = []
    actual = encode([(text,) for text in texts], batch_size=4, on_encoded=lambda: done.append(1))
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)
    assert len(done) == 7


def test_tokens_of_samples() -> None:
    tokens = tokenize(PAIRS)
    assert tokens.shape[:2] == (3, 2)
    assert tokens.dtype == torch.int64
    assert (tokens[2] != 0).sum(dim=1).tolist() == [3, 3]  # a word between the marks of beginning and end
    assert tokenize([("word " * 1000,)]).shape == (1, 1, MAX_TOKENS)


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    tokens = tokenize(PAIRS)
    with torch.no_grad():
        together, alone = encoder(tokens), encoder(tokens[2:, :, :3])
        padded = encoder(nn.functional.pad(tokens, (0, 9)))
    torch.testing.assert_close(together[2:], alone, atol=2e-5, rtol=1e-4)
    assert torch.equal(padded, together)


def test_features_of_pairs() -> None:
    u, v, w = torch.randn(3, 5, 384)
    pair = combine(torch.stack([u, v], dim=1))
    assert torch.equal(pair, torch.cat([u, v, (u - v).abs(), u * v], dim=1))
    assert torch.equal(combine(torch.stack([u, v, w], dim=1)), torch.cat([u, v, w], dim=1))
    assert [num_features(texts) for texts in (1, 2, 3)] == [384, 1536, 1152]


def test_entries_are_of_order_one_and_gradients_reach_the_words(encoder: TextEncoder) -> None:
    features = encoder(tokenize(PAIRS))
    assert features.shape == (3, num_features(2))
    assert features[:, :384].square().mean().item() == pytest.approx(1, rel=1e-4)
    features[:, 384].sum().backward()
    gradient = encoder.network.embeddings.word_embeddings.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("texts", [[], [()], [("a",), ("b", "c")]])
def test_samples_have_as_many_texts(texts: list[tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="equally many in each"):
        tokenize(texts)
