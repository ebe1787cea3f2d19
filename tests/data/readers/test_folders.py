from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashgym.data import DataError, ImageCollection, read_images, splits


def test_each_subfolder_is_a_class(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for name in ("dog/2.jpg", "dog/10.png", "cat/old/1.jpg", "cat/3.jpg", "class 10/a.jpg", "class 9/b.jpg"):
        picture(tmp_path / "pets" / name)
    (tmp_path / "pets" / "cat" / "notes.txt").touch()
    (tmp_path / "pets" / ".cache").mkdir()
    collection = read_images(f"folder:{tmp_path / 'pets'}")
    assert collection.name == "folder:pets"
    assert collection.label_names == ("cat", "class 9", "class 10", "dog")
    assert collection.names == (
        *("cat/3.jpg", "cat/old/1.jpg", "class 9/b.jpg", "class 10/a.jpg", "dog/2.jpg", "dog/10.png"),
    )
    np.testing.assert_array_equal(collection.labels, np.eye(4, dtype=np.uint8)[[0, 0, 1, 2, 3, 3]])
    assert collection.read(5).size == (6, 4)
    assert splits.default(collection.name, collection.names) == "random"


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "query", "database")])
def test_parts_are_kept_apart(tmp_path: Path, picture: Callable[..., Path], parts: tuple[str, ...]) -> None:
    for part in parts:
        for label in ("cat", "dog"):
            for i in range(3):
                picture(tmp_path / part / label / f"{i}.jpg")
    collection = read_images(f"folder:{tmp_path}")
    assert collection.label_names == ("cat", "dog")
    split = splits.make(
        collection.name, labels=collection.labels, label_names=collection.label_names, names=collection.names
    )
    assert split.name == "given"

    def chosen(*prefixes: str) -> list[int]:
        return [i for i, name in enumerate(collection.names) if name.startswith(prefixes)]

    assert split.query.tolist() == chosen("test/", "query/")
    assert split.train.tolist() == chosen("train/")
    assert split.database.tolist() == chosen("database/" if "database" in parts else "train/")


def test_errors(tmp_path: Path, picture: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="is not a folder; expected: PATH/CLASS"):
        read_images(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="has no subfolders"):
        read_images(f"folder:{tmp_path}")
    picture(tmp_path / "cat" / "1.jpg")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder 'dog' in .* holds no images"):
        read_images(f"folder:{tmp_path}")
    picture(tmp_path / "dog" / "1.jpg")
    picture(tmp_path / "stray.jpg")
    with pytest.raises(DataError, match=r"holds images outside class folders \(stray.jpg\)"):
        read_images(f"folder:{tmp_path}")


def fill(picture: Callable[..., Path], root: Path, *folders: str, each: int = 3) -> None:
    for folder in folders:
        for i in range(each):
            picture(root / folder / f"{i}.jpg")


def drawn(root: Path, **options: Any) -> tuple[ImageCollection, splits.Split]:
    collection = read_images(f"folder:{root}", **options)
    return collection, splits.make(
        collection.name, labels=collection.labels, label_names=collection.label_names, names=collection.names
    )


@pytest.mark.parametrize(
    "parts", [("train", "val", "test"), ("TRAIN", "Validation", "Test"), ("training", "valid", "queries", "Gallery")]
)
def test_parts_of_a_split_are_not_classes(tmp_path: Path, picture: Callable[..., Path], parts: tuple[str, ...]) -> None:
    fill(picture, tmp_path, *(f"{part}/{label}" for part in parts for label in ("cat", "dog")))
    (tmp_path / "README.txt").touch()
    collection, split = drawn(tmp_path)
    assert collection.label_names == ("cat", "dog")
    assert collection.provenance["source"].endswith(f"for the parts of a split: {', '.join(sorted(parts))}")
    assert collection.provenance["passed_over"] == "1 file that is not read: 1 .txt"
    assert split.name == "given"

    def chosen(part: str) -> list[int]:
        return [i for i, name in enumerate(collection.names) if name.startswith(f"{part}/")]

    assert split.train.tolist() == chosen(parts[0])
    assert split.query.tolist() == chosen(parts[2])
    assert split.database.tolist() == chosen(parts[-1] if len(parts) == 4 else parts[0])
    assert "6 validation images held out" in split.description


def test_classes_with_names_of_parts_stay_classes(tmp_path: Path, picture: Callable[..., Path]) -> None:
    fill(picture, tmp_path, "bus", "car", "train/steam", "train/diesel", each=4)
    collection, split = drawn(tmp_path)
    assert collection.label_names == ("bus", "car", "train")
    assert split.name == "random"
    fill(picture, tmp_path / "2", "train", each=9)  # photos without labels
    assert drawn(tmp_path / "2")[0].label_names == ("train",)
    fill(picture, tmp_path / "3", "car", "gallery", "train", each=9)
    assert drawn(tmp_path / "3")[0].label_names == ("car", "gallery", "train")


def test_mixed_and_half_split_folders_are_rejected(tmp_path: Path, picture: Callable[..., Path]) -> None:
    fill(picture, tmp_path, "train/cat", "test/cat", "dog", "extra")
    with pytest.raises(
        DataError, match=r"mixes folders for the parts of a split \(test, train\) and others \(dog, ext"
    ):
        read_images(f"folder:{tmp_path}")
    assert drawn(tmp_path, exclude=("dog", "extra"))[0].label_names == ("cat",)
    fill(picture, tmp_path / "2", "train", "val/cat", "test/cat")
    with pytest.raises(
        DataError, match=r"2/train is for a part of a split, by its name, and holds images outside class"
    ):
        read_images(f"folder:{tmp_path / '2'}")


def test_parts_inside_classes_are_reported_not_to_be_a_split(tmp_path: Path, picture: Callable[..., Path]) -> None:
    fill(picture, tmp_path, "cat/train", "cat/test", "dog/train", "dog/test")
    collection, split = drawn(tmp_path)
    assert (collection.label_names, split.name) == (("cat", "dog"), "random")
    assert "test, train inside classes are not taken for parts of a split" in collection.provenance["source"]


def test_links_are_passed_over_or_followed(tmp_path: Path, picture: Callable[..., Path]) -> None:
    fill(picture, tmp_path / "else", "cat", "dog")
    photos = tmp_path / "photos"
    photos.mkdir()
    for label in ("cat", "dog"):
        (photos / label).symlink_to(tmp_path / "else" / label)
    with pytest.raises(DataError, match=r"no images \(skipped: 2 links \(--follow-links follows them\)\)"):
        read_images(f"folder:{photos}")
    collection = read_images(f"folder:{photos}", follow_links=True)
    assert collection.names[:4] == ("cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/0.jpg")
    assert collection.read(3).size == (6, 4)
    fill(picture, photos, "bird")
    for i in range(3):
        (photos / "bird" / f"link{i}.jpg").symlink_to(tmp_path / "else" / "cat" / f"{i}.jpg")
    collection = read_images(f"folder:{photos}")
    assert collection.names == ("bird/0.jpg", "bird/1.jpg", "bird/2.jpg")
    assert collection.provenance["passed_over"] == "5 links (--follow-links follows them)"
    (photos / "bird" / "1.jpg").unlink()
    (photos / "bird" / "1.jpg").symlink_to(tmp_path / "else" / "cat" / "1.jpg")  # after it was listed
    with pytest.raises(DataError, match="lies outside"):
        collection.read(1)
    (tmp_path / "to photos").symlink_to(photos)
    assert read_images(f"folder:{tmp_path / 'to photos'}").label_names == ("bird",)


def test_output_and_system_folders_are_not_classes(tmp_path: Path, picture: Callable[..., Path]) -> None:
    fill(picture, tmp_path, "cat", "dog", "@eaDir", "cat/@eaDir", "__MACOSX/cat")
    for name in ("features.partial/journal.jsonl", "runs/.hashgym"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert len(read_images(f"folder:{tmp_path}")) == 6
    (tmp_path / "notes").mkdir()
    with pytest.raises(
        DataError, match=r"'notes' in .* holds no images; fill it, remove it, or leave it out with --excl"
    ):
        read_images(f"folder:{tmp_path}")
    assert read_images(f"folder:{tmp_path}", exclude=["notes"]).label_names == ("cat", "dog")
