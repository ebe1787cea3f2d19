"""Markdown tables of a report: cells with means, intervals and the papers' numbers, by code length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common.results import Estimate, estimate
from benchmarks.report.rows import Row, group, paper, where

__all__ = ["LENGTHS", "Entry", "by_length", "caption", "cell", "flat", "grey", "table"]

LENGTHS = {"I": (12, 24, 32, 48), "II": (12, 24, 32, 48), "2": (16, 32, 48, 64)}  # bits, of the papers' tables


@dataclass(frozen=True)
class Entry:
    """A line of a table by code length.

    Attributes:
        label: text of the first column.
        rows: rows of its runs; none if it was not run.
        names: arguments of :func:`benchmarks.report.rows.paper` except table and bits.
        bold: code lengths in bold.
    """

    label: str
    rows: Sequence[Row]
    names: Mapping[str, Any]
    bold: Collection[int] = ()


def by_length(entries: Sequence[Entry | str], which: str, *, best: bool = False) -> str:
    """A table of mAP by code length.

    Args:
        entries: lines, and texts as headings of those that follow. Lines without any number are left out.
        which: number of the paper's table.
        best: print the best mean of each code length in bold.
    """
    runs = [entry for entry in entries if isinstance(entry, Entry)]
    lengths = sorted({*LENGTHS[which], *(row["bits"] for entry in runs for row in entry.rows)})
    scores = {(e.label, b): [row["map"] for row in where(e.rows, bits=b)] for e in runs for b in lengths}
    top = {
        b: max((np.mean(own) for (_, bits), own in scores.items() if bits == b and own), default=None) for b in lengths
    }
    lines, heading = [], ""
    for entry in entries:
        if isinstance(entry, str):
            heading = entry
            continue
        cells = []
        for b in lengths:
            own = scores[entry.label, b]
            bold = b in entry.bold or (best and bool(own) and np.mean(own) == top[b])
            cells.append(cell(own, paper(which, bits=b, **entry.names), bold))
        if any(cells):
            lines += [[f"*{heading}*", *[""] * len(lengths)]] * bool(heading) + [[entry.label, *cells]]
            heading = ""
    return table(["method", *(f"{bits} bits" for bits in lengths)], lines)


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of headings and lines of cells."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines])


def cell(scores: Sequence[float], printed: str | None, bold: bool = False) -> str:
    """Mean and interval of scores, and the number printed in the paper; either may be missing."""
    ours = flat(estimate([scores])) if scores else ""
    return " ".join(part for part in (f"**{ours}**" if bold and ours else ours, grey(printed)) if part)


def grey(printed: str | None) -> str:
    """A paper's number in grey, after the word paper, which remains where colours are stripped."""
    return f'<span style="color:gray">paper {printed.replace("0.", ".", 1)}</span>' if printed else ""


def flat(value: Estimate) -> str:
    """An estimate on one line."""
    return str(value).replace("\n", " ")


def caption(rows: Sequence[Row]) -> str:
    """Numbers of seeds per cell, and of revisions of the code, of some rows."""
    columns = [c for c in ("dataset", "features", "sigma", "base", "method", "bits", "xi") if rows and c in rows[0]]
    counts = sorted({len(own) for own in group(rows, *columns).values()}) if rows else [0]
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    revisions = sorted({row["revision"] for row in rows})
    which = (
        f"{len(revisions)} revision{'' if len(revisions) == 1 else 's'} of the code: {', '.join(revisions) or 'none'}"
    )
    return f"Seeds a cell: {seeds}. Rows of {which}."
