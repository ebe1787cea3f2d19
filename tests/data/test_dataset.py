from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.data import DataError, HashingDataset, ImageCollection
from hashgym.data import dataset as module
from hashgym.envs.bit_group_hashing import BitGroupHashingEnv

N, DIM, LABELS = 12, 5, 3


def fields(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "name": "small",
        "features": rng.standard_normal((N, DIM)).astype(np.float32) * 3 + 2,
        "labels": (rng.random((N, LABELS)) < 0.4).astype(np.uint8),
        "query": np.array([0, 1]),
        "database": np.arange(2, N),
        "train": np.arange(4, N),
        "regions": rng.standard_normal((N, 4, DIM)).astype(np.float32),
        "train_regions": rng.standard_normal((N, 2, DIM)).astype(np.float32),
        "thumbnails": rng.integers(0, 256, (N, 4, 6, 3)).astype(np.uint8),
    }


def changed(key: str, index: Any, value: Any) -> np.ndarray:
    array = fields()[key].copy()
    array[index] = value
    return array


def test_names_are_numbers_where_none_are_given() -> None:
    data = HashingDataset(**fields())
    assert len(data) == N
    assert data.dim == DIM
    assert list(data.names) == [str(i) for i in range(N)]
    assert list(data.label_names) == ["0", "1", "2"]
    assert (data.center, data.scale) == (None, None)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("features", fields()["features"].astype(np.float64), r"features must be float32 .* got float64 \(12, 5\)"),
        ("features", fields()["features"][0], r"features must be float32 of shape \(n, D\)"),
        ("features", np.zeros((0, DIM), np.float32), "features must be"),
        ("features", np.zeros((N, 0), np.float32), "features must be"),
        ("labels", fields()["labels"].astype(np.int64), "labels must be multi-hot uint8"),
        ("labels", fields()["labels"][:, 0], "labels must be multi-hot uint8"),
        ("labels", fields()["labels"][:-1], "11 labels for 12 features"),
        ("labels", changed("labels", (3, 1), 2), "labels must be 0 or 1"),
        ("names", ["a"] * N, "names must be 12 different names"),
        ("names", ["a", "b"], "names must be 12 different names"),
        ("label_names", ["cat", "dog"], "2 label names for 3 labels"),
        ("regions", fields()["regions"].astype(np.float64), r"regions must be float32 of shape \(12, R, 5\)"),
        ("regions", fields()["regions"][0], "regions must be float32"),
        ("regions", fields()["regions"][:-1], "regions must be float32"),
        ("train_regions", fields()["train_regions"][..., :-1], "train_regions must be float32"),
        ("boxes", np.zeros((N, 3, 4), np.float32), r"boxes must be float32 of shape \(12, 4, 4\)"),
        ("boxes", np.full((N, 4, 4), np.nan, np.float32), "boxes of image 0"),
        ("train_boxes", np.zeros((N, 2, 4)), "train_boxes must be float32"),
        ("thumbnails", fields()["thumbnails"].astype(np.float32), r"thumbnails must be uint8 of shape \(12, h, w, 3\)"),
        ("thumbnails", fields()["thumbnails"][..., 0], "thumbnails must be uint8"),
        ("thumbnails", fields()["thumbnails"][..., :2], "thumbnails must be uint8"),
        ("thumbnails", fields()["thumbnails"][1:], "thumbnails must be uint8"),
        ("query", np.array([0, 1], np.int32), "query must be int64 indices"),
        ("query", np.array([[0, 1]]), "query must be int64 indices"),
        ("database", np.array([2, N]), "database has indices outside 0 to 11"),
        ("train", np.array([-1, 4]), "train has indices outside 0 to 11"),
        ("train", np.array([4, 5, 4]), "train has an image twice"),
        ("train", np.array([], np.int64), "training split is empty"),
        ("train", np.array([1, 4]), "both a query and in the training set or the database"),
        ("database", np.array([1, 4]), "both a query and in the training set or the database"),
        ("features", changed("features", (7, 2), np.nan), r"features of image 7 \('7'\) hold NaN or infinity"),
        ("features", changed("features", (11, 4), -np.inf), "features of image 11"),
        ("regions", changed("regions", (3, 1, 0), np.inf), "regions of image 3"),
        ("train_regions", changed("train_regions", (0, 1, 4), np.nan), "train_regions of image 0"),
    ],
)
def test_unusable_data_are_rejected(key: str, value: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        HashingDataset(**{**fields(), key: value})


def test_queries_and_database_may_be_empty() -> None:
    none = np.array([], np.int64)
    HashingDataset(**{**fields(), "query": none, "database": none})


def test_values_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (1, DIM, 3 * DIM + 1, 10**6):
        monkeypatch.setattr(module, "_BLOCK", block)
        HashingDataset(**fields())
        for image in range(N):
            with pytest.raises(DataError, match=rf"features of image {image} "):
                HashingDataset(**{**fields(), "features": changed("features", (image, 1), np.nan)})


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 130), st.integers(0, 999))
def test_similar_images_share_a_label(labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hot = (rng.random((N, labels)) < 1.2 / labels).astype(np.uint8)
    data = HashingDataset(**{**fields(), "labels": hot})
    every = np.arange(N)
    found = data.similar(every[:, None], every)
    for a in range(N):
        for b in range(N):
            assert found[a, b] == any(hot[a, c] and hot[b, c] for c in range(labels))


def test_standardized() -> None:
    given_ = fields()
    given_["features"][:, 3] = 7.25
    given_["regions"][0, 0, 3] = 8.25
    data = HashingDataset(**given_)
    before = data.features.copy()
    moved = data.standardized()
    np.testing.assert_array_equal(data.features, before)
    sample = moved.features[data.train].astype(np.float64)
    np.testing.assert_allclose(sample.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(sample.std(axis=0), [1, 1, 1, 0, 1], atol=1e-6)
    assert moved.center is not None
    assert moved.scale is not None
    assert moved.regions is not None
    assert moved.train_regions is not None
    for old, new in ((given_["regions"], moved.regions), (given_["train_regions"], moved.train_regions)):
        assert new.dtype == np.float32
        np.testing.assert_allclose(new * moved.scale + moved.center, old, atol=1e-5)
    assert moved.regions[0, 0, 3] == 1  # a feature that never varies is only centred
    assert moved.standardized() is moved
    assert moved.features.dtype == moved.center.dtype == moved.scale.dtype == np.float32
    np.testing.assert_array_equal(moved.labels, data.labels)
    without = HashingDataset(**{**given_, "regions": None, "train_regions": None}).standardized()
    assert (without.regions, without.train_regions) == (None, None)
    np.testing.assert_array_equal(without.features, moved.features)


def test_standardized_uses_training_images_only() -> None:
    given_ = fields()
    other = {**given_, "features": given_["features"].copy()}
    other["features"][:4] += 100
    a, b = HashingDataset(**given_).standardized(), HashingDataset(**other).standardized()
    np.testing.assert_array_equal(a.features[4:], b.features[4:])


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_mapped_files_are_read_as_arrays_are(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)  # several blocks
    given_ = fields()
    mapped = dict(given_)
    for key in ("features", "regions", "train_regions"):
        np.save(tmp_path / key, given_[key])
        mapped[key] = np.load(tmp_path / f"{key}.npy", mmap_mode=mode)
    if mode != "r":  # what was written to a map and not to its file is not forgotten
        mapped["features"][5, 2] = given_["features"][5, 2] = 99
    a, b = HashingDataset(**given_).standardized(), HashingDataset(**mapped).standardized()
    for key in ("features", "regions", "train_regions"):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
        np.testing.assert_array_equal(mapped[key], given_[key])


def test_an_image_collection_has_a_label_row_for_each_image() -> None:
    def read(index: int) -> Any:
        raise AssertionError(index)

    labels = np.zeros((2, 3), np.uint8)
    assert len(ImageCollection("x", ("a", "b"), labels, ("0", "1", "2"), read)) == 2
    with pytest.raises(DataError, match="x: 1 images, but labels for 2"):
        ImageCollection("x", ("a",), labels, ("0", "1", "2"), read)
    with pytest.raises(DataError, match="x: no images were found"):
        ImageCollection("x", (), labels[:0], ("0", "1", "2"), read)


@pytest.mark.parametrize(("factor", "offset", "far"), [(1, 0, False), (5, 8, False), (0.02, 0, True), (255, 128, True)])
def test_features_far_from_unit_scale_are_warned_of_once(
    multi_label: HashingDataset, factor: float, offset: float, far: bool
) -> None:
    data = dataclasses.replace(multi_label, features=multi_label.features * np.float32(factor) + np.float32(offset))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            data.check_scale()
            BitGroupHashingEnv(data, bits=4, group_bits=4)
        data.standardized().check_scale()
    assert len(caught) == far
    assert all("dataset.standardized()" in str(warning.message) for warning in caught)
