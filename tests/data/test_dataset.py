from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import checks
from hashgym.data import DataError, HashingDataset, ImageCollection
from hashgym.data.splits import Split
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
        monkeypatch.setattr(checks, "BLOCK", block)
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
    monkeypatch.setattr(checks, "BLOCK", 7)  # several blocks
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


# -- activations, pixels and views ------------------------------------------------------------------------------------

CHANNELS, SIDE, VIEWS = 4, 2, 3


def maps(kind: Any = np.float16, **changes: Any) -> dict[str, Any]:
    """Maps of N images, and views of six of them, in no order."""
    rng = np.random.default_rng(5)
    own = fields()
    shape = (3 if kind is np.uint8 else CHANNELS, SIDE, SIDE + 1)
    viewed = np.array([11, 4, 6, 8, 5, 2])
    features, views = (rng.uniform(0, 200, (*size, *shape)).astype(kind) for size in ((N,), (len(viewed), VIEWS)))
    views[:, 0] = features[viewed]
    kept = {key: own[key] for key in ("name", "labels", "query", "database", "thumbnails")}
    found = kept | {"features": features, "train": np.array([4, 5, 8]), "views": views, "viewed": viewed}
    return found | changes


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.uint8])
def test_images_and_their_views(kind: Any) -> None:
    data = HashingDataset(**maps(kind))
    channels = 3 if kind is np.uint8 else CHANNELS
    assert (data.has_maps, data.num_views, data.image_shape) == (True, VIEWS, (channels, SIDE, SIDE + 1))
    assert data.dim == channels * SIDE * (SIDE + 1)
    index, view = np.array([8, 4, 8, 2]), np.array([2, 0, 1, 1])
    images = data.images(index, view)
    assert images.dtype == (np.uint8 if kind is np.uint8 else np.float32)
    for image, i, v in zip(images, index, view, strict=True):
        np.testing.assert_array_equal(image, data.views[data.viewed.tolist().index(i), v])
    np.testing.assert_array_equal(data.images(index), data.features[index])
    np.testing.assert_array_equal(data.images(index, np.zeros(4, np.int64)), data.features[index])
    for i, rows in zip(data.train, data.training_images, strict=True):
        np.testing.assert_array_equal(rows, data.views[data.viewed.tolist().index(i)])
    assert data.standardized() is data
    data.check_scale()


def test_training_images_are_not_copied_where_views_are_of_them_alone() -> None:
    base = maps()
    data = HashingDataset(**base | {"viewed": base["train"], "views": base["views"][:3]})
    assert data.training_images is data.views
    none = HashingDataset(**base | {"views": None, "viewed": None})
    np.testing.assert_array_equal(none.training_images, none.features[none.train])
    assert none.num_views == 1
    np.testing.assert_array_equal(none.images(np.array([3]), np.array([0])), none.features[[3]])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"features": maps()["features"].astype(np.float64)},
            r"activations \(n, C, H, W\) of float16 or float32, or pi",
        ),
        ({"features": maps()["features"].astype(np.uint8)}, r"pixels, uint8 \(n, 3, H, W\), got uint8 \(12, 4, 2, 3\)"),
        ({"features": maps()["features"][0]}, "features must be"),
        ({"features": maps()["features"][:, :0]}, "features must be"),
        ({"regions": fields()["regions"]}, "regions belong to feature vectors"),
        ({"train_regions": fields()["train_regions"]}, "regions belong to feature vectors"),
        ({"views": None}, "views and viewed belong together"),
        ({"viewed": None}, "views and viewed belong together"),
        ({"viewed": maps()["viewed"].astype(np.int32)}, "viewed must be int64"),
        ({"viewed": maps()["viewed"][:, None]}, "viewed must be int64"),
        ({"viewed": np.array([11, 4, 6, 8, 5, 5])}, "viewed must be int64 .*, different images"),
        ({"viewed": np.array([12, 4, 6, 8, 5, 2])}, "viewed has indices outside 0 to 11"),
        ({"viewed": np.array([-1, 4, 6, 8, 5, 2])}, "viewed has indices outside 0 to 11"),
        ({"viewed": np.array([11, 4, 6, 8, 3, 2])}, "viewed must include all of train"),
        ({"viewed": maps()["viewed"][1:]}, r"views must be float16 of shape \(5, V, C, H, W\)"),
        ({"views": maps()["views"][1:]}, r"views must be float16 of shape \(6, V, C, H, W\)"),
        ({"views": maps()["views"][:, :0]}, "views must be"),
        ({"views": maps()["views"][..., 1:]}, r"like features \(12, 4, 2, 3\), got float16 \(6, 3, 4, 2, 2\)"),
        ({"views": maps()["views"].astype(np.float32)}, "views must be float16"),
        ({"features": fields()["features"]}, "views must be"),
    ],
)
def test_unusable_maps_are_rejected(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        HashingDataset(**maps(**changes))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_named_by_their_image(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    for block in (1, 30, 10**6):
        monkeypatch.setattr(checks, "BLOCK", block)
        base = maps()
        base["features"][7, 3, 1, 2] = bad
        with pytest.raises(DataError, match="features of image 7 "):
            HashingDataset(**base)
        base = maps()
        base["views"][3, 2, 0, 1, 1] = bad  # of image viewed[3]
        with pytest.raises(DataError, match="views of image 8 "):
            HashingDataset(**base)
    HashingDataset(**maps(np.uint8))


def test_another_split_needs_views_of_its_training_images() -> None:
    data = HashingDataset(**maps())

    def split(train: list[int]) -> Split:
        parts = (np.array([0, 1]), np.arange(2, N), np.array(train))
        return Split("own", *parts, labels=np.arange(LABELS), description="", seed=0)

    other = data.with_split(split([2, 11]))
    np.testing.assert_array_equal(other.training_images, data.views[[5, 0]])
    with pytest.raises(DataError, match="has views of its own training images alone: extract it with the other split"):
        data.with_split(split([2, 3]))


MAPPED = """
import resource, sys
import numpy as np
from hashgym.data import HashingDataset

n = 2048
features, views = (np.load(f"{sys.argv[1]}/{key}.npy", mmap_mode="r") for key in ("features", "views"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = HashingDataset(name="large", features=features, views=views, viewed=np.arange(n // 4),
    labels=np.ones((n, 1), np.uint8), query=np.array([n - 1]), database=np.arange(n - 1), train=np.arange(n // 4))
assert data.training_images is views
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux counts it")
def test_opening_large_maps_takes_little_memory(tmp_path: Path) -> None:
    """640 MB of activations and views, mapped: all are looked at, and never more than a block is in memory."""
    for key, shape in (("features", (2048, 64, 32, 32)), ("views", (512, 6, 64, 32, 32))):  # sparse files
        np.lib.format.open_memmap(tmp_path / f"{key}.npy", mode="w+", dtype=np.float16, shape=shape)
    done = subprocess.run([sys.executable, "-c", MAPPED, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200
