"""DRLIH's tables: mAP of the agents and of the hashers at several code lengths, over seeds.

    python -m benchmarks.drlih --features DIR --jobs 2 --out DIR     # every method of Tables I and II
    python -m benchmarks.drlih --preset smoke                        # the same on digits, in minutes

Every run has its own process, so that training time and peak memory are measured for it alone, and adds a row to
``results.csv`` when it is finished; at the greatest code length also one to ``curves.csv`` (precision at K, precision
and recall by radius) and, for seed 0, to ``examples.csv`` (results of some queries). Called again, the benchmark runs
only what is missing. Seeds change the methods' random numbers, never the split. Settings are those that
``benchmarks.tune`` chose on held-out training images, or the defaults. Nothing is chosen on the queries.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import tune
from benchmarks.common.arguments import SplitArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, features_name, run_cells, unfinished
from benchmarks.common.methods import (
    AGENTS,
    HASHERS,
    NESTED,
    Bits,
    Cell,
    config,
    encode_both,
    fit,
    load,
    search,
    settings,
)
from benchmarks.common.results import KEY, Results, costs, describe, scores, table
from hashgym import codes
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.retrieval import RetrievalResult
from hashgym.terminal import command_line, parse

__all__ = ["CURVES", "EXAMPLES", "METHODS", "PRESETS", "Args", "Preset", "main", "names", "row", "run"]

NETWORKS = ("noseq", "hashnet", "dsh", "ninh", "cnnh", "adsh", "dch", "mmhh", "csq", "orthohash")
METHODS = ("lsh", "sh", "itq", "ksh", "sdh", *NETWORKS, *HASHERS, *AGENTS)

CURVES = (*KEY, "ranks", "precision_at", "precision_by_radius", "recall_by_radius")
EXAMPLES = (*KEY, "queries", "found", "distances", "right")
RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)  # of precision at K
SHOWN, QUERIES = 10, 10  # of an example: results of a query, and queries


@dataclass(frozen=True)
class Preset:
    """Defaults of the arguments."""

    methods: tuple[str, ...] = METHODS
    bits: tuple[int, ...] = (12, 24, 32, 48)
    seeds: int = 3
    effort: float = 1.0


PRESETS: Mapping[str, Preset] = {"tables": Preset(), "smoke": Preset(bits=(24,), seeds=1, effort=0.2)}


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """mAP of agents and hashers by code length."""

    out: Path = Path("runs/drlih")
    """folder of results.csv, curves.csv and examples.csv"""
    features: tuple[str, ...] = ("digits",)
    """embedded datasets by name, or folders that `hashgym features` wrote"""
    preset: Literal["tables", "smoke"] = "tables"
    """defaults of methods, bits, seeds and effort: those of the papers' tables, or a short run of every method"""
    methods: tuple[str, ...] | None = None
    """hashers (`hashgym hashers`), the agents drlih, drlih-{norec,nca,gru,lstm,paper,released} and ng; methods that are
    trained once for all lengths: nested, nested-norec, nested-ap, noseq-nested and orthohash-nested"""
    bits: tuple[int, ...] | None = None
    """code lengths"""
    seeds: int | None = None
    """runs of each cell, with the seeds 0, 1, ..."""
    effort: float | None = None
    """gradient steps, as a share of every method's own number"""
    hidden: int | None = None
    """width of the hidden layer of every network among the hashers, 0 for linear heads, instead of their own"""
    tuned: Path = tune.CHOSEN
    """folder of the results of `benchmarks.tune`; other datasets and methods have the defaults"""

    def runs(self) -> Preset:
        """The preset, with the values of the arguments that are given."""
        names = [field.name for field in dataclasses.fields(Preset)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(PRESETS[self.preset], **given)


@dataclass(frozen=True)
class Outcome:
    """The rows of the three files that a run adds."""

    rows: list[dict[str, Any]]
    curve: dict[str, Any] | None = None
    example: dict[str, Any] | None = None


def names(cell: Cell, dataset: HashingDataset) -> list[dict[str, Any]]:
    """The columns that are known before the run, of each of its rows."""
    described = describe(config(cell, dataset))
    return [{**_key(cell, dataset), "bits": bits, "config": described} for bits in cell.lengths]


def row(name: Mapping[str, Any], result: RetrievalResult, train_seconds: float) -> dict[str, Any]:
    """Return a row of ``results.csv`` of a finished run, given those of its columns that were known before."""
    return {
        **name,
        **scores(result),
        "precision_radius2": result.precision_within,
        "recall_radius2": result.recall_within,
        **costs(train_seconds),
    }


def run(cell: Cell) -> Outcome:
    """Load, train and measure, in this process; return the rows."""
    dataset = cell.load().standardized()
    encode, seconds = fit(cell, dataset)
    ranks = [k for k in RANKS if k <= len(dataset.database)] if cell.curves else []
    query, database = encode_both(encode, dataset)
    finished = []
    for name, length in zip(names(cell, dataset), cell.lengths, strict=True):
        result = search(query[:, :length], database[:, :length], dataset, ranks if length == cell.bits else [])
        finished.append(row(name, result, seconds))
    if not cell.curves:
        return Outcome(finished)
    curve = {
        **_key(cell, dataset),
        "ranks": json.dumps(ranks),
        "precision_at": _short(np.array(list(result.precision_at.values()))),
        "precision_by_radius": _short(result.precision_by_radius),
        "recall_by_radius": _short(result.recall_by_radius),
    }
    return Outcome(finished, curve, _example(cell, dataset, query, database) if cell.seed == 0 else None)


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the tables; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    named = cells(args)
    results, curves = Results(args.out), Results(args.out, CURVES, KEY, "curves.csv")
    examples = Results(args.out, EXAMPLES, KEY, "examples.csv")
    results.check_distinct(itertools.chain(*named.values()))

    def done(cell: Cell) -> bool:
        *_, whole = named[cell]
        drawn = not cell.curves or (whole in curves and (cell.seed > 0 or whole in examples))
        return all(results.done(name, replace=args.replace) for name in named[cell]) and drawn

    def finish(outcome: Outcome) -> str:
        if outcome.curve:
            curves.append(outcome.curve)
        if outcome.example:
            examples.append(outcome.example)
        results.append(*outcome.rows)  # last: a run whose rows are here is finished
        whole = outcome.rows[-1]
        return f"mAP {whole['map']:.4f}, trained in {whole['train_seconds']:.1f} s"

    waiting = unfinished(list(named), done, results.path, console)
    failed = run_cells(waiting, run, finish, jobs=args.jobs, executor=args.executor, console=console)
    rows = results.rows_of(itertools.chain(*named.values()))
    for which in dict.fromkeys((r["dataset"], r["features"]) for r in rows):
        console.print(table([r for r in rows if (r["dataset"], r["features"]) == which], title=", ".join(which)))
    if len(revisions := {r["revision"] for r in rows}) > 1:
        console.print(f"the rows come from {len(revisions)} revisions of the code: {', '.join(sorted(revisions))}")
    return failed


def cells(args: Args) -> dict[Cell, list[dict[str, Any]]]:
    """Return all runs, each with the columns of its rows that are known before it.

    Raises:
        ValueError: for arguments that cannot be run.
    """
    runs = args.runs()
    check_not_empty(args, "jobs", "features")
    check_not_empty(runs, "seeds", "bits", "methods")
    if not runs.effort > 0:
        raise ValueError(f"effort is a share of the gradient steps, above 0, got {runs.effort}")
    chosen = tune.chosen(args.tuned)
    found: dict[Cell, list[dict[str, Any]]] = {}
    longest = max(runs.bits)
    for features, dataset in {features: load(features, **args.data) for features in args.features}.items():
        for method, bits, seed in itertools.product(runs.methods, runs.bits, range(runs.seeds)):
            if method in NESTED and bits < longest:
                continue
            changes = tuple(chosen.get((dataset.name, method), {}).items())
            prefixes = tuple(sorted(runs.bits)) if method in NESTED else ()
            cell = Cell(features, method, bits, seed, changes, bits == longest, prefixes=prefixes, **args.data)
            cell = _changed(cell, runs.effort, args.hidden)
            found[cell] = names(cell, dataset)
    return found


def _key(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    which = (dataset.name, features_name(dataset), cell.method, cell.bits, cell.seed)
    return dict(zip(KEY, which, strict=True))


def _changed(cell: Cell, effort: float, hidden: int | None) -> Cell:
    """Return the cell with a share of its gradient steps and, for a hasher, another width of the hidden layer."""
    changes, usual = dict(cell.changes), settings(cell)
    if effort != 1 and hasattr(usual, "updates"):
        changes["updates"] = max(1, round(effort * usual.updates))
    if hidden is not None and hasattr(usual, "hidden") and cell.method not in AGENTS:
        changes["hidden"] = hidden
    return dataclasses.replace(cell, changes=tuple(changes.items()))


def _example(cell: Cell, dataset: HashingDataset, query_codes: Bits, database_codes: Bits) -> dict[str, Any]:
    """The results of the first query of each of some labels; images at equal distance in the database's order."""
    firsts = dict.fromkeys(int(column.argmax()) for column in dataset.labels[dataset.query].T if column.any())
    first = list(firsts)[:QUERIES]
    distances = codes.hamming(codes.pack(query_codes)[first][:, None], codes.pack(database_codes)[None])
    nearest = distances.argsort(axis=1, kind="stable")[:, :SHOWN]
    queries, found = dataset.query[first], dataset.database[nearest]
    return {
        **_key(cell, dataset),
        "queries": json.dumps(queries.tolist()),
        "found": json.dumps(found.tolist()),
        "distances": json.dumps(np.take_along_axis(distances, nearest, 1).tolist()),
        "right": json.dumps(dataset.similar(queries[:, None], found).astype(int).tolist()),
    }


def _short(values: NDArray[np.float64]) -> str:
    return json.dumps([float(f"{value:.4g}") for value in values])


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.drlih")), 1))
