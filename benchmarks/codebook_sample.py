"""Rewards that compare with a sample of the training images: what an update costs, and what the codes are worth.

    python -m benchmarks.codebook_sample --features features/cifar10 --jobs 2 --out DIR

First the CPU milliseconds of a group step and of an episode's last step with per-bit credit, by the number of training
images, against the whole codebook and against samples of it (``cost.csv``; random codes and labels of ten classes).
Then the mAP of an agent that is trained with each size of sample (``results.csv``). 0 stands for the whole codebook.
Settings are the agent's, and nothing is chosen. Called again, the benchmark trains only what is missing.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym

from benchmarks import drlih
from benchmarks.common.arguments import TableArgs, check_not_empty
from benchmarks.common.cells import CONTINUES
from benchmarks.common.methods import AGENTS, Cell, load
from benchmarks.common.results import COLUMNS, KEY, Results, Row, describe, publish, table
from benchmarks.common.runs import by_features, run_missing
from benchmarks.labels import hot_labels, random_dataset, timed
from hashgym.console import Console, Table
from hashgym.data import HashingDataset
from hashgym.terminal import command_line, parse

__all__ = ["Args", "main", "measure", "step_milliseconds"]

COST_KEY = ("images", "codebook_sample")
ROWS = (*KEY, "settings", *(column for column in COLUMNS if column not in KEY))


@dataclass(frozen=True, kw_only=True)
class Args(TableArgs):
    """Cost and mAP with samples of the codebook."""

    features: tuple[str, ...] = ("digits",)
    """embedded datasets by name, or folders that `hashgym features` wrote; none measures the cost alone"""
    method: str = "drlih-norec"
    """an agent of benchmarks.drlih"""
    bits: int = 48
    """code length"""
    samples: tuple[int, ...] = (0, 2_500, 1_000, 500)
    """sizes of the sample; 0 for the whole codebook"""
    seeds: int = 3
    """runs of each cell, with the seeds 0, 1, ..."""
    images: tuple[int, ...] = (5_000, 50_000, 200_000)
    """numbers of training images whose cost is measured"""
    num_envs: int = 256
    """number of environments, in the measure of cost"""
    rounds: int = 5
    """episodes of each kind, in turn; medians are shown"""
    out: Path = Path("runs/codebook_sample")
    """folder of cost.csv and results.csv"""


def main(args: Args, console: Console | None = None) -> int:
    """Measure the cost, train what is missing, and print the tables; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before anything is measured.
    """
    console = console or Console()
    check_not_empty(args, "jobs", "bits", "samples", "seeds", "images", "num_envs", "rounds")
    if args.method not in AGENTS:
        raise ValueError(f"there is no agent {args.method!r}: choose one of {', '.join(AGENTS)}")
    datasets = {features: load(features) for features in args.features}
    grid = itertools.product(range(args.seeds), args.features, args.samples)
    cells = {
        cell: [_names(cell, datasets[features])]
        for seed, features, sample in grid
        for cell in [Cell(features, args.method, args.bits, seed, (("codebook_sample", sample or None),))]
    }
    results = Results(args.out, ROWS, (*KEY, "settings"))
    settings = {"bits": args.bits, "num_envs": args.num_envs, "rounds": args.rounds}
    cost = measure(args)
    publish(cost, _cost_table(cost), args.out, "cost.csv", COST_KEY, settings)

    def says(rows: Sequence[Row]) -> str:
        return f"{rows[0]['settings']}: mAP {rows[0]['map']:.4f}, trained in {rows[0]['train_seconds']:.0f} s"

    failed = run_missing(cells, run, results, args, console, says=says)
    for title, rows in by_features(results.rows()):
        named = [{**row, "method": f"{row['method']} {row['settings']}"} for row in rows]
        console.print(table(named, title=title))
    return failed


def run(cell: Cell) -> list[dict[str, Any]]:
    """Train and measure, in this process; return the row."""
    return [{**row, "settings": _settings(cell)} for row in drlih.run(cell).rows]


def measure(args: Args) -> list[dict[str, Any]]:
    """Return a row of milliseconds for each number of images and size of sample below it."""
    rows = []
    for images in args.images:
        dataset = random_dataset(hot_labels(images, 10), dim=2)
        samples = [sample for sample in args.samples if sample < images]
        found = step_milliseconds(dataset, samples, args)
        rows += [
            {"images": images, "codebook_sample": sample, "group_step_ms": group, "last_step_ms": last}
            for sample, (group, last) in zip(samples, found, strict=True)
        ]
    return rows


def step_milliseconds(dataset: HashingDataset, samples: list[int], args: Args) -> list[tuple[float, float]]:
    """Return the CPU milliseconds of a group step and of an episode's last step with each size of sample."""
    every: list[Any] = [
        gym.make_vec(
            "BitGroupHashing-v0",
            num_envs=args.num_envs,
            dataset=dataset,
            bits=args.bits,
            reward="average_precision",
            counterfactual=True,
            codebook_sample=sample or None,
        ).unwrapped
        for sample in samples
    ]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in every]
    for number, (envs, (groups, last)) in itertools.product(range(1 + args.rounds), zip(every, times, strict=True)):
        if number == 0:  # an episode that compiles all kernels
            envs.action_space.seed(0)
            envs.reset(seed=0)
        action = envs.action_space.sample()
        spent = [timed(lambda envs=envs, action=action: envs.step(action))[0] for _ in range(envs.task.groups)]  # type: ignore[misc]
        if number:
            groups += spent[:-1]
            last.append(spent[-1])
    return [(1000 * median(groups or last), 1000 * median(last)) for groups, last in times]


def _names(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    (names,) = drlih.names(cell, dataset)
    return {**names, "settings": _settings(cell)}


def _settings(cell: Cell) -> str:
    return describe({"codebook_sample": dict(cell.changes)["codebook_sample"]})


def _cost_table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="CPU milliseconds of a step")
    for heading in ("images", "codebook_sample", "group step", "last step", "whole / sample"):
        shown.add_column(heading, justify="right")
    whole = {row["images"]: row["last_step_ms"] for row in rows if not row["codebook_sample"]}
    for row in rows:
        images, sample, last = row["images"], row["codebook_sample"], row["last_step_ms"]
        ratio = f"{whole[images] / last:.1f} x" if images in whole else ""
        size = f"{sample:,}" if sample else "whole"
        shown.add_row(f"{images:,}", size, f"{row['group_step_ms']:.0f}", f"{last:.0f}", ratio)
    return shown


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.codebook_sample")), 1))
