"""Extraction on a Ray cluster: the same bytes as a local one, also where processes are lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashgym.data import DataError, ImageCollection, read_images
from hashgym.features import Backbone, extract, make
from hashgym.storage.ray_cluster import cluster

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def _two_cpus():
    with cluster(2):
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 pictures of several sizes in two class folders."""
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(15):
            pixels = rng.integers(0, 256, (int(rng.integers(6, 30)), int(rng.integers(6, 30)), 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    return tmp_path / "photos"


def job(photos: Path | ImageCollection, out: Path, backbone: Backbone | None = None, **options) -> Path:
    collection = photos if isinstance(photos, ImageCollection) else read_images(f"folder:{photos}")
    options = {"regions": 5, "train_regions": 3, "thumbnail": 6, "batch_size": 4, "progress": False} | options
    return extract(collection, backbone or make("pixels", size=4), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_bytes_are_those_of_a_local_extraction(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative path is the same one to the workers
    local = job(read_images("folder:photos"), tmp_path / "local", seed=3)
    assert contents(job(read_images("folder:photos"), tmp_path / "ray", seed=3, executor="ray")) == contents(local)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "photos", "ray"]


@pytest.mark.parametrize("executors", [("local", "ray"), ("ray", "local")])
def test_either_executor_takes_up_the_others_job(photos, tmp_path, executors):
    victim = photos / "dog" / "5.png"
    sound = victim.read_bytes()
    victim.write_bytes(sound[:40])
    with pytest.raises(DataError, match=r"dog/5\.png.*Fix it"):
        job(photos, tmp_path / "out", executor=executors[0])
    assert "batch" in (tmp_path / "out.partial" / "journal.jsonl").read_text().partition("\n")[2]
    victim.write_bytes(sound)
    again = job(photos, tmp_path / "out", executor=executors[1])
    assert contents(again) == contents(job(photos, tmp_path / "whole"))


def test_bad_images_are_left_out_and_listed_alike(photos, tmp_path):
    for name in ("cat/4.png", "cat/5.png", "dog/14.png"):
        os.truncate(photos / name, (photos / name).stat().st_size // 2)
    local = job(photos, tmp_path / "local", skip_bad=True)
    assert contents(job(photos, tmp_path / "ray", skip_bad=True, executor="ray")) == contents(local)


def test_an_image_out_of_a_workers_reach_is_not_left_out(photos, tmp_path):
    collection, here = read_images(f"folder:{photos}"), os.getpid()

    def read(index):
        if index == 9 and os.getpid() != here:
            raise DataError("image cat/9.png cannot be read")
        return collection.read(index)

    with pytest.raises(DataError, match=r"cat/9\.png.*share the folder"):
        job(dataclasses.replace(collection, read=read), tmp_path / "out", executor="ray", skip_bad=True)


def killer(photos: Path, folder: Path, deaths: int) -> ImageCollection:
    """A collection whose image 11 kills the process that reads it, so many times."""
    collection = read_images(f"folder:{photos}")

    def read(index):
        if index == 11 and len(list(folder.iterdir())) < deaths:
            (folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return collection.read(index)

    return dataclasses.replace(collection, read=read)


def test_a_lost_worker_is_replaced(photos, tmp_path):
    (deaths := tmp_path / "deaths").mkdir()
    out = job(killer(photos, deaths, 1), tmp_path / "out", executor="ray")
    assert len(list(deaths.iterdir())) == 1
    assert contents(out) == contents(job(photos, tmp_path / "local"))


def test_workers_that_are_lost_again_and_again_stop_the_job(photos, tmp_path):
    (deaths := tmp_path / "deaths").mkdir()
    with pytest.raises(ChildProcessError, match="Ray lost"):
        job(killer(photos, deaths, 9), tmp_path / "out", executor="ray")
    assert (tmp_path / "out.partial").exists()


def test_errors_of_workers_are_those_of_a_local_extraction(photos, tmp_path):
    pixels = make("pixels", size=4)

    def broken(batch):
        return np.full((len(batch), pixels.dim), np.nan, np.float32)

    with pytest.raises(DataError, match="pixels gives NaN or infinity for image"):
        job(photos, tmp_path / "out", Backbone(**{**vars(pixels), "network": broken}), executor="ray")


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_networks_are_sent(photos, tmp_path, runtime):
    for package in ("efficientnet_lite_pytorch", *(["onnx", "onnxruntime"] if runtime == "onnx" else [])):
        pytest.importorskip(package)
    network = make("efficientnet_lite0", size=32, runtime=runtime)
    options = {"regions": 0, "train_regions": 0, "batch_size": 16}
    local = job(photos, tmp_path / "local", network, **options)
    assert contents(job(photos, tmp_path / "ray", network, executor="ray", **options)) == contents(local)


def test_activations_and_views_are_those_of_a_local_extraction(photos, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    network = make("efficientnet_lite0", size=32, cut=4, runtime="torch")
    options = {"regions": 0, "train_regions": 0, "views": 3, "batch_size": 7, "skip_bad": True}
    os.truncate(photos / "cat" / "4.png", 40)
    local = job(photos, tmp_path / "local", network, **options)
    assert contents(job(photos, tmp_path / "ray", network, executor="ray", **options)) == contents(local)


def test_rows_of_mapped_files_are_sent(tmp_path):
    """CIFAR-10's official batches: their reader holds memory maps."""
    (root := tmp_path / "cifar-10-batches-bin").mkdir()
    rng = np.random.default_rng(1)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        rows = rng.integers(0, 256, (20, 3073), np.uint8)
        rows[:, 0] = np.arange(20) % 10
        rows.tofile(root / f"{name}.bin")
    images = read_images("cifar10", tmp_path)
    options = {"regions": 0, "train_regions": 0, "batch_size": 50, "queries": 10, "train": 30}
    local = job(images, tmp_path / "local", **options)
    assert contents(job(images, tmp_path / "ray", executor="ray", **options)) == contents(local)


def test_objects_that_cannot_be_sent_are_an_error(photos, tmp_path):
    (pixels, file) = make("pixels", size=4), (photos / "cat" / "0.png").open("rb")

    def network(batch):
        return pixels.network(batch[: len(file.name)])

    with file, pytest.raises(ValueError, match=r"pixels \(runtime numpy\).* cannot be sent to Ray's workers"):
        job(photos, tmp_path / "out", Backbone(**{**vars(pixels), "network": network}), executor="ray")


def test_wrong_executors_are_rejected_before_any_work(photos, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown executor 'dask': choose one of local, ray"):
        job(photos, tmp_path / "out", executor="dask")
    with pytest.raises(ValueError, match=r"uses CPUs.*torch:cuda"):
        job(photos, tmp_path / "out", dataclasses.replace(make("pixels", size=4), runtime="torch:cuda"), executor="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'hashgym\[ray\]'"):
        job(photos, tmp_path / "out", executor="ray")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
