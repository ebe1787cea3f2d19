"""Rows of finished runs, read from folders of results, and the numbers printed in the papers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import drlih, mch
from benchmarks.common import results

__all__ = ["KINDS", "Row", "group", "hand_crafted", "paired", "paper", "read", "where"]

Row = Mapping[str, Any]

# kind -> file, columns, and those that identify a row; files with other columns are of other benchmarks
KINDS: Mapping[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "drlih": ("results.csv", results.COLUMNS, results.KEY),
    "drlih curves": ("curves.csv", drlih.CURVES, results.KEY),
    "examples": ("examples.csv", drlih.EXAMPLES, results.KEY),
    "mch": ("results.csv", mch.COLUMNS, mch.KEY),
    "mch curves": ("curves.csv", mch.CURVES, mch.CURVE_KEY),
}
TEXTS = ("dataset", "features", "method", "base", "version", "revision", "config")
LISTS = ("ranks", "precision_at", "precision_by_radius", "recall_by_radius", "queries", "found", "distances", "right")
# Folders of short runs, and of tables that are not the papers'.
OTHERS = {"quickstart", "nested", "limits", "rerank", "unsupervised", "many-classes"}


def read(folder: Path) -> dict[str, list[Row]]:
    """The rows of all files of known kinds in a folder and below, by kind, sorted by key.

    Numbers are read as such; an empty ``sigma`` or ``xi`` is None, and lists stay JSON. Folders below that have a
    report of their own are left out, and those of tables that are not the papers'.

    Raises:
        ValueError: if there are no results, a file is damaged, or a run has two rows with different outcomes.
    """
    found: dict[str, dict[tuple[str, ...], tuple[Path, dict[str, str]]]] = {kind: {} for kind in KINDS}
    reported = {path.parent for path in folder.rglob("report.md")} - {folder}
    for path in sorted(folder.rglob("*.csv")):
        if OTHERS & {*path.relative_to(folder).parts} or reported & {*path.parents}:
            continue
        columns, rows = results.read_csv(path)
        for kind, (name, wanted, key) in KINDS.items():
            if (path.name, columns) != (name, tuple(wanted)):
                continue
            for row in rows:
                which = tuple(row[column] for column in key)
                there, old = found[kind].setdefault(which, (path, row))
                if old != row:
                    raise ValueError(f"{there} and {path} have different rows of {' '.join(which)}: keep one of them")
    if not found["drlih"] and not found["mch"]:
        raise ValueError(
            f"no results below {folder}: `python -m benchmarks.drlih` and `python -m benchmarks.mch` write results.csv"
        )
    return {kind: [_typed(*there) for _, there in sorted(rows.items())] for kind, rows in found.items()}


def _typed(path: Path, row: Mapping[str, str]) -> Row:
    def value(column: str, text: str) -> Any:
        if column in TEXTS or column in LISTS:
            return text
        if column in ("bits", "seed"):
            return int(text)
        return float(text) if text else None

    try:
        return {column: value(column, text) for column, text in row.items()}
    except ValueError as error:
        raise ValueError(f"{path} has a row with a text in place of a number: {error}") from error


def hand_crafted(row: Row) -> bool:
    """Whether a run had hand-crafted features, as in the lower third of DRLIH's Table I."""
    return str(row["features"]).startswith(("gist", "bow"))


def group(rows: Sequence[Row], *columns: str) -> dict[Any, list[Row]]:
    """Rows by the value of a column, or by the values of several, in the rows' order."""
    grouped: dict[Any, list[Row]] = {}
    for row in rows:
        values = tuple(row[column] for column in columns)
        grouped.setdefault(values if len(values) > 1 else values[0], []).append(row)
    return grouped


def where(rows: Sequence[Row], **values: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[column] == value for column, value in values.items())]


def paired(rows: Sequence[Row], others: Sequence[Row], measure: str, by: str = "bits") -> list[NDArray[np.float64]]:
    """Differences of rows to others in a measure, paired by seed, for each value of ``by`` that both have."""
    before = {(row[by], row["seed"]): row[measure] for row in others}
    pairs = [row for row in rows if (row[by], row["seed"]) in before]
    return [np.array([r[measure] - before[x, r["seed"]] for r in own]) for x, own in group(pairs, by).items()]


def paper(
    table: str,
    dataset: str,
    method: str,
    bits: int,
    *,
    base: str = "",
    hand: bool = False,
    sigma: Any = "",
    xi: Any = "",
) -> str | None:
    """A number as printed in a table of a paper; None where there is none.

    Args:
        table: "I" or "II" of DRLIH, "2" or "3" of MCH.
        dataset: by its name here.
        method: by its name here; "mch" or "single" on a ``base`` in MCH's.
        bits: the code length.
        base: of MCH.
        hand: whether on hand-crafted features.
        sigma: of Table 3.
        xi: of Table 3.
    """
    return _papers().get((table, dataset, method, str(bits), base, hand, str(sigma), str(xi)))


@lru_cache
def _papers() -> dict[tuple[Any, ...], str]:
    with open(Path(__file__).with_name("papers.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("table", "dataset", "method", "bits", "base", "features", "sigma", "xi")
    return {tuple(r[n] == "hand" if n == "features" else r[n] for n in names): r["value"] for r in rows}
