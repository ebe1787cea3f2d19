"""ImageCollection: the labelled images on disk that a dataset's reader returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageCollection"]


@dataclass(frozen=True)
class ImageCollection:
    """Labelled images in a fixed order.

    Attributes:
        name: the dataset's name, by which its splits are found.
        names: n different image names, stable across machines (a path relative to the root).
        labels: uint8 (n, L) of 0 and 1.
        label_names: L names.
        read: opens image ``i`` as an RGB picture, fully decoded; raises :class:`DataError` with the image's name if
            it is missing, truncated or not a picture.
        provenance: where the images come from.
        stamp: size in bytes and modification time in ns of the file of image ``i``, by which a resumed job detects
            changed images; None if images have no files of their own.
    """

    name: str
    names: tuple[str, ...]
    labels: NDArray[np.uint8]
    label_names: tuple[str, ...]
    read: Callable[[int], Image]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stamp: Callable[[int], tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.labels):
            raise DataError(f"{self.name}: {len(self.names)} images, but labels for {len(self.labels)}")
        if not self.names:
            raise DataError(f"{self.name}: no images were found")

    def __len__(self) -> int:
        return len(self.names)
