"""Rows of results: a CSV that survives a kill, resuming, intervals over seeds, tables."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray

import hashgym
from agents.arguments import current_names
from benchmarks.common.cells import same_data
from benchmarks.common.machine import peak_mb, revision
from benchmarks.common.statistics import Estimate, bootstrap, mean
from hashgym.console import Console, Table, styled
from hashgym.retrieval import RetrievalResult
from hashgym.storage.atomic import write_text
from hashgym.versions import versions

__all__ = [
    "COLUMNS",
    "KEY",
    "Estimate",
    "Results",
    "costs",
    "describe",
    "estimate",
    "gain",
    "lookups",
    "markdown",
    "means",
    "publish",
    "read_csv",
    "require_replaceable",
    "scores",
    "table",
]

KEY = ("dataset", "features", "method", "bits", "seed")
COLUMNS = (
    *KEY,
    "map",
    "map_optimistic",
    "map_pessimistic",
    "precision_radius2",
    "recall_radius2",
    "train_seconds",
    "peak_mb",
    "version",
    "revision",
    "config",
)

REPORT = "Written by `python -m benchmarks.report`."  # marks every report.md

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The rows of ``results.csv`` in a folder, one a run.

    A row is written whole or not at all, and several processes may append to one file. A run is identified by its
    ``key`` columns; all other settings that decide its outcome are in ``config``, as JSON.

    Attributes:
        folder: folder of the file; created with the first row.
        columns: all columns, in order.
        key: the columns that identify a run.
        name: name of the file.
    """

    folder: Path
    columns: Sequence[str] = COLUMNS
    key: Sequence[str] = field(default=KEY)
    name: str = "results.csv"

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / self.name

    def rows(self) -> list[dict[str, str]]:
        """All rows as texts by column.

        Raises:
            ValueError: if the file has other columns, as another benchmark or an older version writes, or is damaged.
        """
        if not self.path.exists():
            return []
        columns, rows = read_csv(self.path)
        if columns != tuple(self.columns):
            raise ValueError(f"{self.path} has the columns {columns}, not {tuple(self.columns)}: use another --out")
        return rows

    def rows_of(self, names: Iterable[Row]) -> list[dict[str, str]]:
        """The rows whose key columns are those of one of ``names``, such as the runs of one table."""
        wanted = {self._name(name) for name in names}
        return [row for row in self.rows() if self._name(row) in wanted]

    def append(self, *rows: Row, replacing: Sequence[str] | None = None) -> None:
        """Add rows in one write; a row replaces the one with the same key.

        Args:
            rows: a value for each column.
            replacing: columns in which rows that are replaced are equal to a new one; the key by default.

        Raises:
            ValueError: if a column is missing or unknown.
        """
        for row in rows:
            if set(row) != set(self.columns):
                differing = set(row) ^ set(self.columns)
                raise ValueError(
                    f"a row needs exactly the columns {list(self.columns)}; differing: {sorted(differing)}"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".results.lock"):  # the system releases it when this process dies
            same = self.key if replacing is None else replacing
            names = {tuple(str(row[column]) for column in same) for row in rows}
            kept = [old for old in self.rows() if tuple(old[column] for column in same) not in names]
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*kept, *rows])
            write_text(self.path, text.getvalue(), "surrogatepass")  # a folder's name may not be UTF-8

    def done(self, row: Row, *, replace: bool = False) -> bool:
        """Whether the run that ``row`` identifies (key columns and ``config``) is in the file.

        Settings that have been renamed, and classes that have moved, since the row was written count as equal.

        Raises:
            ValueError: if it is there with another configuration, unless ``replace``.
        """
        for old in self.rows():
            if self._name(old) == self._name(row):
                if old["config"] == row["config"] or not (difference := _difference(old, row)):
                    return True
                if replace:
                    return False
                name = " ".join(self._name(row))
                raise ValueError(
                    f"{self.path} holds {name} run with another configuration ({difference}): "
                    "use another --out, or --replace to run it again"
                )
        return False

    def check_distinct(self, rows: Iterable[Row]) -> None:
        """Check that no two runs would write the same row, and that they belong into one table with those of the file.

        Raises:
            ValueError: for two with equal keys and another configuration, such as two folders of the same features; for
                rows of the same features in the file that are of another split, and would stay.
        """
        first: dict[tuple[str, ...], Row] = {}
        for row in rows:
            other = first.setdefault(name := self._name(row), row)
            if difference := "" if other["config"] == row["config"] else _difference(other, row):
                raise ValueError(f"two runs are {' '.join(name)} ({difference}): give each an --out of its own")
        data = {self._source(row): _data_of(row) for row in first.values()}
        for old in self.rows():
            wanted = data.get(self._source(old), "")
            if self._name(old) not in first and not _in_one_table(_data_of(old), wanted):
                raise ValueError(
                    f"{self.path} holds {' '.join(self._name(old))} of another split or other data ({_data_of(old)}, "
                    f"not {wanted}), which cannot be compared in one table: use another --out"
                )

    def __contains__(self, row: Row) -> bool:
        """Whether there is a row with the same key."""
        return self._name(row) in {self._name(old) for old in self.rows()}

    def _name(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in self.key)

    def _source(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in self.key if column in ("dataset", "features", "sigma"))


def read_csv(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The columns and the rows of a CSV file with a header.

    Raises:
        ValueError: if it is damaged, or a row has more or fewer values than there are columns.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogatepass") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = tuple(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): fix it, or remove it and run again") from error
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} of {path} does not have {len(columns)} values: fix it, or remove it")
    return columns, rows


def _difference(old: Row, new: Row) -> str:
    """Return the settings in which two rows' configurations differ, renamed ones compared by their current names."""
    before, after = _configuration(old), _configuration(new)
    if not isinstance(before, dict):
        return f"not a configuration: {before!r}"
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if "data" in changed and same_data(str(before.get("data")), str(after.get("data"))):
        changed.remove("data")
    return ", ".join(f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in changed)


def _data_of(row: Row) -> str:
    """Return the digest of the data and split of a row; "" where its configuration has none."""
    found = _configuration(row)
    return str(found.get("data", "")) if isinstance(found, dict) else ""


def _in_one_table(one: str, other: str) -> bool:
    """Return whether rows with these digests may be compared: the same images in the same split.

    Features that were computed on another processor differ by rounding, and their provenance does not.
    """
    return not (one and other) or same_data(one, other) or one.split("+")[-1] == other.split("+")[-1]


def _configuration(row: Row) -> Any:
    """Return the configuration of a row, with current names of settings, and classes without their modules."""
    return json.loads(re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", row["config"]), object_hook=current_names)


def require_replaceable(folder: Path, *patterns: str) -> None:
    """Check, before work starts, that a benchmark's tables and figures overwrite no file of another origin.

    Args:
        folder: where they are written. It may have such files if it has results of a benchmark, or its report.
        patterns: names of the files.

    Raises:
        ValueError: if there is such a file in a folder without results of a benchmark.
    """
    there = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
    if there and not any(map(_is_of_benchmark, (*folder.glob("*.csv"), *folder.glob("report.md")))):
        raise ValueError(
            f"{folder} has {there[0]} but no results of a benchmark, so a file of yours would be overwritten: "
            "choose another folder"
        )


def _is_of_benchmark(file: Path) -> bool:
    """Whether a file holds rows of results, or a report of them."""
    with file.open("rb") as stream:
        start = stream.read(1000)
    if file.suffix == ".csv":
        return {b"revision", b"config"} <= set(start.partition(b"\n")[0].rstrip().split(b","))
    return REPORT.encode() in start


def publish(
    rows: Sequence[Row], table: Table, out: Path | None, name: str, key: Sequence[str], config: Mapping[str, Any]
) -> None:
    """Print the table of measured rows, and add the rows to a file, with versions and configuration.

    Args:
        rows: they have the same columns, those of ``key`` among them.
        table: made of the rows.
        out: folder of the file; None adds nothing.
        name: name of the file.
        key: columns that identify a row.
        config: all other settings that decide the outcome.
    """
    Console().print(table)
    if out is None or not rows:
        return
    packages = ("numpy", "torch", "gymnasium", "stable_baselines3")
    found = {
        "cores": os.cpu_count(),
        "version": hashgym.__version__,
        "revision": revision(),
        "config": describe({**config, **versions(packages)}),
    }
    Results(out, (*rows[0], *found), key, name).append(*({**row, **found} for row in rows))


def scores(result: RetrievalResult) -> dict[str, float]:
    """The mAP columns of a row."""
    return {"map": result.map, "map_optimistic": result.map_optimistic, "map_pessimistic": result.map_pessimistic}


def lookups(result: RetrievalResult) -> dict[str, float]:
    """The columns of a row that measure lookups of equal codes."""
    return {"recall_radius0": result.recall_by_radius[0], "precision_radius0": result.precision_by_radius[0]}


def costs(train_seconds: float, memory_mb: float | None = None) -> dict[str, Any]:
    """Return the last columns of a row except ``config``: time, memory, and version of the code.

    Args:
        train_seconds: of the method.
        memory_mb: the most that this process had used when the method was trained; by default until now.
    """
    return {
        "train_seconds": round(train_seconds, 3),
        "peak_mb": round(peak_mb() if memory_mb is None else memory_mb, 1),
        "version": hashgym.__version__,
        "revision": revision(),
    }


def describe(config: Mapping[str, Any]) -> str:
    """The JSON text of the ``config`` column; equal configurations give equal texts."""
    return json.dumps(config, sort_keys=True, default=str)


def estimate(strata: Sequence[ArrayLike], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean over strata of the mean over runs, with a stratified percentile bootstrap.

    Runs are drawn with replacement inside each stratum (a code length, a dataset), never across: Agarwal et al.,
    "Deep reinforcement learning at the edge of the statistical precipice", 2021. With few runs the interval is too
    narrow: it cannot leave the range of the observed scores.

    Args:
        strata: one array of scores for each stratum, not necessarily equally long.
        confidence: confidence level of the interval.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: for no strata or an empty one.
    """
    return bootstrap(strata, mean, confidence, resamples, seed)


def means(rows: Sequence[Row], by: str, measure: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values of a column of numbers, ascending, and the mean of a measure at each."""
    at: dict[float, list[float]] = {}
    for row in rows:
        at.setdefault(float(row[by]), []).append(float(row[measure]))
    return np.array(sorted(at)), np.array([np.mean(at[x]) for x in sorted(at)])


def gain(differences: Sequence[float]) -> str:
    """Show the mean of differences, paired by seed, with its interval if there are several; nothing for none."""
    if not differences:
        return ""
    found = estimate([differences])
    interval = f" [{found.low:+.4f}, {found.high:+.4f}]" if len(differences) > 1 else ""
    return f"{found.mean:+.4f}{interval}"


def table(rows: Sequence[Row], title: str = "") -> Table:
    """mAP by method and code length, mean over seeds with its 95% interval, the best mean in bold.

    The last columns are over all code lengths: the stratified mean of mAP, the median training time of a run and the
    largest peak memory.
    """
    lengths = sorted({int(row["bits"]) for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))

    def of(column: str, method: str, bits: int) -> list[float]:
        return [float(row[column]) for row in rows if row["method"] == method and int(row["bits"]) == bits]

    grid = {(m, b): estimate([of("map", m, b)]) for m in methods for b in lengths if of("map", m, b)}
    best = {b: max(e.mean for (_, bits), e in grid.items() if bits == b) for b in lengths}
    counts = [len(of("map", *cell)) for cell in grid]
    runs = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else str(counts[0]) if counts else "0"
    out = Table(title=title, caption=f"tie-aware mAP, mean over seeds ({runs} a cell) [95% bootstrap interval]")
    out.add_column("method")
    for bits in lengths:
        out.add_column(f"{bits} bits", justify="right")
    for heading in ("all lengths", "training s", "peak MB"):
        out.add_column(heading, justify="right")
    for method in methods:
        cells: list[Any] = []
        for bits in lengths:
            here = grid.get((method, bits))
            cells.append(styled(here, "bold" if here.mean == best[bits] else "") if here else "-")
        own = [row for row in rows if row["method"] == method]
        whole = [of("map", method, bits) for bits in lengths]
        cells.append(str(estimate(whole)) if all(whole) else "-")
        cells.append(f"{np.median([float(row['train_seconds']) for row in own]):.1f}")
        cells.append(f"{max(float(row['peak_mb']) for row in own):.0f}")
        out.add_row(method, *cells)
    return out


def markdown(rows: Sequence[Row]) -> str:
    """The mAP of :func:`table` as Markdown, with the median training time of the longest codes.

    One table for every dataset and features; where there are several, each below a line with their names.
    """
    which = list(dict.fromkeys((row["dataset"], row["features"]) for row in rows))
    tables = [_table_of([row for row in rows if (row["dataset"], row["features"]) == one]) for one in which]
    if len(which) == 1:
        return tables[0]
    return "\n\n".join(f"{', '.join(one)}:\n\n{lines}" for one, lines in zip(which, tables, strict=True))


def _table_of(rows: Sequence[Row]) -> str:
    lengths = sorted({int(row["bits"]) for row in rows})
    lines = [
        f"| method | {' | '.join(f'{bits} bits' for bits in lengths)} | training, {lengths[-1]} bits |",
        "|---|" + "---|" * (len(lengths) + 1),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = []
        for bits in lengths:
            scores = [float(row["map"]) for row in own if int(row["bits"]) == bits]
            cells.append(str(estimate([scores])).replace("\n", " ") if scores else "")
        seconds = [float(row["train_seconds"]) for row in own if int(row["bits"]) == lengths[-1]]
        lines.append(f"| {method} | {' | '.join(cells)} | {f'{np.median(seconds):.0f} s' if seconds else ''} |")
    return "\n".join(lines)
