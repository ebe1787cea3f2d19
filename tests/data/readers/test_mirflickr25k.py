from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hashgym.data import DataError, read_images
from hashgym.data.readers import mirflickr25k

PHOTOS = (1, 2, 9, 10, 11, 25_000)
# label: photos, also missing ones, as in an incomplete copy
LISTS = {"sky": (1, 2, 10, 300), "tree": (9, 25_000), "tree_r1": (25_000,), "baby_r1": (2,), "baby": (2, 11)}


def write(photos: Path, lists: Path, picture: Callable[..., Path]) -> None:
    for number in PHOTOS:
        picture(photos / f"im{number}.jpg", (number % 256, 0, 0))
    lists.mkdir(parents=True, exist_ok=True)
    for label in mirflickr25k.LABELS:
        (lists / f"{label}.txt").write_text("".join(f"{number}\r\n" for number in LISTS.get(label, ())))


@pytest.mark.parametrize(
    ("photos", "lists"),
    [
        (".", "."),
        (".", "annotations"),
        ("mirflickr", "mirflickr25k_annotations_v080"),
        ("mirflickr", "mirflickr/annotations"),
        ("mirflickr", "annotations"),
    ],
)
def test_layouts(tmp_path: Path, picture: Callable[..., Path], photos: str, lists: str) -> None:
    write(tmp_path / photos, tmp_path / lists, picture)
    (tmp_path / lists / "README.txt").write_text("not a list")
    picture(tmp_path / photos / "image7.jpg")
    collection = read_images("mirflickr25k", tmp_path)
    assert collection.names == tuple(f"im{number}.jpg" for number in PHOTOS)
    assert len(collection.label_names) == len(set(collection.label_names)) == 38
    assert sum(name.endswith("_r1") for name in collection.label_names) == 14
    for row, number in enumerate(PHOTOS):
        for column, label in enumerate(collection.label_names):
            assert collection.labels[row, column] == (number in LISTS.get(label, ()))
    red = collection.read(5).getpixel((0, 0))[0]  # type: ignore[index]
    assert abs(red - 25_000 % 256) < 4
    assert "6 of 25,000" in collection.provenance["images"]


def test_errors(tmp_path: Path, picture: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"holds no im\*.jpg.*expected: im1.jpg"):
        read_images("mirflickr25k", tmp_path)
    picture(tmp_path / "im1.jpg")
    with pytest.raises(DataError, match=r"has no mirflickr25k_annotations_v080/animals.txt or annotations/animals.txt"):
        read_images("mirflickr25k", tmp_path)
    write(tmp_path, tmp_path / "annotations", picture)
    tree = tmp_path / "annotations" / "tree.txt"
    for text, reason in (("12\nthirteen\n", "one photo number a line.*thirteen"), ("0\n", "outside 1 to 25000")):
        tree.write_text(text)
        with pytest.raises(DataError, match=f"tree.txt.*{reason}"):
            read_images("mirflickr25k", tmp_path)
    tree.unlink()
    with pytest.raises(DataError, match=r"tree.txt is missing"):
        read_images("mirflickr25k", tmp_path)
    write(tmp_path, tmp_path / "annotations", picture)
    (tmp_path / "im1.jpg").rename(tmp_path / "only")
    for photo in tmp_path.glob("im*.jpg"):
        photo.unlink()
    picture(tmp_path / "im1_small.jpg")
    with pytest.raises(DataError, match=r"holds no im1.jpg, im2.jpg, \.\.\.; expected"):
        read_images("mirflickr25k", tmp_path)
    picture(tmp_path / "im25001.jpg")
    with pytest.raises(DataError, match=r"im25001.jpg; MIRFLICKR-25k ends at"):
        read_images("mirflickr25k", tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read_images("mirflickr25k", tree)


def test_labels_are_in_a_fixed_order() -> None:
    assert mirflickr25k.LABELS[:24] == tuple(sorted(mirflickr25k.LABELS[:24]))
    assert mirflickr25k.LABELS[24:] == tuple(sorted(mirflickr25k.LABELS[24:]))
    assert {name[:-3] for name in mirflickr25k.LABELS[24:]} < set(mirflickr25k.LABELS[:24])
    assert np.unique(mirflickr25k.LABELS).size == 38
