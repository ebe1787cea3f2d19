"""Compare reward designs: mAP of one agent's codes on one dataset for each reward, over seeds.

    python -m benchmarks.rewards --out DIR --features digits --designs triplet average_precision+balance --seeds 5

A design is the name of a reward (`hashgym.rewards.available()`) or a sum of them, with weights where they are not 1:
``average_precision+0.5*balance``. Every run has its own process and adds its rows to ``results.csv`` and ``curves.csv``
(the components of the reward during training) when it is finished. Called again, the benchmark runs only what is
missing, and writes ``table.md`` and ``curves-24.png`` (for codes of 24 bits) of all rows. Seeds change the agent's
random numbers, never the split. Nothing is chosen on the queries.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import hashgym
import hashgym.data
from benchmarks.common import figures, methods, results
from benchmarks.common.arguments import TableArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name, run_cells, unfinished
from benchmarks.common.machine import import_optimizers
from benchmarks.common.results import Results, costs, describe, require_replaceable, scores
from hashgym import rewards
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.retrieval.metrics import check_labels
from hashgym.storage.atomic import write_text
from hashgym.terminal import command_line, parse

__all__ = ["Args", "Cell", "main", "run", "settings"]

KEY = ("agent", *results.KEY)
COLUMNS = ("agent", *results.COLUMNS)
CURVES = (*KEY, "component", "update", "value")  # a run's points have its key, and replace its old ones
POINTS = 30  # of a curve
DESIGNS = (
    "triplet",
    "triplet+balance",
    "average_precision",
    "average_precision+balance",
    "pairwise:dch",
    "pairwise:hashnet",
    "pairwise:adsh",
)

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(TableArgs):
    """mAP of one agent's codes by reward."""

    features: str = "digits"
    """an embedded dataset's name, or a folder that `hashgym features` wrote"""
    agent: str = "norec"
    """variant of agents.drlih: norec, hashgym, or another that learns from any reward"""
    designs: tuple[str, ...] = DESIGNS
    """rewards by name, and sums of them: average_precision+0.5*balance"""
    bits: tuple[int, ...] = (24,)
    """code lengths"""
    seeds: int = 5
    """runs of each cell, with the seeds 0, 1, ..."""
    updates: int = 1500
    """gradient steps of a run"""


@dataclass(frozen=True)
class Cell:
    """One run."""

    features: str
    agent: str
    design: str
    bits: int
    seed: int
    updates: int

    def __str__(self) -> str:
        return f"{self.agent} {self.design} {self.bits} bits seed {self.seed}"


def settings(cell: Cell) -> Any:
    """The agent's ``Args``. It learns from all training images.

    Raises:
        ValueError: for an unknown design, an agent with a fixed reward, or unsupported bits.
    """
    from agents import drlih as agent

    rewards.make(cell.design)
    if cell.agent not in (variants := methods.reward_variants()):
        raise ValueError(f"there is no agent {cell.agent!r} that takes a reward: choose from {', '.join(variants)}")
    return agent.Args(
        variant=cell.agent,
        reward=cell.design,
        bits=cell.bits,
        seed=cell.seed,
        updates=cell.updates,
        holdout=0.0,
        log_every=max(1, cell.updates // POINTS),
        evaluate_every=cell.updates,
        checkpoint_every=cell.updates,
    )


def _names(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """The columns of a row that are known before the run."""
    config = methods.settings_of(settings(cell), dataset)
    for name in ("bits", "seed", "variant", "reward", "log_every", "evaluate_every", "checkpoint_every"):
        config.pop(name)
    return {
        "agent": cell.agent,
        "dataset": dataset.name,
        "features": features_name(dataset),
        "method": cell.design,
        "bits": cell.bits,
        "seed": cell.seed,
        "config": describe({**config, "data": data_digest(dataset)}),
    }


def run(cell: Cell) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Load, train and measure, in this process; returns the row of results.csv and those of curves.csv."""
    from agents import drlih as agent

    dataset, args = hashgym.data.load(cell.features).standardized(), settings(cell)
    import_optimizers()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        policy = agent.train(dataset, args, out=Path(folder), progress=False)
        seconds = time.perf_counter() - start
        curves = components(Path(folder))
    encode = partial(hashgym.encode, policy, bits=cell.bits, group_bits=args.group_bits)
    result = methods.measure(encode, dataset)[1]
    names = _names(cell, dataset)
    row = {
        **names,
        **scores(result),
        "precision_radius2": result.precision_within,
        "recall_radius2": result.recall_within,
        **costs(seconds),
    }
    named = {key: names[key] for key in KEY}
    return row, [{**named, "component": c, "update": update, "value": value} for c, update, value in curves]


def components(folder: Path) -> list[tuple[str, int, float]]:
    """The components of the reward that a training run wrote for TensorBoard: (name, update, mean over environments).

    Components of weight 0, such as the agent's group rewards, are left out.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("reward/")]
    found = [(tag.removeprefix("reward/"), e.step, e.value) for tag in tags for e in events.Scalars(tag)]
    used = {name for name, _, value in found if value != 0}
    return [point for point in found if point[0] in used]


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the table and draw the curves; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "seeds", "jobs", "updates", "bits", "designs")
    require_replaceable(args.out, "table.md", "curves-*.png")
    dataset = hashgym.data.load(args.features)
    check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    which = [(d, b, s) for d in args.designs for b in args.bits for s in range(args.seeds)]
    cells = [Cell(args.features, args.agent, d, b, s, args.updates) for d, b, s in which]
    names = {cell: _names(cell, dataset) for cell in cells}
    table = Results(args.out, COLUMNS, KEY)
    curves = Results(args.out, CURVES, KEY, "curves.csv")
    table.check_distinct(names.values())

    def done(cell: Cell) -> bool:
        return table.done(names[cell], replace=args.replace)

    def finish(outcome: tuple[dict[str, Any], list[dict[str, Any]]]) -> str:
        row, points = outcome
        curves.append(*points)
        table.append(row)  # last: a run whose row is here is finished
        return f"mAP {row['map']:.4f}, trained in {row['train_seconds']:.1f} s"

    waiting = unfinished(cells, done, table.path, console)
    failed = run_cells(waiting, run, finish, jobs=args.jobs, executor=args.executor, console=console)
    report(table.rows_of(names.values()), curves.rows_of(names.values()), args, console)
    return failed


def report(rows: Sequence[Row], points: Sequence[Row], args: Args, console: Console) -> None:
    """Print the table, write it to ``table.md``, and draw a figure of the curves for each code length."""
    if not rows:
        return
    rows = sorted(rows, key=lambda row: args.designs.index(row["method"]))
    title = f"{rows[0]['dataset']}, {rows[0]['features']}, {args.agent}, {args.updates} updates"
    console.print(results.table(rows, title=title))
    note = "Tie-aware mAP, mean over seeds with its 95% bootstrap interval."
    text = f"{title}\n\n{results.markdown(rows).replace('| method |', '| reward |', 1)}\n\n{note}\n"
    write_text(args.out / "table.md", text, "backslashreplace")
    for bits in args.bits:
        own = [point for point in points if int(point["bits"]) == bits]
        draw(own, args.designs, args.out / f"curves-{bits}.png", f"{title}, {bits} bits")


def draw(points: Sequence[Row], designs: Sequence[str], path: Path, title: str) -> None:
    """Draw the components of every design's reward against updates: one panel each, mean and range over seeds."""
    drawn = [design for design in dict.fromkeys(designs) if any(point["method"] == design for point in points)]
    if not drawn:
        return
    figure, panes = figures.grid(len(drawn))
    for axes, design in zip(panes, drawn, strict=True):
        own = [point for point in points if point["method"] == design]
        for name, color in zip(dict.fromkeys(p["component"] for p in own), figures.COLORS[1:], strict=False):
            by_update: dict[int, list[float]] = {}
            for point in own:
                if point["component"] == name:
                    by_update.setdefault(int(point["update"]), []).append(float(point["value"]))
            x = sorted(by_update)
            y = [by_update[update] for update in x]
            axes.plot(x, [np.mean(values) for values in y], color=color, linewidth=1.5, label=name)
            axes.fill_between(x, [min(v) for v in y], [max(v) for v in y], color=color, alpha=0.2, linewidth=0)
        axes.set_title(design, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9")
        axes.legend(fontsize=7, frameon=False)
    figure.supxlabel("updates", fontsize=9)
    figure.suptitle(f"{title}\ncomponents of the reward, mean and range over seeds", fontsize=10)
    figures.write(figure, path)


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.rewards")), 1))
