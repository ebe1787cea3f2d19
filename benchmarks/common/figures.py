"""Figures of codes and searches: precision-recall curves, search results, codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.storage.atomic import atomic_write

__all__ = [
    "Panels",
    "blank",
    "by_code_length",
    "code_strips",
    "color",
    "draw_lines",
    "examples",
    "f1_buckets",
    "grid",
    "precision_recall",
    "rankings",
    "several_codes",
    "write",
]

Bits = NDArray[np.bool_]
Line: TypeAlias = tuple[NDArray[Any], NDArray[Any]]  # x and y
# panel -> (base, method) -> its line; the method "single" is drawn dashed
Panels: TypeAlias = dict[str, dict[tuple[str, str], Line]]

RIGHT, WRONG, QUERY, REGION = "#1a9850", "#d73027", "#333333", "#3366ff"
COLORS = (
    "#7f7f7f",
    "#4477aa",
    "#ee9933",
    "#aa3377",
    "#228833",
    "#66ccee",
    "#bbbbbb",
    "#000000",
)  # distinguishable with colour blindness
# Colours of methods, the same in all figures (P. Tol, "Colour schemes", 2021: bright, muted and high-contrast).
METHODS = {
    "drlih": "#000000",
    "noseq": "#ee9933",
    "ng": "#228833",
    "hashnet": "#aa3377",
    "orthohash": "#4477aa",
    "adsh": "#66ccee",
    "sdh": "#ccbb44",
    "itq": "#ee6677",
    "drlih-norec": "#332288",
    "drlih-nca": "#882255",
    "drlih-gru": "#44aa99",
    "drlih-lstm": "#88ccee",
    "drlih-paper": "#cc6677",
    "drlih-released": "#999933",
    "lsh": "#999999",
    "dch": "#004488",
    "mmhh": "#997700",
    "ksh": "#117733",
    "ksh-relaxed": "#ddaa33",
}


def color(name: str, others: Sequence[str] = ()) -> str:
    """The colour of a method; of another name, the colour of its place among ``others``, else grey."""
    unknown = [other for other in others if other not in METHODS]
    fallback = COLORS[1 + unknown.index(name) % (len(COLORS) - 1)] if name in unknown else COLORS[0]
    return METHODS.get(name, fallback)


def blank(width: float, height: float) -> Any:
    """A figure of a size in inches, drawn without a display and without matplotlib's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, dpi=150, format="png")


def precision_recall(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path, title: str = ""
) -> None:
    """Draw precision against recall as the Hamming radius of the lookup grows from 0 to q.

    Args:
        curves: for each method its precision and recall by radius, float64 (q + 1,) each.
        path: PNG file to write.
        title: heading of the figure.
    """
    figure = blank(6.4, 4.8)
    axes = figure.subplots()
    for (name, (precision, recall)), color in zip(curves.items(), cycle(COLORS)):
        axes.plot(recall, precision, "-", color=color, linewidth=1.8, label=name)
        if len(recall) > 2:
            axes.plot(recall[2], precision[2], "o", color=color, markersize=7)
    axes.plot([], [], "o", color="black", markersize=7, label="lookup within radius 2")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall (mean over queries)", ylabel="precision (mean over queries)")
    axes.set_title(f"{title}\nthe Hamming radius grows from 0 along each line".strip(), fontsize=11)
    axes.grid(color="0.9")
    axes.legend(loc="lower left", frameon=True)
    write(figure, path)


def rankings(
    dataset: HashingDataset, query_codes: Bits, database_codes: Bits, path: Path, *, shown: int = 10, title: str = ""
) -> None:
    """Draw queries with their nearest images: the first query of each label, and the two with the worst results.

    Right results are framed green, wrong ones red.

    Args:
        dataset: with thumbnails.
        query_codes: bool (queries, q), codes of ``dataset.query``.
        database_codes: bool (database, q), codes of ``dataset.database``.
        path: PNG file to write.
        shown: results for each query, the nearest first; images at the same distance in the database's order.
        title: heading of the figure.

    Raises:
        ValueError: if the dataset has no thumbnails.
    """
    if dataset.thumbnails is None:
        raise ValueError(f"{dataset.name} has no thumbnails to draw")
    query_words, database_words = codes.pack(query_codes), codes.pack(database_codes)

    def search(q: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Images found, their distances, and whether each is relevant."""
        distance = codes.hamming(query_words[q], database_words)
        nearest = distance.argsort(kind="stable")[:shown]
        found = dataset.database[nearest]
        return found, distance[nearest], dataset.similar(dataset.query[q], found)

    right_answers = [int(search(q)[2].sum()) for q in range(len(query_words))]
    queries = dict.fromkeys(_one_of_each_label(dataset), "query")
    for q in sorted(range(len(query_words)), key=right_answers.__getitem__)[:2]:
        queries[q] = "worst"
    figure = blank(0.85 * (shown + 1) + 0.6, 0.98 * len(queries) + 0.9)
    for axes, (q, kind) in zip(figure.subplots(len(queries), shown + 1, squeeze=False), queries.items(), strict=True):
        query = dataset.query[q]
        labels = [name for name, on in zip(dataset.label_names, dataset.labels[query], strict=True) if on]
        _picture(axes[0], dataset.thumbnails[query], QUERY, f"{kind}: {', '.join(labels) or 'no label'}")
        for ax, image, distance, right in zip(axes[1:], *search(q), strict=False):
            color = RIGHT if right else WRONG
            _picture(ax, dataset.thumbnails[image], color, f"distance {distance}")
        for ax in axes[1 + min(shown, len(database_words)) :]:
            ax.set_axis_off()
    figure.suptitle(f"{title}\nnearest first; green frame: shares a label with the query, red: does not".strip())
    write(figure, path)


def examples(
    dataset: HashingDataset, answers: Mapping[str, Mapping[int, Sequence[tuple[int, int]]]], path: Path, title: str = ""
) -> None:
    """Draw results of several methods for the same queries (DRLIH, Figure 6): a block per query, a row per method.

    Args:
        dataset: with thumbnails.
        answers: by method and query (an image's index): images found, nearest first, each with its distance in bits.
        path: PNG file to write.
        title: heading of the figure.

    Raises:
        ValueError: if the dataset has no thumbnails.
    """
    if dataset.thumbnails is None:
        raise ValueError(f"{dataset.name} has no thumbnails to draw")
    queries = list(dict.fromkeys(query for own in answers.values() for query in own))
    rows = [(query, method, own[query]) for query in queries for method, own in answers.items() if query in own]
    shown = max(len(found) for _, _, found in rows)
    figure = blank(0.8 * (shown + 1) + 1.3, 0.86 * len(rows) + 0.9)
    panes = figure.subplots(len(rows), shown + 1, squeeze=False)
    for axes in panes.ravel():
        axes.set_axis_off()
    for line, (query, method, found) in zip(panes, rows, strict=True):
        labels = [name for name, on in zip(dataset.label_names, dataset.labels[query], strict=True) if on]
        _picture(line[0], dataset.thumbnails[query], QUERY, f"query: {', '.join(labels) or 'no label'}")
        line[0].set_ylabel(method, rotation=0, ha="right", va="center", fontsize=9)
        rights = dataset.similar(np.array([query]), np.array([image for image, _ in found]))
        for axes, (image, distance), right in zip(line[1:], found, rights, strict=False):
            caption = f"distance {distance}"
            _picture(axes, dataset.thumbnails[image], RIGHT if right else WRONG, caption)
    figure.suptitle(f"{title}\nnearest first; green frame: shares a label with the query, red: does not".strip())
    write(figure, path)


def code_strips(
    methods: Mapping[str, Bits],
    labels: NDArray[np.uint8],
    label_names: Any,
    path: Path,
    *,
    groups: Mapping[str, int] | None = None,
    title: str = "",
) -> None:
    """Draw codes as black (1) and white (0) cells, a row for each image, sorted by its first label.

    Args:
        methods: for each method its codes, bool (n, q).
        labels: multi-hot (n, L).
        label_names: L names.
        path: PNG file to write.
        groups: bits of a group, for methods that emit bits in groups; a gap is drawn between groups.
        title: heading of the figure.
    """
    first = labels.argmax(1)
    order = first.argsort(kind="stable")
    counts = np.bincount(first, minlength=labels.shape[1])
    ends = counts.cumsum()
    present = np.flatnonzero(counts)
    figure = blank(max(6.4, 0.6 + 2.3 * len(methods)), 5.6)
    for axes, (name, bits) in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods.items(), strict=True):
        q = bits.shape[1]
        starts = np.arange(0, q, (groups or {}).get(name, q))
        gap = 0.8
        for g, start in enumerate(starts):
            stop = min(q, start + (groups or {}).get(name, q))
            extent = (start + g * gap, stop + g * gap, len(bits), 0)
            strip = bits[order, start:stop]
            axes.imshow(strip, cmap="binary", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
            axes.hlines(ends[:-1], *extent[:2], color="#ee9933", linewidth=0.8)
            axes.vlines(extent[:2], 0, len(bits), color="0.6", linewidth=0.8)
        axes.set(xlim=(-0.3, q + gap * (len(starts) - 1) + 0.3), ylim=(len(bits), 0), title=name)
        grouped = f", in groups of {groups[name]}" if groups and name in groups else ""
        axes.set_xlabel(f"{q} bits{grouped}")
        axes.set_xticks([])
        axes.set_yticks((ends - counts / 2)[present] if axes.get_subplotspec().is_first_col() else [])
        if axes.get_subplotspec().is_first_col():
            axes.set_yticklabels([label_names[i] for i in present])
            axes.set_ylabel("images, by label")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.suptitle(f"{title}\nblack: 1, white: 0".strip())
    write(figure, path)


def by_code_length(panels: Panels, path: Path, title: str = "") -> None:
    """Draw measures against the code length, a panel for each measure, a line for each method.

    Args:
        panels: x is the code length.
        path: PNG file to write.
        title: heading of the figure.
    """
    figure, panes = draw_lines(panels, title)
    for axes, lines in zip(panes, panels.values(), strict=True):
        axes.set_xlabel("bits")
        axes.set_xticks(sorted({int(x) for xs, _ in lines.values() for x in xs}))
    write(figure, path)


def f1_buckets(panels: Panels, path: Path, title: str = "") -> None:
    """Draw F1 against the hash buckets visited (logarithmic), a panel for each code length.

    Args:
        panels: x is the mean number of buckets visited, y the mean F1.
        path: PNG file to write.
        title: heading of the figure.
    """
    figure, panes = draw_lines(panels, title)
    for axes in panes:
        axes.set(xscale="log", xlabel="buckets visited (mean over queries)", ylim=(0, None))
    panes[0].set_ylabel("F1 (mean over queries)")
    write(figure, path)


def several_codes(
    dataset: HashingDataset,
    query_codes: Bits,
    sets: CodeSets,
    path: Path,
    *,
    queries: int = 5,
    shown: int = 9,
    title: str = "",
) -> None:
    """Draw results with one and with several codes per image, of the queries that gain most (MCH, Figure 8).

    Below every result are its distances with one code and with several; if the match is a region's, the region is
    framed. Results are in order of distance, those that gained most first among equals. No result is drawn twice, and
    no two queries with the same labels.

    Args:
        dataset: with thumbnails; regions are framed if it has their ``boxes``.
        query_codes: bool (queries, q), codes of ``dataset.query``.
        sets: codes of ``dataset.database``: the image's own first, then those of its regions.
        path: PNG file to write.
        queries: largest number of queries.
        shown: results for each.
        title: heading of the figure.

    Raises:
        ValueError: if the dataset has no thumbnails.
    """
    if dataset.thumbnails is None:
        raise ValueError(f"{dataset.name} has no thumbnails to draw")
    words, filled = codes.pack(query_codes), sets.filled
    found = []
    for q in range(len(words)):
        each = codes.hamming(filled, words[q])  # (m, K)
        one, several, match = each[:, 0], each.min(axis=1), each.argmin(axis=1)
        first = np.lexsort((several - one, several))[:shown]
        found.append((int((one - several)[first].sum()), q, first, one[first], several[first], match[first]))
    best: list[tuple[Any, ...]] = []
    drawn: set[Any] = set()
    for entry in sorted(found, key=lambda entry: (-entry[0], entry[1])):
        shows = [*entry[2].tolist(), dataset.labels[dataset.query[entry[1]]].tobytes()]
        if len(best) < queries and drawn.isdisjoint(shows):
            best.append(entry)
            drawn.update(shows)
    width = max(7.4, 0.95 * (shown + 1) + 0.6)
    figure = blank(width, (width / (shown + 1) + 0.4) * len(best) + 0.9)
    grid = figure.subplots(len(best), shown + 1, squeeze=False)
    for row, (_, q, first, one, several, match) in zip(grid, best, strict=True):
        query = dataset.query[q]
        labels = [name for name, on in zip(dataset.label_names, dataset.labels[query], strict=True) if on]
        _picture(row[0], dataset.thumbnails[query], QUERY, "\n".join(["query:", *labels[:2]]))
        images = dataset.database[first]
        right = dataset.similar(query, images)
        for axes, image, a, b, which, ok in zip(row[1:], images, one, several, match, right, strict=False):
            caption = f"one code: {a}\nseveral: {b}"
            _picture(axes, dataset.thumbnails[image], RIGHT if ok else WRONG, caption)
            if which and dataset.boxes is not None:
                left, top, right_edge, bottom = dataset.boxes[image, which - 1]
                _frame(axes, dataset.thumbnails[image].shape, left, top, right_edge, bottom)
        for axes in row[1 + len(first) :]:
            axes.set_axis_off()
    lines = [title, "the queries that gain most: Hamming distance with one code per image and with several"]
    lines += ["green frame: shares a label with the query, red: does not"]
    lines += ["blue: the region whose code matched"] if dataset.boxes is not None else []
    figure.suptitle("\n".join(lines).strip(), fontsize=11)
    write(figure, path)


def _frame(axes: Any, shape: tuple[int, ...], left: float, top: float, right: float, bottom: float) -> None:
    """Draw a rectangle, given as fractions of a picture's sides and clipped at its edges."""
    from matplotlib.patches import Rectangle

    height, width = shape[:2]
    x, y, to_x, to_y = np.clip([left, top, right, bottom], 0.02, 0.98) * [width, height, width, height] - 0.5
    axes.add_patch(Rectangle((x, y), to_x - x, to_y - y, fill=False, edgecolor=REGION, linewidth=2))


def grid(count: int) -> tuple[Any, list[Any]]:
    """A figure with a number of panes: up to four stand in one line, more in lines of three."""
    columns = count if count <= 4 else 3
    lines = -(-count // columns)
    figure = blank(max(5.4, 3.6 * columns + 0.6), 0.9 + 3.0 * lines)
    panes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in panes[count:]:
        unused.set_axis_off()
    return figure, list(panes[:count])


def draw_lines(panels: Panels, title: str) -> tuple[Any, list[Any]]:
    """A figure with one pane per panel, at most four a line: a colour for each base; dashed for one code per image."""
    figure, panes = grid(len(panels))
    bases = list(dict.fromkeys(base for drawn in panels.values() for base, _ in drawn))
    for axes, (name, drawn) in zip(panes, panels.items(), strict=True):
        for (base, method), (x, y) in drawn.items():
            own = color(base, bases)
            style, fill = ("--", "white") if method == "single" else ("-", own)
            axes.plot(x, y, style, color=own, marker="o", markerfacecolor=fill, markersize=4, linewidth=1.5)
        axes.set_title(name, fontsize=10)
        axes.grid(color="0.9")
    for base in bases:
        panes[0].plot([], [], color=color(base, bases), label=base)
    figure.legend(loc="outside lower center", ncols=int(figure.get_figwidth() / 1.3), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure, panes


def _one_of_each_label(dataset: HashingDataset, most: int = 10) -> list[int]:
    """Positions among the queries: the first with each label, no query twice."""
    labels = dataset.labels[dataset.query]
    firsts = [int(column.argmax()) for column in labels.T if column.any()]
    return list(dict.fromkeys(firsts))[:most]


def _picture(axes: Any, pixels: NDArray[np.uint8], color: str, caption: str) -> None:
    axes.set_axis_on()
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=7.5, labelpad=2)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=3)
