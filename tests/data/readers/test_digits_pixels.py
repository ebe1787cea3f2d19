"""digits-pixels: the images, labels and split of digits as pixels that a network takes."""

from __future__ import annotations

import numpy as np
import pytest

from hashgym import data
from hashgym.data import splits


@pytest.mark.parametrize("seed", [0, 7])
def test_the_pixels_are_those_of_digits(seed: int) -> None:
    from hashgym.data.readers import digits, digits_pixels

    vectors, pixels = digits.load(seed), digits_pixels.load(seed)
    assert pixels.features.shape == (1_797, 3, 8, 8)
    assert pixels.features.dtype == np.uint8
    grey = vectors.features * 16  # whole numbers from 0 to 16
    for channel in range(3):
        np.testing.assert_array_equal(np.rint(pixels.features[:, channel].reshape(-1, 64) / 255 * 16), grey)
    assert (pixels.features.min(), pixels.features.max()) == (0, 255)
    for key in ("labels", "query", "database", "train", "thumbnails"):
        np.testing.assert_array_equal(getattr(pixels, key), getattr(vectors, key))
    assert pixels.names == vectors.names
    assert pixels.standardized() is pixels


def test_the_dataset_names_a_network_that_takes_it() -> None:
    from hashgym import features
    from hashgym.features.trainable import spec_of

    pixels = data.load("digits-pixels")
    assert spec_of(pixels) == "convnet"
    assert pixels.provenance["backbone"] == features.make("convnet", size=8, cut=0).provenance
    assert list(splits.rules("digits-pixels")) == [pixels.provenance["split"]]
