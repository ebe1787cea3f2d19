"""Speed of training with several threads against one, as ratios within one run: ``python -m benchmarks.threads``.

Agents and hashers train small networks. Each is trained for some updates with one thread and with one per core, on the
idle machine and with busy processes running. The rounds alternate, and the median of each is shown.
``hashgym.threads`` decides by these numbers which networks get more than one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from agents import drlih
from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.machine import seconds
from benchmarks.common.results import publish
from hashgym import hashers, threads
from hashgym.console import Table
from hashgym.data import HashingDataset, load
from hashgym.terminal import command_line, parse
from hashgym.threads import use_threads

KEY = ("job", "multiplications", "busy", "threads")


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Updates per second of agents and hashers with one thread and with all cores."""

    busy: tuple[int, ...] = (0, 4)
    """numbers of busy processes that run during the training"""
    rounds: int = 2
    """rounds of every job, in turn"""
    updates: int = 10
    """updates of a round"""


def synthetic(dim: int, images: int = 5000) -> HashingDataset:
    """Return images of ten classes with random features of a given size; their values do not change the speed."""
    rng = np.random.default_rng(0)
    classes = rng.integers(10, size=images)
    features = (rng.standard_normal((10, dim))[classes] + rng.standard_normal((images, dim))).astype(np.float32)
    rows = np.arange(images)
    return HashingDataset(
        name=f"synthetic-{dim}",
        features=features,
        labels=np.eye(10, dtype=np.uint8)[classes],
        query=rows[:100],
        database=rows[100:],
        train=rows[100:],
    )


def jobs(updates: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Return jobs by name: multiplications of an update's largest product, and a function that makes the updates."""
    digits, features = load("digits").standardized(), synthetic(1280)
    found: dict[str, tuple[int, Callable[[], Any]]] = {}
    for name, dataset in (("digits", digits), ("1,280 features", features)):
        for hasher_name, batch, hidden in (("orthohash", 128, 512), ("orthohash", 256, 1024)):
            hasher = hashers.make(hasher_name, bits=48, hidden=hidden, batch_size=batch, updates=updates)
            X, y = dataset.features[dataset.train], dataset.labels[dataset.train]
            label = f"{hasher_name}, batches of {batch}, hidden {hidden}, {name}"
            found[label] = batch * dataset.dim * hidden, lambda hasher=hasher, X=X, y=y: hasher.fit(X, y)  # type: ignore[misc]
        for variant in ("hashgym", "norec"):
            args = drlih.Args(variant=variant, bits=48, updates=updates, holdout=0.0)
            found[f"drlih {variant}, {name}"] = (
                args.num_envs * dataset.dim * args.hidden,
                lambda dataset=dataset, args=args: drlih.train(dataset, args, progress=False),  # type: ignore[misc]
            )
    return found


def _spin() -> None:
    x = np.random.default_rng(0).random(1000)
    while True:
        x = np.sqrt(x * x + 1e-9)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep processes busy within the block."""
    spawn = multiprocessing.get_context("spawn")
    running = [spawn.Process(target=_spin, daemon=True) for _ in range(processes)]
    try:
        for process in running:
            process.start()
        if running:
            time.sleep(2)  # they import NumPy first
        yield
    finally:
        for process in running:
            process.kill()
            process.join()


def measure(args: Args) -> list[dict[str, Any]]:
    """Return the median updates per second of every job, by busy processes and threads."""
    cores, rows = os.cpu_count() or 1, []
    worth = threads.WORTH_THREADS
    try:
        for count in args.busy:
            times: dict[tuple[str, int, int], list[float]] = {}
            with use_threads(cores), busy(count):
                for _ in range(1 + args.rounds):  # the first one also imports
                    for name, (multiplications, train) in jobs(args.updates).items():
                        for number, limit in ((1, 1 << 62), (cores, 0)):
                            threads.WORTH_THREADS = limit
                            times.setdefault((name, multiplications, number), []).append(seconds(train))
            rows += [
                dict(zip(KEY, (name, size, count, number), strict=True))
                | {"updates_per_second": args.updates / median(own[1:])}
                for (name, size, number), own in times.items()
            ]
    finally:
        threads.WORTH_THREADS = worth
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of updates per second with one thread and with all, and their ratio."""
    cores = max(row["threads"] for row in rows)
    shown = Table(title="updates per second")
    for heading in ("job", "multiplications", "busy processes", "1 thread", f"{cores} threads", "ratio"):
        shown.add_column(heading, justify="left" if heading == "job" else "right")
    speeds = {tuple(row[key] for key in KEY): row["updates_per_second"] for row in rows}
    for (name, size, count, number), one in speeds.items():
        if number == 1:
            many = speeds[name, size, count, cores]
            shown.add_row(name, f"{size:,}", str(count), f"{one:,.1f}", f"{many:,.1f}", f"{many / one:.2f} x")
    return shown


def main(args: Args) -> list[dict[str, Any]]:
    """Measure, print the table, and add the rows to threads.csv."""
    rows = measure(args)
    publish(rows, table(rows), args.out, "threads.csv", KEY, {"updates": args.updates, "rounds": args.rounds})
    return rows


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.threads"))
