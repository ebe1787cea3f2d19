"""Several codes an image: from regions (MCH), from one look (multicode), from both, and by simple controls.

    python -m benchmarks.multicode --features DIR --split mch --queries 2000 --train 5000 --seeds 3 --jobs 2 --out DIR

Every run fits a base, trains both agents on it, and measures all methods on its codes; it adds their rows to
``results.csv`` when it is finished. Queries have one code, that of the base. Controls give as many codes an image as
multicode with one further code: they go to the images where they are most certain to be near, or to random ones. Both
agents are also compared at equal codes an image, with a higher xi for the one that keeps more. ``views`` is how many
views of an image the backbone must encode, which is nearly all of the cost. Called again, the benchmark runs only what
is missing, and draws of all rows ``map.png`` (mAP by code length) and, for every code length, ``recall-24.png`` (mAP
against recall within radius 0). Nothing is chosen on the queries.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import hashgym
import hashgym.data
from benchmarks.common import figures
from benchmarks.common.arguments import SplitArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name
from benchmarks.common.machine import import_optimizers, seconds, with_seconds
from benchmarks.common.methods import settings_of
from benchmarks.common.results import Results, costs, describe, gain, lookups, means, require_replaceable, scores
from benchmarks.common.runs import run_missing
from benchmarks.mch import IMAGES, BaseCell
from hashgym.checks import check_choice
from hashgym.codes import CodeSets, pack
from hashgym.console import Console, Table
from hashgym.data import HashingDataset
from hashgym.retrieval import evaluate
from hashgym.terminal import command_line, parse

if TYPE_CHECKING:
    from hashgym.hashers.pairwise import PairwiseHasher

__all__ = ["VIEWS", "Args", "Cell", "control", "draw", "main", "rare_labels", "run", "settings", "table"]

KEY = ("dataset", "features", "base", "method", "bits", "seed")
MEASURES = ("map", "recall_radius0", "precision_radius0", "anhc")
COLUMNS = (
    *KEY,
    *("views", "map", "map_optimistic", "map_pessimistic", "recall_radius0", "precision_radius0", "anhc"),
    *("train_seconds", "peak_mb", "version", "revision", "config"),
)
VIEWS: Mapping[str, int] = {
    "single": 1,
    "multicode": 1,
    "multicode-2": 1,
    "multicode-groups": 1,
    "multicode-matched": 1,
    "mch": 6,
    "mch-matched": 6,
    "mch-dropout": 6,
    "both": 6,
    "one-policy": 6,
    "flipped": 1,
    "random-region": 2,
    "certain-region": 6,
    "all-regions": 6,
}
"""The methods, and how many views of an image each encodes."""
METHODS = tuple(method for method in VIEWS if method not in ("multicode-groups", "mch-dropout", "one-policy"))
_DECIDED_BY: Mapping[str, tuple[str, ...]] = {
    **{method: (method,) for method in ("multicode", "multicode-2", "multicode-groups", "mch", "mch-dropout")},
    **dict.fromkeys(("flipped", "random-region", "certain-region"), ("multicode",)),
    **dict.fromkeys(("both", "multicode-matched", "mch-matched"), ("mch", "multicode")),
    **{"one-policy": ("multicode", "one-policy"), "single": (), "all-regions": ()},
}
"""The agents whose settings decide the codes of each method."""
_DRAWN = ("single", "multicode", "mch", "both")  # by code length
_OF_REGIONS = ("random-region", "certain-region", "all-regions")  # controls with regions that mch's run encodes
_CONTROLS = ("flipped", *_OF_REGIONS)
_MATCHED = {"multicode-matched": ("multicode",), "mch-matched": ("mch",)}
_TRAINED = {**_MATCHED, **{method: _DECIDED_BY[method] for method in ("both", "one-policy")}}  # whose seconds they take
_MARKERS: Mapping[int, str] = {1: "o", 2: "s", 6: "^"}  # by the number of views
XI = 0.5  # least probability at which an agent's code is kept
CODE_DROPOUT = 0.5  # of mch-dropout and one-policy

AtXi: TypeAlias = Callable[[float], CodeSets]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """Recall, precision and mAP with several codes an image, by where they come from."""

    features: str = "digit-scenes"
    """an embedded dataset with regions, or a folder that `hashgym features --regions 5 --train-regions 4` wrote"""
    bases: tuple[str, ...] = ("dch", "adsh", "hashnet", "ksh-relaxed", "ksh", "mmhh")
    """hashers with a pairwise loss (`hashgym hashers`)"""
    bits: tuple[int, ...] = (16, 32, 48, 64)
    """code lengths"""
    methods: tuple[str, ...] = METHODS
    """which codes to measure; matched are those at the xi from which on one agent keeps no more codes than the other;
    both are those that two agents keep, one-policy those that one agent keeps of all;
    multicode-groups emits a further code 8 bits at a time, each group given those before; mch-dropout learns from
    training codes under dropout"""
    seeds: int = 3
    """runs of each cell, with the seeds 0, 1, ..."""
    updates: int | None = None
    """gradient steps of each agent, instead of its own number"""
    rare: float | None = None
    """keep only labels that at most this share of the images has, and images that have one"""
    out: Path = Path("runs/multicode")
    """folder of results.csv"""


@dataclass(frozen=True)
class Cell(BaseCell):
    """One run: a base, and all methods on it."""

    updates: int | None = None
    rare: float | None = None
    methods: tuple[str, ...] = METHODS

    def load(self) -> HashingDataset:
        """The dataset, as that of a :class:`BaseCell`, or with its rare labels alone."""
        dataset = super().load()
        return dataset if self.rare is None else rare_labels(dataset, self.rare)


def rare_labels(dataset: HashingDataset, share: float) -> HashingDataset:
    """Return a dataset with the labels that at most a share of all images has, split among the images that have one.

    Raises:
        ValueError: if queries, training images or database have none.
    """
    columns = np.flatnonzero(dataset.labels.mean(axis=0) <= share)
    labels = np.ascontiguousarray(dataset.labels[:, columns])
    split = {"query": dataset.query, "database": dataset.database, "train": dataset.train}
    parts: dict[str, Any] = {name: rows[labels[rows].any(axis=1)] for name, rows in split.items()}
    for name, rows in parts.items():
        if not len(rows):
            raise ValueError(f"no image of {name} has a label that at most {share:.0%} of images have: raise --rare")
    names = tuple(dataset.label_names[column] for column in columns.tolist())
    return dataclasses.replace(dataset, name=f"{dataset.name}, rare labels", labels=labels, label_names=names, **parts)


def settings(cell: Cell) -> dict[str, Any]:
    """The configured, unfitted base and the agents' ``Args``, by name.

    Raises:
        ValueError: for an unknown base, or one without a pairwise loss.
    """
    from agents import mch, multicode
    from agents.bases import make_base

    changes: dict[str, Any] = {"seed": cell.seed, "holdout": 0.0}
    changes |= {} if cell.updates is None else {"updates": cell.updates}
    return {
        "base": make_base(cell.base, cell.bits, cell.seed),
        "mch": mch.Args(**changes),
        "mch-dropout": mch.Args(code_dropout=CODE_DROPOUT, **changes),
        "one-policy": mch.Args(code_dropout=CODE_DROPOUT, **changes),
        "multicode": multicode.Args(codes=1, **changes),
        "multicode-2": multicode.Args(codes=2, **changes),
        "multicode-groups": multicode.Args(codes=1, group_bits=8, **changes),
    }


def run(cell: Cell) -> list[dict[str, Any]]:
    """Load, train and measure, in this process; return a row for every method."""
    dataset, base = cell.load().standardized(), settings(cell)["base"]
    train, rows = dataset.train, dataset.database
    import_optimizers()
    spent = {"single": seconds(base.fit, dataset.features[train], dataset.labels[train])}
    encode, spent_by_agents = _train(cell, dataset, base)
    spent |= spent_by_agents
    sets = {agent: at(XI) for agent, at in encode.items()}
    sets |= _together(cell, encode, sets)
    sets |= _controls(cell, dataset, base, sets)
    query, labels = base.encode(dataset.features[dataset.query]), dataset.labels[dataset.query]
    finished = []
    for name in _names(cell, dataset):
        method = name["method"]
        result = evaluate(query, labels, sets[method], dataset.labels[rows])
        finished.append(
            {
                **name,
                **scores(result),
                **lookups(result),
                "anhc": sets[method].anhc,
                **costs(sum(spent.get(each, 0.0) for each in _TRAINED.get(method, (method,)))),
            }
        )
    return finished


def _train(cell: Cell, dataset: HashingDataset, base: PairwiseHasher) -> tuple[dict[str, AtXi], dict[str, float]]:
    """Train the agents that the methods need; return, by agent, the database's code sets at xi, and seconds."""
    from agents import mch, multicode
    from benchmarks.common import candidates

    agents = {agent for method in cell.methods for agent in _DECIDED_BY[method]}
    if set(cell.methods) & set(_OF_REGIONS):
        agents.add("mch")
    configured, spent, writers = settings(cell), {}, {}
    encode: dict[str, AtXi] = {}
    for agent in sorted(agents, key=list(VIEWS).index):  # multicode before one-policy, which keeps what it writes
        args = configured[agent]
        if agent.startswith("multicode"):
            policy, spent[agent] = with_seconds(multicode.train, dataset, base, args, progress=False)
            writers[agent] = policy
            encode[agent] = partial(multicode.encode, policy, base, dataset.features[dataset.database])
            continue
        if agent == "one-policy":
            writer = writers["multicode"]
            policy, spent[agent] = with_seconds(candidates.train, dataset, base, writer, args)
            keep = partial(candidates.keep_probabilities, policy, base, writer)
        else:
            policy, spent[agent] = with_seconds(mch.train, dataset, base, args, progress=False)
            keep = partial(hashgym.keep_probabilities, policy, base)
        words, p = _by_blocks(keep, dataset)
        encode[agent] = partial(_keep_at, words, p, cell.bits)
    return encode, spent


def _together(cell: Cell, encode: Mapping[str, AtXi], sets: Mapping[str, CodeSets]) -> dict[str, CodeSets]:
    """Return the code sets of both agents together, and of each at equal codes an image."""
    if not {"mch", "multicode"} <= set(sets):
        return {}
    regions, written = sets["mch"], sets["multicode"]
    fewer = min(regions.anhc, written.anhc)
    return {
        "both": _sets(
            np.concatenate([regions.words, written.words[:, 1:]], axis=1),
            np.concatenate([regions.kept, written.kept[:, 1:]], axis=1),
            cell.bits,
        ),
        **{name: matched(encode[agent], fewer) for name, (agent,) in _MATCHED.items() if name in cell.methods},
    }


def _controls(
    cell: Cell, dataset: HashingDataset, base: PairwiseHasher, sets: Mapping[str, CodeSets]
) -> dict[str, CodeSets]:
    """Return the base's code sets, and those with further codes that no agent has chosen, as many as multicode's."""
    rows, bits, made = dataset.database, cell.bits, {}
    values = base.transform(dataset.features[rows])
    own = pack(values > 0)[:, None]
    made["single"] = _sets(own, np.ones((len(rows), 1), np.bool_), bits)
    if "mch" in sets:
        made["all-regions"] = _sets(sets["mch"].words, np.ones_like(sets["mch"].kept), bits)
    if "multicode" not in sets:
        return made
    share, every = sets["multicode"].anhc - 1, np.arange(len(rows))
    doubt, flipped = np.abs(values) / values.std(axis=0), values > 0
    flipped[every, doubt.argmin(axis=1)] ^= True
    made["flipped"] = control(own, pack(flipped), -doubt.min(axis=1), share, bits)
    if "mch" not in sets:
        return made
    regions, rng = sets["mch"].words, np.random.default_rng(cell.seed)
    drawn = rng.integers(1, 6, len(rows))
    made["random-region"] = control(own, regions[every, drawn], rng.random(len(rows)), share, bits)
    if "certain-region" in cell.methods:
        (certainty,) = _by_blocks(partial(_certainty, base, base.transform(dataset.features[dataset.train])), dataset)
        surest = 1 + certainty.argmax(axis=1)
        made["certain-region"] = control(own, regions[every, surest], certainty.max(axis=1), share, bits)
    return made


def matched(encode: AtXi, codes: float) -> CodeSets:
    """Return the code sets at the least xi, from .5 on in steps of .001, at which images have so many codes or fewer.

    They are those at 1 if images have more codes there too.

    Args:
        encode: returns the code sets at xi.
        codes: the mean number of codes an image, at least 1.
    """
    thresholds = np.linspace(XI, 1, 501)
    place = bisect.bisect_left(thresholds, -codes, key=lambda xi: -encode(float(xi)).anhc)
    return encode(float(thresholds[min(place, 500)]))


def control(own: NDArray[np.uint64], more: NDArray[np.uint64], rank: NDArray[Any], share: float, bits: int) -> CodeSets:
    """Return code sets with one further code for a share of the images, those of the highest rank.

    Args:
        own: uint64 (n, 1, W), packed codes.
        more: uint64 (n, W), a further code for each.
        rank: (n,).
        share: of the images, from 0 to 1. Codes equal to the own one do not count.
        bits: q.
    """
    differs = (own[:, 0] != more).any(axis=1)
    order = np.argsort(np.where(differs, -np.asarray(rank, np.float64), np.inf), kind="stable")
    kept = np.zeros(len(own), np.bool_)
    kept[order[: round(share * len(own))]] = True
    return _sets(np.concatenate([own, more[:, None]], axis=1), np.stack([np.ones_like(kept), kept], axis=1), bits)


def _keep_at(words: NDArray[np.uint64], p: NDArray[np.float64], bits: int, xi: float) -> CodeSets:
    return _sets(words, p >= xi, bits)


def _sets(words: NDArray[np.uint64], kept: NDArray[np.bool_], bits: int) -> CodeSets:
    return CodeSets(np.ascontiguousarray(words), kept, bits)


def _certainty(
    base: PairwiseHasher, values: NDArray[np.float32], features: NDArray[np.float32], regions: NDArray[np.float32]
) -> tuple[NDArray[Any]]:
    """Return how certain the bits of regions are, (n, R): their mean size relative to a bit's deviation in values."""
    of_regions = base.transform(regions.reshape(-1, regions.shape[2])) / values.std(axis=0)
    return (np.abs(of_regions).mean(axis=1).reshape(regions.shape[:2]),)


def _by_blocks(function: Callable[..., tuple[NDArray[Any], ...]], dataset: HashingDataset) -> Iterator[NDArray[Any]]:
    """Return the results of a function of features and regions for the database; regions take memory."""
    assert dataset.regions is not None
    blocks = [dataset.database[start : start + IMAGES] for start in range(0, len(dataset.database), IMAGES)]
    parts = [function(dataset.features[rows], dataset.regions[rows]) for rows in blocks]
    return (np.concatenate(part) for part in zip(*parts, strict=True))


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the tables and draw the figures; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "seeds", "jobs", "bits", "bases", "methods")
    for method in args.methods:
        check_choice("methods", method, tuple(VIEWS))
    require_replaceable(args.out, "map.png", "recall-*.png")
    runs = [
        Cell(args.features, base, bits, seed, args.updates, args.rare, args.methods, **args.data)
        for seed in range(args.seeds)
        for bits in args.bits
        for base in args.bases
    ]
    dataset, results = runs[0].load(), Results(args.out, COLUMNS, KEY)
    names = {cell: _names(cell, dataset) for cell in runs}

    def says(rows: Sequence[Row]) -> str:
        return ", ".join(f"{row['method']} {row['map']:.4f}" for row in rows[:5])

    failed = run_missing(names, run, results, args, console, says=says)
    rows = results.rows_of(itertools.chain(*names.values()))
    for bits in args.bits:
        if own := [row for row in rows if int(row["bits"]) == bits]:
            console.print(table(own))
    if rows:
        same = {(row["dataset"], row["features"]) for row in rows}
        draw([row for row in results.rows() if (row["dataset"], row["features"]) in same], args.out)
    return failed


def table(rows: Sequence[Row]) -> Table:
    """The methods on every base at one code length: means over seeds, and the gain in mAP over MCH, paired by seed."""
    shown = Table(title=f"{rows[0]['dataset']}, {rows[0]['bits']} bits")
    headings = ("base", "method", "views", "codes", "recall, radius 0", "precision, radius 0", "mAP", "mAP over MCH")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in headings[:2] else "right")
    for base in dict.fromkeys(row["base"] for row in rows):
        own = [row for row in rows if row["base"] == base]
        regions = {row["seed"]: float(row["map"]) for row in own if row["method"] == "mch"}
        for method in VIEWS:
            here = [row for row in own if row["method"] == method]
            if not here:
                continue
            mean = {measure: np.mean([float(row[measure]) for row in here]) for measure in MEASURES}
            gains = [float(row["map"]) - regions[row["seed"]] for row in here if row["seed"] in regions]
            measures = (f"{mean[measure]:.4f}" for measure in ("recall_radius0", "precision_radius0", "map"))
            cells = [f"{mean['anhc']:.2f}", *measures, gain(gains)]
            shown.add_row(base, method, str(VIEWS[method]), *cells)
    return shown


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw mAP by code length, and mAP against recall for each code length: a pane for each base, means over seeds."""
    title = f"{rows[0]['dataset']}: mean over seeds"
    by_length: figures.Panels = {}
    for base, method in dict.fromkeys((row["base"], row["method"]) for row in rows if row["method"] in _DRAWN):
        own = [row for row in rows if (row["base"], row["method"]) == (base, method)]
        by_length.setdefault(base, {})[method, method] = means(own, "bits", "map")
    figures.by_code_length(by_length, out / "map.png", f"{title} of mAP, one code an image dashed")
    for bits in dict.fromkeys(row["bits"] for row in rows):
        here = [row for row in rows if row["bits"] == bits and row["method"] not in _MATCHED]
        bases = list(dict.fromkeys(row["base"] for row in here))
        methods = [method for method in VIEWS if any(row["method"] == method for row in here)]
        figure, panes = figures.grid(len(bases))
        for axes, base in zip(panes, bases, strict=True):
            for method in methods:
                if not (own := [row for row in here if (row["base"], row["method"]) == (base, method)]):
                    continue  # measured on other bases alone
                recall, mean_map = (np.mean([float(row[m]) for row in own]) for m in ("recall_radius0", "map"))
                color = figures.color(method, methods)
                fill = "none" if method in _CONTROLS else "full"
                axes.plot(recall, mean_map, _MARKERS[VIEWS[method]], color=color, fillstyle=fill, ms=7, label=method)
            axes.set_title(base, fontsize=10)
            axes.locator_params(axis="x", nbins=5)
            axes.set(xlabel="recall within radius 0", ylabel="mAP")
            axes.grid(color="0.9")
        figure.legend(*panes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        note = "circle: one view of an image, square: two, triangle: six; hollow: controls"
        figure.suptitle(f"{title}, {bits} bits\n{note}", fontsize=11)
        figures.write(figure, out / f"recall-{bits}.png")


def _names(cell: Cell, dataset: HashingDataset) -> list[dict[str, Any]]:
    """The columns that are known before the run, of every method's row."""
    configured, found = settings(cell), []
    common: dict[str, Any] = {"base": settings_of(configured["base"], dataset), "data": data_digest(dataset)}
    agents = {name: settings_of(args, dataset) for name, args in configured.items() if name != "base"}
    for method in cell.methods:
        config = {**common, **{name: agents[name] for name in _DECIDED_BY[method]}}
        which = (dataset.name, features_name(dataset), cell.base, method, cell.bits, cell.seed)
        known = {**dict(zip(KEY, which, strict=True)), "views": VIEWS[method]}
        found.append({**known, "config": describe(config)})
    return found


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.multicode")), 1))
