"""The extraction job: right rows, the same bytes however often it is stopped, nothing skipped silently."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashgym.data import DataError, ImageCollection, cache, read_images
from hashgym.features import Backbone, extract, make
from hashgym.features.regions import corner_and_centre, random_boxes

CLASSES = ("bird", "cat", "dog")
PER_CLASS = 17


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """51 pictures of several sizes in three class folders."""
    rng = np.random.default_rng(0)
    for kind in CLASSES:
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = rng.integers(0, 256, (int(rng.integers(6, 30)), int(rng.integers(6, 30)), 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    return tmp_path / "photos"


def collect(photos: Path) -> ImageCollection:
    return read_images(f"folder:{photos}")


def job(photos: Path | ImageCollection, out: Path, size: int = 4, **options) -> Path:
    collection = photos if isinstance(photos, ImageCollection) else collect(photos)
    options = {"regions": 5, "train_regions": 3, "thumbnail": 6, "batch_size": 4, "progress": False} | options
    return extract(collection, make("pixels", size=size), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_is_its_image(photos, tmp_path, workers):
    collection, backbone = collect(photos), make("pixels", size=4)
    data = cache.open_cache(job(photos, tmp_path / "out", workers=workers, sigma=0.6, seed=3), verify=True)
    assert data.names == collection.names
    np.testing.assert_array_equal(data.labels, collection.labels)
    for i in range(len(collection)):
        image = collection.read(i)

        def feature(part):
            return backbone(backbone.preprocess(part)[None])[0]

        np.testing.assert_array_equal(data.features[i], feature(image))
        for r, box in enumerate(corner_and_centre(*image.size, 0.6)):
            np.testing.assert_array_equal(data.regions[i, r], feature(image.crop(box)))
        left, top, right, _ = _centre_square(*image.size)
        corner, side = np.array([left, top] * 2), right - left
        for r, box in enumerate(corner_and_centre(*image.size, 0.6)):
            np.testing.assert_allclose(data.boxes[i, r], (box - corner) / side, atol=1e-6)
        for r, box in enumerate(random_boxes(np.random.default_rng([3, i]), *image.size, 0.6, 3)):
            np.testing.assert_array_equal(data.train_regions[i, r], feature(image.crop(box)))
            np.testing.assert_allclose(data.train_boxes[i, r], (box - corner) / side, atol=1e-6)
    assert data.thumbnails.shape == (51, 6, 6, 3)
    square = collection.read(0).resize((6, 6), Image.Resampling.BICUBIC, box=_centre_square(*collection.read(0).size))
    np.testing.assert_allclose(data.thumbnails[0].astype(int), np.asarray(square).astype(int), atol=1)
    assert data.provenance["backbone"] == backbone.provenance
    assert data.provenance["left_out"] == {}
    assert list(tmp_path.glob("*out*")) == [tmp_path / "out"]


def _centre_square(width, height):
    side = min(width, height)
    return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)


def test_batches_and_workers_do_not_change_the_output(photos, tmp_path):
    first = cache.open_cache(job(photos, tmp_path / "a", batch_size=4, workers=1))
    second = cache.open_cache(job(photos, tmp_path / "b", batch_size=64, workers=4))
    for key in ("features", "regions", "train_regions", "boxes", "train_boxes", "thumbnails", "query", "train"):
        np.testing.assert_array_equal(getattr(first, key), getattr(second, key))


def test_nothing_is_stored_that_was_not_asked_for(photos, tmp_path):
    data = cache.open_cache(job(photos, tmp_path / "out", regions=0, train_regions=0, thumbnail=0))
    assert data.regions is data.train_regions is data.boxes is data.train_boxes is data.thumbnails is None


def test_a_killed_job_resumes_to_the_same_bytes(photos, tmp_path):
    """kill -9 at five random moments, some of them between a batch's rows and its line in the journal."""
    script = textwrap.dedent("""
        import sys, time
        import dataclasses
        from hashgym.data import read_images
        from hashgym.features import extract, make

        collection = read_images(f"folder:{sys.argv[1]}")
        def slow(index):
            time.sleep(0.015)
            return collection.read(index)
        print("ready", flush=True)
        extract(dataclasses.replace(collection, read=slow), make("pixels", size=4), sys.argv[2], regions=5,
                train_regions=3, thumbnail=6, batch_size=4, progress=False)
    """)
    whole, out, killed, progress = job(photos, tmp_path / "whole"), tmp_path / "out", 0, []
    while not out.exists():
        process = subprocess.Popen([sys.executable, "-c", script, photos, out], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        if killed < 5:
            time.sleep(random.uniform(0.01, 0.25))
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        killed += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        journal = tmp_path / "out.partial" / "journal.jsonl"
        progress.append(journal.read_text().count("batch") if journal.exists() else 0)
    assert killed
    assert contents(out) == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos", "whole"]


@pytest.mark.parametrize("after", range(0, 30, 2))
def test_stopping_at_any_write_resumes_to_the_same_bytes(photos, tmp_path, monkeypatch, after):
    """Every sync to disk is a place where the power may fail: fail at the ``after``-th, then go on."""
    victim = photos / "cat" / "3.png"
    truncate(victim)
    whole = job(photos, tmp_path / "whole", skip_bad=True)
    count, real = iter(range(10**9)), os.fsync

    def failing(descriptor):
        if next(count) == after * 3:
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
    cache.verify(tmp_path / "out")


def test_a_torn_last_line_of_the_journal_is_done_again(photos, tmp_path):
    whole, victim = job(photos, tmp_path / "whole"), photos / "cat" / "9.png"
    sound = victim.read_bytes()
    truncate(victim)
    with pytest.raises(DataError):
        job(photos, tmp_path / "out")
    journal = tmp_path / "out.partial" / "journal.jsonl"
    os.truncate(journal, journal.stat().st_size - 5)
    victim.write_bytes(sound)
    assert contents(job(photos, tmp_path / "out")) == contents(whole)


def test_a_bad_image_stops_the_job_with_its_name_and_goes_on_once_fixed(photos, tmp_path):
    whole = job(photos, tmp_path / "whole")
    victim = photos / "dog" / "5.png"
    sound = victim.read_bytes()
    truncate(victim)
    with pytest.raises(DataError, match=r"dog/5\.png.*--skip-bad"):
        job(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    lines = (tmp_path / "out.partial" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + (2 * PER_CLASS + 5) // 4  # the job, and all batches before the one with the bad image
    victim.write_bytes(sound)
    assert contents(job(photos, tmp_path / "out")) == contents(whole)


def test_skip_bad_leaves_out_and_lists(photos, tmp_path):
    whole = cache.open_cache(job(photos, tmp_path / "whole"))
    bad = ["bird/0.png", "cat/4.png", "cat/5.png", "dog/16.png"]
    for name in bad[:-1]:
        truncate(photos / name)
    (photos / bad[-1]).write_text("no picture")
    data = cache.open_cache(job(photos, tmp_path / "out", skip_bad=True), verify=True)
    assert list(data.provenance["left_out"]) == bad
    assert all(name in reason for name, reason in data.provenance["left_out"].items())
    kept = [i for i, name in enumerate(whole.names) if name not in bad]
    assert data.names == tuple(whole.names[i] for i in kept)
    for key in ("features", "labels", "regions", "train_regions", "train_boxes", "thumbnails"):
        np.testing.assert_array_equal(getattr(data, key), getattr(whole, key)[kept])


def test_a_bad_image_can_be_left_out_on_resuming_and_a_fixed_one_is_added(photos, tmp_path):
    sound = {name: (photos / name).read_bytes() for name in ("cat/4.png", "dog/5.png")}
    truncate(photos / "cat/4.png")
    truncate(photos / "dog/5.png")
    with pytest.raises(DataError, match=r"cat/4\.png"):
        job(photos, tmp_path / "out")
    collection = collect(photos)

    def interrupted(index):
        if index == 45:
            raise KeyboardInterrupt
        return collection.read(index)

    with pytest.raises(KeyboardInterrupt):  # between the two: the first is in the journal as bad
        job(dataclasses.replace(collection, read=interrupted), tmp_path / "out", skip_bad=True)
    for name, content in sound.items():
        (photos / name).write_bytes(content)
    data = cache.open_cache(job(photos, tmp_path / "out", skip_bad=True))
    assert len(data) == 51
    assert contents(tmp_path / "out") == contents(job(photos, tmp_path / "whole"))


def test_an_unfinished_job_detects_changes(photos, tmp_path):
    truncate(photos / "dog" / "5.png")
    with pytest.raises(DataError, match=r"dog/5\.png.*Fix it and run the same command again"):
        job(photos, tmp_path / "out")
    for name in ("cat/4.png", "dog/5.png"):  # of a batch that was finished, and the one that was not
        Image.new("RGB", (9, 9), (1, 2, 3)).save(photos / name)
    job(photos, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(job(photos, tmp_path / "whole"))


def test_output_among_the_classes(photos, tmp_path):
    """As with `cd photos; hashgym features --dataset folder:. --out features`, stopped, gone on with, given again."""
    whole = cache.open_cache(job(photos, tmp_path / "whole"))
    victim = photos / "dog" / "5.png"
    sound = victim.read_bytes()
    truncate(victim)
    with pytest.raises(DataError, match=r"dog/5\.png"):
        job(photos, photos / "features")
    assert (photos / "features.partial").is_dir()
    victim.write_bytes(sound)
    data = cache.open_cache(job(photos, photos / "features"))
    assert (data.names, data.label_names) == (whole.names, whole.label_names)
    np.testing.assert_array_equal(data.features, whole.features)
    assert len(collect(photos)) == len(whole)


def test_all_images_bad(photos, tmp_path):
    for file in photos.rglob("*.png"):
        truncate(file)
    with pytest.raises(DataError, match=r"none of the 51 images.*bird/0\.png"):
        job(photos, tmp_path / "out", skip_bad=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sigma": 0.7}, "sigma"),
        ({"batch_size": 5}, "batch_size"),
        ({"regions": 0}, "regions"),
        ({"seed": 9}, "region_seed"),
        ({"size": 5}, "backbone"),
    ],
)
def test_another_job_does_not_resume(photos, tmp_path, change, named):
    truncate(photos / "dog" / "5.png")
    with pytest.raises(DataError):
        job(photos, tmp_path / "out")
    before = contents(tmp_path / "out.partial")
    with pytest.raises(DataError, match=rf"another, unfinished job \(other .*{named}.*remove the folder"):
        job(photos, tmp_path / "out", **change)
    assert contents(tmp_path / "out.partial") == before


def test_other_images_do_not_resume(photos, tmp_path):
    truncate(photos / "dog" / "5.png")
    with pytest.raises(DataError):
        job(photos, tmp_path / "out")
    (photos / "dog" / "0.png").rename(photos / "dog" / "100.png")
    with pytest.raises(DataError, match="other names"):
        job(photos, tmp_path / "out")


def test_a_strange_partial_folder_is_left_alone(photos, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "novel.txt").write_text("chapter 1")
    with pytest.raises(DataError, match="not a job"):
        job(photos, tmp_path / "out")
    assert contents(tmp_path / "out.partial") == {"novel.txt": b"chapter 1"}


def test_two_processes_never_share_a_job(photos, tmp_path):
    pytest.importorskip("fcntl")
    collection = collect(photos)

    def meddling(index):
        with pytest.raises(DataError, match="another process is working"):
            job(photos, tmp_path / "out")
        return collection.read(index)

    job(dataclasses.replace(collection, read=meddling), tmp_path / "out", workers=1)
    assert contents(tmp_path / "out") == contents(job(photos, tmp_path / "whole"))


@pytest.mark.parametrize("text", ["", "{", "[]\n", "null\n", '{"dataset": "moon"}\n', "%s"])
def test_a_damaged_journal_is_an_error(photos, tmp_path, text):
    truncate(photos / "dog" / "5.png")
    with pytest.raises(DataError):
        job(photos, tmp_path / "out")
    journal = tmp_path / "out.partial" / "journal.jsonl"
    journal.write_text(text.replace("%s", journal.read_text().partition("\n")[0]))
    with pytest.raises(DataError, match=r"journal\.jsonl is damaged|another, unfinished job"):
        job(photos, tmp_path / "out")


def test_a_damaged_partial_folder_is_an_error(photos, tmp_path):
    truncate(photos / "dog" / "5.png")
    with pytest.raises(DataError):
        job(photos, tmp_path / "out")
    truncate(tmp_path / "out.partial" / "regions.npy")
    with pytest.raises(DataError, match=r"regions\.npy is damaged"):
        job(photos, tmp_path / "out")


def never(*_):
    raise AssertionError("work began")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 3}, "regions must be 5"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": 1.5}, "sigma"),
        ({"train_regions": -1}, "train_regions"),
        ({"thumbnail": -1}, "thumbnail"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": 0}, "workers"),
        ({"seed": -1}, "seed"),
        ({"split": "nonsense"}, "nonsense"),
        ({"queries": 10_000}, "10,000"),
    ],
)
def test_wrong_arguments_fail_before_any_work(photos, tmp_path, options, message):
    collection = dataclasses.replace(collect(photos), read=never)
    with pytest.raises(ValueError, match=message):
        extract(collection, make("pixels", size=4), tmp_path / "out", **options)
    assert not list(tmp_path.glob("*out*"))


def test_numbers_of_numpy_are_numbers(photos, tmp_path):
    plain = {"seed": 1, "batch_size": 7, "train_regions": 2, "thumbnail": 4, "sigma": 0.5, "queries": 6, "train": 12}
    given = {name: np.float32(0.5) if name == "sigma" else np.int64(value) for name, value in plain.items()}
    folders = [
        extract(
            read_images(f"folder:{photos}"),
            make("pixels", size=np.int64(4)),
            tmp_path / name,
            progress=False,
            **options,
        )
        for name, options in (("plain", plain), ("given", given))
    ]
    assert contents(folders[0]) == contents(folders[1])


def test_an_existing_output_fails_before_any_work(photos, tmp_path):
    (tmp_path / "out").mkdir()
    collection = dataclasses.replace(collect(photos), read=never)
    with pytest.raises(DataError, match="exists already"):
        extract(collection, make("pixels", size=4), tmp_path / "out")


def test_an_existing_folder_of_another_kind_is_left_as_it_is(photos, tmp_path):
    """It may have files by the names of those that an extraction leaves."""
    (tmp_path / "out").mkdir()
    for name, content in (("meta.json", '{"format": "hashgym-codes"}'), ("stamps.npy", "mine"), ("journal.jsonl", "")):
        (tmp_path / "out" / name).write_text(content)
    collection = dataclasses.replace(collect(photos), read=never)
    with pytest.raises(DataError, match="exists already"):
        extract(collection, make("pixels", size=4), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["journal.jsonl", "meta.json", "stamps.npy"]


def test_a_full_disk_fails_before_any_work(photos, tmp_path):
    collection, small = dataclasses.replace(collect(photos), read=never), make("pixels", size=4)
    vast = Backbone(**{**vars(small), "dim": 1 << 50})
    with pytest.raises(DataError, match=r"MB free.*larger disk"):
        extract(collection, vast, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_features_that_are_not_finite_stop_the_job_with_the_image(photos, tmp_path):
    pixels, collection = make("pixels", size=4), collect(photos)
    victim = pixels.preprocess(collection.read(collection.names.index("cat/5.png")))

    def broken(batch):
        values = pixels.network(batch)
        values[(batch == victim).all((1, 2, 3)), 7] = np.nan
        return values

    with pytest.raises(DataError, match=r"NaN or infinity for image cat/5\.png"):
        extract(collection, Backbone(**{**vars(pixels), "network": broken}), tmp_path / "out", progress=False)


def test_the_stored_split_counts_its_own_labels_and_another_can_be_drawn(photos, tmp_path):
    data = cache.open_cache(job(photos, tmp_path / "out", queries=6, train=9, seed=5))
    assert (len(data.query), len(data.train)) == (6, 9)
    assert (data.provenance["split_seed"], data.provenance["split_queries"]) == (5, 6)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["columns"] == [0, 1, 2]


def test_the_progress_bar_shows_speed_and_count(photos, tmp_path, capsys):
    job(photos, tmp_path / "out", progress=True)
    assert "51/51" in (shown := capsys.readouterr().out)
    assert "images/s" in shown


def test_a_link_to_nothing_fails_before_any_work(photos, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    collection = dataclasses.replace(collect(photos), read=never)
    with pytest.raises(DataError, match="exists already"):
        extract(collection, make("pixels", size=4), tmp_path / "out")
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]
