from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from hashgym.data import HashingDataset, load
from hashgym.data.readers import digit_scenes


@pytest.fixture(scope="module")
def scenes() -> HashingDataset:
    return load("digit-scenes")


def cells(scenes: HashingDataset) -> np.ndarray:
    """The 8 x 8 cells of every scene as ink from 0 to 16, (n, 4, 8, 8), read back from the thumbnails."""
    assert scenes.thumbnails is not None
    ink = np.rint((255 - scenes.thumbnails[:, ::3, ::3, 0].astype(float)) * 16 / 255).astype(np.uint8)
    return ink.reshape(-1, 2, 8, 2, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 8, 8)


def test_shapes_and_splits(scenes: HashingDataset) -> None:
    assert scenes.features.shape == (3_000, 256)
    assert scenes.regions is not None
    assert scenes.train_regions is not None
    assert scenes.thumbnails is not None
    assert scenes.regions.shape == (3_000, 5, 256)
    assert scenes.train_regions.shape == (3_000, 8, 256)
    assert scenes.thumbnails.shape == (3_000, 48, 48, 3)
    assert (len(scenes.query), len(scenes.train), len(scenes.database)) == (400, 1_600, 2_600)
    few = load(scenes, queries=100, train=200)
    assert (len(few.query), len(few.train), len(few.database)) == (100, 200, 2_600)
    assert np.isin(few.query, scenes.query).all()


def test_labels_are_the_digits_of_the_board_and_queries_have_other_digits(scenes: HashingDataset) -> None:
    digits = load_digits()
    known: dict[bytes, set[int]] = {}
    for image, target in zip(digits.images, digits.target, strict=True):
        known.setdefault(np.rint(image).astype(np.uint8).tobytes(), set()).add(int(target))
    blank = bytes(64)
    shown = [[cell.tobytes() for cell in scene if cell.tobytes() != blank] for scene in cells(scenes)]
    for row, images in zip(scenes.labels, shown, strict=True):
        assert 1 <= len(images) <= 4
        assert set(np.flatnonzero(row)) == set.union(*(known[image] for image in images))
    assert {len(images) for images in shown} == {1, 2, 3, 4}
    of_queries = {image for i in scenes.query for image in shown[i]}
    of_others = {image for i in scenes.database for image in shown[i]}
    assert not of_queries & of_others
    assert len(of_queries) > 300
    assert len(of_others) > 1_200


def test_boxes_say_where_regions_lie(scenes: HashingDataset) -> None:
    """A region cut out of the thumbnail by its box shows ink exactly where its features are not all zero."""
    assert scenes.boxes is not None
    assert scenes.boxes[7].tolist()[:3] == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1]]
    for features, boxes in ((scenes.regions, scenes.boxes), (scenes.train_regions, scenes.train_boxes)):
        assert features is not None
        assert boxes is not None
        for i in range(100):
            for feature, box in zip(features[i], boxes[i] * 48, strict=True):
                left, top, right, bottom = box.astype(int)
                assert (right - left, bottom - top) == (24, 24)
                assert feature.any() == (scenes.thumbnails[i, top:bottom, left:right] < 255).any()  # type: ignore[index]


def test_a_scene_of_one_digit_and_the_cell_with_it_mean_the_same(scenes: HashingDataset) -> None:
    assert scenes.regions is not None
    lengths = np.linalg.norm(scenes.features, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    inked = cells(scenes).any(axis=(2, 3))
    lengths = np.linalg.norm(scenes.regions[:, :4], axis=2)
    np.testing.assert_allclose(lengths, inked, rtol=1e-6)  # blank cells are all zero
    single = np.flatnonzero(inked.sum(axis=1) == 1)
    own = np.array([scenes.regions[i, np.argmax(inked[i])] for i in single])
    nearest = single[(own @ scenes.features[single].T).argmax(axis=1)]
    np.testing.assert_array_equal(scenes.labels[nearest].sum(axis=1), 1)
    assert (scenes.labels[nearest] == scenes.labels[single]).all(axis=1).mean() > 0.95


def test_regions_against_a_naive_count(scenes: HashingDataset) -> None:
    assert scenes.regions is not None
    rng = np.random.default_rng(0)
    boards = rng.integers(0, 17, (3, 16, 16)).astype(np.uint8)
    boards[:, :6, 3:12] = 0
    patches = np.lib.stride_tricks.sliding_window_view(boards, (5, 5), axis=(1, 2)).reshape(3, 12, 12, 25)
    centers = rng.integers(0, 17, (digit_scenes.WORDS, 25)).astype(np.float32)
    words = digit_scenes._words(patches, centers)
    corners = rng.integers(0, 9, (3, 4, 2))
    found = digit_scenes._regions(words, corners)
    for scene in range(3):
        for region, (top, left) in enumerate(corners[scene]):
            counts = np.zeros(digit_scenes.WORDS)
            crop = boards[scene, top : top + 8, left : left + 8].astype(int)
            for y in range(4):
                for x in range(4):
                    patch = crop[y : y + 5, x : x + 5].ravel()
                    if patch.any():
                        counts[np.argmin(((centers - patch) ** 2).sum(axis=1))] += 1
            expected = np.sqrt(counts / max(1, counts.sum()))
            np.testing.assert_allclose(found[scene, region], expected, rtol=1e-6)


def test_the_same_bytes_every_time(scenes: HashingDataset) -> None:
    def digest(data: HashingDataset) -> str:
        arrays = (data.features, data.regions, data.train_regions, data.labels, data.thumbnails, data.train)
        return sha256(b"".join(array.tobytes() for array in arrays if array is not None)).hexdigest()

    assert digest(load("digit-scenes", seed=0)) == digest(scenes)
    assert digest(load("digit-scenes", seed=1)) != digest(scenes)


def test_a_hasher_fitted_to_scenes_encodes_regions(scenes: HashingDataset) -> None:
    data = scenes.standardized()
    assert data.regions is not None
    models = [
        LogisticRegression(C=0.01, max_iter=100).fit(data.features[data.train], data.labels[data.train, label])
        for label in range(10)
    ]

    def scores(features: np.ndarray) -> np.ndarray:
        return np.stack([model.decision_function(features) for model in models], axis=1)

    truth, found = data.labels[data.query], scores(data.features[data.query])
    precision = [average_precision_score(truth[:, label], found[:, label]) for label in range(10)]
    assert truth.mean() < 0.25  # what a random ranking would have
    assert np.mean(precision) > 0.88

    digits = load_digits()
    target = {np.rint(i).astype(np.uint8).tobytes(): int(t) for i, t in zip(digits.images, digits.target, strict=True)}
    shown = [(i, c, target.get(cell.tobytes())) for i in data.query for c, cell in enumerate(cells(scenes)[i])]
    inked = [(i, c, t) for i, c, t in shown if t is not None]
    found = scores(np.array([data.regions[i, c] for i, c, _ in inked]))
    assert np.mean(found.argmax(axis=1) == [t for *_, t in inked]) > 0.85
