"""Activations at a cut and their augmented views: right rows, the same bytes however often the job is stopped."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

from hashgym.data import DataError, HashingDataset, ImageCollection, cache, read_images
from hashgym.features import Backbone, extract, make
from hashgym.features.backbone import Stretch
from hashgym.features.blocks import BlockNetwork, Pretrained
from hashgym.features.views import random_crop, random_view

CLASSES, PER_CLASS, SIZE = ("bird", "cat", "dog"), 12, 8


def tiny(cut: int | None, scale: float = 1.0) -> Backbone:
    """Two convolutions as a backbone; block 1 gives maps (4, 4, 4)."""
    torch.manual_seed(3)
    first, second = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 5, 3)
    with torch.no_grad():
        first.weight.mul_(scale)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = BlockNetwork({1: first, 2: second}, pool, [2]).eval().requires_grad_(False)
    settings = {"mean": [127.5] * 3, "std": [60.0] * 3, "size": SIZE, "preprocess": Stretch}
    loaded = Pretrained("tiny", network, **settings, describe=str, weights="drawn", digest="0")
    return loaded.backbone(cut=cut, runtime="torch", device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """36 pictures of several sizes in three class folders."""
    rng = np.random.default_rng(0)
    for kind in CLASSES:
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = rng.integers(0, 256, (int(rng.integers(6, 30)), int(rng.integers(6, 30)), 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    return tmp_path / "photos"


def job(photos: Path | ImageCollection, out: Path, backbone: Backbone | None = None, **options: Any) -> Path:
    collection = photos if isinstance(photos, ImageCollection) else read_images(f"folder:{photos}")
    options = {"views": 3, "train": 15, "thumbnail": 6, "batch_size": 5, "progress": False} | options
    return extract(collection, backbone or tiny(1), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def same(a: HashingDataset, b: HashingDataset, *keys: str) -> None:
    for key in keys:
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key), err_msg=key)


# -- views -------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 700), st.integers(1, 700))
def test_a_crop_is_within_the_picture_and_has_at_least_half_of_it(seed: int, width: int, height: int) -> None:
    left, top, right, bottom = random_crop(np.random.default_rng(seed), width, height)
    w, h = right - left, bottom - top
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (w + 1) * (h + 1) >= 0.43 * width * height  # a side that would be too long is cut off: sqrt(3/4) of 1/2
    if w < width and h < height:
        assert (w - 1) * (h - 1) <= width * height
        factor = (w / width) / (h / height)
        assert 0.7 * (1 - 2 / w) <= factor * (1 + 2 / w) * (1 + 2 / h)
        assert factor * (1 - 2 / min(w, h)) <= 1.4


def test_crops_have_every_size_and_place() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop(rng, 100, 50) for _ in range(2000)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 5000
    assert 0.43 <= area.min() < 0.55
    assert 0.9 < area.max() <= 1
    assert (boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()) == (0, 0, 100, 50)
    ratio = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]) / 2
    assert abs(np.log(ratio).mean()) < 0.02  # neither wide nor high on average
    with pytest.raises(ValueError, match="at least one pixel each way, got 0 x 5"):
        random_crop(rng, 0, 5)


def test_a_view_is_a_crop_that_may_be_mirrored_and_depends_on_seed_image_and_number() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 31, 3), np.uint8))
    mirrored = 0
    for number in range(200):
        rng = np.random.default_rng([7, 5, number])
        box = random_crop(rng, 31, 20)
        plain, other = image.crop(box), ImageOps.mirror(image.crop(box))
        view = random_view(image, 7, 5, number)
        assert view.tobytes() in (plain.tobytes(), other.tobytes())
        mirrored += view.tobytes() == other.tobytes()
    assert 70 < mirrored < 130
    views = [random_view(image, *key).tobytes() for key in ((7, 5, 1), (7, 5, 2), (7, 6, 1), (8, 5, 1))]
    assert len(set(views)) == 4
    assert random_view(image, 7, 5, 1).tobytes() == views[0]


# -- extraction --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_is_its_image_and_view(photos, tmp_path, workers):
    collection, backbone = read_images(f"folder:{photos}"), tiny(1)
    data = cache.open_cache(job(photos, tmp_path / "out", workers=workers, seed=4, views=4), verify=True)
    assert (data.features.dtype, data.features.shape) == (np.float16, (36, 4, 4, 4))
    assert (data.views.dtype, data.views.shape) == (np.float16, (15, 4, 4, 4, 4))
    assert data.viewed.tolist() == data.train.tolist()

    def activations(image):
        return backbone(np.stack([backbone.preprocess(image)]))[0].astype(np.float16)

    for i in range(len(collection)):
        np.testing.assert_allclose(data.features[i], activations(collection.read(i)), rtol=2e-3, atol=1e-4)
    for i, views in zip(data.viewed.tolist(), data.views, strict=True):
        np.testing.assert_array_equal(views[0], data.features[i])
        for number in range(1, 4):
            expected = activations(random_view(collection.read(i), 4, i, number))
            np.testing.assert_allclose(views[number], expected, rtol=2e-3, atol=1e-4)
        assert not np.array_equal(views[1], views[0])
    assert (data.provenance["views"], data.provenance["view_seed"]) == (4, 4)
    assert data.provenance["backbone"]["cut"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_batches_and_workers_do_not_change_the_output(photos, tmp_path):
    first = cache.open_cache(job(photos, tmp_path / "a", batch_size=4, workers=1))
    second = cache.open_cache(job(photos, tmp_path / "b", batch_size=64, workers=4))
    for key in ("features", "views"):
        np.testing.assert_allclose(getattr(first, key), getattr(second, key), rtol=2e-3, atol=1e-4)
    same(first, second, "viewed", "train", "query", "thumbnails")


def test_without_views_none_are_stored(photos, tmp_path):
    data = cache.open_cache(job(photos, tmp_path / "out", views=1))
    assert data.views is data.viewed is None
    assert not {"views", "view_seed"} & set(data.provenance)
    pixels = cache.open_cache(job(photos, tmp_path / "pixels", tiny(0), views=1))
    assert (pixels.features.dtype, pixels.features.shape) == (np.uint8, (36, 3, SIZE, SIZE))
    picture = read_images(f"folder:{photos}").read(7).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels.features[7].transpose(1, 2, 0), np.asarray(picture))


@pytest.mark.parametrize("after", [0, 4, 9, 13])
def test_stopping_at_any_write_resumes_to_the_same_bytes(photos, tmp_path, monkeypatch, after):
    """Every sync to disk is a place where the power may fail: fail at one of them, then go on."""
    truncate(photos / "cat" / "3.png")
    truncate(photos / "dog" / "0.png")
    whole = job(photos, tmp_path / "whole", skip_bad=True)
    count, real = iter(range(10**9)), os.fsync

    def failing(descriptor):
        if next(count) == after * 4:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    try:
        job(photos, tmp_path / "out", skip_bad=True)
    except KeyboardInterrupt:
        monkeypatch.undo()
        if not (tmp_path / "out").exists():
            job(photos, tmp_path / "out", skip_bad=True)
    assert contents(tmp_path / "out") == contents(whole) or (tmp_path / "out" / "journal.jsonl").exists()
    cache.open_cache(tmp_path / "out", verify=True)


@pytest.mark.parametrize("before", [1, 3])
def test_a_job_with_other_views_is_another_job(photos, tmp_path, before):
    sound = (victim := photos / "dog" / "11.png").read_bytes()
    truncate(victim)
    with pytest.raises(DataError, match=r"dog/11\.png"):
        job(photos, tmp_path / "out", views=before)
    victim.write_bytes(sound)
    with pytest.raises(DataError, match=r"holds another, unfinished job .*views"):
        job(photos, tmp_path / "out", views=4 - before)


def test_damaged_rows_of_an_unfinished_job_are_computed_again(photos, tmp_path, caplog):
    whole, victim = job(photos, tmp_path / "whole"), photos / "dog" / "11.png"
    sound = victim.read_bytes()
    truncate(victim)
    with pytest.raises(DataError, match=r"dog/11\.png"):
        job(photos, tmp_path / "out")
    file = tmp_path / "out.partial" / "views.npy"
    content = bytearray(file.read_bytes())
    content[200] ^= 4  # of the first image with views
    file.write_bytes(content)
    victim.write_bytes(sound)
    assert contents(job(photos, tmp_path / "out")) == contents(whole)
    assert "1 finished batches were damaged and are computed again" in caplog.text


def test_images_that_are_left_out_leave_views_and_split_in_line(photos, tmp_path):
    whole = cache.open_cache(job(photos, tmp_path / "whole"))
    bad = sorted(
        [*whole.train[[0, 4, 14]].tolist(), int(whole.query[1]), int(np.setdiff1d(whole.database, whole.train)[3])]
    )
    for i in bad:
        truncate(photos / whole.names[i])
    data = cache.open_cache(job(photos, tmp_path / "out", skip_bad=True), verify=True)
    kept = np.setdiff1d(np.arange(36), bad)
    assert list(data.names) == [whole.names[i] for i in kept]
    for part in ("query", "database", "train", "viewed"):  # no image has changed its part
        before, after = getattr(whole, part), getattr(data, part)
        assert [data.names[i] for i in after] == [whole.names[i] for i in before if i not in bad]
    np.testing.assert_allclose(data.features, whole.features[kept], rtol=2e-3, atol=1e-4)
    rows = ~np.isin(whole.viewed, bad)
    np.testing.assert_allclose(data.views, whole.views[rows], rtol=2e-3, atol=1e-4)
    np.testing.assert_array_equal(data.views[:, 0], data.features[data.viewed])
    assert len(data.provenance["left_out"]) == 5
    described = data.provenance["split_description"]
    assert f"{len(data.query)} queries, 12 training images, database of {len(data.database)} " in described
    assert "; 5 images that cannot be read left out; no queries of cat" in described
    for column, label in enumerate(CLASSES):
        count = data.labels[data.train, column].sum()
        assert f"{count} to train" in data.provenance["split_counts"][label]


def test_no_training_image_that_can_be_read(photos, tmp_path):
    whole = cache.open_cache(job(photos, tmp_path / "whole", train=3))
    for i in whole.train:
        truncate(photos / whole.names[i])
    with pytest.raises(DataError, match="no training image of the split 'random' can be read"):
        job(photos, tmp_path / "out", train=3, skip_bad=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "named"), [({"views": 4}, "views"), ({"seed": 9}, "view_seed")])
def test_another_job_does_not_resume(photos, tmp_path, change, named):
    truncate(photos / "dog" / "11.png")
    with pytest.raises(DataError):
        job(photos, tmp_path / "out")
    with pytest.raises(DataError, match=rf"another, unfinished job \(other .*{named}.*remove the folder"):
        job(photos, tmp_path / "out", **change)


def test_a_job_with_other_training_images_does_not_resume(photos, tmp_path):
    """As many of them: rows of views would be other images' rows."""
    truncate(photos / "dog" / "11.png")
    with pytest.raises(DataError):
        job(photos, tmp_path / "out")
    with pytest.raises(DataError, match=r"another, unfinished job \(other train\)"):
        job(photos, tmp_path / "out", queries=9)


def never(*_):
    raise AssertionError("work began")


@pytest.mark.parametrize(
    ("cut", "options", "message"),
    [
        (None, {}, "a whole network has none: leave out --views"),
        (0, {}, "pixels are augmented anew in training: leave out --views"),
        (1, {"views": 0}, "views must be"),
        (1, {"views": 2.5}, "views must be"),
        (1, {"regions": 5}, "regions are of feature vectors: leave out --cut, or --regions"),
        (0, {"views": 1, "train_regions": 2}, "regions are of feature vectors"),
    ],
)
def test_wrong_arguments_fail_before_any_work(photos, tmp_path, cut, options, message):
    collection = dataclasses.replace(read_images(f"folder:{photos}"), read=never)
    with pytest.raises(ValueError, match=message):
        job(collection, tmp_path / "out", tiny(cut), **options)
    assert not list(tmp_path.glob("*out*"))


def test_views_of_a_backbone_without_blocks_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="a whole network has none"):
        job(photos, tmp_path / "out", make("pixels", size=4))


def test_activations_beyond_float16_stop_the_job(photos, tmp_path):
    with pytest.raises(DataError, match=r"tiny gives NaN or infinity for image bird/0\.png.*choose another cut"):
        job(photos, tmp_path / "out", tiny(1, scale=1e6))


def test_a_full_disk_counts_the_views_before_any_work(photos, tmp_path):
    collection, backbone = dataclasses.replace(read_images(f"folder:{photos}"), read=never), tiny(1)
    vast = Backbone(**{**vars(backbone), "map_shape": (1 << 20, 1 << 10, 1)})  # 77 GB of images, and of their views
    with pytest.raises(DataError, match=r"MB free.*larger disk"):
        job(collection, tmp_path / "out", vast, views=100_000)
    assert not list(tmp_path.glob("*out*"))
