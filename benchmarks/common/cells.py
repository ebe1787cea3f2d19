"""Run the cells of a benchmark's table, each in its own process, several at a time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import closing
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar

import numpy as np
from rich.progress import TimeElapsedColumn

from hashgym.console import Console, Text, bar, styled
from hashgym.data import HashingDataset
from hashgym.processes import environment_variables
from hashgym.storage.ray_cluster import cluster, task_result

__all__ = ["CONTINUES", "Executor", "data_digest", "features_name", "run_cells", "same_data", "unfinished"]

Cell = TypeVar("Cell")
Outcome = TypeVar("Outcome")
Executor = Literal["processes", "ray"]

CONTINUES = "stopped; the same command continues with the runs that are not finished"


def unfinished(cells: Sequence[Cell], done: Callable[[Cell], bool], path: Path, console: Console) -> list[Cell]:
    """Return the cells that are not done, and print how many are in ``path`` already."""
    waiting = [cell for cell in cells if not done(cell)]
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} of {len(cells)} runs are in {path} already")
    return waiting


def run_cells(
    cells: Sequence[Cell],
    work: Callable[[Cell], Outcome],
    finish: Callable[[Outcome], str],
    *,
    jobs: int = 1,
    executor: Executor = "processes",
    console: Console,
) -> int:
    """Run ``work`` on every cell in a fresh process, so that time and peak memory are measured for each cell alone.

    Args:
        cells: the cells; ``str(cell)`` is shown.
        work: a function that can be imported by name.
        finish: called in this process with each outcome as it arrives; the text that it returns is printed.
        jobs: cells at a time on this machine; cores are shared out among them.
        executor: ``processes`` of this machine; or ``ray``: tasks of one CPU each on the cluster at ``RAY_ADDRESS``,
            or where that is not set, on a local Ray that ends with the last cell. Machines of a cluster need the same
            packages, and this folder under the same path.
        console: for progress and the texts of ``finish``.

    Returns:
        The number of cells that failed; the error of each is printed, and the other cells go on.

    Raises:
        ValueError: before any work, for an unknown executor, or if Ray is not installed or does not answer.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"unknown executor {executor!r}: choose one of {', '.join(EXECUTORS)}")
    if not cells:
        return 0
    failed = 0
    progress = bar(TimeElapsedColumn(), console=console)
    with closing(EXECUTORS[executor](cells, work, jobs)) as outcomes, progress:
        task = progress.add_task("runs", total=len(cells))
        for cell, outcome in outcomes:
            try:
                finished = outcome()
            except Exception as error:
                failed += 1
                console.print(Text.assemble(styled(f"{cell} failed:", "red"), f" {type(error).__name__}: {error}"))
            else:
                console.print(styled(f"{cell}: {finish(finished)}", ""))
            progress.advance(task)
    return failed


def features_name(dataset: HashingDataset) -> str:
    """Short name of a dataset's features: the backbone, where it is cut, and the side in pixels of its input."""
    backbone = dataset.provenance.get("backbone", {})
    if not backbone:
        return str(dataset.provenance.get("features", "?"))
    cut = f":{backbone['cut']}" if "cut" in backbone else ""
    return f"{backbone['name']}{cut}@{backbone['size']}"


def data_digest(dataset: HashingDataset) -> str:
    """Return digests of the data and split that decide a result, joined by plus signs, for :func:`same_data`.

    Each has 12 hexadecimal digits and covers the split. A folder of features has, in this order, one of arrays and
    labels, one of thumbnails and labels (if it has thumbnails), and one of provenance. Embedded datasets and some rows
    of earlier versions have only the last.
    """
    digests = {"provenance": hashlib.sha256(json.dumps(dict(dataset.provenance), sort_keys=True, default=str).encode())}
    parts = {"arrays": ("features", "views", "regions", "train_regions"), "pictures": ("thumbnails",)}
    for kind, names in parts.items() if dataset.checksums else ():
        digests[kind] = hashlib.sha256(np.ascontiguousarray(dataset.labels).tobytes())
        for name in names:
            if getattr(dataset, name) is not None:
                digests[kind].update(f"{name} {dataset.checksums.get(name)}/".encode())
    if dataset.thumbnails is None:
        digests.pop("pictures", None)
    for part in (dataset.query, dataset.database, dataset.train):
        for digest in digests.values():
            digest.update(np.ascontiguousarray(part).tobytes() + b"/")
    order = ("arrays", "pictures", "provenance")
    return "+".join(digests[kind].hexdigest()[:12] for kind in order if kind in digests)


def same_data(one: str, other: str) -> bool:
    """Return whether two digests are of the same data.

    True if the arrays are equal, or if pictures and provenance are: features computed on another processor differ by
    rounding. If one digest covers no arrays, provenance alone decides.
    """
    (*known, provenance), (*others, other_provenance) = one.split("+"), other.split("+")
    if not known or not others:
        return provenance == other_provenance
    pictures = len(known) == len(others) == 2 and known[1] == others[1]
    return known[0] == others[0] or (pictures and provenance == other_provenance)


def _in_processes(
    cells: Sequence[Cell], work: Callable[[Cell], Outcome], jobs: int
) -> Generator[tuple[Cell, Callable[[], Outcome]]]:
    """Yield cells as they end, each with a function that returns its outcome or raises its error."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    with environment_variables(threads), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_in_fresh_process, work, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            while any(future.running() for future in futures):  # one that starts just now did not get Ctrl-C
                for process in multiprocessing.active_children():
                    process.terminate()
                time.sleep(0.05)


def _in_fresh_process(work: Callable[[Any], Any], cell: Any) -> Any:
    if hasattr(signal, "pthread_sigmask"):  # Ctrl-C is blocked until the new process can end without a traceback
        resource_tracker.ensure_running()  # first, because starting it would end the block
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_quietly) as process:
        return process.submit(work, cell).result()


def _end_quietly() -> None:
    """Make this process end on Ctrl-C, and when the process that started it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


def _on_ray(
    cells: Sequence[Cell], work: Callable[[Cell], Outcome], jobs: int
) -> Generator[tuple[Cell, Callable[[], Outcome]]]:
    """Do the same on a Ray cluster. A process runs one cell; a cell whose process is lost is run again."""
    with cluster(jobs) as ray:
        task = ray.remote(num_cpus=1, max_calls=1, max_retries=3)(_in_folder)
        waiting = {task.options(name=str(cell)).remote(os.getcwd(), work, cell): cell for cell in cells}
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting))
                yield waiting.pop(ended), partial(task_result, ray, ended)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _in_folder(folder: str, work: Callable[[Any], Any], cell: Any) -> Any:
    os.chdir(folder)  # relative paths are relative to the folder in which the benchmark was started
    return work(cell)


EXECUTORS = {"processes": _in_processes, "ray": _on_ray}
