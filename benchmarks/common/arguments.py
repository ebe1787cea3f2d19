"""Arguments that the benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.cells import Executor

__all__ = ["MeasureArgs", "Split", "SplitArgs", "TableArgs", "check_not_empty"]


@dataclass(frozen=True, kw_only=True)
class TableArgs:
    """Arguments of a benchmark that fills a table run by run, see :func:`benchmarks.common.cells.run_cells`."""

    out: Path
    """folder of results.csv and of the tables and figures made of it"""
    jobs: int = 1
    """runs at a time; cores are shared out among them"""
    executor: Executor = "processes"
    """where runs happen: processes of this machine, or a Ray cluster (RAY_ADDRESS, or one of `jobs` processes here)"""
    replace: bool = False
    """run again what was run with another configuration, instead of stopping"""


@dataclass(frozen=True, kw_only=True)
class SplitArgs(TableArgs):
    """Arguments of such a benchmark that may measure on another split than the data's own."""

    split: str | None = None
    """split by name, instead of the data's own"""
    queries: int | None = None
    """number of queries, instead of the split's"""
    train: int | None = None
    """number of training images, instead of the split's"""

    @property
    def data(self) -> dict[str, Any]:
        """The split as arguments of :func:`hashgym.data.load`, and of a cell that is a :class:`Split`."""
        return {"split": self.split, "queries": self.queries, "train": self.train}


@dataclass(frozen=True, kw_only=True)
class Split:
    """The split of a cell's data, where it is not the data's own; see :class:`SplitArgs`."""

    split: str | None = None
    queries: int | None = None
    train: int | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureArgs:
    """Arguments of a benchmark that measures something in this process."""

    out: Path | None = None
    """folder to add the measured rows to, in a CSV file named after the benchmark; none by default"""


def check_not_empty(args: Any, *names: str) -> None:
    """Check that numbers are at least 1, and lists not empty.

    Raises:
        ValueError: for the first of these attributes that is not.
    """
    for name in names:
        value = getattr(args, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
        if not value:
            raise ValueError(f"{name} must not be empty: give at least one")
