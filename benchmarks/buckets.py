"""How fast is the bucket search? Our index against faiss.IndexBinaryHash, whose buckets are the whole codes.

Part of ``python -m benchmarks.retrieval``: 625,000 images with 1.6 codes of 32 bits on average, one million codes.
faiss gives an image once for every code that it finds, ours once. Both run on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, unpack
from hashgym.console import Console, Table
from hashgym.retrieval import BucketIndex


@dataclass
class Args:
    """Sizes of the comparison of bucket searches."""

    images: int = 625_000
    """number of images in the index"""
    regions: int = 5
    """regions of an image, each with a code of its own"""
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
    """how often everything is measured, in turn; medians are reported"""
    seed: int = 0
    """seed of the data"""


@dataclass
class Report:
    """What was measured.

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

    def ratio(self, radius: int, way: str) -> float:
        """Median over the rounds of how many times as long faiss takes."""
        return float(np.median(np.divide(self.times[radius, way, "faiss"], self.times[radius, way, "ours"])))


def make_data(args: Args) -> tuple[CodeSets, NDArray[np.bool_]]:
    """Code sets of the images, and queries (n, bits), scattered around the same centres."""
    rng = np.random.default_rng(args.seed)
    centres = rng.random((args.clusters, args.bits), np.float32) < 0.5

    def scattered(*shape: int) -> NDArray[np.bool_]:
        return centres[rng.integers(args.clusters, size=shape)] ^ (rng.random((*shape, args.bits), np.float32) < 0.05)

    codes = scattered(args.images, 1 + args.regions)
    kept = rng.random(codes.shape[:2]) < args.kept
    kept[:, 0] = True
    return CodeSets.of(codes, kept), scattered(args.queries)


def measure(args: Args) -> Report:
    """Time both on the same queries, in turn, and hold what they find against each other."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    sets, queries = make_data(args)
    images, _ = np.nonzero(sets.kept)
    ours = BucketIndex(sets)
    theirs = faiss.IndexBinaryHash(args.bits, args.bits)
    theirs.add(octets(unpack(sets.words[sets.kept], args.bits)))
    packed = octets(queries)
    report = Report(codes=len(images))
    for radius in args.radii:
        theirs.nflip = radius
        within = radius + 1  # faiss leaves its radius itself out
        # What compiles and fills caches is checked too.
        ours.lookup(queries[0], radius)
        found, their_found = ours.lookup_many(queries, radius), theirs.range_search(packed, within)
        assert distances_by_image(*found) == distances_by_image(their_found[0], images[their_found[2]], their_found[1])
        report.found[radius] = len(found[1]) / len(queries)

        def record(way: str, method: str, microseconds: float, radius: int = radius) -> None:
            report.times.setdefault((radius, way, method), []).append(microseconds)

        for _ in range(args.rounds):
            record("single", "ours", float(np.median([clock(ours.lookup, query, radius) for query in queries])))
            record("single", "faiss", float(np.median([clock(theirs.range_search, q[None], within) for q in packed])))
            record("batch", "ours", clock(ours.lookup_many, queries, radius) / len(queries))
            record("batch", "faiss", clock(theirs.range_search, packed, within) / len(queries))
    faiss.omp_set_num_threads(threads)
    return report


def octets(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Codes as faiss takes them."""
    return np.packbits(bits, axis=-1, bitorder="little")


def distances_by_image(offsets: NDArray, ids: NDArray, distances: NDArray) -> list[dict[int, int]]:
    """For each query the images found and their least distances."""
    results: list[dict[int, int]] = []
    for start, stop in pairwise(offsets.tolist()):
        pairs = zip(ids[start:stop].tolist(), distances[start:stop].tolist(), strict=True)
        results.append(dict(sorted(pairs, key=lambda pair: -pair[1])))  # the least comes last, and stays
    return results


def clock(run: Callable[..., Any], *arguments: Any) -> float:
    """Microseconds that a call takes."""
    start = time.perf_counter()
    run(*arguments)
    return 1e6 * (time.perf_counter() - start)


def main(args: Args) -> Report | None:
    """Measure and print the table; None where faiss is not installed."""
    console = Console()
    if not find_spec("faiss"):
        console.print("The bucket search is not measured: faiss is not installed (`pip install faiss-cpu`).")
        return None
    report = measure(args)
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
    console.print(table)
    console.print(
        "Both find the same images; ours gives each once and in order, and packs its queries within the time."
    )
    return report
