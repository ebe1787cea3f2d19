"""The handwritten digits of scikit-learn as pictures in RGB, for networks that are trained from pixels; no download."""

from __future__ import annotations

import dataclasses

import numpy as np

from hashgym.data.dataset import HashingDataset
from hashgym.data.readers import Reader, digits

SIDE = 8
NETWORK = {  # as hashgym.features.make("convnet", size=8, cut=0) describes it
    "name": "convnet",
    "dim": 3 * SIDE * SIDE,
    "size": SIDE,
    "preprocessing": f"RGB, bicubic to {SIDE} x {SIDE}, (x - 127.5) / 127.5",
    "weights": "",
    "digest": "",
    "cut": 0,
    "engine": "numpy",
}


def load(seed: int = 0) -> HashingDataset:
    """Load the images, labels and split of ``digits`` as uint8 (1797, 3, 8, 8), white on black.

    Args:
        seed: for drawing the query and training images.
    """
    vectors = digits.load(seed)
    grey = np.rint(vectors.features * 255).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)
    provenance = {**vectors.provenance, "features": "pixels x 255 / 16, RGB", "backbone": NETWORK}
    return dataclasses.replace(vectors, name="digits-pixels", features=grey.repeat(3, axis=1), provenance=provenance)


READER = Reader(load, "scikit-learn; nothing to download", embedded=True)
