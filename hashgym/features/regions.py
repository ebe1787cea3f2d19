"""Regions of an image, as MCH crops them: fixed ones for indexing, random ones for training.

A box is (left, top, right, bottom) in pixels, right and bottom excluded, as PIL's ``Image.crop`` takes it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Box", "corner_and_centre", "random_boxes"]

Box = tuple[int, int, int, int]


def _side(length: int, sigma: float) -> int:
    """Return the length of a region's side: ``sigma`` of the image's, rounded half up, one pixel at least."""
    return max(1, int(length * sigma + 0.5))


def _check(width: int, height: int, sigma: float) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"an image has at least one pixel each way, got {width} x {height}")
    if not 0 < sigma <= 1:
        raise ValueError(f"sigma is the ratio of a region's side to the image's, in (0, 1], got {sigma}")


def corner_and_centre(width: int, height: int, sigma: float = 0.5) -> list[Box]:
    """Return the five regions of MCH: top left, top right, bottom left, bottom right, centre.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        sigma: ratio of a region's sides to the image's, in (0, 1]; 1 gives the whole image five times.

    Raises:
        ValueError: for a ratio outside (0, 1] and for an image without pixels.
    """
    _check(width, height, sigma)
    w, h = _side(width, sigma), _side(height, sigma)
    right, bottom = width - w, height - h
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    return [(x, y, x + w, y + h) for x, y in corners]


def random_boxes(rng: np.random.Generator, width: int, height: int, sigma: float = 0.5, count: int = 1) -> list[Box]:
    """Return ``count`` regions of side ratio ``sigma`` at uniformly random places, as MCH crops them for training.

    Raises:
        ValueError: for a ratio outside (0, 1] and for an image without pixels.
    """
    _check(width, height, sigma)
    w, h = _side(width, sigma), _side(height, sigma)
    lefts = rng.integers(0, width - w + 1, count).tolist()
    tops = rng.integers(0, height - h + 1, count).tolist()
    return [(x, y, x + w, y + h) for x, y in zip(lefts, tops, strict=True)]
