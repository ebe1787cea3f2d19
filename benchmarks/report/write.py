"""Write the papers' tables and figures, and verdicts on their claims, from the rows of finished runs.

    python -m benchmarks.report DIR --out DIR --features FOLDER

Reads every results.csv, curves.csv and examples.csv that benchmarks.drlih and benchmarks.mch wrote in DIR and below,
and writes report.md and its figures. The same rows give the same report.md, byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tyro

import hashgym.data
from benchmarks.common import statistics
from benchmarks.common.results import REPORT, estimate, require_replaceable
from benchmarks.report import claims, comparisons
from benchmarks.report.claims import VARIANTS
from benchmarks.report.rows import Row, group, hand_crafted, paired, paper, read, where
from benchmarks.report.tables import Entry, by_length, caption, cell, flat, table
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.storage.atomic import write_text

__all__ = ["Args", "main", "report"]

TRADITIONAL = ("sdh", "ksh", "ksh-relaxed", "itq", "sh", "lsh")
TABLE_I: Mapping[str, Sequence[str]] = {
    "DRLIH and its variants": VARIANTS,
    "deep hashing methods": ("hashnet", "dsh", "ninh", "cnnh"),
    "later deep hashing methods": ("orthohash", "csq", "mmhh", "dch", "adsh"),
    "traditional methods, the same features": TRADITIONAL,
}
BASELINES = ("noseq", "ng")
TABLE_II = (*VARIANTS, *BASELINES)
BASES = ("lsh", "itq", "ksh", "hashnet", "adsh", "dch", "mmhh")  # of MCH's Table 2, in its order
SIGMAS = THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # of MCH's Table 3
UNPUBLISHED = ("mirflickr25k",)  # datasets whose photos must not be published
SECONDS, MEGABYTES, BITS = 60, 2000, 48  # limits that a run of 48 bits should stay below

Section: TypeAlias = list[str]  # paragraphs


@dataclass(frozen=True)
class Args:
    """Write the papers' tables and figures from the rows of finished runs."""

    folder: tyro.conf.Positional[Path]
    """folder of results, in itself or below"""
    out: Path | None = None
    """folder of report.md and its figures, instead of the folder of results"""
    features: tuple[Path, ...] = ()
    """folders of features with thumbnails, for pictures of searches; embedded datasets need none"""


def main(args: Args, console: Console | None = None) -> None:
    """Write the report.

    Raises:
        ValueError: if there are no results, some contradict each other, or other files would be overwritten.
    """
    out, runs = args.out or args.folder, read(args.folder)
    require_replaceable(out, "report.md", "*.png")
    datasets = {dataset.name: dataset for dataset in (hashgym.data.load(str(path)) for path in args.features)}
    out.mkdir(parents=True, exist_ok=True)
    text = report(runs, datasets, out)
    write_text(out / "report.md", text)
    (console or Console()).print(f"{out / 'report.md'} and its figures are written")


def report(runs: Mapping[str, Sequence[Row]], datasets: Mapping[str, HashingDataset], out: Path) -> str:
    """Draw the figures, and return the text of report.md.

    Args:
        runs: see :func:`benchmarks.report.rows.read`.
        datasets: with thumbnails, by name.
        out: folder of the figures.
    """
    head = [
        "# Every system of both papers, measured by one code",
        f"{REPORT} A cell is the mean over seeds with its 95% bootstrap interval, "
        "which is too narrow for few seeds. Seeds change a method's random numbers, never the split. Grey numbers "
        "after the word paper are printed in the papers: of networks trained end to end, and of other splits.",
    ]
    learned, hand = ([row for row in runs["drlih"] if hand_crafted(row) == by_hand] for by_hand in (False, True))
    mch_rows = [own for rows in group(runs["mch"], "dataset", "features").values() for own in _default_rows(rows)]
    sections = [head, _claims(learned, mch_rows)]
    for (dataset, features), rows in group(learned, "dataset", "features").items():
        curves = [
            r for r in where(runs["drlih curves"], dataset=dataset) if hand_crafted(r) or r["features"] == features
        ]
        sections.append(_drlih(rows, where(hand, dataset=dataset), curves, out, _slug("drlih", rows, learned)))
    for (dataset, features), rows in group(runs["mch"], "dataset", "features").items():
        points = where(runs["mch curves"], dataset=dataset, features=features)
        slug = _slug("mch", rows, runs["mch"])
        sections += [_mch(_default_rows(rows), points, out, slug), _by_threshold(rows, points, out, slug)]
    sections += [_examples(runs["examples"], datasets, out), _overall(learned, out), _costs(learned, mch_rows, out)]
    return "\n\n".join(paragraph for section in sections for paragraph in section) + "\n"


def _claims(rows: Sequence[Row], several: Sequence[Row]) -> Section:
    """Verdicts on the papers' claims, dataset by dataset."""
    section = [
        "## Claims of the papers",
        "Mean difference in mAP, unless another measure is named, paired by seed and averaged over code lengths, with "
        "its 95% interval: the claim holds where the interval lies above 0, does not where it lies below, and is "
        "undecided where it includes 0 or there is one seed.",
    ]
    for own, judge in ((rows, claims.of_drlih), (several, claims.of_mch)):
        judged = {f"{d}, {f}": judge(part) for (d, f), part in group(own, "dataset", "features").items()}
        names = dict.fromkeys(claim for verdicts in judged.values() for claim in verdicts)
        lines = [[name, *(verdicts.get(name, "") for verdicts in judged.values())] for name in names]
        if lines := [line for line in lines if any(line[1:])]:
            section += [table(["claim", *judged], lines), caption(own)]
    return section


def _drlih(rows: Sequence[Row], hand: Sequence[Row], curves: Sequence[Row], out: Path, slug: str) -> Section:
    """Tables I and II of one dataset, with Figures 3 to 5 and 7 to 9."""
    dataset, features = rows[0]["dataset"], rows[0]["features"]

    def entries(methods: Sequence[str], own: Sequence[Row], *, hand: bool = False, note: str = "") -> list[Entry]:
        names = {"dataset": dataset, "hand": hand}
        return [Entry(m + note, where(own, method=m), {**names, "method": m}) for m in methods]

    first: list[Entry | str] = []
    for name, methods in TABLE_I.items():
        first += [name, *entries(methods, rows)]
    known = {*TABLE_II, *(method for methods in TABLE_I.values() for method in methods)}
    first += ["others", *entries(sorted({row["method"] for row in rows} - known), rows)]
    first.append("traditional methods, hand-crafted features")
    for kind in sorted({row["features"] for row in hand}) or ["hand-crafted"]:
        first += entries(TRADITIONAL, where(hand, features=kind), hand=True, note=f", {kind}")
    section = [f"## DRLIH on {dataset}, {features}"]
    section += ["Table I: tie-aware mAP, the best mean in bold.", by_length(first, "I", best=True)]
    section += [caption([row for entry in first if isinstance(entry, Entry) for row in entry.rows])]
    longest = where(curves, bits=max((row["bits"] for row in curves), default=0))

    def draw(part: str, methods: set[str], bold: Sequence[str], others: Sequence[Row] = ()) -> Section:
        own, points = ([row for row in some if row["method"] in methods] for some in ([*rows, *others], longest))
        points = points if others else [row for row in points if not hand_crafted(row)]
        if not own:
            return []
        comparisons.precision(own, points, out / f"{slug}-{part}.png", f"{dataset}, {features}", bold)
        return [f"![{dataset}: precision of {part}]({slug}-{part}.png)"]

    section += draw("methods", {row["method"] for row in rows} - {*TABLE_II} | {"drlih"}, comparisons.BOLD, hand)
    second = [row for row in rows if row["method"] in TABLE_II]
    section += ["Table II: DRLIH without its parts.", by_length(entries(TABLE_II, second), "II"), caption(second)]
    return section + draw("baselines", {*TABLE_II}, TABLE_II)


def _mch(rows: Sequence[Row], points: Sequence[Row], out: Path, slug: str) -> Section:
    """MCH's Table 2 of one dataset, with Figures 3 to 7."""
    dataset, features, sigma = (rows[0][column] for column in ("dataset", "features", "sigma"))
    bases, entries = group(rows, "base"), []
    for base in dict.fromkeys([*BASES, *bases]):
        methods = group(bases.get(base, []), "method")
        single = methods.pop("single", [])
        names = {"dataset": dataset, "base": base}
        entries.append(Entry(base, single, {**names, "method": "single"}))
        for method in dict.fromkeys(["mch", *methods]):
            own = methods.get(method, [])
            gains = {bits: paired(some, single, "map") for bits, some in group(own, "bits").items()}
            better = [bits for bits, gain in gains.items() if gain and estimate(gain).low > 0]
            entries.append(Entry(f"{method}-{base}", own, {**names, "method": method}, better))
    size = "unknown" if sigma is None else f"{sigma:.3g}"
    title = f"{dataset}: one code per image (dashed) and MCH, sigma {size}, xi = .5"
    comparisons.radius0(rows, out / f"{slug}-radius0.png", title)
    section = [
        f"## MCH on {dataset}, {features}",
        f"Table 2: tie-aware mAP of bases, and of MCH on them at sigma {size} and xi .5; bold where MCH is above its "
        "base, the interval of the difference paired by seed above 0.",
        by_length(entries, "2"),
        caption(rows),
        f"![{dataset}: recall and precision within radius 0]({slug}-radius0.png)",
    ]
    if here := where(points, sigma=sigma):
        comparisons.f1_buckets(here, out / f"{slug}-f1-buckets.png", title)
        section.append(f"![{dataset}: F1 by buckets visited]({slug}-f1-buckets.png)")
    return section


def _by_threshold(rows: Sequence[Row], points: Sequence[Row], out: Path, slug: str) -> Section:
    """MCH's Table 3 of one dataset, with Figure 9, for the base and code length with the most sizes of regions."""
    varied = group([row for row in rows if row["xi"] and row["sigma"] is not None], "base", "method", "bits")
    if not varied:
        return []
    which = max(varied, key=lambda key: (len(group(varied[key], "sigma")), key == ("dch", "mch", 32), key))
    (base, method, bits), own = which, varied[which]
    cells = group(own, "sigma", "xi")
    sigmas, thresholds = (
        sorted({*known, *group(own, column)}) for known, column in ((SIGMAS, "sigma"), (THRESHOLDS, "xi"))
    )
    lines = []
    for sigma in sigmas:
        printed = [paper("3", "coco", method, bits, base=base, sigma=sigma, xi=xi) for xi in thresholds]
        scores = [[row["anhc"] for row in cells.get((sigma, xi), [])] for xi in thresholds]
        lines.append([f"{sigma:.3g}", *map(cell, scores, printed)])
    dataset, path = rows[0]["dataset"], out / f"{slug}-sensitivity.png"
    about = {"base": base, "bits": bits}
    curves = [row for row in where(points, **about) if row["method"] in ("single", method)]
    comparisons.sensitivity(
        [*own, *where(rows, **about, method="single")], curves, path, f"{dataset}, {method}-{base}, {bits} bits"
    )
    return [
        f"Table 3: codes per image by sigma and xi, {method}-{base}, {bits} bits; the paper's are of MS-COCO.",
        table(["sigma", *(f"xi = {xi}" for xi in thresholds)], lines),
        caption(own),
        f"![{dataset}: what sigma and xi change]({path.name})",
    ]


def _examples(rows: Sequence[Row], datasets: Mapping[str, HashingDataset], out: Path) -> Section:
    """DRLIH's Figure 6, of datasets whose pictures are available and may be published; else as drawn before."""
    embedded, section = [info.name for info in hashgym.data.datasets() if info.embedded], []
    for dataset, own in group([row for row in rows if row["dataset"] not in UNPUBLISHED], "dataset").items():
        own = where(own, features=own[0]["features"])
        path, longest = out / f"examples-{dataset}.png", max(row["bits"] for row in own)
        own = where(own, bits=longest)
        pictured = datasets.get(dataset) or (hashgym.data.load(dataset) if dataset in embedded else None)
        if pictured is not None and pictured.thumbnails is not None:
            comparisons.searches(own, pictured, path, f"{dataset}, {longest} bits, seed {own[0]['seed']}")
        if path.exists():
            section.append(f"![{dataset}: what some queries find]({path.name})")
    return ["## Retrieval examples", *section] if section else []


def _overall(rows: Sequence[Row], out: Path) -> Section:
    """Aggregates over the tasks of DRLIH's tables, on the largest full grid of methods and tasks."""
    tasks = {method: group(own, "dataset", "features", "bits") for method, own in group(rows, "method").items()}
    ordered = sorted(tasks, key=lambda method: (-len(tasks[method]), method))
    shared = [sorted(set.intersection(*(set(tasks[m]) for m in ordered[:k]))) for k in range(1, len(ordered) + 1)]
    k = max(range(len(ordered)), key=lambda k: ((k + 1) * len(shared[k]), k), default=0)
    if k == 0:
        return []
    scores = {m: [np.array([row["map"] for row in tasks[m][task]]) for task in shared[k]] for m in ordered[: k + 1]}
    ranks = statistics.ranks(list(scores.values()))
    rank = dict(zip(scores, ranks.mean, strict=True))
    best_first = sorted(scores, key=lambda method: (rank[method].mean, method))

    def beats(one: str, other: str) -> str:
        if one == other or not {one, other} <= set(scores):
            return ""
        return flat(statistics.probability_of_improvement(scores[one], scores[other]))

    lines = []
    for m in best_first:
        middle = flat(statistics.bootstrap(scores[m], statistics.iqm))
        lines.append([m, middle, flat(rank[m]), beats("drlih", m), beats(m, "orthohash")])
    thresholds = np.linspace(0, 1, 101)
    profiles = {m: (thresholds, statistics.performance_profile(scores[m], thresholds)) for m in best_first}
    median = float(np.median(np.concatenate([runs for own in scores.values() for runs in own])))
    pane = comparisons.Pane("", "mAP, tau", "share of runs above tau (mean over tasks)", profiles, round(median, 2))
    comparisons.compared([pane], out / "profiles.png", bold=comparisons.BOLD, title="performance profiles")
    shares = ranks.distribution[[list(scores).index(m) for m in best_first]]
    comparisons.grid(shares, best_first, out / "ranks.png", x="rank, 1 the best", title="how probable each rank is")
    left = [f"{method} {len(tasks[method])}" for method in ordered[k + 1 :]]
    return [
        "## Over all tasks of DRLIH's tables",
        f"A task is a dataset, its features and a code length: {len(shared[k])} tasks that {k + 1} methods ran. "
        "Interquartile mean of mAP; mean rank, 1 the best; the probability that a run of one method is better than a "
        "run of another on the same task, ties counting half."
        + (f" Left out, with how many they ran: {', '.join(left)}." if left else ""),
        table(["method", "interquartile mean", "mean rank", "P(drlih better)", "P(better than orthohash)"], lines),
        caption([row for m in scores for task in shared[k] for row in tasks[m][task]]),
        "![performance profiles](profiles.png)",
        "![distribution of ranks](ranks.png)",
    ]


def _costs(rows: Sequence[Row], several: Sequence[Row], out: Path) -> Section:
    """Time and memory of runs: the median and the maximum over seeds."""
    named = [{**row, "name": row["method"], "on": row["dataset"]} for row in where(rows, bits=BITS)]
    for row in sorted(where(several, bits=BITS), key=lambda row: (row["base"], row["method"] != "single")):
        name = row["base"] if row["method"] == "single" else f"{row['method']}-{row['base']}"
        named.append({**row, "name": name, "on": f"{row['dataset']}, MCH"})
    if not named:
        return []

    def measured(column: str, of: Callable[..., float]) -> dict[str, dict[str, float]]:
        by_dataset = {on: group(own, "name") for on, own in group(named, "on").items()}
        return {
            on: {m: float(of([r[column] for r in runs])) for m, runs in own.items()} for on, own in by_dataset.items()
        }

    seconds, memory = measured("train_seconds", np.median), measured("peak_mb", max)
    comparisons.costs(seconds, memory, out / "costs.png", limits=(SECONDS, MEGABYTES))
    section = [f"## Time and memory at {BITS} bits", "Training of a run, the median over seeds, and its peak memory."]
    for values, limit, unit in ((seconds, SECONDS, "s"), (memory, MEGABYTES, "MB")):
        each = [(value, f"{m} on {on} ({value:.0f} {unit})") for on, own in values.items() for m, value in own.items()]
        above = [text for value, text in sorted(each, reverse=True) if value > limit]
        section.append(f"Above {limit} {unit}: {'; '.join(above) or 'none'}.")
    return [*section, "![seconds and memory by method](costs.png)"]


def _default_rows(rows: Sequence[Row]) -> list[Row]:
    """MCH's rows at xi .5 and those of its bases, of the most frequent size of regions."""
    sigma = max(group(rows, "sigma").items(), key=lambda item: (len(item[1]), -(item[0] or 0)))[0]
    return [row for row in where(rows, sigma=sigma) if row["xi"] in (None, 0.5)]


def _slug(kind: str, rows: Sequence[Row], all_rows: Sequence[Row]) -> str:
    """File name of the pictures of one dataset's rows; with its features where it has several."""
    dataset, features = rows[0]["dataset"], rows[0]["features"]
    several = len(group(where(all_rows, dataset=dataset), "features")) > 1
    return re.sub(r"[^a-z0-9]+", "-", f"{kind} {dataset} {features if several else ''}".lower()).strip("-")
