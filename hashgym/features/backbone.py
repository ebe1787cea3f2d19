"""Backbone: a fixed function from pictures to feature vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Backbone", "check_size", "fit", "stretch"]

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Preprocess = Callable[["Image"], NDArray[np.uint8]]


@dataclass(frozen=True)
class Backbone:
    """A frozen image network with the preprocessing that its weights expect.

    Preprocessing is split in two: ``preprocess`` makes every picture one size, in bytes, so that threads can do it
    ahead; the network itself scales the bytes to what the weights were trained on.

    Attributes:
        name: the name :func:`hashgym.features.make` knows it by.
        dim: D, the number of features.
        size: side in pixels of the square the network sees.
        preprocessing: what happens to a picture on its way to the network, in words.
        weights: the weights' name; empty where there are none.
        digest: sha256 of the weights' file; empty where there are none.
        engine: what runs the network: ``numpy``, ``onnx`` or ``torch:DEVICE``.
        preprocess: RGB picture -> uint8 (size, size, 3).
        network: uint8 (n, size, size, 3) -> float32 (n, D).
    """

    name: str
    dim: int
    size: int
    preprocessing: str
    weights: str
    digest: str
    engine: str
    preprocess: Preprocess
    network: Network

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features, float32 (n, D), of preprocessed pictures, uint8 (n, size, size, 3).

        Raises:
            ValueError: for a batch of another shape or type.
        """
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (self.size, self.size, 3) or not len(batch):
            raise ValueError(
                f"{self.name} takes preprocessed pictures, uint8 (n, {self.size}, {self.size}, 3), "
                f"got {batch.dtype} {batch.shape}"
            )
        return self.network(batch)

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything that decides the features' values, ready for JSON."""
        return {key: getattr(self, key) for key in _DESCRIBED}


_DESCRIBED = ("name", "dim", "size", "preprocessing", "weights", "digest", "engine")


def check_size(size: int | None, default: int) -> int:
    """``size``, or the default where it is None.

    Raises:
        ValueError: for a size below one pixel.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is the side of the network's picture in pixels, at least 1, got {size}")
    return default if size is None else size


def stretch(size: int) -> Preprocess:
    """Resize to size x size whatever the proportions, bicubic."""
    from PIL import Image

    def preprocess(image: Image.Image) -> NDArray[np.uint8]:
        resized = image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(resized.convert("RGB"))

    return preprocess


def fit(size: int, short_side: int, interpolation: str) -> Preprocess:
    """Resize the shorter side to ``short_side``, proportions kept, and cut out the centre size x size."""
    from PIL import Image

    resample = Image.Resampling[interpolation.upper()]

    def preprocess(image: Image.Image) -> NDArray[np.uint8]:
        width, height = image.size
        if width <= height:
            shape = (short_side, int(short_side * height / width))
        else:
            shape = (int(short_side * width / height), short_side)
        left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
        resized = image if image.size == shape else image.resize(shape, resample)
        return np.asarray(resized.convert("RGB").crop((left, top, left + size, top + size)))

    return preprocess
