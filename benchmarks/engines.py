"""How fast are the engines of an image index, and what do they cost? All behind the one interface of hashgym.

Part of ``python -m benchmarks.retrieval``, and alone ``python -m benchmarks.engines --out DIR``: 625,000 images with
1.6 codes of 64 bits on average, one million codes. Every back end is measured in a process of its own, on one thread:
the time to build it, the memory that it takes, single queries and many at once, for the 10 nearest images and for all
within radius 2. Its answers are held against those of brute force, which is measured first, in the same run.

Codes are random; clustered, as those of images are, so that many tie; or, with ``--features``, those of real images:
ITQ of their features, every image repeated with noise until there are as many as wanted.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Results, describe, peak_mb, revision
from hashgym import index
from hashgym.codes import CodeSets, Words
from hashgym.console import Console, Table
from hashgym.terminal import command_line, parse
from hashgym.versions import versions

NEEDS = {"faiss": "faiss", "faiss-hash": "faiss", "milvus": "pymilvus"}
PACKAGES = ("numpy", "numba", "faiss-cpu", "pymilvus", "milvus-lite")
KEY = ("data", "codes", "bits", "backend", "task")
COLUMNS = (
    *KEY,
    "images",
    "found",
    "recall",
    "build_seconds",
    "index_mb",
    "peak_mb",
    "median_ms",
    "p95_ms",
    "queries_per_second",
    "times_brute_force",
    "load",
    "versions",
    "revision",
    "config",
)


@dataclass
class Args:
    """Sizes of the comparison of engines."""

    codes: int = 1_000_000
    """codes in the index, about"""
    per_image: float = 1.6
    """codes of an image, on average; 1 for one each"""
    bits: int = 64
    """code length"""
    queries: int = 100
    """number of queries"""
    k: int = 10
    """images to find"""
    radius: int = 2
    """Hamming radius to find all images within"""
    data: tuple[str, ...] = ("random", "clustered")
    """codes to index: random, clustered, features"""
    features: Path | None = None
    """a folder of features, of which the data `features` are codes"""
    backends: tuple[str, ...] = tuple(index.backends())
    """back ends to measure; those that are not installed are left out"""
    milvus: str = ""
    """address of a Milvus server; embedded where empty"""
    seed: int = 0
    """seed of the data"""
    out: Path | None = None
    """a folder for engines.csv, which gets a row for every back end and task; none by default"""


@dataclass
class Report:
    """The rows of engines.csv that were measured."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def of(self, data: str, backend: str, task: str) -> dict[str, Any]:
        """The row of one measurement."""
        return next(row for row in self.rows if (row["data"], row["backend"], row["task"]) == (data, backend, task))

    def has(self, *names: str) -> bool:
        """Whether there is such a row."""
        return any((row["data"], row["backend"], row["task"]) == names for row in self.rows)


def make_data(kind: str, args: Args) -> tuple[CodeSets, Words]:
    """Code sets of the images, and packed queries (m, W) that are not among them."""
    rng = np.random.default_rng(args.seed)
    regions = 5
    images = max(1, round(args.codes / args.per_image))
    if kind == "features":
        draw = _features(args, rng)
    elif kind in ("random", "clustered"):
        centres = rng.random((2_000, args.bits), np.float32) < 0.5
        flipped = 0.5 if kind == "random" else 0.05

        def draw(n: int) -> NDArray[np.bool_]:
            return centres[rng.integers(len(centres), size=n)] ^ (rng.random((n, args.bits), np.float32) < flipped)

    else:
        raise ValueError(f"there is no data {kind!r}; there are random, clustered, features")
    kept = rng.random((images, 1 + regions)) < (args.per_image - 1) / regions
    kept[:, 0] = True
    codes = np.zeros((*kept.shape, args.bits), np.bool_)
    codes[kept] = draw(int(kept.sum()))
    return CodeSets.of(codes, kept), CodeSets.of(draw(args.queries)).words[:, 0]


def _features(args: Args, rng: np.random.Generator) -> Callable[[int], NDArray[np.bool_]]:
    """Draws codes of images of a dataset, seen with a little noise."""
    from hashgym import hashers
    from hashgym.data import cache

    if args.features is None:
        raise ValueError("the data `features` need --features DIR, a folder that `hashgym features` wrote")
    dataset = cache.open_cache(args.features).standardized()
    hasher = hashers.make("itq", bits=args.bits).fit(dataset.features[dataset.train])

    def draw(n: int) -> NDArray[np.bool_]:
        parts = []
        for start in range(0, n, 4096):
            some = dataset.features[rng.integers(len(dataset), size=min(4096, n - start))]
            parts.append(hasher.encode(some + 0.2 * rng.standard_normal(some.shape, np.float32)))
        return np.concatenate(parts)

    return draw


def measure(args: Args, console: Console) -> Report:
    """Measure every back end on all data, brute force first, each in a process of its own; rows are written at once."""
    installed = [name for name in args.backends if find_spec(NEEDS.get(name, "numpy"))]
    report, results = Report(), Results(args.out, COLUMNS, KEY, "engines.csv") if args.out else None
    for kind in args.data:
        sets, queries = make_data(kind, args)
        with TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            np.savez(data, words=sets.words, kept=sets.kept, queries=queries)
            for backend in ("brute-force", *(name for name in installed if name != "brute-force")):
                console.print(f"{kind} codes: {backend}")
                load = os.getloadavg()[0]
                costs, tasks = _in_its_own_process(measure_one, backend, data, args)
                for task, numbers in tasks.items():
                    plain = report.of(kind, "brute-force", task) if report.has(kind, "brute-force", task) else numbers
                    row = {"data": kind, "codes": int(sets.kept.sum()), "bits": args.bits, "backend": backend}
                    row |= {"task": task, "images": len(sets), **costs, **numbers}
                    row["times_brute_force"] = plain["median_ms"] / numbers["median_ms"]
                    row |= {"load": round(load, 2), "versions": package_versions(), "revision": revision()}
                    row["config"] = describe(
                        {**asdict(args), "data": kind, "features": None, "backends": None, "out": None}
                    )
                    report.rows.append(row)
                    if results:
                        results.append(row)
    return report


def measure_one(backend: str, data: Path, args: Args) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What a back end costs, and how fast it does each task; run in a process that has done nothing else.

    The first to come is brute force: it leaves its answers beside the data, and the others must give the same.
    """
    with np.load(data, allow_pickle=False) as arrays:
        sets, queries = CodeSets(arrays["words"], arrays["kept"], args.bits), arrays["queries"]
    options = {"uri": args.milvus, "collection": "hashgym_benchmark"} if backend == "milvus" else {}
    # What is loaded or compiled once is no part of the index.
    with index.make(backend, args.bits, **options) as small:
        if len(small):
            raise ValueError(f"{args.milvus} has a collection hashgym_benchmark: drop it first")
        small.add(np.arange(len(sets[:100])), sets[:100])
        small.search(queries, 1)
        small.within(queries, 0)
        small.remove(small.ids)
    before, start = resident_mb(), time.perf_counter()
    with index.make(backend, args.bits, **options) as made:
        made.add(np.arange(len(sets)), sets)
        made.search(queries[:1], 1)  # some build their tables when they are first needed
        costs = {"build_seconds": time.perf_counter() - start, "index_mb": resident_mb() - before}
        tasks = {}
        for task, do in (
            (f"nearest {args.k}", lambda some: made.search(some, args.k)),
            (f"within {args.radius}", lambda some: made.within(some, args.radius)[1:]),
        ):
            times = [_seconds(do, queries[i : i + 1]) for i in range(len(queries))]
            together = _seconds(do, queries)
            found = do(queries)
            answers = data.with_name(f"{task}.npz")
            if backend == "brute-force":
                np.savez(answers, ids=found[0], distances=found[1])
            with np.load(answers, allow_pickle=False) as plain:
                assert np.array_equal(plain["ids"], found[0]), (backend, task)
                assert np.array_equal(plain["distances"], found[1]), (backend, task)
                recall = float(np.isin(plain["ids"], found[0]).mean()) if plain["ids"].size else 1.0
            tasks[task] = {
                "found": found[0].size / len(queries),
                "recall": recall,
                "median_ms": 1e3 * float(np.median(times)),
                "p95_ms": 1e3 * float(np.percentile(times, 95)),
                "queries_per_second": len(queries) / together,
            }
        costs["peak_mb"] = resident_mb("VmHWM")
        if args.milvus and backend == "milvus":
            made.remove(made.ids)
    return costs, tasks


def resident_mb(entry: str = "VmRSS") -> float:
    """Memory of this process and those that it has started, in MB (10^6 bytes); its own peak where /proc is not."""
    own, total = Path("/proc/self/task"), 0
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system first
    if not own.exists():
        return peak_mb()
    started = [child for task in own.iterdir() for child in (task / "children").read_text().split()]
    for process in ("self", *started):
        lines = Path("/proc", process, "status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))
    return total * 1024 / 1e6


def package_versions() -> str:
    """The packages whose code is measured, with their versions, as a row records them."""
    return ", ".join(f"{name} {version}" for name, version in versions(PACKAGES).items())


def _in_its_own_process(do: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a fresh process on one thread."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(do, *args).result()
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _seconds(do: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    do(*args)
    return time.perf_counter() - start


def main(args: Args) -> Report:
    """Measure and print the tables."""
    console = Console()
    report = measure(args, console)
    for kind, task in dict.fromkeys((row["data"], row["task"]) for row in report.rows):
        rows = [row for row in report.rows if (row["data"], row["task"]) == (kind, task)]
        first = rows[0]
        table = Table(
            title=f"{task}: {first['images']:,} images with {first['codes']:,} {kind} codes of {args.bits} bits, "
            f"one thread, {first['found']:.1f} found"
        )
        table.add_column("engine")
        for column in ("build, s", "MB", "ms a query", "95%", "times brute force", "queries/s together", "recall"):
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(
                row["backend"],
                f"{row['build_seconds']:.2f}",
                f"{row['index_mb']:.0f}",
                f"{row['median_ms']:.3f}",
                f"{row['p95_ms']:.3f}",
                f"{row['times_brute_force']:.2f}",
                f"{row['queries_per_second']:,.0f}",
                f"{row['recall']:.3f}",
            )
        console.print(table)
    console.print(
        "All engines give the same images in the same order. Memory is what the process has grown by, its server's "
        f"included. Load when each began: {', '.join(sorted({str(row['load']) for row in report.rows}))}."
    )
    return report


if __name__ == "__main__":
    # By its full name, so that the processes it starts find what they are to run.
    from benchmarks.engines import Args as Settings
    from benchmarks.engines import main as run

    with command_line():
        run(parse(Settings, "benchmarks.engines"))
