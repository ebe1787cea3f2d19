"""Augmented views of an image, drawn once and cached as activations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hashgym.features.regions import Box

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["random_crop", "random_view"]

AREA = (0.5, 1.0)  # of a crop, as a share of the image's
RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height, relative to the image's


def random_view(image: Image, seed: int, index: int, view: int) -> Image:
    """Return a random crop of a picture, mirrored with probability 1/2.

    Args:
        image: the picture.
        seed: of the extraction; with the image's index and the view's number it determines the view.
        index: the image's number in its collection.
        view: number of the view.
    """
    from PIL import ImageOps

    rng = np.random.default_rng([seed, index, view])
    cropped = image.crop(random_crop(rng, *image.size))
    return ImageOps.mirror(cropped) if rng.random() < 0.5 else cropped


def random_crop(rng: np.random.Generator, width: int, height: int) -> Box:
    """Return a box at a random place, with a share of the area in AREA and an aspect changed by a factor in RATIO.

    Shares are uniform, factors uniform in their logarithm; a side that would be longer than the image is the image's.

    Raises:
        ValueError: for an image without pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image has at least one pixel each way, got {width} x {height}")
    area, factor = rng.uniform(*AREA), math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    w = min(width, max(1, round(width * math.sqrt(area * factor))))
    h = min(height, max(1, round(height * math.sqrt(area / factor))))
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return left, top, left + w, top + h
