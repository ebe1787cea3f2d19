from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashgym.data import DataError, read_images

CATEGORIES = [{"supercategory": "animal", "id": 1 + 2 * i, "name": f"thing {i}"} for i in range(80)]
# photo number: category ids of its objects
TRAIN: dict[int, list[int]] = {57: [1, 1, 159], 9: [3], 300: []}
VAL: dict[int, list[int]] = {42: [5, 7]}


def instances(part: str, photos: dict[int, list[int]]) -> dict[str, Any]:
    images = [
        {
            "license": 5,
            "file_name": f"COCO_{part}_{n:012d}.jpg",
            "coco_url": "http://x",
            "height": 4,
            "width": 6,
            "id": n,
        }
        for n in photos
    ]
    outline: list[Any] = [[[1.5, 2.0, 3.5, 2.0, 3.5, 4.0]], {"counts": [20, 4], "size": [4, 6]}]
    annotations = [
        {
            "segmentation": outline[i % 2],
            "area": 2.5,
            "iscrowd": i % 2,
            "image_id": number,
            "bbox": [1.5, 2.0, 2.0, 2.0],
            "category_id": category,
            "id": 1_000 * number + i,
        }
        for number, categories in photos.items()
        for i, category in enumerate(categories)
    ]
    licence = [{"url": "http://y", "id": 5, "name": "a licence"}]
    return {
        "info": {"year": 2014, "version": "1.0"},
        "images": images,
        "licenses": licence,
        "annotations": annotations,
        "categories": CATEGORIES[::-1],
    }


def write(root: Path, picture: Callable[..., Path]) -> None:
    (root / "annotations").mkdir()
    for part, photos in (("train2014", TRAIN), ("val2014", VAL)):
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(instances(part, photos)))
        for number in photos:
            picture(root / part / f"COCO_{part}_{number:012d}.jpg")


def test_photos_have_the_labels_of_their_objects(tmp_path: Path, picture: Callable[..., Path]) -> None:
    write(tmp_path, picture)
    collection = read_images("coco", tmp_path)
    assert collection.names == (
        "train2014/COCO_train2014_000000000009.jpg",
        "train2014/COCO_train2014_000000000057.jpg",
        "train2014/COCO_train2014_000000000300.jpg",
        "val2014/COCO_val2014_000000000042.jpg",
    )
    assert collection.label_names == tuple(f"thing {i}" for i in range(80))
    expected = np.zeros((4, 80), np.uint8)
    expected[0, 1] = expected[1, 0] = expected[1, 79] = expected[3, 2] = expected[3, 3] = 1
    np.testing.assert_array_equal(collection.labels, expected)
    assert collection.read(3).size == (6, 4)


def test_missing_photos_are_an_error_unless_allowed(tmp_path: Path, picture: Callable[..., Path]) -> None:
    write(tmp_path, picture)
    (tmp_path / "train2014" / "COCO_train2014_000000000057.jpg").unlink()
    with pytest.raises(DataError, match=r"coco: 1 of 4 images are missing \(train2014/COCO_train2014_000000000057.jpg"):
        read_images("coco", tmp_path)
    partial = read_images("coco", tmp_path, allow_missing=True)
    assert [name[-6:-4] for name in partial.names] == ["09", "00", "42"]
    np.testing.assert_array_equal(partial.labels.sum(axis=1), [1, 0, 2])


def test_errors(tmp_path: Path, picture: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"has no annotations/instances_train2014.json.*expected: annotations"):
        read_images("coco", tmp_path)
    write(tmp_path, picture)
    path = tmp_path / "annotations" / "instances_val2014.json"
    whole = path.read_text()
    for text in (whole[:-9], "[]", "{}", '{"images": [[1, 2, 3]]}', '{"images": 3}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"instances_val2014.json is damaged"):
            read_images("coco", tmp_path)
    path.write_text(whole.replace("thing 7", "thing seven"))
    with pytest.raises(DataError, match="different categories"):
        read_images("coco", tmp_path)
    path.write_text(whole.replace('"category_id": 7', '"category_id": 8'))
    with pytest.raises(DataError, match="have image or category 8, which is not listed"):
        read_images("coco", tmp_path)
    content = json.loads(whole)
    content["annotations"][0]["image_id"] = [1]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image or category .*, which is not listed"):
        read_images("coco", tmp_path)
    path.write_text((tmp_path / "annotations" / "instances_train2014.json").read_text())  # the same ids
    with pytest.raises(DataError, match="an image is listed twice"):
        read_images("coco", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"has no annotations/instances_val2014.json"):
        read_images("coco", tmp_path)
