from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hashgym import data
from hashgym.data import DataError, HashingDataset, cache, splits
from hashgym.data.readers import DATASETS


def test_every_dataset_is_listed_with_its_splits() -> None:
    listed = {info.name: info for info in data.datasets()}
    assert list(listed) == [
        *("digits", "digits-pixels", "digit-scenes"),
        *("cifar10", "mirflickr25k", "nuswide21", "coco", "folder:PATH", "photos:PATH", "list:FILE"),
    ]
    for info in listed.values():
        assert info.description
        assert info.reads_from
        assert list(info.splits) == list(splits.rules(info.name))
        assert all(info.splits.values())
    assert [info.name for info in listed.values() if info.embedded] == ["digits", "digits-pixels", "digit-scenes"]


def test_digits() -> None:
    digits = data.load("digits")
    assert digits.features.shape == (1_797, 64)
    assert (digits.features.min(), digits.features.max()) == (0, 1)
    assert (len(digits.query), len(digits.train), len(digits.database)) == (300, 1_000, 1_497)
    np.testing.assert_array_equal(digits.labels[digits.query].sum(axis=0), 30)
    np.testing.assert_array_equal(digits.labels[digits.train].sum(axis=0), 100)
    assert digits.thumbnails is not None
    assert digits.thumbnails.shape == (1_797, 32, 32, 3)
    assert digits.thumbnails[0, 0, 0, 0] == 255 - round(255 * digits.features[0, 0])
    np.testing.assert_array_equal(digits.query, data.load("digits", seed=0).query)
    other = data.load("digits", seed=1, queries=50)
    assert (len(other.query), len(other.train)) == (50, 1_000)
    assert other.provenance["split_seed"] == 1
    with pytest.raises(DataError, match="digits has no split 'mch'; it has digits"):
        data.load("digits", split="mch")


def test_a_dataset_is_returned_as_it_is_or_split_again(multi_label: HashingDataset) -> None:
    assert data.load(multi_label) is multi_label
    again = data.load(multi_label, split="random", queries=4, train=9, seed=5)
    assert (len(again.query), len(again.train), len(again.database)) == (4, 9, 56)
    assert again.features is multi_label.features
    other = data.load(again, seed=6)  # the numbers asked for stay
    assert (len(other.query), len(other.train)) == (4, 9)
    assert not np.array_equal(other.train, again.train)
    np.testing.assert_array_equal(data.load(again, train=9).train, again.train)  # and so does the seed
    assert len(data.load(again, split="random").query) == 6  # but not with another split


def test_a_folder_of_features(tmp_path: Path, multi_label: HashingDataset) -> None:
    cache.save(multi_label, tmp_path / "small")
    for path in (tmp_path / "small", str(tmp_path / "small")):
        loaded = data.load(path)
        np.testing.assert_array_equal(loaded.features, multi_label.features)
        np.testing.assert_array_equal(loaded.query, multi_label.query)
    again = data.load(tmp_path / "small", queries=5)
    assert len(again.query) == 5
    np.testing.assert_array_equal(again.labels, multi_label.labels)


def test_images_without_features_name_the_command() -> None:
    for name in ("cifar10", "mirflickr25k", "nuswide21", "coco"):
        command = f"hashgym features --dataset {name} --root DIR --backbone efficientnet_lite0 --out DIR"
        with pytest.raises(DataError, match=command):
            data.load(name)
    with pytest.raises(DataError, match="features --dataset folder:pets --backbone"):
        data.load("folder:pets")
    with pytest.raises(DataError, match=r"neither a folder of features nor one of digits, digits-pixels, digit-scenes"):
        data.load("nowhere/at/all")


def test_read_images_names_the_problem() -> None:
    with pytest.raises(DataError, match=r"unknown dataset of images 'mnist': choose one of cifar10, mirflickr25k"):
        data.read_images("mnist", ".")
    for name in ("folder:", "list:", "cifar10:x", "folder:PATH", "folder"):
        with pytest.raises(DataError):
            data.read_images(name, ".")
    with pytest.raises(DataError, match=r"digits is embedded and has features already: use hashgym.data.load"):
        data.read_images("digits", ".")
    with pytest.raises(DataError, match=r"coco needs the folder that it is in \(--root\); expected: annotations"):
        data.read_images("coco")


def _read_pets(path: str, *, exclude: tuple[str, ...]) -> data.ImageCollection:
    names = tuple(name for name in ("cat.png", "dog.png") if name not in exclude)
    return data.ImageCollection("pets", names, np.ones((len(names), 1), np.uint8), (path,), lambda index: None)


READER = data.Reader(_read_pets, "PATH/*.png", options=("exclude",))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("entries", "descriptions"):
        monkeypatch.setattr(DATASETS, part, dict(getattr(DATASETS, part)))


@pytest.mark.usefixtures("registry")
def test_a_dataset_of_ones_own(multi_label: HashingDataset) -> None:
    data.register("pets:PATH", f"{__name__}:READER", "two pets")
    assert data.read_images("pets:a/b").label_names == ("a/b",)
    assert data.read_images("pets:a", exclude=("cat.png",)).names == ("dog.png",)
    data.register("mine", data.Reader(lambda seed: multi_label, "nothing", embedded=True), "my own")
    assert data.load("mine") is multi_label
    listed = {info.name: info for info in data.datasets()}
    assert (listed["pets:PATH"].description, listed["pets:PATH"].reads_from) == ("two pets", "PATH/*.png")
    assert list(listed["pets:PATH"].splits) == ["random", "given"]
    assert list(listed)[3] == "mine"
    with pytest.raises(DataError, match="nor one of digits, digits-pixels, digit-scenes, mine"):
        data.load("pets")
    with pytest.raises(ValueError, match="a dataset 'digits' is registered already"):
        data.register("digits", READER, "other digits")
    with pytest.raises(ValueError, match=r"reader must be a hashgym\.data\.Reader or 'package\.module:READER', got"):
        data.register("cats", _read_pets, "cats")  # type: ignore[arg-type]


def test_the_import_is_light() -> None:
    code = "import sys, hashgym.data; hashgym.data.datasets(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"PIL", "sklearn", "torch", "matplotlib", "scipy"} & set(modules)


@pytest.mark.parametrize("option", ["queries", "train"])
@pytest.mark.parametrize("count", [0, -5, 2.5])
def test_a_split_has_at_least_one_image_of_each(option, count) -> None:
    with pytest.raises(ValueError, match=f"{option} must be"):
        data.load("digits", **{option: count})


def test_a_dataset_that_names_its_folder_takes_no_root(tmp_path) -> None:
    for dataset in (f"folder:{tmp_path}", f"photos:{tmp_path}"):
        with pytest.raises(DataError, match="names its folder itself: leave out --root"):
            data.read_images(dataset, tmp_path)
