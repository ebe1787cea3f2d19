"""Print the table of a stored ``results.csv`` in Markdown, as the documentation shows it, and draw it.

python -m benchmarks.results benchmarks/results/cifar10
python -m benchmarks.results benchmarks/results/nested --figure benchmarks/results/nested/map.png
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.common import figures, results
from benchmarks.common.methods import NESTED
from hashgym.console import say
from hashgym.terminal import command_line, parse

__all__ = ["Args", "draw", "main"]


@dataclass(frozen=True)
class Args:
    """Print the table of a stored results.csv in Markdown, and draw it."""

    folder: tyro.conf.Positional[Path]
    """folder with a results.csv"""
    figure: Path | None = None
    """PNG file to draw: mAP by code length"""


def main(args: Args) -> None:
    """Print the table, and draw the figure.

    Raises:
        ValueError: if the folder has no rows, or the figure would replace a file that no benchmark wrote.
    """
    if args.figure is not None:
        results.require_replaceable(args.figure.parent, args.figure.name)
    stored = results.Results(args.folder)
    if not (rows := stored.rows()):
        raise ValueError(f"no rows in {stored.path}: give a folder that a benchmark wrote")
    say(results.markdown(rows))
    if args.figure is not None:
        draw(rows, args.figure)


def draw(rows: Sequence[results.Row], path: Path) -> None:
    """Draw mAP by code length, a pane for each dataset; beside nested methods the others are dashed."""
    nested = any(row["method"] in NESTED for row in rows)
    panels: figures.Panels = {}
    for dataset, method in dict.fromkeys((row["dataset"], row["method"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
        line = (NESTED.get(method, method), "single" if nested and method not in NESTED else "")
        panels.setdefault(dataset, {})[line] = results.means(own, "bits", "map")
    note = "\nsolid: one training for all lengths (nested), dashed: a training for each" if nested else ""
    figures.by_code_length(panels, path, f"mAP, mean over seeds{note}")


def __getattr__(name: str) -> Any:
    """Return a name that was here before 0.1 and is now in :mod:`benchmarks.common.results`."""
    if name not in results.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"benchmarks.results.{name} is benchmarks.common.results.{name}", DeprecationWarning, stacklevel=2)
    return getattr(results, name)


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.results"))
