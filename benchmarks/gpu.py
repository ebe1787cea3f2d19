"""What needs a GPU, in one run of under ten minutes: ``make gpu``.

    make gpu                                              # CIFAR-10's archive beside the checkout
    python -m benchmarks.gpu --archive cifar10_jpeg.tar.gz --out DIR

First the tests that run on CUDA, then the throughput of the torch back end, then end to end learning on CIFAR-10 from
pixels: AlexNet's convolutions and a whole EfficientNet at 224 pixels, 48 bits, the best methods, seed after seed while
there is time. Rows go to ``gpu.csv`` as they are made, with the name of the card; a run whose row is there is not run
again.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import drlih, end_to_end, throughput
from benchmarks.common.methods import Cell, fit, measure
from benchmarks.common.results import COLUMNS, KEY, Results
from hashgym import data
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.features import extract, load_network, make
from hashgym.storage.errors import DataError
from hashgym.terminal import command_line, parse

__all__ = ["ARCHIVE", "Args", "main", "results"]

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = "cifar10_jpeg.tar.gz"
"""All 60,000 images as ``cifar10/{train,test}/CLASS/NAME.jpg``."""
PLACES = (ROOT, ROOT.parent)
PIXELS = 32  # side of the stored pictures; the network's input is made of them on the device


@dataclass(frozen=True, kw_only=True)
class Args:
    """Tests, throughput and end to end learning on a GPU."""

    archive: Path | None = None
    """CIFAR-10 as class folders of images in a tar archive; by default cifar10_jpeg.tar.gz beside the checkout"""
    out: Path = Path("runs/gpu")
    """folder of gpu.csv, throughput.csv and the features"""
    device: str = "cuda"
    """the device; cpu tries the script out"""
    minutes: float = 9
    """no run starts that would end after this many minutes, judged by the longest before"""
    networks: tuple[str, ...] = ("alexnet_conv", "efficientnet_lite2")
    """networks that are trained whole"""
    size: int = 224
    """side in pixels of their input"""
    methods: tuple[str, ...] = ("drlih-norec", "drlih", "orthohash", "hashnet", "noseq")
    """methods, in the order in which they run"""
    bits: int = 48
    """code length"""
    epochs: float = 30
    """how many times each training image is seen"""
    backbone_learning_rate: float = 5e-4
    """of the network; lower than in `benchmarks.end_to_end`, as the whole network is trained in more updates"""
    queries: int | None = None
    """number of queries, instead of the split's 1,000"""
    train: int | None = None
    """number of training images, instead of the split's 5,000"""
    seeds: int = 100
    """most runs of each method and network"""
    tests: bool = True
    """run the tests on CUDA"""
    throughput: bool = True
    """measure the torch back end"""


def main(args: Args, console: Console | None = None) -> int:
    """Run everything; returns the number of parts that failed.

    Raises:
        ValueError: for a device that is not available.
        DataError: if the archive is not found, before any work.
        MissingPackageError: for a network whose package is not installed, before any work.
    """
    console = console or Console()
    started = time.monotonic()
    device = resolve_device(args.device)
    archive = _archive(args.archive)
    for network in args.networks:
        load_network(network)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    console.print(f"{card}, torch {torch.__version__}")
    failed = 0
    if args.tests:
        failed += _run_tests()
    if args.throughput:
        throughput.main(throughput.Args(out=args.out, device=args.device, ppo_num_envs=0, async_num_envs=0))
    dataset = _pixels(archive, args)
    rows, longest = results(args), 0.0
    for seed, network, method in itertools.product(range(args.seeds), args.networks, args.methods):
        cell = _cell(network, method, seed, dataset, args)
        (known,) = drlih.names(cell, dataset)
        named = {**known, "features": dict(cell.changes)["backbone"], "device": card}
        if rows.done(named):
            continue
        start = time.monotonic()
        remaining = 60 * args.minutes - (start - started)
        if remaining <= longest:
            console.print(f"{remaining:.0f} s are left, a run takes up to {longest:.0f} s: no other run is started")
            break
        try:
            encode, seconds = fit(cell, dataset)
            _, result = measure(encode, dataset)
        except (MemoryError, ValueError, RuntimeError) as error:
            failed += 1
            console.print(f"{network}, {cell} failed: {error}")
            continue
        rows.append(drlih.row(named, result, seconds))
        console.print(f"{network}, {cell}: mAP {result.map:.4f}, trained in {seconds:.1f} s")
        longest = max(longest, time.monotonic() - start)
    return failed


def results(args: Args) -> Results:
    """Return the rows of end to end learning."""
    return Results(args.out, (*COLUMNS, "device"), (*KEY, "device"), "gpu.csv")


def _cell(network: str, method: str, seed: int, dataset: HashingDataset, args: Args) -> Cell:
    options = end_to_end.Args(features=("",), epochs=args.epochs, backbone_learning_rate=args.backbone_learning_rate)
    changes = {
        **end_to_end.budget(dataset, method, options),
        "backbone": f"{network}@{args.size}",
        "device": args.device,
    }
    return Cell("", method, args.bits, seed, tuple(changes.items()))


def _run_tests() -> int:
    """Run the tests that use CUDA; return 1 if any fails."""
    return int(subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "cuda", "tests"], cwd=ROOT).returncode != 0)


def _archive(given: Path | None) -> Path:
    """Return the path of CIFAR-10's archive.

    Raises:
        DataError: if there is none.
    """
    tried = [given] if given is not None else [place / ARCHIVE for place in PLACES]
    for path in tried:
        if path.is_file():
            return path
    raise DataError(f"{tried[0]} is missing: put {ARCHIVE} beside the checkout, or name it with --archive")


def _pixels(archive: Path, args: Args) -> HashingDataset:
    """Return the pixels of the images in the archive, from the folder of features if an earlier run made it."""
    folder = args.out / "features" / f"cifar10-pixels-{args.queries or 'all'}-{args.train or 'all'}"
    if not folder.exists():
        with _unpacked(archive) as root:
            collection = data.read_images("cifar10", root)
            backbone = make(args.networks[0], size=PIXELS, cut=0)
            extract(
                *(collection, backbone, folder),
                queries=args.queries,
                train=args.train,
                thumbnail=0,
                workers=8,
            )
    return data.load(folder)


@contextmanager
def _unpacked(archive: Path) -> Iterator[Path]:
    """Unpack the archive into a temporary folder; yield the folder of the dataset."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        root = Path(folder)
        yield root / "cifar10" if (root / "cifar10").is_dir() else root


if __name__ == "__main__":
    with command_line():
        sys.exit(min(main(parse(Args, "benchmarks.gpu")), 1))
