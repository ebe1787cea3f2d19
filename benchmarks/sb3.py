"""Every algorithm on both environments: those of Stable-Baselines3 by preset, the agents, and hashers without an agent.

    python -m benchmarks.sb3 --out DIR --seeds 5 --jobs 2

Every run has its own process and adds its row to ``results.csv`` when it is finished. Called again, the benchmark runs
only what is missing, and writes ``table.md`` of all rows. Seeds change the methods' random numbers, never the split.
Stable-Baselines3's algorithms hold out 5% of the training images and keep the policy that is best on them; ``mch``
holds out as many without choosing by them, and the other methods learn from all. Nothing is chosen on the queries.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markdown import Markdown

import hashgym
import hashgym.data
from agents import bases, mch, sb3
from benchmarks.common import methods
from benchmarks.common.arguments import TableArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name
from benchmarks.common.machine import import_optimizers
from benchmarks.common.results import Results, Row, costs, describe, estimate, lookups, require_replaceable, scores
from benchmarks.common.runs import run_missing
from hashgym.checks import closest
from hashgym.codes import CodeSets
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.retrieval import evaluate
from hashgym.retrieval.metrics import check_labels
from hashgym.storage.atomic import write_text
from hashgym.terminal import command_line, parse

__all__ = ["Args", "Cell", "main", "run", "table"]

KEY = ("env", "dataset", "features", "method", "bits", "seed")
MEASURES = ("map", "recall_radius0", "anhc")
COLUMNS = (
    *KEY,
    "map",
    "map_optimistic",
    "map_pessimistic",
    "recall_radius0",
    "precision_radius0",
    "anhc",
    "steps",
    "train_seconds",
    "peak_mb",
    "version",
    "revision",
    "config",
)
CODES = "BitGroupHashing-v0"
REGIONS = "RegionKeep-v0"
BASE = "dch"  # of RegionKeep-v0; its own row has one code per image
METHODS = {
    CODES: ("lsh", "itq", "drlih-norec", "drlih-gru", "drlih-lstm", *sb3.PRESETS[CODES]),
    REGIONS: (BASE, "mch", *sb3.PRESETS[REGIONS]),
}


@dataclass(frozen=True, kw_only=True)
class Args(TableArgs):
    """mAP of every algorithm on both environments."""

    features: str = "digits"
    """dataset of BitGroupHashing-v0: an embedded one, or a folder that `hashgym features` wrote"""
    scenes: str = "digit-scenes"
    """dataset of RegionKeep-v0, with regions"""
    methods: tuple[str, ...] = ()
    """algorithms of agents.sb3, and lsh, itq, drlih-norec, drlih-gru, drlih-lstm, dch, mch; all by default"""
    envs: tuple[str, ...] = (CODES, REGIONS)
    """environments"""
    seeds: int = 5
    """runs of each cell, with the seeds 0, 1, ..."""
    steps: int = 0
    """steps of the algorithms of Stable-Baselines3; 0: the preset's"""
    input_dropout: float = -1.0
    """part of the features that these leave out of each episode while training; -1: the preset's"""


@dataclass(frozen=True)
class Cell:
    """One run."""

    env: str
    features: str
    method: str
    seed: int
    steps: int = 0
    input_dropout: float = -1.0

    def __str__(self) -> str:
        return f"{self.env} {self.method} seed {self.seed}"

    @property
    def bits(self) -> int:
        """Code length of the presets."""
        return sb3.PRESETS[self.env]["ppo"].bits


def settings(cell: Cell) -> Any:
    """The configured, untrained method: an agent's ``Args``, or a hasher."""
    if cell.method in sb3.PRESETS[cell.env]:
        return sb3.Args(
            algo=cell.method,
            env=cell.env,  # type: ignore[arg-type]
            seed=cell.seed,
            steps=cell.steps,
            input_dropout=cell.input_dropout,
        )
    if cell.method == BASE:
        return bases.make_base(BASE, cell.bits, cell.seed)
    if cell.method == "mch":
        return mch.Args(seed=cell.seed)
    return methods.settings(_method_cell(cell))


def _method_cell(cell: Cell) -> methods.Cell:
    """Return the run of a hasher, or of an agent other than those of Stable-Baselines3."""
    return methods.Cell(cell.features, cell.method, cell.bits, cell.seed)


def _names(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """The columns of a row that are known before the run."""
    configured = settings(cell)
    config = methods.settings_of(configured, dataset) | {"data": data_digest(dataset)}
    if isinstance(configured, sb3.Args):
        config["preset"] = dataclasses.asdict(configured.preset)
        del config["codes"]  # of an environment that is not in this table
    if cell.env == REGIONS:
        config["base"] = BASE
    config.pop("seed", None)
    return {
        "env": cell.env,
        "dataset": dataset.name,
        "features": features_name(dataset),
        "method": cell.method,
        "bits": cell.bits,
        "seed": cell.seed,
        "config": describe(config),
    }


def run(cell: Cell) -> list[dict[str, Any]]:
    """Load, train and measure, in this process; return the row. An agent's time excludes that of its base."""
    dataset = hashgym.data.load(cell.features).standardized()
    configured, steps = settings(cell), 0
    labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
    base = bases.fitted_base(BASE, cell.bits, cell.seed, dataset) if cell.env == REGIONS else None
    database: CodeSets | None = None
    import_optimizers()
    start = time.perf_counter()
    if isinstance(configured, sb3.Args):
        model = sb3.train(dataset, configured, base=base, progress=False)
        seconds, steps = time.perf_counter() - start, model.num_timesteps
        result, database = sb3.measure(model, configured, dataset, base)
    elif base is None:
        encode, seconds = methods.fit(_method_cell(cell), dataset)
        result = methods.measure(encode, dataset)[1]
        if cell.method in methods.AGENTS:
            steps = configured.updates * configured.num_envs * -(-cell.bits // configured.group_bits)
    else:
        query = base.encode(dataset.features[dataset.query])
        if isinstance(configured, mch.Args):
            policy = mch.train(dataset, base, configured, progress=False)
            seconds, steps = time.perf_counter() - start, configured.updates * configured.num_envs
            database = mch.encode(policy, base, dataset, dataset.database)
        else:
            seconds, database = 0.0, CodeSets.of(base.encode(dataset.features[dataset.database]))
        result = evaluate(query, labels[0], database, labels[1])
    row = {
        **_names(cell, dataset),
        **scores(result),
        **lookups(result),
        "anhc": 1.0 if database is None else database.anhc,
        "steps": steps,
        **costs(seconds),
    }
    return [row]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table for each environment, its data and code length: means over seeds with 95% intervals.

    Steps and seconds are medians.
    """
    lines = []
    title = ("env", "dataset", "features", "bits")
    for which in dict.fromkeys(tuple(row[column] for column in title) for row in rows):
        here, env = [row for row in rows if tuple(row[column] for column in title) == which], which[0]
        what = ("mAP", "recall, radius 0", "codes per image") if env == REGIONS else ("mAP", "recall, radius 0")
        lines += [f"{env}, {here[0]['dataset']}, {here[0]['bits']} bits", ""]
        lines += [f"| method | {' | '.join(what)} | runs | steps | training |", "|---|" + "---|" * (len(what) + 3)]
        for method in dict.fromkeys(row["method"] for row in here):
            own = [row for row in here if row["method"] == method]
            cells = [str(estimate([[float(row[c]) for row in own]])) for c in MEASURES[: len(what)]]
            steps, seconds = (float(np.median([float(row[c]) for row in own])) for c in ("steps", "train_seconds"))
            cells += [str(len(own)), f"{steps:,.0f}" if steps else "", f"{seconds:.0f} s" if seconds else ""]
            lines.append(f"| {method} | {' | '.join(cell.replace(chr(10), ' ') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then write and print the table; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "seeds", "jobs")
    if unknown := {*args.envs} - {*METHODS}:
        name = unknown.pop()
        raise ValueError(f"there is no environment {name!r}{closest(name, METHODS)}: choose from {', '.join(METHODS)}")
    for method in args.methods:
        if not any(method in METHODS[env] for env in args.envs):
            known = list(dict.fromkeys(name for env in args.envs for name in METHODS[env]))
            close = closest(method, known)
            raise ValueError(f"there is no method {method!r}{close}: choose from {', '.join(known)}")
    require_replaceable(args.out, "table.md")
    folders = {CODES: args.features, REGIONS: args.scenes}
    cells = [
        Cell(env, folders[env], method, seed, args.steps, args.input_dropout)
        for env in args.envs
        for method in METHODS[env]
        if method in (args.methods or METHODS[env])
        for seed in range(args.seeds)
    ]
    datasets = {cell.features: hashgym.data.load(cell.features) for cell in cells}
    for dataset in datasets.values():
        check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    names = {cell: [_names(cell, datasets[cell.features])] for cell in cells}
    results = Results(args.out, COLUMNS, KEY)

    def says(rows: Sequence[Row]) -> str:
        return f"mAP {rows[0]['map']:.4f}, trained in {rows[0]['train_seconds']:.1f} s"

    failed = run_missing(names, run, results, args, console, says=says)
    if rows := results.rows():
        text = table(sorted(rows, key=lambda row: METHODS[row["env"]].index(row["method"])))
        write_text(args.out / "table.md", text, "backslashreplace")
        console.print(Markdown(text) if console.is_terminal else text)
    return failed


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.sb3")), 1))
