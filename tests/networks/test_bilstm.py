"""The LSTM on word vectors, against PyTorch's LSTM on one text at a time."""

import torch
from dadl.networks.bilstm import BiLSTM
from torch import Tensor


def texts(*lengths: tuple[int, int], width: int = 5) -> Tensor:
    """A pair of texts of these lengths for each sample."""
    longest = max(length for pair in lengths for length in pair)
    batch = torch.zeros(len(lengths), 2, longest, width + 1)
    for i, pair in enumerate(lengths):
        for j, length in enumerate(pair):
            batch[i, j, :length, :width] = torch.randn(length, width)
            batch[i, j, :length, width] = 1
    return batch


def test_padding_changes_nothing() -> None:
    encoder, batch = BiLSTM(5, 4, 2), texts((3, 7), (1, 2), (7, 7))
    together = encoder(batch)
    assert together.shape == (3, encoder.num_features)
    for i, length in enumerate((7, 2, 7)):
        torch.testing.assert_close(encoder(batch[i : i + 1, :, :length])[0], together[i])
    behind = torch.cat([batch, torch.zeros(3, 2, 9, 6)], dim=2)
    torch.testing.assert_close(encoder(behind), together)
    behind[..., 7:, :5] = 100.0  # behind the end, whatever it is
    torch.testing.assert_close(encoder(behind), together)


def test_against_one_text_at_a_time() -> None:
    encoder, batch = BiLSTM(5, 4, 2), texts((3, 6), (4, 1))
    for i, pair in enumerate(((3, 6), (4, 1))):
        u, v = (encoder.lstm(batch[i, j, :length, :5][None])[0].amax(dim=1)[0] for j, length in enumerate(pair))
        expected = torch.cat([u, v, (u - v).abs(), u * v])
        torch.testing.assert_close(encoder(batch)[i], expected)


def test_one_text_and_a_text_without_words() -> None:
    encoder = BiLSTM(5, 4, 1)
    features = encoder(torch.zeros(2, 1, 3, 6))
    assert features.shape == (2, encoder.num_features) == (2, 8)
    assert features.isfinite().all()


def test_gradients_reach_both_layers_and_directions() -> None:
    encoder = BiLSTM(5, 4, 2)
    encoder(texts((3, 6), (4, 1))).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
