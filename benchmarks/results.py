"""What all benchmarks share: rows in a CSV that survives a kill, resuming, intervals over seeds, tables.

    python -m benchmarks.results benchmarks/results/cifar10

prints the table of a ``results.csv`` again, in Markdown, as the README shows it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike

import hashgym
from benchmarks.statistics import Estimate, bootstrap, mean
from hashgym.console import Table, say, styled
from hashgym.storage.atomic import write_text
from hashgym.terminal import command_line, wants_version
from hashgym.versions import versions

__all__ = [
    "COLUMNS",
    "KEY",
    "Estimate",
    "Results",
    "add_rows",
    "describe",
    "estimate",
    "markdown",
    "peak_mb",
    "read_csv",
    "require_replaceable",
    "revision",
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

REPORT = "Written by `python -m benchmarks.report`."  # stands in every report.md

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The rows of ``results.csv`` in a folder, one a run.

    A row is written whole or not at all, and several processes may append to one file. A run is named by its ``key``
    columns; what else decides its outcome is in ``config``, as JSON.

    Attributes:
        folder: where ``results.csv`` lies; made with the first row.
        columns: all columns, in order.
        key: the columns that name a run.
        name: of the file.
    """

    folder: Path
    columns: Sequence[str] = COLUMNS
    key: Sequence[str] = field(default=KEY)
    name: str = "results.csv"

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name

    def rows(self) -> list[dict[str, str]]:
        """All rows as they are written, texts by column.

        Raises:
            ValueError: if the file has other columns, as another benchmark or an older version writes, or is damaged.
        """
        if not self.path.exists():
            return []
        columns, rows = read_csv(self.path)
        if columns != tuple(self.columns):
            raise ValueError(f"{self.path} has the columns {columns}, not {tuple(self.columns)}: use another --out")
        return rows

    def append(self, *rows: Row) -> None:
        """Add rows together, each in the place of one with the same key if there is one.

        Raises:
            ValueError: if a column is missing or unknown.
        """
        for row in rows:
            if set(row) != set(self.columns):
                differing = set(row) ^ set(self.columns)
                raise ValueError(f"a row has the columns {list(self.columns)}; differing: {differing}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".results.lock"):  # the system releases it when this process dies
            names = {self._name(row) for row in rows}
            kept = [old for old in self.rows() if self._name(old) not in names]
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*kept, *rows])
            write_text(self.path, text.getvalue(), "surrogatepass")  # a folder's name may not be UTF-8

    def done(self, row: Row, *, replace: bool = False) -> bool:
        """Whether the run that ``row`` names (key columns and ``config``) is in the file.

        Raises:
            ValueError: if it is there with another configuration, unless ``replace``.
        """
        for old in self.rows():
            if self._name(old) == self._name(row):
                if old["config"] != row["config"] and replace:
                    return False
                if old["config"] != row["config"]:
                    name = " ".join(self._name(row))
                    raise ValueError(
                        f"{self.path} holds {name} run with another configuration ({_difference(old, row)}): "
                        "use another --out, or --replace to run it again"
                    )
                return True
        return False

    def __contains__(self, row: Row) -> bool:
        """Whether there is a row with the same key."""
        return self._name(row) in {self._name(old) for old in self.rows()}

    def _name(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in self.key)


def read_csv(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The columns and the rows of a CSV file that starts with its columns' names.

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
    before, after = json.loads(old["config"]), json.loads(new["config"])
    if not isinstance(before, dict):
        return f"{before!r} is no configuration"
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in changed)


def require_replaceable(folder: Path, *patterns: str) -> None:
    """Check, before work starts, that the tables and figures of a benchmark overwrite nothing of others.

    Args:
        folder: where they are written. It may have such files if it has results of a benchmark, or its report.
        patterns: names of the files.

    Raises:
        ValueError: if there is such a file in a folder that is not a benchmark's.
    """
    there = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
    if there and not any(map(_is_of_benchmark, (*folder.glob("*.csv"), *folder.glob("report.md")))):
        raise ValueError(
            f"{folder} has {there[0]} but no results of a benchmark, so it would overwrite a file of somebody else: "
            "choose another --out"
        )


def _is_of_benchmark(file: Path) -> bool:
    """Whether a file is one of results, or a report of them."""
    with file.open("rb") as stream:
        start = stream.read(1000)
    if file.suffix == ".csv":
        return {b"revision", b"config"} <= set(start.partition(b"\n")[0].rstrip().split(b","))
    return REPORT.encode() in start


def add_rows(out: Path | None, name: str, key: Sequence[str], rows: Sequence[Row], config: Mapping[str, Any]) -> None:
    """Add measured rows to a file of a folder, with the versions and the configuration that they were measured with.

    Args:
        out: the folder; None adds nothing.
        name: of the file.
        key: columns that name a run.
        rows: they have the same columns, those of the key among them.
        config: what else decides the outcome.
    """
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


def describe(config: Mapping[str, Any]) -> str:
    """A configuration as the text of the ``config`` column: equal configurations give equal texts."""
    return json.dumps(config, sort_keys=True, default=str)


def estimate(strata: Sequence[ArrayLike], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean over strata of the mean over runs, with a stratified percentile bootstrap.

    Runs are drawn with replacement inside each stratum (a code length, a dataset), never across: Agarwal et al.,
    "Deep reinforcement learning at the edge of the statistical precipice", 2021. With few runs the interval is too
    narrow: it cannot leave the range of what was seen.

    Args:
        strata: one array of scores for each stratum, not necessarily equally long.
        confidence: of the interval.
        resamples: bootstrap samples.
        seed: draws them.

    Raises:
        ValueError: for no strata or an empty one.
    """
    return bootstrap(strata, mean, confidence, resamples, seed)


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

    A table for every dataset and features; where there are several, each below a line that names it.
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


def peak_mb() -> float:
    """The most memory this process has had resident, in MB (10^6 bytes)."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        # getrusage would count the parent's memory in a process that was forked from it.
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@lru_cache
def revision() -> str:
    """The git commit of this checkout, with "-dirty" where files differ from it; "" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()


if __name__ == "__main__":
    with command_line():
        wants_version(sys.argv[1:])
        if len(sys.argv) != 2 or not (rows := Results(Path(sys.argv[1])).rows()):
            raise ValueError("usage: python -m benchmarks.results DIR, a folder with a results.csv")
        say(markdown(rows))
