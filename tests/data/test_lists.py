from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hashgym.data import DataError, read_images, splits


def test_one_list(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for name in ("a/1.jpg", "my photos/the 2 1.jpg", "0.jpg"):
        picture(tmp_path / name)
    (tmp_path / "all.txt").write_text("a/1.jpg 0 1 0\nmy photos/the 2 1.jpg 1 0 1\r\n\n0.jpg\t0\t0\t0\n")
    collection = read_images(f"list:{tmp_path / 'all.txt'}")
    assert collection.name == "list:all"
    assert collection.names == ("a/1.jpg", "my photos/the 2 1.jpg", "0.jpg")
    np.testing.assert_array_equal(collection.labels, [[0, 1, 0], [1, 0, 1], [0, 0, 0]])
    assert collection.labels.dtype == np.uint8
    assert collection.label_names == ("0", "1", "2")
    assert collection.read(1).size == (6, 4)


def test_paths_of_the_authors_machine_are_found_below_root(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for name in ("images/a/1.jpg", "2.jpg"):
        picture(tmp_path / "photos" / name)
    (tmp_path / "all.txt").write_text("/home/them/nus/images/a/1.jpg 1 0\nC:\\Users\\them\\2.jpg 0 1\n")
    collection = read_images(f"list:{tmp_path / 'all.txt'}", tmp_path / "photos")
    assert collection.read(0).size == collection.read(1).size == (6, 4)
    assert collection.names[0] == "home/them/nus/images/a/1.jpg"
    with pytest.raises(DataError, match="2 of 2 images are missing"):
        read_images(f"list:{tmp_path / 'all.txt'}", tmp_path / "elsewhere")


def test_lists_of_the_parts(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for i in range(8):
        picture(tmp_path / "photos" / f"{i}.jpg", (i, 0, 0))
    write = {"test": (0, 1), "train": (2, 3, 4), "database": (4, 3, 5, 6, 7)}
    (tmp_path / "lists").mkdir()
    for part, numbers in write.items():
        lines = (f"photos/{i}.jpg {i % 2} {1 - i % 2}\n" for i in numbers)
        (tmp_path / "lists" / f"{part}.txt").write_text("".join(lines))
    collection = read_images(f"list:{tmp_path / 'lists'}", tmp_path)
    split = splits.make(
        collection.name, labels=collection.labels, label_names=collection.label_names, names=collection.names
    )

    def numbers(index: np.ndarray) -> set[int]:
        return {int(collection.names[i].rpartition("/")[2][:-4]) for i in index}

    assert split.name == "given"
    assert {part: numbers(index) for part, index in
            (("test", split.query), ("train", split.train), ("database", split.database))} == {
        part: set(chosen) for part, chosen in write.items()
    }  # fmt: skip
    for index, name in enumerate(collection.names):
        number = int(name.rpartition("/")[2][:-4])
        assert collection.labels[index].tolist() == [number % 2, 1 - number % 2]
    (tmp_path / "lists" / "database.txt").unlink()
    collection = read_images(f"list:{tmp_path / 'lists'}", tmp_path)
    split = splits.make("list:x", labels=collection.labels, label_names=("0", "1"), names=collection.names)
    np.testing.assert_array_equal(split.database, split.train)


def test_missing_images_can_be_left_out(tmp_path: Path, picture: Callable[..., Path]) -> None:
    picture(tmp_path / "b.jpg")
    (tmp_path / "all.txt").write_text("a.jpg 1 0\nb.jpg 0 1\n")
    with pytest.raises(DataError, match=r"1 of 2 images are missing \(a.jpg\)"):
        read_images(f"list:{tmp_path / 'all.txt'}")
    collection = read_images(f"list:{tmp_path / 'all.txt'}", allow_missing=True)
    assert collection.names == ("b.jpg",)
    np.testing.assert_array_equal(collection.labels, [[0, 1]])
    (tmp_path / "all.txt").write_text("a.jpg 1 0\n")
    with pytest.raises(DataError, match="no images were found"):
        read_images(f"list:{tmp_path / 'all.txt'}", allow_missing=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.jpg 0 1\nb.jpg 0 1 1\n", r"line 2 of .*all.txt must be a path and 2 labels of 0 or 1, got 'b.jpg 0 1 1'"),
        ("a.jpg 0 2\n", "line 1 of .* must be lines of"),
        ("a.jpg\n", "line 1 of .* must be lines of"),
        ("0 1 0\n", None),
        ("a.jpg 0 1\na.jpg 0 1\n", r"lists a.jpg, which is listed before"),
        ("\n", "lists no images"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, picture: Callable[..., Path], text: str, reason: str | None) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    (tmp_path / "all.txt").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_images(f"list:{tmp_path / 'all.txt'}")


def test_bad_sets_of_lists(tmp_path: Path, picture: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="does not exist; wanted: a file of lines"):
        read_images(f"list:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"must hold test.txt and train.txt"):
        read_images(f"list:{tmp_path}")
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    cases = {
        "which is listed before": ("a.jpg 1\n", "b.jpg 1\n", "a.jpg 1\n"),  # a query in the database
        "other labels than the list before": ("a.jpg 1\n", "b.jpg 1\n", "b.jpg 0\n"),
        "different numbers of labels": ("a.jpg 1\n", "b.jpg 1 0\n", ""),
    }
    for reason, texts in cases.items():
        for part, text in zip(("test", "train", "database"), texts, strict=True):
            (tmp_path / f"{part}.txt").write_text(text)
        with pytest.raises(DataError, match=reason):
            read_images(f"list:{tmp_path}")
