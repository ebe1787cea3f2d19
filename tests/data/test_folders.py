from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hashgym.data import DataError, read_images, splits


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
    with pytest.raises(DataError, match="is not a folder; wanted: PATH/CLASS"):
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
