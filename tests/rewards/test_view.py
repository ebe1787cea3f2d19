"""The attributes of a view, against loops over images and training images."""

from __future__ import annotations

import numpy as np
import pytest

from hashgym import codes
from hashgym.rewards import Codebook, RewardView


def make_view(seed: int, num_envs: int = 4, images: int = 9, bits: int = 7, labels: int = 70) -> RewardView:
    """Images with probabilities for codes; so many labels that they take two words."""
    rng = np.random.default_rng(seed)
    hot = (rng.random((images, labels)) < 0.1).astype(np.uint8)
    rows = rng.choice(images, num_envs, replace=False)
    code = rng.random((num_envs, bits)).astype(np.float32)
    book = Codebook(codes.pack(rng.random((images, bits)) < 0.5), codes.pack(hot), bits)
    book.write(rows, code > 0.5)
    partners = rng.integers(images, size=(2, num_envs, 3))
    return RewardView(code, book, rows, *partners, hot[rows])


@pytest.mark.parametrize("bits", [1, 7, 70])
def test_the_arrays_over_all_training_images_equal_loops(bits: int) -> None:
    view = make_view(0, bits=bits)
    book, labels = codes.unpack(view.codebook.words, bits), codes.unpack(view.codebook.label_words, 70)
    assert view.similar.any()
    assert not view.similar.all()
    for index, row in enumerate(view.rows):
        for j in range(9):
            assert view.similar[index, j] == bool((labels[row] & labels[j]).any())
            assert view.others[index, j] == (row != j)
            assert view.distances[index, j] == sum((view.code[index] > 0.5) != book[j])
    assert (view.similar.dtype, view.others.dtype, view.distances.dtype.kind) == (np.bool_, np.bool_, "i")


def test_signs_are_of_the_probabilities_and_of_the_codebooks_bits() -> None:
    view = make_view(1)
    np.testing.assert_array_equal(view.signs, 2 * view.code - 1)
    np.testing.assert_array_equal(view.codebook.signs > 0, codes.unpack(view.codebook.words, 7))
    assert view.signs.dtype == view.codebook.signs.dtype == np.float32
    assert set(np.unique(view.codebook.signs)) == {-1.0, 1.0}


def test_a_write_is_seen_in_the_codebooks_signs() -> None:
    book = make_view(2).codebook
    before = book.signs
    book.write(np.array([3]), ~book.read(np.array([3])))
    np.testing.assert_array_equal(book.signs[3], -before[3])
    np.testing.assert_array_equal(np.delete(book.signs, 3, 0), np.delete(before, 3, 0))
    assert book.signs is book.signs


def test_asarray_leaves_numpy_as_it_is() -> None:
    array = np.arange(3)
    assert make_view(0).asarray(array) is array
