from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hashgym.data import DataError, read_images

CONCEPTS = [f"concept{i:02d}" for i in range(81)]
PHOTOS = 60


def truth() -> NDArray[np.uint8]:
    """Concept c is on every photo whose number is divisible by 1 + (c * 7) % 81, photo 59 has none."""
    table = np.zeros((PHOTOS, 81), np.uint8)
    for concept in range(81):
        table[:: 1 + (concept * 7) % 81, concept] = 1
    table[59] = 0
    return table


def write(root: Path, picture: Callable[..., Path]) -> list[str]:
    """The official tree: lists with line ends and slashes of Windows."""
    names = [f"dir{i % 3}/{i:04d}_{2**31 + i}.jpg" for i in range(PHOTOS)]
    for i, name in enumerate(names):
        picture(root / "Flickr" / name, (i, 0, 0))
    for folder in ("ConceptsList", "ImageList", "Groundtruth/AllLabels"):
        (root / folder).mkdir(parents=True)
    (root / "ConceptsList" / "Concepts81.txt").write_text("\n".join(CONCEPTS) + "\n")
    (root / "ImageList" / "Imagelist.txt").write_bytes("".join(n.replace("/", "\\") + "\r\n" for n in names).encode())
    for concept, column in zip(CONCEPTS, truth().T, strict=True):
        path = root / "Groundtruth" / "AllLabels" / f"Labels_{concept}.txt"
        path.write_text("".join(f"{value}\n" for value in column))
    return names


def test_the_21_most_frequent_concepts(tmp_path: Path, picture: Callable[..., Path]) -> None:
    names = write(tmp_path, picture)
    collection = read_images("nuswide21", tmp_path)
    counts = {concept: int(column.sum()) for concept, column in zip(CONCEPTS, truth().T, strict=True)}
    frequent = sorted(CONCEPTS, key=lambda concept: (-counts[concept], CONCEPTS.index(concept)))[:21]
    assert collection.label_names == tuple(sorted(frequent))
    kept = [i for i in range(PHOTOS) if truth()[i, [CONCEPTS.index(c) for c in frequent]].any()]
    assert collection.names == tuple(names[i] for i in kept)
    assert 59 not in kept
    for row, photo in enumerate(kept):
        for column, concept in enumerate(collection.label_names):
            assert collection.labels[row, column] == truth()[photo, CONCEPTS.index(concept)]
    assert collection.read(7).size == (6, 4)


def test_missing_photos_are_an_error_unless_allowed(tmp_path: Path, picture: Callable[..., Path]) -> None:
    names = write(tmp_path, picture)
    whole = read_images("nuswide21", tmp_path)
    for name in (names[4], names[6], names[59]):  # the last one has no concept
        (tmp_path / "Flickr" / name).unlink()
    with pytest.raises(DataError, match=rf"2 of {len(whole)} images are missing \({names[4]}, {names[6]}\)"):
        read_images("nuswide21", tmp_path)
    partial = read_images("nuswide21", tmp_path, allow_missing=True)
    kept = [i for i, name in enumerate(whole.names) if name not in (names[4], names[6])]
    assert partial.names == tuple(whole.names[i] for i in kept)
    np.testing.assert_array_equal(partial.labels, whole.labels[kept])
    assert partial.label_names == whole.label_names
    assert partial.provenance["missing"] == 2
    assert partial.read(kept.index(5)).getpixel((0, 0)) == whole.read(5).getpixel((0, 0))


def test_errors(tmp_path: Path, picture: Callable[..., Path]) -> None:
    with pytest.raises(
        DataError, match=r"has no ConceptsList/Concepts81.txt or Concepts81.txt; expected: ConceptsList"
    ):
        read_images("nuswide21", tmp_path)
    write(tmp_path, picture)
    column = tmp_path / "Groundtruth" / "AllLabels" / "Labels_concept07.txt"
    for text in ("0\n1\n", "0\n" * (PHOTOS - 1) + "2\n", "0\n" * (PHOTOS + 1), ""):
        column.write_text(text)
        with pytest.raises(DataError, match=r"Labels_concept07.txt must hold 0 or 1 for each of the 60 photos"):
            read_images("nuswide21", tmp_path)
    column.unlink()
    with pytest.raises(DataError, match=r"Labels_concept07.txt is missing"):
        read_images("nuswide21", tmp_path)
