"""Handwritten digits, embedded in scikit-learn: 1,797 images of 8 x 8 pixels in 10 classes, no download."""

from __future__ import annotations

import numpy as np

from hashgym.data.dataset import HashingDataset

QUERIES_PER_CLASS = 30
TRAIN_PER_CLASS = 100


def load(seed: int = 0) -> HashingDataset:
    """The digits as pixels in [0, 1]: 300 queries, 1,000 training images; the database is all but the queries.

    Args:
        seed: draws which images are queries and which are for training.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    target = np.asarray(digits.target)
    rng = np.random.default_rng(seed)
    query, train = [], []
    for label in range(10):
        members = rng.permutation(np.flatnonzero(target == label))
        query.append(members[:QUERIES_PER_CLASS])
        train.append(members[QUERIES_PER_CLASS : QUERIES_PER_CLASS + TRAIN_PER_CLASS])
    queries = np.sort(np.concatenate(query))
    pixels = np.asarray(digits.images, np.float32) / 16
    grey = np.kron(255 - np.rint(pixels * 255), np.ones((1, 4, 4))).astype(np.uint8)
    return HashingDataset(
        name="digits",
        features=pixels.reshape(-1, 64),
        labels=(target[:, None] == np.arange(10)).astype(np.uint8),
        query=queries,
        database=np.setdiff1d(np.arange(len(target)), queries),
        train=np.sort(np.concatenate(train)),
        label_names=tuple("0123456789"),
        thumbnails=np.repeat(grey[..., None], 3, axis=-1),
        provenance={"source": "sklearn.datasets.load_digits", "features": "pixels / 16", "split_seed": seed},
    )
