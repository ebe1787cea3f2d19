"""Print the table of a stored ``results.csv`` in Markdown, as the documentation shows it.

python -m benchmarks.results benchmarks/results/cifar10
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.common import results
from hashgym.console import say
from hashgym.terminal import command_line, parse

__all__ = ["Args", "main"]


@dataclass(frozen=True)
class Args:
    """Print the table of a stored results.csv in Markdown."""

    folder: tyro.conf.Positional[Path]
    """folder with a results.csv"""


def main(args: Args) -> None:
    """Print the table.

    Raises:
        ValueError: if the folder has no rows.
    """
    stored = results.Results(args.folder)
    if not (rows := stored.rows()):
        raise ValueError(f"no rows in {stored.path}: give a folder that a benchmark wrote")
    say(results.markdown(rows))


def __getattr__(name: str) -> Any:
    """Return a name that was here before 0.1 and is now in :mod:`benchmarks.common.results`."""
    if name not in results.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"benchmarks.results.{name} is benchmarks.common.results.{name}", DeprecationWarning, stacklevel=2)
    return getattr(results, name)


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.results"))
