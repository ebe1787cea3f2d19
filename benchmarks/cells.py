"""Running the cells of a benchmark's table, each in a process of its own, several at a time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hashgym.data import HashingDataset

__all__ = ["data_digest", "features_name", "run_cells", "unfinished"]

Cell = TypeVar("Cell")
Outcome = TypeVar("Outcome")


def unfinished(cells: Sequence[Cell], done: Callable[[Cell], bool], path: Path, console: Console) -> list[Cell]:
    """The cells that are not done; prints how many of them are in ``path`` already."""
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
    console: Console,
) -> int:
    """Run ``work`` on every cell in a fresh process, so that its time and peak memory are its own.

    Args:
        cells: what to run; ``str(cell)`` names it.
        work: a function that can be imported by name.
        finish: called here with each outcome as it comes; what it returns is printed.
        jobs: cells at a time; cores are shared out among them.
        console: for progress and what ``finish`` says.

    Returns:
        The number of cells that failed; each says why, and costs the others nothing.
    """
    if jobs > 1:  # read by the processes when they start
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ThreadPoolExecutor(jobs) as pool, Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=len(cells))
        futures = {pool.submit(_apart, work, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                cell = futures[future]
                try:
                    outcome = future.result()
                except Exception as error:
                    failed += 1
                    reason = escape(f"{type(error).__name__}: {error}")
                    progress.console.print(f"[red]{escape(str(cell))} failed:[/red] {reason}", markup=True)
                else:
                    progress.console.print(f"{cell}: {finish(outcome)}", markup=False)
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def features_name(dataset: HashingDataset) -> str:
    """The features of a dataset in one word: the backbone and the size of the picture it saw."""
    backbone = dataset.provenance.get("backbone", {})
    return f"{backbone['name']}@{backbone['size']}" if backbone else str(dataset.provenance.get("features", "?"))


def data_digest(dataset: HashingDataset) -> str:
    """Tells data apart by provenance and splits, in 12 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(dict(dataset.provenance), sort_keys=True, default=str).encode())
    for part in (dataset.query, dataset.database, dataset.train):
        digest.update(np.ascontiguousarray(part).tobytes() + b"/")
    return digest.hexdigest()[:12]


def _apart(work: Callable[[Any], Any], cell: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, cell).result()
