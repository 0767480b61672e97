"""Sprites over photographs, with the values of scale, x and y. Few of the images have labels."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..data.arrays.sprites import generate_sprites
from ..output import JobProgress
from .splits import write_lists

IMAGES = "images"
COUNT = 4000
STORED = 37  # pixels: of views of 32
LABELS = 5  # % of the training images


def write_sprites(folder: Path, every: int, progress: JobProgress) -> None:
    """Write images and the lists of their scale, x and y, of which a twentieth of the training images are labelled."""
    sprites = generate_sprites(COUNT // every, STORED)
    (folder / IMAGES).mkdir()
    progress.start("Drawing sprites", total=len(sprites.images))
    names = [f"{IMAGES}/{i:04}.png" for i in range(len(sprites.images))]
    for name, image in zip(names, sprites.images.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image).save(folder / name)
        progress.advance()
    values = [" ".join(f"{value:.6f}" for value in row) for row in sprites.target.tolist()]
    write_lists(folder, names, values, np.zeros(len(names), dtype=np.int64), LABELS)
