"""Handwritten digits, embedded in scikit-learn: 1,797 images of 8 x 8 pixels in 10 classes, no download."""

from __future__ import annotations

import numpy as np

from hashgym.data import splits
from hashgym.data.dataset import HashingDataset
from hashgym.data.readers import Reader
from hashgym.optional import require


def load(seed: int = 0) -> HashingDataset:
    """Load the digits as pixels in [0, 1]: 300 queries, 1,000 training images; the database is all but the queries.

    Args:
        seed: for drawing the query and training images, the same number of every class.
    """
    require("sklearn", "the dataset digits")
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.asarray(digits.images, np.float32) / np.float32(16)
    labels = (np.asarray(digits.target)[:, None] == np.arange(10)).astype(np.uint8)
    names, label_names = tuple(str(i) for i in range(len(labels))), tuple("0123456789")
    split = splits.make("digits", labels=labels, label_names=label_names, names=names, seed=seed)
    grey = np.kron(255 - np.rint(pixels * 255), np.ones((1, 4, 4))).astype(np.uint8)
    return HashingDataset(
        name="digits",
        features=pixels.reshape(-1, 64),
        labels=labels,
        query=split.query,
        database=split.database,
        train=split.train,
        names=names,
        label_names=label_names,
        thumbnails=np.repeat(grey[..., None], 3, axis=-1),
        provenance={"source": "sklearn.datasets.load_digits", "features": "pixels / 16", **split.provenance},
    )


READER = Reader(load, "scikit-learn; nothing to download", embedded=True)
