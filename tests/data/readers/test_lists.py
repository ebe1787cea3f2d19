from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashgym.data import DataError, ImageCollection, read_images, splits
from hashgym.data.readers import lists


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
        ("a.jpg 0 1\nb.jpg 0 1 1\n", r"line 2 of .*all.txt is 'b.jpg 0 1 1'; expected: a path and 2 labels of 0 or 1"),
        ("a.jpg 0 2\n", "line 1 of .* is 'a.jpg.*'; expected: lines of"),
        ("a.jpg 1\nb.jpg\n", "line 2 of .* is 'b.jpg'; expected: a path and the number of a class"),
        ("0 1 0\n", None),
        ("a.jpg 0 1\na.jpg 0 1\n", r"lists a.jpg, which is listed already"),
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
    with pytest.raises(DataError, match="does not exist; expected: a file of lines"):
        read_images(f"list:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"must hold test.txt and train.txt"):
        read_images(f"list:{tmp_path}")
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    cases = {
        "which is listed already": ("a.jpg 1\n", "b.jpg 1\n", "a.jpg 1\n"),  # a query in the database
        "other labels than an earlier list": ("a.jpg 1\n", "b.jpg 1\n", "b.jpg 0\n"),
        "different numbers of labels": ("a.jpg 1\n", "b.jpg 1 0\n", ""),
    }
    for reason, texts in cases.items():
        for part, text in zip(("test", "train", "database"), texts, strict=True):
            (tmp_path / f"{part}.txt").write_text(text)
        with pytest.raises(DataError, match=reason):
            read_images(f"list:{tmp_path}")


def listed(root: Path, text: str | bytes, **options: Any) -> ImageCollection:
    (root / "all.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_images(f"list:{root / 'all.txt'}", **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("gap", [" ", "\t", ",", ", ", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_separators_and_line_ends(
    tmp_path: Path, picture: Callable[..., Path], encoding: str, gap: str, end: str
) -> None:
    for name in ("é.jpg", "b c.jpg", "d,e.jpg"):
        picture(tmp_path / name)
    rows = [("é.jpg", 1, 0), ("b c.jpg", 0, 1), ('"d,e.jpg"', 1, 1)]
    text = "".join(gap.join(map(str, row)) + end for row in rows)
    collection = listed(tmp_path, text.encode(encoding), allow_missing=True)
    assert collection.names == ("é.jpg", "b c.jpg", "d,e.jpg")
    np.testing.assert_array_equal(collection.labels, [[1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("numbers", "names"), [((0, 1, 1), ("0", "1")), ((9, 0, 10), ("0", "9", "10")), ((1,) * 3, ("1",))]
)
def test_one_column_is_the_number_of_a_class(
    tmp_path: Path, picture: Callable[..., Path], numbers: tuple[int, ...], names: tuple[str, ...]
) -> None:
    lines = [f"{picture(tmp_path / f'{i} 1.jpg').name} {number}\n" for i, number in enumerate(numbers)]
    collection = listed(tmp_path, "".join(lines))
    assert collection.label_names == names
    np.testing.assert_array_equal(collection.labels.argmax(axis=1), [names.index(str(number)) for number in numbers])
    np.testing.assert_array_equal(collection.labels.sum(axis=1), 1)


def test_numbers_of_classes_are_those_of_all_lists(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for part, numbers in (("test", (0, 5)), ("train", (5, 3, 0))):
        lines = [f"{picture(tmp_path / part / f'{i}.jpg').name} {number}\n" for i, number in enumerate(numbers)]
        (tmp_path / f"{part}.txt").write_text("".join(f"{part}/{line}" for line in lines))
    collection = read_images(f"list:{tmp_path}")
    assert collection.label_names == ("0", "3", "5")
    np.testing.assert_array_equal(collection.labels.argmax(axis=1), [0, 2, 2, 1, 0])
    (tmp_path / "train.txt").write_text("train/0.jpg 0 1 0\n")
    with pytest.raises(DataError, match="different numbers of labels"):
        read_images(f"list:{tmp_path}")


def test_numbers_too_many_to_be_classes(
    tmp_path: Path, picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{picture(tmp_path / f'{i}.jpg').name} {10**20 + i}\n" for i in range(3)]
    assert len(listed(tmp_path, "".join(lines)).label_names) == 3
    monkeypatch.setattr(lists, "LARGEST", 8)
    with pytest.raises(DataError, match="3 classes for 3 images: is the column the number of a class"):
        listed(tmp_path, "".join(lines))


def test_two_ways_to_write_a_path_are_one_image(tmp_path: Path, picture: Callable[..., Path]) -> None:
    picture(tmp_path / "img" / "1.jpg")
    assert listed(tmp_path, "./img//1.jpg 1 0\n").names == ("img/1.jpg",)
    for other in ("./img/1.jpg", "img//1.jpg", "img/x/../1.jpg"):
        with pytest.raises(DataError, match=r"lists img/1\.jpg, which is listed already"):
            listed(tmp_path, f"img/1.jpg 1 0\n{other} 1 0\n")
    for other in ("img\\\\1.jpg", "/theirs/img/1.jpg"):
        with pytest.raises(DataError, match=r"lists one file twice, as img/1\.jpg and as "):
            listed(tmp_path, f"img/1.jpg 1 0\n{other} 1 0\n".replace("\\\\", "\\"))


def test_where_missing_images_were_looked_for(tmp_path: Path) -> None:
    wanted = rf"all.txt: 1 of 1 images are missing \(data/a.jpg\); they were searched for in {tmp_path}"
    with pytest.raises(DataError, match=wanted):
        listed(tmp_path, "./data/a.jpg 1 0\n")


def test_images_outside_the_root(tmp_path: Path, picture: Callable[..., Path]) -> None:
    photos = tmp_path / "photos"
    picture(photos / "a.jpg")
    picture(tmp_path / "x.jpg")
    (photos / "link.jpg").symlink_to(tmp_path / "x.jpg")
    (photos / "near.jpg").symlink_to("a.jpg")
    for path in ("../x.jpg", "b/../../x.jpg", "link.jpg", "/home/them/../link.jpg"):
        with pytest.raises(DataError, match=r"lies outside .*photos.*--follow-links"):
            listed(photos, f"a.jpg 1 0\n{path} 1 0\n", allow_missing=True)
    assert listed(photos, "near.jpg 1 0\n").read(0).size == (6, 4)
    assert listed(photos, "../x.jpg 1 0\nlink.jpg 0 1\n", follow_links=True).read(1).size == (6, 4)


def test_listed_images_can_be_excluded(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for name in ("a/1.jpg", "b/2.jpg"):
        picture(tmp_path / name)
    collection = listed(tmp_path, "a/1.jpg 1 0\nb/2.jpg 0 1\n", exclude=["b/*"])
    assert (collection.names, collection.provenance["passed_over"]) == (("a/1.jpg",), "1 by --exclude")
    with pytest.raises(DataError, match="cifar10 has a fixed set of images"):
        read_images("cifar10", tmp_path, exclude=["b"])
