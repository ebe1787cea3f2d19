"""Photos without labels: folders, flat or not, and lists of paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hashgym import hashers
from hashgym.data import DataError, cache, load, read_images
from hashgym.features import extract, make
from hashgym.retrieval import check_labels


def test_all_photos_below_a_folder_are_read(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for name in ("2.jpg", "10.png", "2024/june/1.jpg", "2024/2.jpg", ".hidden/3.jpg", "out/4.jpg"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    collection = read_images(f"photos:{tmp_path}", exclude=("out",))
    assert collection.names == ("2.jpg", "10.png", "2024/2.jpg", "2024/june/1.jpg")
    assert collection.labels.shape == (4, 0)
    assert collection.name == f"photos:{tmp_path.name}"
    assert "1 .txt" in collection.provenance["passed_over"]
    assert collection.read(3).size == (6, 4)
    with pytest.raises(DataError, match=r"photos:.* reads all images below it, without labels"):
        read_images(f"folder:{tmp_path}")
    with pytest.raises(DataError, match="holds no images"):
        read_images(f"photos:{tmp_path / '2024'}", exclude=("*.jpg",))


def test_a_folder_without_subfolders_has_no_labels(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.jpg")
    collection = read_images(f"folder:{tmp_path}")
    assert (collection.names, collection.labels.shape) == (("0.jpg", "1.jpg", "2.jpg"), (3, 0))
    assert collection.name == f"folder:{tmp_path.name}"


def test_a_list_of_paths_has_no_labels(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for name in ("a.jpg", "the sea 2.jpg", "b, c.jpg"):
        picture(tmp_path / name)
    (tmp_path / "all.txt").write_text('a.jpg\n./the sea 2.jpg\n"b, c.jpg"\n')
    collection = read_images(f"list:{tmp_path / 'all.txt'}")
    assert (collection.names, collection.labels.shape) == (("a.jpg", "the sea 2.jpg", "b, c.jpg"), (3, 0))
    (tmp_path / "all.txt").write_text("a.jpg\nmissing 3\n")
    with pytest.raises(DataError, match=r"1 of 2 images are missing \(missing 3\)"):
        read_images(f"list:{tmp_path / 'all.txt'}")


def test_photos_without_labels_from_extraction_to_codes(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for i in range(40):
        picture(tmp_path / "photos" / f"{i}.png", colour=(6 * i, i * i % 256, 37 * i % 256))
    place = extract(
        read_images(f"photos:{tmp_path / 'photos'}"), make("pixels", size=2), tmp_path / "features", progress=False
    )
    dataset = load(place)
    assert (len(dataset.query), len(dataset.train), len(dataset.database)) == (4, 10, 36)
    assert dataset.labels.shape == (40, 0)
    assert "no labels, 4 queries" in dataset.provenance["split_description"]
    again = load(place, queries=10, train=20)
    assert (len(again.query), len(again.train), len(again.database)) == (10, 20, 30)
    cache.save(again, tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved").train, again.train)
    for name in ("lsh", "itq", "sh", "pca"):
        hasher = hashers.fitted(name, again.standardized(), bits=3)
        assert hasher.encode(again.standardized().features).shape == (40, 3)
    with pytest.raises(ValueError, match="there are no labels"):
        check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    with pytest.raises(
        ValueError, match="DCH learns from labels, and there are none: use lsh, itq, sh, pca or cibhash"
    ):
        hashers.fitted("dch", dataset, bits=4)
