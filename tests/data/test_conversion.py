"""Datasets from arrays: every form of features and labels is read correctly, or rejected with a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import hashgym  # noqa: F401  # registers the environments
from hashgym import data, hashers
from hashgym.data import DataError, HashingDataset, cache
from hashgym.data.dataset import LABEL_FREE
from tests.hashers.test_estimators import small

N = 60
X = np.random.default_rng(0).standard_normal((N, 4))
CLASSES = np.arange(N) % 3
HOT = np.eye(3, dtype=np.uint8)[CLASSES]
WORDS = np.array(["cat", "dog", "owl"])[CLASSES]


@pytest.mark.parametrize(
    "features",
    [
        X,
        X.astype(np.float32),
        X.astype(">f4"),
        np.asfortranarray(X),
        X.tolist(),
        tuple(map(tuple, X)),
        torch.tensor(X),
        pd.DataFrame(X),
        np.repeat(X, 2, axis=0)[::2],
    ],
    ids=["float64", "float32", "big-endian", "fortran", "lists", "tuples", "torch", "table", "strided"],
)
def test_features_of_any_form_become_float32(features: Any) -> None:
    made = HashingDataset.from_arrays(features, CLASSES)
    assert made.features.dtype == np.float32
    np.testing.assert_array_equal(made.features, X.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "longdouble", "int8", "uint8", "int64", "bool"])
def test_features_of_any_real_type(dtype: str) -> None:
    features = (X * 3).round().astype(dtype)
    np.testing.assert_array_equal(HashingDataset.from_arrays(features).features, features.astype(np.float32))


def test_float32_is_not_copied() -> None:
    features = X.astype(np.float32)
    assert HashingDataset.from_arrays(features, CLASSES).features is features


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (CLASSES, "012"),
        (CLASSES.astype(np.uint8), "012"),
        (CLASSES.astype(float), "012"),
        (CLASSES.tolist(), "012"),
        (torch.tensor(CLASSES), "012"),
        (CLASSES * 10 - 10, ("-10", "0", "10")),
        (WORDS, ("cat", "dog", "owl")),
        (WORDS.astype(object), ("cat", "dog", "owl")),
        (WORDS.tolist(), ("cat", "dog", "owl")),
        (pd.Series(WORDS), ("cat", "dog", "owl")),
        (pd.Series(WORDS).astype("category"), ("cat", "dog", "owl")),
        ([[word] for word in WORDS], ("cat", "dog", "owl")),
        ([{str(word)} for word in WORDS], ("cat", "dog", "owl")),
        (WORDS[:, None], ("cat", "dog", "owl")),
        (pd.DataFrame(HOT), "012"),
        (HOT.tolist(), "012"),
        (torch.tensor(HOT), "012"),
        (np.asfortranarray(HOT), "012"),
        *((HOT.astype(dtype), "012") for dtype in ("bool", "int8", "uint16", "int32", "int64", "uint64", "float64")),
    ],
)
def test_labels_of_any_form_become_multi_hot(labels: Any, names: Sequence[str]) -> None:
    made = HashingDataset.from_arrays(X, labels)
    assert made.labels.dtype == np.uint8
    np.testing.assert_array_equal(made.labels, HOT)
    assert tuple(made.label_names) == tuple(names)


def test_lists_of_names_are_multi_hot_and_may_be_empty() -> None:
    rows = [["dog", "cat"], ["owl"], []] * 20
    made = HashingDataset.from_arrays(X, rows)
    np.testing.assert_array_equal(made.labels[:3], [[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    used = np.concatenate([made.query, made.database, made.train])
    assert made.labels[used].any(axis=1).all()  # images without a label are in no part
    ordered = HashingDataset.from_arrays(X, rows, label_names=["owl", "cow", "cat", "dog"])
    np.testing.assert_array_equal(ordered.labels[:2], [[0, 0, 1, 1], [1, 0, 0, 0]])


def test_label_names_name_classes_and_columns() -> None:
    for labels in (CLASSES, HOT):
        made = HashingDataset.from_arrays(X, labels, label_names=["a", "b", "c"])
        assert made.label_names == ("a", "b", "c")
        np.testing.assert_array_equal(made.labels, HOT)
    made = HashingDataset.from_arrays(X, WORDS, label_names=["owl", "dog", "cat"])
    np.testing.assert_array_equal(made.labels, HOT[:, ::-1])


def test_splits_are_drawn_by_the_seed_or_given() -> None:
    made = HashingDataset.from_arrays(X, CLASSES, queries=9, train=20, seed=3)
    assert (len(made.query), len(made.train), len(made.database)) == (9, 20, 51)
    again = HashingDataset.from_arrays(X, CLASSES, queries=9, train=20, seed=3)
    np.testing.assert_array_equal(made.train, again.train)
    assert not np.array_equal(made.train, HashingDataset.from_arrays(X, CLASSES, queries=9, train=20, seed=4).train)
    np.testing.assert_array_equal(data.load(made, seed=3).query, made.query)  # provenance says how it was drawn

    mask = np.arange(N) >= 40
    for queries, train in [([0, 5, 7], mask), (np.array([0, 5, 7]), np.flatnonzero(mask)), ((0, 5, 7), mask.tolist())]:
        made = HashingDataset.from_arrays(X, CLASSES, queries=queries, train=train)
        assert made.query.tolist() == [0, 5, 7]
        assert made.train.tolist() == list(range(40, N))
        assert made.database.tolist() == sorted({*range(N)} - {0, 5, 7})
    made = HashingDataset.from_arrays(X, CLASSES, queries=np.arange(10), train=30)
    assert (len(made.train), len(made.database)) == (30, 50)
    made = HashingDataset.from_arrays(X, CLASSES, train=range(50), database=range(30, 50), queries=4)
    assert set(made.query.tolist()) <= set(range(50, N))
    assert made.database.tolist() == list(range(30, 50))
    assert HashingDataset.from_arrays(X, CLASSES, queries=[], train=10).query.size == 0


def test_standardized_on_request() -> None:
    made = HashingDataset.from_arrays(X * 50 + 7, CLASSES, standardize=True)
    np.testing.assert_allclose(made.features[made.train].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(made.features[made.train].std(0), 1, atol=1e-5)
    assert HashingDataset.from_arrays(X, CLASSES).center is None


def test_regions_are_taken_along() -> None:
    regions = np.repeat(X[:, None], 5, axis=1)
    made = HashingDataset.from_arrays(X, CLASSES, regions=regions, train_regions=regions[:, :2])
    assert made.regions is not None
    assert made.regions.dtype == np.float32
    made.require("regions", "train_regions")


def test_a_dataset_from_arrays_is_saved_trained_on_and_fingerprinted(tmp_path: Path) -> None:
    made = HashingDataset.from_arrays(X, WORDS, name="pets")
    cache.save(made, tmp_path / "pets")
    loaded = data.load(tmp_path / "pets")
    assert loaded.provenance == made.provenance
    env = gym.make("BitGroupHashing-v0", dataset=loaded, bits=4, group_bits=4)
    env.reset(seed=0)
    for other in (HashingDataset.from_arrays(X + 1, WORDS), HashingDataset.from_arrays(X, WORDS[::-1])):
        assert other.provenance["arrays"] != made.provenance["arrays"]


def test_without_labels(tmp_path: Path) -> None:
    made = HashingDataset.from_arrays(X, name="mine")
    assert (made.labels.shape, made.label_names) == ((N, 0), ())
    assert (len(made.query), len(made.train), len(made.database)) == (6, 15, 54)
    names = {name for name in hashers.available() if not hashers.HASHERS.find(name).supervised}
    assert set(re.split(", | or ", LABEL_FREE)) == names
    for name in names:
        hasher = small(name, bits=4).fit(made.features[made.train], made.labels[made.train])
        assert hasher.encode(made.features).shape == (N, 4)
    message = r"'mine' has no labels: give it labels, make some by with_similarity\('neighbours'\), or use a hasher"
    for fails in (
        lambda: gym.make("BitGroupHashing-v0", dataset=made, bits=4, group_bits=4),
        lambda: gym.make_vec("BitGroupHashing-v0", 2, dataset=made, bits=4, group_bits=4),
        lambda: made.similar(np.array([0]), np.array([1])),
    ):
        with pytest.raises(DataError, match=message):
            fails()
    with pytest.raises(ValueError, match="CSQ learns from labels, and there are none"):
        hashers.make("csq", bits=4).fit(made.features, made.labels)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("digits", r"real numbers of shape \(n, D\), got str 'digits'"),
        (None, "got None"),
        ({"a": 1}, "got dict of 1"),
        ([[1.0], [1.0, 2.0]], r"got list of 2: make an array of them first, with rows of one length"),
        (torch.tensor(X, requires_grad=True), r"got Tensor torch.float64 \(60, 4\): .* tensor.detach\(\).cpu"),
        (sparse.csr_matrix(X), r"got csr_matrix float64 \(60, 4\); for a sparse matrix use matrix.toarray\(\)"),
        (X.astype(str), r"got ndarray <U32 \(60, 4\)"),
        (X.astype(complex), "got ndarray complex128"),
        (pd.DataFrame({"a": ["x"] * N}), r"got ndarray object \(60, 1\)|got ndarray str"),
        (X[0], r"must have shape \(n, D\), not empty, .* \(4,\); for a single image use features\[None\]"),
        (X[:0], r"not empty, got ndarray float64 \(0, 4\)"),
        (np.zeros((N, 8, 8, 3)), r"`hashgym features` extracts features of pictures, features.reshape\(len"),
        (X * 1e300, "features of row 0 are beyond float32, .*: divide all by a constant"),
        (X * np.nan, "features of image 0 .* hold NaN or infinity"),
    ],
)
def test_features_that_cannot_be_used(features: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        HashingDataset.from_arrays(features, CLASSES)
    assert len(str(raised.value)) < 260


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cats", r"labels must be classes \(n,\) of strings or integers, multi-hot .*; got str 'cats'"),
        (3, "got int 3"),
        ({"a": 1}, "got dict of 1"),
        (CLASSES[1:], "59 labels for 60 images: give every image its own"),
        (CLASSES + 0.5, "a class must be a string or a whole number: the label of row 0 is 0.5"),
        (CLASSES * 1j, "got ndarray complex128"),
        (CLASSES[:, None], r"row 2 holds 2; classes have shape \(n,\): labels.ravel\(\)"),
        (HOT * 2.0 - 1, "row 0 holds -1.0; for labels of -1 and 1 use labels > 0"),
        (HOT * np.nan, "row 0 holds nan"),
        (np.zeros((N, 2, 2)), r"got ndarray float64 \(60, 2, 2\)"),
        (HOT * 0, "no image has a label: labels=None makes a dataset without labels"),
        (np.arange(N), "each of the 60 images has a class of its own, so that no two are similar"),
        ([1, "cat"] * 30, "must all be strings or all be integers: row 1 holds str 'cat'"),
        (
            ["cat", None] * 30,
            r"row 1 holds None. For an image without a label give lists of names, \[\] for that image",
        ),
        ([np.nan, "cat"] * 30, "row 0 holds float nan"),
        (["cat", ["dog"]] * 30, "labels mix lists and single labels, as rows 0 and 1"),
        ([[1, 2], [3]] * 30, "lists of labels must hold names: write numbers as strings"),
        ([{1}, {2}] * 30, "lists of labels must hold names"),
        (sparse.csr_matrix(HOT), r"labels are csr_matrix uint8 \(60, 3\), a sparse matrix: give labels.toarray\(\)"),
    ],
)
def test_labels_that_cannot_be_used(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        HashingDataset.from_arrays(X, labels)
    assert len(str(raised.value)) < 260


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_names": "abc"}, "label_names must be a list of strings, got str 'abc'"),
        ({"label_names": ["a", "b"]}, "classes go from 0 to 2, label_names name 0 to 1"),
        ({"labels": HOT, "label_names": ["a", "b"]}, "2 label_names for 3 columns of labels"),
        ({"labels": WORDS, "label_names": ["cat", "dog"]}, "labels hold 'owl', missing in label_names"),
        ({"labels": None, "label_names": ["cat"]}, "there are 1 label_names and no labels"),
        ({"names": ["a"] * N}, "names must be 60 different names"),
        ({"names": ["a"]}, "1 names for 60 images"),
        ({"queries": 61}, "61 query images requested, but there are 60"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"queries": -5, "train": np.arange(10)}, "queries must be at least 1"),
        ({"queries": np.arange(10), "train": 0}, "train must be at least 1"),
        ({"queries": True}, "queries must be a number of images, their indices, or a mask"),
        ({"train": 2.5}, r"train must be a number of images, .*; got float 2.5"),
        ({"train": np.ones(3, bool)}, "train is a mask of length 3 for 60 images"),
        ({"train": [1, 1]}, "train has an image twice"),
        ({"train": [60]}, "train has indices outside 0 to 59"),
        ({"train": [1], "queries": [1]}, "an image is both a query and in the training set"),
        ({"queries": range(50), "train": 20}, "train: 20 images requested, but only 10 are left"),
        ({"database": 5}, "database must be indices or a mask"),
        ({"regions": X}, r"regions must have shape \(n, R, D\)"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HashingDataset.from_arrays(X, **{"labels": CLASSES, **options})


@pytest.mark.parametrize("source", [X, X.tolist(), (X, CLASSES), {"features": X}, pd.DataFrame(X), None, 3, b"digits"])
def test_where_a_name_or_folder_is_wanted_arrays_name_from_arrays(source: Any) -> None:
    for fails in (
        lambda: data.load(source),
        lambda: gym.make("BitGroupHashing-v0", dataset=source),
        lambda: gym.make_vec("BitGroupHashing-v0", 2, dataset=source),
        lambda: gym.make("RegionKeep-v0", dataset=source),
    ):
        with pytest.raises(DataError, match=r"or a HashingDataset, got .*from_arrays\(features, labels=") as raised:
            fails()
        assert len(str(raised.value)) < 260


@pytest.mark.parametrize("source", ["x" * 5_000, "a\0b"])
def test_texts_that_can_be_no_path(source: str) -> None:
    with pytest.raises(DataError, match=r"cannot be the name of a dataset or folder|neither a folder of features nor"):
        data.load(source)


def test_the_class_itself_names_from_arrays() -> None:
    with pytest.raises(DataError, match=r"labels must be a NumPy array, got list of 60: HashingDataset.from_arrays"):
        HashingDataset("x", X.astype(np.float32), CLASSES.tolist(), *(np.arange(3) + 3 * i for i in range(3)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got float64 \(60, 4\): HashingDataset.from_arrays"):
        HashingDataset("x", X, HOT, *(np.arange(3) + 3 * i for i in range(3)))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ma.masked_greater(X, 2), CLASSES, "features of row 19 are masked: fill them"),
        (X, np.ma.masked_equal(CLASSES, 1), "labels of row 1 are masked"),
        (X, CLASSES * 1e30, r"must be below 2\*\*53 in size, the label of row 1 is 1e\+30"),
        (pd.DataFrame(X).astype("Float64"), CLASSES, r"for a table of numbers use table\.to_numpy\('float32'\)"),
    ],
)
def test_values_that_would_be_read_as_others(features: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        HashingDataset.from_arrays(features, labels)


def test_masked_arrays_without_masked_entries_are_arrays() -> None:
    made = HashingDataset.from_arrays(np.ma.masked_array(X), np.ma.masked_array(CLASSES))
    assert np.array_equal(made.features, X.astype(np.float32))
    assert np.array_equal(made.labels, HOT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "seed must be an integer of at least 0, got None"),
        ({"seed": -1}, "seed must be an integer of at least 0, got int -1"),
        ({"seed": 1.5}, "seed must be an integer of at least 0, got float 1.5"),
        ({"name": 3}, "name must be a string, got int 3"),
        ({"standardize": "no"}, "standardize must be True or False, got str 'no'"),
        ({"label_names": ["a", "b", "a"]}, "label_names must be different, got 'a' more than once"),
    ],
)
def test_options_that_would_mean_something_else(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HashingDataset.from_arrays(X, CLASSES, **options)


def test_splits_name_the_labels() -> None:
    with pytest.raises(DataError, match="leaves none of class cat"):
        HashingDataset.from_arrays(X[:6], ["cat", "cat", "cat", "cat", "dog", "dog"], train=1)
    with pytest.raises(DataError, match="1 training images requested, but there are 0"):
        HashingDataset.from_arrays(X[:1])


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 3), (np.float16, 5), (np.float32, 5)])
def test_pixels_and_activations_stay_as_they_are(kind: Any, channels: int) -> None:
    maps = np.random.default_rng(0).uniform(0, 200, (20, channels, 4, 3)).astype(kind)
    data = HashingDataset.from_arrays(maps, [0, 1] * 10, queries=4, standardize=True)
    assert data.features is maps
    assert (data.has_maps, data.image_shape) == (True, (channels, 4, 3))
    other = HashingDataset.from_arrays(torch.from_numpy(maps), [0, 1] * 10, queries=4)
    np.testing.assert_array_equal(other.features, maps)
    assert other.provenance["arrays"] == data.provenance["arrays"]
    with pytest.raises(DataError, match=r"tensor\.detach"):
        HashingDataset.from_arrays(torch.zeros((20, 5, 4, 3), requires_grad=True))
    transposed = HashingDataset.from_arrays(maps.transpose(0, 1, 3, 2), [0, 1] * 10)
    np.testing.assert_array_equal(transposed.features, maps.transpose(0, 1, 3, 2))


def test_pictures_with_channels_last_are_not_taken_for_pixels() -> None:
    pictures = np.zeros((N, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match=r"to train a network on pixels give uint8 \(n, 3, H, W\)"):
        HashingDataset.from_arrays(pictures)
    assert HashingDataset.from_arrays(pictures.transpose(0, 3, 1, 2)).image_shape == (3, 8, 8)
    with pytest.raises(DataError, match="must have shape"):
        HashingDataset.from_arrays(pictures.transpose(0, 3, 1, 2)[:, :, :0])
