"""Print the table of a stored ``results.csv`` in Markdown, as the documentation shows it.

python -m benchmarks.results benchmarks/results/cifar10
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.common import results
from hashgym.console import say
from hashgym.terminal import command_line, parse

__all__ = ["main"]


def main(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Print the table of a stored results.csv in Markdown.

    Args:
        folder: folder with a results.csv.

    Raises:
        ValueError: if the folder has no rows.
    """
    if not (rows := results.Results(folder).rows()):
        raise ValueError(f"no rows in {folder / 'results.csv'}: give a folder that a benchmark wrote")
    say(results.markdown(rows))


def __getattr__(name: str) -> Any:
    """Names that stood here until 0.1; they are in :mod:`benchmarks.common.results` now."""
    if name not in results.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"benchmarks.results.{name} is benchmarks.common.results.{name}", DeprecationWarning, stacklevel=2)
    return getattr(results, name)


if __name__ == "__main__":
    with command_line():
        parse(main, "benchmarks.results")
