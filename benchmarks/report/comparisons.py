"""Figures that compare methods, drawn from the rows of finished runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import mch
from benchmarks.common import figures
from benchmarks.common.figures import Line, Panels, blank, color, draw_lines
from benchmarks.common.results import means
from benchmarks.report.rows import Row, group, hand_crafted, where
from hashgym.data import HashingDataset

__all__ = ["Pane", "compared", "costs", "f1_buckets", "grid", "precision", "radius0", "searches", "sensitivity"]

BOLD = ("drlih", "noseq", "ng", "hashnet", "orthohash", "adsh", "sdh", "itq")
F1_LENGTHS = (16, 32, 64)  # MCH's Figures 5 to 7
COMPARED = ("drlih", "hashnet", "orthohash", "itq")  # in examples
QUERIES = 3  # of an example
DATASETS = ("#4477aa", "#ee9933", "#228833", "#aa3377", "#66ccee")


def precision(rows: Sequence[Row], curves: Sequence[Row], path: Path, title: str, bold: Collection[str] = BOLD) -> None:
    """DRLIH's Figures 3 to 5: precision within radius 2 by code length, at K, and against recall, mean over seeds.

    Args:
        rows: of ``results.csv``, of one dataset.
        curves: of ``curves.csv``, of one code length; none: only the first of the three is drawn.
        path: PNG file to write.
        title: heading of the figure.
        bold: methods to draw thick.
    """
    y = "precision (mean over queries)"
    by_bits = {name: means(own, "bits", "precision_radius2") for name, own in _named(rows).items()}
    lengths = sorted({row["bits"] for row in rows})
    panes = [Pane("lookup within Hamming radius 2", "code length (bits)", y, by_bits, ticks=lengths)]
    if curves:
        lists = {name: _averages(own) for name, own in _named(curves).items()}
        # Beyond a tenth of the ranking, all curves approach the share of relevant images.
        longest = max(own["ranks"][-1] for own in lists.values()) / 10
        at = {n: (own["ranks"], own["precision_at"]) for n, own in lists.items()}
        at = {n: (x[x <= longest], y[x <= longest]) for n, (x, y) in at.items()}
        by_recall = {n: (own["recall_by_radius"], own["precision_by_radius"]) for n, own in lists.items()}
        bits = curves[0]["bits"]
        panes.append(Pane(f"first K of the ranking, {bits} bits", "K (images returned)", y, at, log=True))
        recall = "recall (mean over queries)"
        panes.append(Pane(f"the Hamming radius grows, {bits} bits", recall, y, by_recall, names_at=0.5))
    compared(panes, path, bold=bold, title=title)


def radius0(rows: Sequence[Row], path: Path, title: str) -> None:
    """MCH's Figures 3 and 4 and its Table 2: recall and precision within radius 0 and mAP by code length.

    Args:
        rows: of one code per image, and of the agent at one sigma and xi.
        path: PNG file to write.
        title: heading of the figure.
    """
    named = {"recall within radius 0": "recall_radius0", "precision within radius 0": "precision_radius0", "mAP": "map"}
    lines = group(rows, "base", "method")
    panels: Panels = {
        name: {line: means(own, "bits", measure) for line, own in lines.items()} for name, measure in named.items()
    }
    figures.by_code_length(panels, path, title)


def f1_buckets(points: Sequence[Row], path: Path, title: str) -> None:
    """MCH's Figures 5 to 7: F1 against buckets visited at three code lengths, or at all lengths without them."""
    panels = mch.f1_curves(points)
    wanted = {name: lines for name, lines in panels.items() if int(name.split()[0]) in F1_LENGTHS}
    figures.f1_buckets(wanted or panels, path, title)


def sensitivity(rows: Sequence[Row], points: Sequence[Row], path: Path, title: str) -> None:
    """MCH's Figure 9: effect of sigma and xi.

    Args:
        rows: of one base and code length, of all sigma and xi.
        points: F1-bucket curves of the same, drawn where they are of several sigma.
        path: PNG file to write.
        title: heading of the figure.
    """
    agent, single = ([row for row in rows if (row["xi"] is None) == one] for one in (False, True))
    one_code = "one code per image", "single"
    panels: Panels = {}
    below = []  # labels of the panels' x axes
    if several := len(group(points, "sigma")) > 1:
        for (size, method), own in group(points, "sigma", "method").items():
            line = one_code if method == "single" else (f"sigma {size:.3g}", method)
            panels.setdefault("F1, xi = .5", {})[line] = means(own, "k", "buckets")[1], means(own, "k", "f1")[1]
        below.append("buckets visited (mean over queries)")
    for measure, name in (("recall_radius0", "recall within radius 0"), ("map", "mAP")):
        level = float(np.mean([row[measure] for row in single]))
        if not several:
            x, y = means(where(agent, xi=0.5), "sigma", measure)
            panels[f"{name}, xi = .5"] = {("MCH", "mch"): (x, y), one_code: (x, np.full(len(x), level))}
            below.append("sigma")
        lines = {(f"sigma {s:.3g}", "mch"): means(own, "xi", measure) for s, own in group(agent, "sigma").items()}
        x = np.unique([row["xi"] for row in agent])
        panels[name] = {**lines, one_code: (x, np.full(len(x), level))}
        below.append("xi")
    figure, panes = draw_lines(panels, title)
    for axes, label in zip(panes, below, strict=True):
        axes.set_xlabel(label)
    if several:
        panes[0].set_xscale("log")
    figures.write(figure, path)


def searches(rows: Sequence[Row], dataset: HashingDataset, path: Path, title: str) -> None:
    """DRLIH's Figure 6: results of several methods for the same queries.

    Args:
        rows: of ``examples.csv``, of this dataset.
        dataset: with thumbnails.
        path: PNG file to write.
        title: heading of the figure.

    Raises:
        ValueError: if the rows belong to other images than the dataset's.
    """
    known = group(rows, "method")
    answers: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for method in [name for name in COMPARED if name in known] or list(known)[: len(COMPARED)]:
        row = known[method][0]
        queries, found, distances, right = (json.loads(row[c]) for c in ("queries", "found", "distances", "right"))
        query, images = np.array(queries), np.array(found)
        if images.max() >= len(dataset) or (dataset.similar(query[:, None], images) != np.array(right)).any():
            raise ValueError(f"the examples of {dataset.name} are of other images than its features: give their folder")
        pairs = [list(zip(*which, strict=True)) for which in zip(found, distances, strict=True)]
        answers[method] = dict(zip(queries[:QUERIES], pairs, strict=False))
    figures.examples(dataset, answers, path, title)


def _named(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the name of their line: the method, and the kind of hand-crafted features."""
    kinds = [f", {row['features'].split('@')[0]}" if hand_crafted(row) else "" for row in rows]
    return group([{**row, "name": row["method"] + kind} for row, kind in zip(rows, kinds, strict=True)], "name")


def _averages(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """The curves of a method as arrays, mean over seeds."""
    columns = ("ranks", "precision_at", "precision_by_radius", "recall_by_radius")
    return {column: np.mean([json.loads(row[column]) for row in rows], axis=0) for column in columns}


@dataclass(frozen=True)
class Pane:
    """One part of a figure that compares methods.

    Attributes:
        title: heading of the figure.
        x: label of the x axis, with its unit.
        y: label of the y axis, with its unit.
        lines: lines by method.
        names_at: the x at which the order of the lines' names is read; None: at the lines' ends.
        log: logarithmic x axis.
        ticks: ticks of the x axis; those of Matplotlib by default.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Line]
    names_at: float | None = None
    log: bool = False
    ticks: Sequence[float] | None = None


def compared(panes: Sequence[Pane], path: Path, *, bold: Collection[str] = (), title: str = "") -> None:
    """Draw many methods' lines with their names at the right, in the order of the lines.

    Args:
        panes: from left to right.
        path: PNG file to write.
        bold: methods that are drawn thick and with markers, and above the others.
        title: the heading of the figure.
    """
    names = {name for pane in panes for name in pane.lines}
    figure = blank(5.0 * len(panes), max(4.2, 1.0 + 0.16 * len(names)))
    for axes, pane in zip(figure.subplots(1, len(panes), squeeze=False)[0], panes, strict=True):
        for name, (x, y) in pane.lines.items():
            thick = {"linewidth": 1.8, "markersize": 3.5, "zorder": 3} if name in bold else {"alpha": 0.6}
            mark = "o" if name in bold and len(x) < 20 else ""
            axes.plot(x, y, color=color(name), marker=mark, **{"linewidth": 0.8, **thick})
        axes.set(xscale="log" if pane.log else "linear", xlabel=pane.x, ylabel=pane.y)
        if pane.ticks is not None:
            axes.set_xticks(pane.ticks)
        axes.set_title(pane.title, fontsize=10)
        axes.grid(color="0.9")
        axes.set_ylim(axes.get_ylim())  # fixes it
        _name_lines(axes, pane, bold)
    figure.suptitle(title, fontsize=11)
    figures.write(figure, path)


def _name_lines(axes: Any, pane: Pane, bold: Collection[str]) -> None:
    """Write names at the right edge, moved as little as needed to keep them apart, and connect lines with them."""
    from sklearn.isotonic import isotonic_regression

    ends = {
        n: float(np.interp(pane.names_at, x, y)) if pane.names_at else float(y[-1]) for n, (x, y) in pane.lines.items()
    }
    names = sorted(ends, key=lambda name: (ends[name], name))
    low, high = axes.get_ylim()
    gaps = np.arange(len(names)) * min(0.045, 1 / max(1, len(names) - 1))
    wanted = (np.array([ends[name] for name in names]) - low) / (high - low) - gaps
    heights = isotonic_regression(wanted, y_min=0, y_max=1 - gaps[-1]) + gaps
    for name, height in zip(names, heights, strict=True):
        tied = pane.names_at is None
        tie = {
            "arrowstyle": "-",
            "color": color(name),
            "linewidth": 0.5,
            "alpha": 0.6,
            "relpos": (0, 0.5),
            "shrinkA": 0,
        }
        axes.annotate(
            name,
            xy=(pane.lines[name][0][-1], ends[name]) if tied else (1, height),
            xycoords="data" if tied else "axes fraction",
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=color(name),
            fontsize=8,
            fontweight="bold" if name in bold else "normal",
            va="center",
            annotation_clip=False,
            arrowprops=tie if tied else None,
        )
    if pane.names_at is not None:
        note = f"names in the order\nof the lines at {pane.names_at:g}"
        axes.annotate(note, (1.06, -0.04), xycoords="axes fraction", fontsize=7, va="top", color="0.3")


def costs(
    seconds: Mapping[str, Mapping[str, float]],
    megabytes: Mapping[str, Mapping[str, float]],
    path: Path,
    *,
    limits: tuple[float, float],
) -> None:
    """Draw seconds and memory of methods as dots on logarithmic axes, with lines at their limits.

    Args:
        seconds: by dataset and method.
        megabytes: the same.
        path: PNG file to write.
        limits: seconds and megabytes.
    """
    from matplotlib.ticker import LogLocator

    names = list(dict.fromkeys(name for own in seconds.values() for name in own))[::-1]
    figure = blank(9.6, 1.4 + 0.2 * len(names))
    panes = figure.subplots(1, 2, sharey=True)
    shown = ((seconds, "training of a run (seconds)"), (megabytes, "peak memory of a run (MB)"))
    for axes, (measured, label), limit in zip(panes, shown, limits, strict=True):
        axes.axvline(limit, color=figures.WRONG, linewidth=1)
        for i, (dataset, own) in enumerate(measured.items()):
            at = [names.index(name) for name in own]
            axes.plot([*own.values()], at, "os^Dv"[i % 5], color=DATASETS[i % 5], markersize=5, label=dataset)
        axes.set(xscale="log", xlabel=label, ylim=(-0.7, len(names) - 0.3))
        axes.grid(color="0.9")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    panes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panes[0].set_yticks(range(len(names)), names, fontsize=8)
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"red: {limits[0]:g} s and {limits[1] / 1000:g} GB", fontsize=10)
    figures.write(figure, path)


def grid(shares: NDArray[np.float64], names: Sequence[str], path: Path, *, x: str, title: str = "") -> None:
    """Draw shares from 0 to 1 as a grid of blues, a row for each name, with the numbers from .05 up.

    Args:
        shares: float64 (n, m).
        names: n.
        path: PNG file to write.
        x: label of the columns 1 to m.
        title: heading of the figure.
    """
    figure = blank(1.8 + 0.34 * shares.shape[1], 1.2 + 0.24 * len(names))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, k), share in np.ndenumerate(shares):
        if share >= 0.05:
            text = f"{share:.2f}".removeprefix("0")
            axes.text(k, i, text, ha="center", va="center", fontsize=6.5, color="white" if share > 0.5 else "black")
    axes.set_xticks(range(shares.shape[1]), range(1, shares.shape[1] + 1), fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(x)
    axes.set_title(title, fontsize=10)
    figures.write(figure, path)
