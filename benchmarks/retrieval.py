"""How fast is exact, tie-aware mAP? Our kernels against the loop that published hashing code runs.

``python -m benchmarks.retrieval`` measures mAP@all of 2,100 queries on 193,734 items at 48 bits, the size of
NUS-WIDE's usual split. The loop multiplies -1/+1 codes and multi-hot labels in float32 and sorts the whole database
once for every query, which leaves tied items in an arbitrary order.

After that, the bucket search is measured against faiss where that is installed, see :mod:`benchmarks.buckets`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from benchmarks import buckets, engines
from benchmarks.results import peak_mb
from hashgym.console import Console, Table
from hashgym.retrieval import evaluate, mean_average_precision
from hashgym.retrieval.kernels import Backend
from hashgym.terminal import command_line, parse


@dataclass
class Args:
    """Sizes of the comparison."""

    queries: int = 2_100
    """number of queries"""
    database: int = 193_734
    """number of database items"""
    bits: int = 48
    """code length"""
    labels: int = 81
    """number of labels; an item has about two of them"""
    rounds: int = 3
    """how often everything is measured, in turn; medians are reported"""
    seed: int = 0
    """seed of the data"""
    buckets: buckets.Args = field(default_factory=buckets.Args)
    """sizes of the comparison of bucket searches"""
    engines: engines.Args = field(default_factory=engines.Args)
    """sizes of the comparison of engines"""


@dataclass
class Report:
    """What was measured, a number for every round: seconds by method, and mAP by method."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    map: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    buckets: buckets.Report | None = None
    engines: engines.Report | None = None

    def ratio(self, method: str, baseline: str = "loop") -> float:
        """Median over the rounds of how many times as long the baseline takes."""
        return float(np.median(np.divide(self.seconds[baseline], self.seconds[method])))


def make_data(items: int, args: Args, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Codes (items, bits) that follow the labels (items, labels), with noise, so that retrieval has a meaning."""
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
    """mAP@all with ties as argsort leaves them, and the seconds that its ranking alone took."""
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


def measure(args: Args) -> Report:
    """Time every method on the same data, and hold the results against each other."""
    data = (*make_data(args.queries, args, 1), *make_data(args.database, args, 2))
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


def main(args: Args) -> Report:
    """Measure and print the table."""
    report = measure(args)
    table = Table(title=f"mAP@all, {args.queries:,} queries on {args.database:,} items, {args.bits} bits")
    for column in ("method", "seconds", "times the loop's speed", "its ranking alone", "mAP", "ties"):
        table.add_column(column, justify="left" if column in ("method", "ties") else "right")
    for method, seconds in report.seconds.items():
        if method in report.map:
            table.add_row(
                method,
                f"{np.median(seconds):.3f}",
                f"{report.ratio(method):.1f}",
                f"{report.ratio(method, 'loop: ranking alone'):.1f}",
                f"{report.map[method]:.9f}",
                "in arbitrary order" if method == "loop" else "averaged exactly",
            )
    console = Console()
    console.print(table)
    console.print(
        f"Both backends give the same mAP. Peak memory of the whole process before the loop: {report.peak_mb:.0f} MB."
    )
    report.buckets = buckets.main(args.buckets)
    report.engines = engines.main(args.engines)
    return report


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.retrieval"))
