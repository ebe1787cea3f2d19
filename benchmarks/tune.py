"""Choose settings for the tables on held-out training images, by one rule and with one budget for every method.

    python -m benchmarks.tune --features DIR --jobs 2
    python -m benchmarks.tune --features SMALL --splits 5

The rule: a fifth of the training images is held out, the method learns from the others, and each held-out image in turn
is the query that searches the others; training images would favour methods that overfit. A method's defaults are tried
first, then settings drawn at random from its :data:`SPACE`, each trained with 24 bits, and every method has the same
number of tries. Where there are few training images, a fifth of them is a poor judge: ``--splits`` repeats the tries
with other fifths and seeds. The best mean of mAP wins, the earlier try among equals, and its settings are used for all
code lengths and seeds, and for the dataset's other features too. The real queries and their database are never used.
A method without a space, and a dataset that was not tried, keep the defaults.

Every try is a row of ``results.csv``, from which ``benchmarks.drlih`` reads the choice.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.arguments import TableArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name
from benchmarks.common.methods import HASHERS, Cell, fit, load, settings
from benchmarks.common.results import Results, Row, costs, describe
from benchmarks.common.runs import run_missing
from hashgym.checks import closest
from hashgym.codes import CodeSets
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.terminal import command_line, parse

__all__ = ["CHOSEN", "SPACE", "Args", "Search", "best", "chosen", "held_out", "main", "run", "tries"]

CHOSEN = Path(__file__).parent / "results" / "tuning"

# The network's head is the same for all; the space has the optimiser's settings, and those of the loss that need not
# change with the code length.
_NETWORK: Mapping[str, tuple[Any, ...]] = {"learning_rate": (5e-4, 1e-3, 2e-3), "weight_decay": (1e-4, 1e-2)}
_AGENT: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (5e-4, 1e-3, 2e-3),
    "weight_decay": (1e-5, 1e-4, 1e-3),
    "dropout": (0.2, 0.4, 0.6),
}
SPACE: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "sh": {"components": (None, 16, 64), "trim": (0.0, 0.01, 0.02, 0.05)},
    "ksh": {"anchors": (300, 1000), "labelled": (1000, 3000)},
    "sdh": {"anchors": (500, 1000, 2000), "width": (0.7, 1.0, 1.5), "nu": (1e-5, 1e-3), "ridge": (0.01, 0.1, 1.0)},
    "noseq": _NETWORK,
    "hashnet": {**_NETWORK, "beta": (3.0, 7.0, 10.0)},
    "dsh": {**_NETWORK, "alpha": (0.001, 0.01, 0.1)},
    "ninh": {**_NETWORK, "margin": (1.0, 2.0, 4.0)},
    "cnnh": {**_NETWORK, "passes": (5, 10)},
    "adsh": {**_NETWORK, "gamma": (0.03, 0.1, 0.3)},
    "dch": {**_NETWORK, "gamma": (5.0, 10.0, 20.0, 40.0), "quantization": (0.01, 0.1, 1.0)},
    "mmhh": {**_NETWORK, "radius": (1.0, 2.0, 4.0), "quantization": (0.001, 0.01, 0.1)},
    "csq": {**_NETWORK, "quantization": (1e-4, 1e-3, 1e-2)},
    "orthohash": {**_NETWORK, "scale": (4.0, 8.0, 16.0), "margin": (0.0, 0.2, 0.4)},
    "drlih": _AGENT,
    "drlih-norec": _AGENT,
}
# An ablation, and a method with nested codes, has the settings of the method that it is compared with.
SAME_SETTINGS: Mapping[str, str] = {
    "ng": "drlih",
    "drlih-nca": "drlih-norec",
    "nested": "drlih",
    "nested-norec": "drlih-norec",
    "nested-ap": "drlih-norec",
    **{method: name for method, (name, _) in HASHERS.items()},
}

KEY = ("dataset", "features", "method", "bits", "seed", "trial")
COLUMNS = (*KEY, "settings", "map", "train_seconds", "peak_mb", "version", "revision", "config")
BITS, SEED = 24, 0

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(TableArgs):
    """Settings of every method, chosen on held-out training images."""

    out: Path = CHOSEN
    """folder of results.csv"""
    features: tuple[str, ...] = ("digits",)
    """embedded datasets by name, or folders that `hashgym features` wrote"""
    methods: tuple[str, ...] = tuple(SPACE)
    """methods with a space of settings"""
    tries: int = 4
    """budget of every method: its defaults, and draws from its space"""
    splits: int = 1
    """random fifths of the training images that are held out in turn; more where there are few images"""


@dataclass(frozen=True)
class Search:
    """The tries of one method on one dataset."""

    features: str
    method: str
    tries: int
    seed: int = SEED
    """of the methods, and of the fifth that is held out"""

    def __str__(self) -> str:
        return f"{Path(self.features).name}: {self.method} seed {self.seed}"


def held_out(dataset: HashingDataset, seed: int = SEED) -> tuple[HashingDataset, NDArray[np.int64]]:
    """Return the dataset with a random four fifths of its training images, and the other fifth."""
    order = np.random.default_rng(seed).permutation(dataset.train)
    fifth = len(order) // 5
    return dataclasses.replace(dataset, train=np.sort(order[fifth:])), np.sort(order[:fifth])


def tries(method: str, count: int) -> Iterator[Settings]:
    """Yield settings to try, as changes of the defaults: first none, then different ones in random order."""
    space, usual = SPACE.get(method, {}), settings(Cell("", method, BITS, SEED))
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    grid = [changes for changes in grid if any(getattr(usual, name) != value for name, value in changes.items())]
    drawn = (grid[i] for i in np.random.default_rng(SEED).permutation(len(grid)))
    yield from itertools.islice(itertools.chain([{}], drawn), count)


def run(search: Search) -> list[dict[str, Any]]:
    """Try one setting after the other in this process; return a row for each."""
    from agents.training import retrieval_among  # imports torch, which not every run of benchmarks.drlih needs

    whole = load(search.features)
    dataset, kept_out = held_out(whole, search.seed)
    dataset = dataset.standardized()
    rows: list[dict[str, Any]] = []
    for trial, changes in enumerate(tries(search.method, search.tries)):
        cell = Cell(search.features, search.method, BITS, search.seed, tuple(changes.items()))
        encode, seconds = fit(cell, dataset)
        found = retrieval_among(CodeSets.of(encode(dataset.features[kept_out])), dataset.labels[kept_out])
        rows.append(
            {
                **_names(search, whole),
                "trial": trial,
                "settings": describe(changes),
                "map": found["retrieval/held_out_map"],
                **costs(seconds),
            }
        )
    return rows


def chosen(folder: Path) -> dict[tuple[str, str], Settings]:
    """Return the best settings by dataset and method (see also :data:`SAME_SETTINGS`), as changes of the defaults."""
    rows = rows_in(Results(folder, COLUMNS, KEY), CHOSEN)
    search = [column for column in KEY if column != "trial"]
    rule = {tuple(row[column] for column in search): row["config"] for row in rows if row["trial"] == "0"}
    # Tries of an earlier search, which had more of them, are not tries of this one.
    found = best(row for row in rows if rule.get(tuple(row[column] for column in search)) == row["config"])
    same = {
        (dataset, name): found.get((dataset, other)) for dataset, _ in found for name, other in SAME_SETTINGS.items()
    }
    return found | {which: settings for which, settings in same.items() if settings is not None}


def rows_in(results: Results, usual: Path) -> list[dict[str, str]]:
    """Return the rows of tries in a folder that the user may have given.

    Raises:
        ValueError: if there are none, unless it is the ``usual`` folder.
    """
    if results.folder != usual and not results.path.exists():
        raise ValueError(f"there is no {results.path}: --tuned is the folder of the rows by which settings are chosen")
    return results.rows()


def best(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Settings]:
    """Return the settings with the best mean of mAP, over seeds and features, by dataset and method."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        which = row["dataset"], row["method"]
        scores.setdefault(which, {}).setdefault(row["settings"], []).append(float(row["map"]))
    return {
        which: json.loads(max(tried, key=lambda settings: sum(tried[settings]) / len(tried[settings])))
        for which, tried in scores.items()
    }


def main(args: Args, console: Console | None = None) -> int:
    """Try what is missing and print the choices; returns the number of methods that failed.

    Raises:
        ValueError: for arguments that cannot be run, before anything is tried.
    """
    console = console or Console()
    check_not_empty(args, "jobs", "tries", "splits", "features")
    if unknown := [method for method in args.methods if method not in SPACE]:
        raise ValueError(
            f"{unknown[0]} has no space of settings{closest(unknown[0], SPACE)}: choose from {', '.join(SPACE)}"
        )
    datasets = {features: load(features) for features in args.features}
    searches = [
        Search(features, method, args.tries, seed)
        for seed in range(args.splits)
        for features in datasets
        for method in args.methods
    ]
    for (features, dataset), seed in itertools.product(datasets.items(), range(args.splits)):
        _, kept_out = held_out(dataset, seed)
        labels = dataset.labels[kept_out].astype(np.float32)
        if not np.triu(labels @ labels.T, 1).any():
            raise ValueError(
                f"no two of the {len(kept_out)} held-out training images of {features} share a label, so that no "
                "setting can be judged by them: give more training images"
            )
    # A search is done if its first try is there: its rows are added together.
    first = {search: [{**_names(search, datasets[search.features]), "trial": 0}] for search in searches}

    def says(rows: Sequence[Row]) -> str:
        best = max(rows, key=lambda r: r["map"])
        return f"{len(rows)} tries, mAP {rows[0]['map']:.4f} -> {best['map']:.4f} by {best['settings']}"

    return run_missing(first, run, Results(args.out, COLUMNS, KEY), args, console, says=says)


def _names(search: Search, dataset: HashingDataset) -> dict[str, Any]:
    """The columns of a search's rows that are known before it; its tries differ in ``trial``."""
    space = {name: list(values) for name, values in SPACE[search.method].items()}
    rule = {"space": space, "tries": search.tries, "data": data_digest(dataset)}
    return {
        "dataset": dataset.name,
        "features": features_name(dataset),
        "method": search.method,
        "bits": BITS,
        "seed": search.seed,
        "config": describe(rule),
    }


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.tune")), 1))
