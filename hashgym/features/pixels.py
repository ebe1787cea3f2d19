"""The picture itself as features: the backbone that needs no weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashgym.features.backbone import Backbone, Stretch, check_size


def make(
    *, size: int | None = None, weights: str | None = None, device: str = "auto", engine: str = "auto"
) -> Backbone:
    """RGB values in [0, 1] of the picture at size x size (32), row by row: 3 x size x size features.

    Raises:
        ValueError: for weights, a device or an engine: pixels use none.
    """
    if weights is not None or device not in ("auto", "cpu") or engine != "auto":
        raise ValueError("the backbone `pixels` takes neither weights nor a device nor an engine")
    side = check_size(size, 32)

    def network(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return batch.reshape(len(batch), -1).astype(np.float32) / np.float32(255)

    return Backbone(
        name="pixels",
        dim=3 * side * side,
        size=side,
        preprocessing=f"RGB, bicubic to {side} x {side}, / 255",
        weights="",
        digest="",
        engine="numpy",
        preprocess=Stretch(side),
        network=network,
    )
