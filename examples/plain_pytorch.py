"""Imbalanced regression in a plain PyTorch loop.

    python examples/plain_pytorch.py

The labels have a long tail: hundreds of training samples lie near 0, a handful near 10. Two things are added to an
ordinary L1 loop: weights against the imbalance, from the smoothed distribution of the labels, and RankSim on the
features before the last layer. The test labels are uniform; the error is reported over labels with many, medium and few
training samples. The data is made up on the spot, and everything takes seconds on a CPU.
"""

import torch
from dadl import LabelDistributionSmoothing, bin_labels, bin_weights, shot_metrics, weighted_l1_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dadl_ext import RankSimLoss

HIGHEST, BINS, INPUTS = 10.0, 20, 16


def bins_of(labels: Tensor) -> Tensor:
    return bin_labels(labels, 0, HIGHEST, BINS)


def make_data(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and test samples: noisy points on a curve that winds through the input space as the label grows."""
    draw = torch.Generator().manual_seed(seed)
    frequency, phase = torch.rand(2, INPUTS, generator=draw)

    def samples(labels: Tensor) -> TensorDataset:
        points = torch.sin(labels[:, None] * frequency + 2 * torch.pi * phase)
        return TensorDataset(points + 0.3 * torch.randn(points.shape, generator=draw), labels)

    long_tail = torch.empty(2000).exponential_(0.4, generator=draw)
    return samples(long_tail[long_tail < HIGHEST]), samples(HIGHEST * torch.rand(1000, generator=draw))


def train(
    data: TensorDataset, weights: Tensor, ranksim: RankSimLoss | None = None, epochs: int = 20
) -> tuple[nn.Module, nn.Module]:
    """An encoder and a head, trained with the ``weights`` ``[BINS]`` of the label bins and, if given, RankSim."""
    encoder = nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    head = nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(epochs):
        for inputs, labels in DataLoader(data, batch_size=64, shuffle=True):
            features = encoder(inputs)
            loss = weighted_l1_loss(head(features).squeeze(1), labels, weights[bins_of(labels)])
            if ranksim is not None:
                loss = loss + ranksim(features, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoder, head


def main(seed: int = 0) -> dict[str, dict[str, float]]:
    """For each way to train: the MAE over all labels and by region, and how far the features are out of order."""
    training, test = make_data(seed)
    counts = torch.bincount(bins_of(training.tensors[1]), minlength=BINS)
    smoothed = bin_weights(counts, "inverse", smoothing=LabelDistributionSmoothing())
    disorder = RankSimLoss(reduction="mean")  # with γ = 1 the mean squared difference of the ranks
    arms = {
        "L1": (torch.ones(BINS), None),
        "L1, LDS": (smoothed, None),
        "L1, LDS, RankSim": (smoothed, RankSimLoss(weight=0.1)),
    }
    result: dict[str, dict[str, float]] = {}
    for name, (weights, ranksim) in arms.items():
        torch.manual_seed(seed)
        encoder, head = train(training, weights, ranksim)
        inputs, labels = test.tensors
        with torch.no_grad():
            features = encoder(inputs)
            errors = shot_metrics(head(features).squeeze(1), labels, bins_of(labels), counts)
            result[name] = {region: error.mae for region, error in errors.items()}
            result[name]["disorder"] = disorder(features, labels).item()
        print(f"{name:18}" + "  ".join(f"{column} {value:.3f}" for column, value in result[name].items()))
    return result


if __name__ == "__main__":
    main()
