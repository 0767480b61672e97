"""What the demos on characters share: settings, encoder, rendering and reports."""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from dadl_ext import build_info

from ..files import check_output_folder, write_text
from ..output import Cells, JobProgress, environment, markdown_table, rich_table, save_figure, write_json
from . import kanji

IMAGE_SIZE = 48

# Blocks for character_encoder, large enough to distinguish radicals.
FEATURES = 256
ENCODER = ((32, 5, 2, 2), (64, 3, 1, 2), (128, 3, 1, 2), (FEATURES, 3, 1, 1))


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the results of a demo depend on besides the data."""

    seeds: int = 1
    epochs: int = 1
    batch_size: int = 32
    every_nth_character: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.epochs < 1:
            raise ValueError(f"expected at least one seed and one epoch, got seeds={self.seeds}, epochs={self.epochs}")


def character_encoder(*blocks: tuple[int, int, int, int], channels: int = 1) -> nn.Sequential:
    """Characters ``[B, channels, 48, 48]`` to features. A block is the width, kernel and stride of a convolution, and
    the size of a pooling. The last two layers average over positions.
    """
    layers: list[nn.Module] = []
    for width, kernel, stride, pool in blocks:
        layers.append(nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False))
        # Pooling first leaves only a quarter of the values to normalise.
        layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(memory_format=torch.channels_last)  # type: ignore


def load_characters(settings: DemoSettings, progress: JobProgress) -> kanji.Kanji:
    """The characters of the demo, rendered or from the cache."""
    characters = kanji.list_kanji()[:: settings.every_nth_character]
    progress.start("Rendering characters", total=len(characters))
    return kanji.load_kanji(IMAGE_SIZE, characters, on_rendered=progress.advance)


class DemoReport:
    """Shows the results of a demo on the console and writes them to the folder ``output``, with the time it took."""

    def __init__(
        self,
        name: str,
        settings: DemoSettings,
        fabric: Fabric,
        output: Path,
        console: Console,
        source: str = kanji.ATTRIBUTION,
    ) -> None:
        self.started = time.perf_counter()
        self.name, self.settings, self.fabric, self.output, self.console = name, settings, fabric, output, console
        self.source = source
        check_output_folder(output)
        console.print(source, soft_wrap=True)

    def write(
        self, tables: Mapping[str, Cells], notes: Sequence[str], figure: Figure, results: Mapping[str, Any]
    ) -> None:
        """Write the titled tables and the notes, the figure and the results, and print what the console can show."""
        markdown = [f"**{title}**\n\n{markdown_table(cells)}" for title, cells in tables.items()]
        write_text(self.output / "table.md", "\n\n".join([*markdown, *notes, self.source]) + "\n")
        save_figure(figure, self.output / "figure")
        seconds = time.perf_counter() - self.started
        common = {
            "demo": self.name,
            "attribution": self.source,
            "kanjivg": importlib.metadata.version("kanjivg"),
            "environment": environment(self.fabric.device),
            "dadl_ext": build_info(),
            "settings": asdict(self.settings),
            "seconds": seconds,
        }
        write_json(self.output / "results.json", {**common, **results})
        for note in notes:
            self.console.print(note, soft_wrap=True)
        for title, cells in tables.items():
            self.console.print(rich_table(title, cells))
        self.console.print(
            f"Wrote table.md, results.json, figure.png and .svg to {self.output} ({seconds:.0f} s)", soft_wrap=True
        )
