"""Speed and memory of the index back ends, all behind the interface of :mod:`hashgym.index`.

    python -m benchmarks.engines --out DIR

Also part of ``python -m benchmarks.retrieval``. 625,000 images with 1.6 codes of 64 bits on average, one million codes.
Every back end is measured in its own process, on one thread: build time, memory, single queries and batches, for the 10
nearest images and for all within radius 2. Its results are compared with those of brute force, which is measured first.
``prefix`` is measured too with its work bounded to some numbers of candidates, where it may miss images: the recall.

Codes are random; clustered, as those of images are, so that many tie; or, with ``--features``, those of real images:
ITQ of their features, every image repeated with noise up to the number of codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.machine import load_average, package_versions, resident_mb, revision, seconds
from benchmarks.common.results import Results, describe
from hashgym import index
from hashgym.checks import check_choice
from hashgym.codes import CodeSets, Words
from hashgym.console import Console, Table
from hashgym.index.base import BACKENDS
from hashgym.processes import environment_variables
from hashgym.terminal import command_line, parse

DATA = ("random", "clustered", "features")
NEEDS = {"faiss": "faiss", "faiss-hash": "faiss", "milvus": "pymilvus"}
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


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Sizes of the comparison of index back ends."""

    codes: int = 1_000_000
    """approximate number of codes in the index"""
    per_image: float = 1.6
    """codes of an image, on average; 1 for one each"""
    bits: int = 64
    """code length"""
    queries: int = 100
    """number of queries"""
    k: int = 10
    """number of nearest images to find"""
    radius: int = 2
    """Hamming radius within which to find all images"""
    data: tuple[str, ...] = ("random", "clustered")
    """codes to index: random, clustered, features"""
    features: Path | None = None
    """a folder of features, for the data `features`"""
    backends: tuple[str, ...] = tuple(index.backends())
    """back ends to measure; those that are not installed are skipped"""
    candidates: tuple[int, ...] = (1_000, 10_000)
    """numbers of codes that `prefix` ranks for a query, besides its exact search"""
    milvus: str = ""
    """address of a Milvus server; embedded where empty"""
    seed: int = 0
    """seed of the data"""


@dataclass
class Report:
    """The measured rows of engines.csv."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def of(self, data: str, backend: str, task: str) -> dict[str, Any]:
        """The row of one measurement."""
        return next(row for row in self.rows if (row["data"], row["backend"], row["task"]) == (data, backend, task))

    def has(self, *names: str) -> bool:
        """Whether there is such a row."""
        return any((row["data"], row["backend"], row["task"]) == names for row in self.rows)


def make_data(kind: str, args: Args) -> tuple[CodeSets, Words]:
    """Return code sets of the images, and packed queries (m, W) that are not among them."""
    rng = np.random.default_rng(args.seed)
    regions = 5
    images = max(1, round(args.codes / args.per_image))
    if kind == "features":
        draw = _features(args, rng)
    else:
        centres = rng.random((2_000, args.bits), np.float32) < 0.5
        flipped = 0.5 if kind == "random" else 0.05

        def draw(n: int) -> NDArray[np.bool_]:
            return centres[rng.integers(len(centres), size=n)] ^ (rng.random((n, args.bits), np.float32) < flipped)

    kept = rng.random((images, 1 + regions)) < (args.per_image - 1) / regions
    kept[:, 0] = True
    codes = np.zeros((*kept.shape, args.bits), np.bool_)
    codes[kept] = draw(int(kept.sum()))
    return CodeSets.of(codes, kept), CodeSets.of(draw(args.queries)).words[:, 0]


def _features(args: Args, rng: np.random.Generator) -> Callable[[int], NDArray[np.bool_]]:
    """Return a function that draws codes of a dataset's images, with a little noise on the features."""
    from hashgym import hashers
    from hashgym.data import cache

    assert args.features is not None
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
    """Measure every back end on all data, brute force first, each in its own process; rows are written as they come.

    Raises:
        ValueError: for unknown data or back ends, or data without their folder, before anything is measured.
    """
    for kind in args.data:
        check_choice("data", kind, DATA)
    for name in args.backends:
        if name not in BACKENDS:  # which has those of the user's own modules too
            check_choice("backends", name, index.backends())
    if "features" in args.data and args.features is None:
        raise ValueError("the data `features` need --features DIR: give a folder that `hashgym features` wrote")
    installed = [name for name in args.backends if find_spec(NEEDS.get(name, "numpy"))]
    bounded = [f"prefix:{count}" for count in args.candidates] if "prefix" in installed else []
    report, results = Report(), Results(args.out, COLUMNS, KEY, "engines.csv") if args.out else None
    for kind in args.data:
        sets, queries = make_data(kind, args)
        with TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            np.savez(data, words=sets.words, kept=sets.kept, queries=queries)
            for backend in ("brute-force", *(name for name in [*installed, *bounded] if name != "brute-force")):
                console.print(f"{kind} codes: {backend}")
                load = load_average()
                costs, tasks = _in_fresh_process(measure_one, backend, data, args)
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
    """Return the costs of a back end, and its speed by task; run in a fresh process.

    Brute force runs first and writes its results to the folder of the data; those of the others must be equal, except
    of ``prefix:N``, whose nearest images are searched among N candidates.
    """
    with np.load(data, allow_pickle=False) as arrays:
        sets, queries = CodeSets(arrays["words"], arrays["kept"], args.bits), arrays["queries"]
    name, _, count = backend.partition(":")
    options: dict[str, Any] = {"candidates": int(count)} if count else {}
    if backend == "milvus":
        options = {"uri": args.milvus, "collection": "hashgym_benchmark"}
    # A small index first, so that loading and compiling are not measured.
    with index.make(name, args.bits, **options) as small:
        if len(small):
            raise ValueError(f"{args.milvus} has a collection hashgym_benchmark: drop it first")
        small.add(np.arange(len(sets[:100])), sets[:100])
        small.search(queries, 1)
        small.within(queries, 0)
        small.remove(small.ids)
    before, start = resident_mb(), time.perf_counter()
    with index.make(name, args.bits, **options) as made:
        made.add(np.arange(len(sets)), sets)
        made.search(queries[:1], 1)  # some build their tables at the first search
        costs = {"build_seconds": time.perf_counter() - start, "index_mb": resident_mb() - before}
        tasks = {}
        for task, do in (
            (f"nearest {args.k}", lambda some: made.search(some, args.k)),
            (f"within {args.radius}", lambda some: made.within(some, args.radius)[1:]),
        ):
            times = [seconds(do, queries[i : i + 1]) for i in range(len(queries))]
            together = seconds(do, queries)
            found = do(queries)
            answers = data.with_name(f"{task}.npz")
            if backend == "brute-force":
                np.savez(answers, ids=found[0], distances=found[1])
            with np.load(answers, allow_pickle=False) as plain:
                recall = _recall(plain["ids"], found[0])
                if not count or task.startswith("within"):
                    assert np.array_equal(plain["ids"], found[0]), (backend, task)
                    assert np.array_equal(plain["distances"], found[1]), (backend, task)
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


def _recall(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Return the share of a search's images that another found, (m, k) of each query, or (n,) where all are found."""
    if wanted.ndim == 1 or not wanted.size:
        return float(np.array_equal(wanted, found))
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found, strict=True)]))


def _in_fresh_process(do: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a function that runs in a fresh process on one thread."""
    with (
        environment_variables({"OMP_NUM_THREADS": "1"}, replace=True),
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        return pool.submit(do, *args).result()


def main(args: Args) -> Report:
    """Measure and print a table for every task."""
    console = Console()
    report = measure(args, console)
    for kind, task in dict.fromkeys((row["data"], row["task"]) for row in report.rows):
        rows = [row for row in report.rows if (row["data"], row["task"]) == (kind, task)]
        first = rows[0]
        table = Table(
            title=f"{task}: {first['images']:,} images with {first['codes']:,} {kind} codes of {args.bits} bits, "
            f"one thread, {first['found']:.1f} found"
        )
        table.add_column("back end")
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
        "All back ends give the same images in the same order, except prefix:N, which ranks N candidates or more. "
        "Memory is the growth of the process, with its server. "
        f"Load at the start of each: {', '.join(sorted({str(row['load']) for row in report.rows}))}."
    )
    return report


if __name__ == "__main__":
    # Imported by its full name, so that spawned processes can import the same functions.
    from benchmarks.engines import Args as Settings
    from benchmarks.engines import main as run

    with command_line():
        run(parse(Settings, "benchmarks.engines"))
