"""The readers on real photos: set HASHGYM_DATA to a folder that holds ``cifar10/`` and ``mirflickr/``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hashgym.data import ImageCollection, read_images, splits

pytestmark = pytest.mark.real_data


def collection(dataset: str, folder: str) -> ImageCollection:
    if not (root := os.environ.get("HASHGYM_DATA")):
        pytest.skip("HASHGYM_DATA does not say where real photos are")
    if not (Path(root) / folder).is_dir():
        pytest.skip(f"HASHGYM_DATA has no {folder}/")
    return read_images(dataset, Path(root) / folder)


def draw(images: ImageCollection, split: str, **options: int) -> splits.Split:
    return splits.make(
        images.name,
        split,
        labels=images.labels,
        label_names=images.label_names,
        names=images.names,
        **options,  # type: ignore[arg-type]
    )


def test_cifar10() -> None:
    images = collection("cifar10", "cifar10")
    assert len(images) == 60_000
    np.testing.assert_array_equal(images.labels.sum(axis=0, dtype=int), 6_000)
    np.testing.assert_array_equal(images.labels[:50_000].sum(axis=0, dtype=int), 5_000)
    for split, sizes in (
        ("cifar10", (1_000, 5_000, 54_000)),
        ("cifar10-1", (1_000, 5_000, 59_000)),
        ("cifar10-2", (10_000, 50_000, 50_000)),
    ):
        drawn = draw(images, split)
        assert (len(drawn.query), len(drawn.train), len(drawn.database)) == sizes
    for index in (0, 31_415, 59_999):
        assert (images.read(index).mode, images.read(index).size) == ("RGB", (32, 32))


def test_mirflickr25k() -> None:
    images = collection("mirflickr25k", "mirflickr")
    assert images.names[0] == "im1.jpg"
    assert len(images) <= 25_000
    counts = dict(zip(images.label_names, images.labels.sum(axis=0, dtype=int).tolist(), strict=True))
    assert all(0 < counts[name] <= counts[name.removesuffix("_r1")] for name in counts)
    # a photo that clearly shows something shows it
    for column, name in enumerate(images.label_names[24:], 24):
        potential = images.label_names.index(name.removesuffix("_r1"))
        assert (images.labels[:, column] <= images.labels[:, potential]).mean() > 0.999
    drawn = draw(images, "mch", queries=2_000, train=5_000)
    unlabelled = int((~images.labels[:, :24].any(axis=1)).sum())
    assert (len(drawn.query), len(drawn.train)) == (2_000, 5_000)
    assert len(drawn.database) == len(images) - unlabelled - 2_000
    if len(images) == 20_000:
        assert unlabelled == 335
    for index in (0, len(images) - 1):
        assert images.read(index).mode == "RGB"
