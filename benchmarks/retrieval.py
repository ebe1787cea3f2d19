"""Speed of exact metrics and of searches: ``python -m benchmarks.retrieval --out DIR``.

1. Tie-aware mAP@all of 2,100 queries on 193,734 items at 48 bits, the size of NUS-WIDE's usual split, against the loop
   of published hashing code. The loop multiplies -1/+1 codes and multi-hot labels in float32 and sorts the whole
   database for every query, which leaves tied items in an arbitrary order.
2. Bucket search among 625,000 images with 1.6 codes of 32 bits on average, one million codes, against
   faiss.IndexBinaryHash, whose buckets are the whole codes. faiss returns an image once for every code that it finds,
   ours once. Both run on one thread. Skipped where faiss is not installed.
3. The index back ends, see :mod:`benchmarks.engines`.

Rows of the first two go to retrieval.csv in DIR, those of the third to engines.csv.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import engines
from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.machine import load_average, peak_mb, seconds
from benchmarks.common.results import publish
from hashgym.codes import CodeSets, unpack
from hashgym.console import Console, Table
from hashgym.optional import install_command
from hashgym.retrieval import BucketTable, evaluate, mean_average_precision
from hashgym.retrieval.kernels import Backend
from hashgym.terminal import command_line, parse
from hashgym.versions import versions

KEY = ("task", "queries", "items", "bits", "method")

__all__ = ["Args", "BucketArgs", "BucketReport", "Report", "main", "measure_buckets", "measure_map", "published_loop"]


@dataclass(frozen=True, kw_only=True)
class BucketArgs:
    """Sizes of the comparison of bucket searches."""

    images: int = 625_000
    """number of images in the index"""
    regions: int = 5
    """regions of an image, each with its own code"""
    kept: float = 0.12
    """share of the regions whose codes are kept"""
    bits: int = 32
    """code length, a multiple of 8"""
    clusters: int = 2_000
    """number of centres that the codes are scattered around"""
    queries: int = 1_000
    """number of queries"""
    radii: tuple[int, ...] = (0, 1, 2)
    """Hamming radii of the lookups"""
    rounds: int = 5
    """rounds of all measurements, in turn; medians are reported"""
    seed: int = 0
    """seed of the data"""


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Speed of exact mAP, of the bucket search and of the index back ends."""

    queries: int = 2_100
    """number of queries"""
    database: int = 193_734
    """number of database items"""
    bits: int = 48
    """code length"""
    labels: int = 81
    """number of labels; an item has about two of them"""
    rounds: int = 3
    """rounds of all measurements, in turn; medians are reported"""
    seed: int = 0
    """seed of the data"""
    buckets: BucketArgs = field(default_factory=BucketArgs)
    """sizes of the comparison of bucket searches"""
    engines: engines.Args = field(default_factory=engines.Args)
    """sizes of the comparison of index back ends"""


@dataclass
class BucketReport:
    """Measurements of the bucket search.

    Attributes:
        codes: number of codes in the index.
        found: images found for a query on average, by radius.
        times: microseconds a query, a number for every round, by radius, way (single or batch) and method.
    """

    codes: int = 0
    found: dict[int, float] = field(default_factory=dict)
    times: dict[tuple[int, str, str], list[float]] = field(default_factory=dict)

    def median(self, radius: int, way: str, method: str) -> float:
        """Median over the rounds."""
        return float(np.median(self.times[radius, way, method]))

    def ratio(self, radius: int, way: str, method: str = "ours") -> float:
        """Time of faiss divided by the method's, median over the rounds."""
        return float(np.median(np.divide(self.times[radius, way, "faiss"], self.times[radius, way, method])))

    def rows(self, args: BucketArgs) -> list[dict[str, Any]]:
        """Return the rows of retrieval.csv: of each radius, way and method the seconds of a query."""
        return [
            {
                "task": f"images within radius {radius}, {way}",
                **{"queries": args.queries, "items": args.images, "bits": args.bits, "method": method},
                "seconds": self.median(radius, way, method) / 1e6,
                "baseline": "faiss",
                "times_baseline": self.ratio(radius, way, method),
                "result": self.found[radius],
            }
            for radius, way, method in self.times
        ]


@dataclass
class Report:
    """All measurements; of mAP the seconds of every round and the value, by method."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    map: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    buckets: BucketReport | None = None
    engines: engines.Report | None = None

    def ratio(self, method: str, baseline: str = "loop") -> float:
        """Time of the baseline divided by the method's, median over the rounds."""
        return float(np.median(np.divide(self.seconds[baseline], self.seconds[method])))

    def rows(self, args: Args) -> list[dict[str, Any]]:
        """Return the rows of retrieval.csv: of each method the seconds of all queries, and the mAP."""
        return [
            {
                "task": "mAP of all queries",
                **{"queries": args.queries, "items": args.database, "bits": args.bits, "method": method},
                "seconds": float(np.median(times)),
                "baseline": "loop",
                "times_baseline": self.ratio(method),
                "result": self.map.get(method, ""),
            }
            for method, times in self.seconds.items()
        ]


def make_labelled(items: int, args: Args, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Codes (items, bits) that follow the labels (items, labels), with noise, so that rankings are meaningful."""
    prototypes = np.random.default_rng(args.seed).standard_normal((args.labels, args.bits), np.float32)
    rng = np.random.default_rng((args.seed, seed))
    frequency = np.linspace(2, 0.2, args.labels) * 2 / args.labels
    labels = (rng.random((items, args.labels), np.float32) < frequency).astype(np.uint8)
    labels[np.arange(items), rng.integers(args.labels, size=items)] = 1
    codes = labels.astype(np.float32) @ prototypes + 2 * rng.standard_normal((items, args.bits), np.float32) > 0
    return codes, labels


def published_loop(
    queries: NDArray[np.bool_],
    query_labels: NDArray[np.uint8],
    database: NDArray[np.bool_],
    database_labels: NDArray[np.uint8],
) -> tuple[float, float]:
    """mAP@all with ties in the order of argsort, and the seconds of its ranking alone."""
    signs, database_signs = (np.where(x, np.float32(1), np.float32(-1)) for x in (queries, database))
    labels, relevance_of = query_labels.astype(np.float32), database_labels.astype(np.float32)
    bits, scores, ranking = queries.shape[1], [], 0.0
    for code, label in zip(signs, labels, strict=True):
        start = time.perf_counter()
        order = np.argsort(0.5 * (bits - database_signs @ code))
        ranking += time.perf_counter() - start
        relevant = (relevance_of @ label > 0)[order]
        if relevant.any():
            ranks = np.flatnonzero(relevant) + 1
            scores.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(scores)), ranking


def measure_map(args: Args) -> Report:
    """Time every method on the same data, and assert that the results agree."""
    data = (*make_labelled(args.queries, args, 1), *make_labelled(args.database, args, 2))
    report = Report()

    def clock(method: str, run: Callable[[], float]) -> None:
        start = time.perf_counter()
        report.map[method] = run()
        report.seconds.setdefault(method, []).append(time.perf_counter() - start)

    def loop() -> float:
        score, ranking = published_loop(*data)
        report.seconds.setdefault("loop: ranking alone", []).append(ranking)
        return score

    backends: tuple[Backend, ...] = ("numpy", "numba") if find_spec("numba") else ("numpy",)
    for backend in backends:
        mean_average_precision(*(x[:1000] for x in data), backend=backend)  # compiles the kernel
    for _ in range(args.rounds):
        for backend in backends:
            clock(backend, partial(mean_average_precision, *data, backend=backend))
        report.peak_mb = report.peak_mb or peak_mb()  # before the loop has used any
        clock("loop", loop)
    for backend in backends:
        assert abs(report.map[backend] - report.map["numpy"]) < 1e-12, report.map
    bounds = evaluate(*data)
    assert bounds.map_pessimistic - 1e-9 < report.map["loop"] < bounds.map_optimistic + 1e-9, (bounds, report.map)
    return report


def map_table(args: Args, report: Report) -> Table:
    """Return the table of mAP."""
    table = Table(title=f"mAP@all, {args.queries:,} queries on {args.database:,} items, {args.bits} bits")
    for column in ("method", "seconds", "times the loop's speed", "its ranking alone", "mAP", "ties"):
        table.add_column(column, justify="left" if column in ("method", "ties") else "right")
    for method, times in report.seconds.items():
        if method in report.map:
            table.add_row(
                method,
                f"{np.median(times):.3f}",
                f"{report.ratio(method):.1f}",
                f"{report.ratio(method, 'loop: ranking alone'):.1f}",
                f"{report.map[method]:.9f}",
                "in arbitrary order" if method == "loop" else "averaged exactly",
            )
    table.caption = f"Both back ends give the same mAP. Peak memory before the loop: {report.peak_mb:.0f} MB."
    return table


def make_code_sets(args: BucketArgs) -> tuple[CodeSets, NDArray[np.bool_]]:
    """Code sets of the images, and queries (n, bits), scattered around the same centres."""
    rng = np.random.default_rng(args.seed)
    centres = rng.random((args.clusters, args.bits), np.float32) < 0.5

    def scattered(*shape: int) -> NDArray[np.bool_]:
        return centres[rng.integers(args.clusters, size=shape)] ^ (rng.random((*shape, args.bits), np.float32) < 0.05)

    codes = scattered(args.images, 1 + args.regions)
    kept = rng.random(codes.shape[:2]) < args.kept
    kept[:, 0] = True
    return CodeSets.of(codes, kept), scattered(args.queries)


def measure_buckets(args: BucketArgs) -> BucketReport:
    """Time both searches on the same queries, in turn, and assert that they find the same images."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    sets, queries = make_code_sets(args)
    images, _ = np.nonzero(sets.kept)
    ours = BucketTable(sets)
    theirs = faiss.IndexBinaryHash(args.bits, args.bits)
    theirs.add(faiss_codes(unpack(sets.words[sets.kept], args.bits)))
    packed = faiss_codes(queries)
    report = BucketReport(codes=len(images))
    for radius in args.radii:
        theirs.nflip = radius
        within = radius + 1  # faiss excludes the radius itself
        # This first search, which compiles and fills caches, is not timed.
        ours.lookup(queries[0], radius)
        found, their_found = ours.lookup_many(queries, radius), theirs.range_search(packed, within)
        assert distances_by_image(*found) == distances_by_image(their_found[0], images[their_found[2]], their_found[1])
        report.found[radius] = len(found[1]) / len(queries)

        def record(way: str, method: str, each: float, radius: int = radius) -> None:
            report.times.setdefault((radius, way, method), []).append(1e6 * each)

        for _ in range(args.rounds):
            record("single", "ours", float(np.median([seconds(ours.lookup, query, radius) for query in queries])))
            record("single", "faiss", float(np.median([seconds(theirs.range_search, q[None], within) for q in packed])))
            record("batch", "ours", seconds(ours.lookup_many, queries, radius) / len(queries))
            record("batch", "faiss", seconds(theirs.range_search, packed, within) / len(queries))
    faiss.omp_set_num_threads(threads)
    return report


def faiss_codes(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Codes in the layout of faiss."""
    return np.packbits(bits, axis=-1, bitorder="little")


def distances_by_image(offsets: NDArray, ids: NDArray, distances: NDArray) -> list[dict[int, int]]:
    """For each query the images found and their least distances."""
    results: list[dict[int, int]] = []
    for start, stop in pairwise(offsets.tolist()):
        pairs = zip(ids[start:stop].tolist(), distances[start:stop].tolist(), strict=True)
        results.append(dict(sorted(pairs, key=lambda pair: -pair[1])))  # the least is last and overwrites the others
    return results


def bucket_table(args: BucketArgs, report: BucketReport) -> Table:
    """Return the table of bucket searches."""
    table = Table(
        title=f"Bucket search, {args.images:,} images with {report.codes:,} codes of {args.bits} bits, one thread"
    )
    for column in ("radius", "queries", "found", "ours, µs a query", "faiss, µs a query", "times faiss's speed"):
        table.add_column(column, justify="left" if column == "queries" else "right")
    for radius in args.radii:
        for way, name in (("single", "one at a time (median)"), ("batch", f"all {args.queries:,} together")):
            numbers = (report.median(radius, way, "ours"), report.median(radius, way, "faiss"))
            times = (f"{number:.2f}" for number in numbers)
            table.add_row(str(radius), name, f"{report.found[radius]:.1f}", *times, f"{report.ratio(radius, way):.2f}")
    table.caption = "Both find the same images; ours returns each once and in order, and its time includes packing."
    return table


def main(args: Args) -> Report:
    """Measure and print all three tables, and add their rows to retrieval.csv and engines.csv."""
    add = partial(publish, out=args.out, name="retrieval.csv", key=KEY)
    report = measure_map(args)
    rest = {name: getattr(args, name) for name in ("labels", "rounds", "seed")}
    add(report.rows(args), map_table(args, report), config={**rest, "peak_mb": round(report.peak_mb), **_conditions()})
    if find_spec("faiss"):
        report.buckets = measure_buckets(args.buckets)
        rows, table = report.buckets.rows(args.buckets), bucket_table(args.buckets, report.buckets)
        add(rows, table, config={**asdict(args.buckets), **_conditions()})
    else:
        Console().print(f"The bucket search is not measured, as faiss is not installed: {install_command('faiss')}")
    report.engines = engines.main(replace(args.engines, out=args.engines.out or args.out))
    return report


def _conditions() -> dict[str, Any]:
    """Return the load of the machine, and the versions of the packages that decide the speed."""
    return {"load": f"{load_average():.1f}", **versions(("numba", "faiss-cpu"))}


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.retrieval"))
