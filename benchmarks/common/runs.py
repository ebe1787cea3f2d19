"""Run what is missing of a table, and show its rows dataset by dataset."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from benchmarks.common.arguments import TableArgs
from benchmarks.common.cells import run_cells, unfinished
from benchmarks.common.results import Results, Row
from hashgym.console import Console

__all__ = ["by_features", "run_missing"]

Cell = TypeVar("Cell")


def run_missing(
    cells: Mapping[Cell, Sequence[Row]],
    work: Callable[[Cell], Sequence[Row]],
    results: Results,
    args: TableArgs,
    console: Console,
    *,
    says: Callable[[Sequence[Row]], str],
) -> int:
    """Run the cells of which a row is missing, and add the rows of each as it ends; return how many failed.

    Args:
        cells: all cells, each with the columns of its rows that are known before it runs.
        work: returns the rows of a cell; a function that can be imported by name.
        results: the file of the rows.
        args: how many cells run at a time, where, and whether rows of another configuration are replaced.
        console: for progress and messages.
        says: rows of a cell -> the text that is printed when it has ended.

    Raises:
        ValueError: for a row of another configuration, unless it is to be replaced, and for two cells with one row.
    """
    results.check_distinct(itertools.chain(*cells.values()))

    def done(cell: Cell) -> bool:
        return all(results.done(row, replace=args.replace) for row in cells[cell])

    def finish(rows: Sequence[Row]) -> str:
        results.append(*rows)
        return says(rows)

    waiting = unfinished(list(cells), done, results.path, console)
    return run_cells(waiting, work, finish, jobs=args.jobs, executor=args.executor, console=console)


def by_features(rows: Sequence[dict[str, str]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the rows of each dataset and its features, with their names as a title."""
    for which in dict.fromkeys((row["dataset"], row["features"]) for row in rows):
        yield ", ".join(which), [row for row in rows if (row["dataset"], row["features"]) == which]
