"""A second code from an agent that emits one: the next most probable, or a sampled one. A control for multicode.

    python -m benchmarks.second_codes --features DIR --split mch --queries 2000 --train 5000 --jobs 2 --out DIR

Every run trains an agent of ``agents.drlih``. Queries have its code, and so have the images of the database; those of
them whose second code is the most probable (``--share``) have that one, too. ``beam`` takes the best other code of a
beam search. Where bits do not depend on each other (drlih-norec) it flips the least certain bit; a recurrent agent
(drlih) may answer with other bits after it. ``sampled`` draws a code for the same images. Called again, the benchmark
runs only what is missing. Nothing is chosen on the queries.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import hashgym
from benchmarks.common.arguments import SplitArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, features_name
from benchmarks.common.machine import import_optimizers, with_seconds
from benchmarks.common.methods import Cell, config, settings
from benchmarks.common.results import Results, costs, describe, gain, lookups, scores
from benchmarks.common.runs import run_missing
from benchmarks.multicode import control
from hashgym.checks import check_choice, check_number
from hashgym.codes import CodeSets, pack
from hashgym.console import Console, Table
from hashgym.data import HashingDataset
from hashgym.policies import VECTORS_AT_ONCE
from hashgym.retrieval import evaluate
from hashgym.terminal import command_line, parse

__all__ = ["CODES", "METHODS", "Args", "SecondCell", "beam_search", "main", "run", "table"]

METHODS = ("drlih", "drlih-norec")
CODES = ("one", "beam", "sampled")
KEY = ("dataset", "features", "method", "codes", "bits", "seed")
MEASURES = {
    "anhc": "an image",
    "recall_radius0": "recall, radius 0",
    "precision_radius0": "precision, radius 0",
    "map": "mAP",
}
COLUMNS = (
    *KEY,
    *("map", "map_optimistic", "map_pessimistic", "recall_radius0", "precision_radius0", "anhc"),
    *("train_seconds", "peak_mb", "version", "revision", "config"),
)

Bits = NDArray[np.bool_]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """Recall, precision and mAP of an agent's codes with one code an image, and with a second one."""

    features: str = "digit-scenes"
    """an embedded dataset, or a folder made by `hashgym features`"""
    methods: tuple[str, ...] = METHODS
    """agents that emit a code in groups: drlih, recurrent, or drlih-norec"""
    bits: tuple[int, ...] = (32,)
    """code lengths"""
    seeds: int = 3
    """runs of each cell, with the seeds 0, 1, ..."""
    share: float = 0.5
    """of the database's images that have a second code"""
    updates: int | None = None
    """gradient steps, instead of the agent's own number"""
    out: Path = Path("runs/second-codes")
    """folder of results.csv"""


@dataclass(frozen=True)
class SecondCell(Cell):
    """One run: an agent, with one code an image and with two."""

    share: float = 0.5


def beam_search(policy: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return two codes of each image, of the most probable ones, by a beam search of width 2 over groups.

    Args:
        policy: a :class:`agents.drlih.Policy` whose state is a tuple of tensors, in evaluation mode.
        image: (n, D).

    Returns:
        codes: (2, n, q), -1 and +1; the second differs from the first, and is less probable or equally so.
        log_p: (2, n), log probabilities.
    """
    n, state = len(image), policy.begin(image)
    codes, log_p = image.new_zeros(1, n, policy.args.bits), image.new_zeros(1, n)
    for group, (start, stop) in enumerate(policy.groups):
        logits, state = policy.step(state, codes.flatten(0, 1), group)
        logits = logits.unflatten(0, (len(codes), n))
        # Bits of a group are independent: its likeliest bits, and those with the least certain one flipped.
        likeliest = torch.where(logits > 0, 1.0, -1.0)
        doubt, at = logits.abs().min(2, keepdim=True)
        second = likeliest.scatter(2, at, -likeliest.gather(2, at))
        best = log_p + F.logsigmoid(logits.abs()).sum(2)
        log_p, picked = torch.cat([best, best - doubt[:, :, 0]]).topk(2, dim=0)
        bits, parent = torch.cat([likeliest, second]), picked % len(codes)
        state = tuple(_pick(part.unflatten(0, (len(codes), n)), parent).flatten(0, 1) for part in state)
        codes = _pick(codes, parent)
        codes[:, :, start:stop] = _pick(bits, picked)
    return codes, log_p


def _pick(of: Tensor, which: Tensor) -> Tensor:
    """Return (2, n, ...) of (m, n, ...): for each image the two that are numbered by ``which`` (2, n)."""
    return of[which, torch.arange(of.shape[1], device=of.device)]


class _Sampling:
    """A policy whose actions are drawn."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def predict(self, observation: Any, state: Any = None, **rest: Any) -> Any:
        return self.policy.predict(observation, state, deterministic=False)


def run(cell: SecondCell) -> list[dict[str, Any]]:
    """Train and measure in this process; return a row for each of :data:`CODES`."""
    from agents import drlih

    dataset, configured = cell.load().standardized(), settings(cell)
    import_optimizers()
    policy, spent = with_seconds(drlih.train, dataset, configured, progress=False)
    length = {"bits": cell.bits, "group_bits": configured.group_bits}
    query, database = (np.asarray(dataset.features[rows]) for rows in (dataset.query, dataset.database))
    asked, own = (hashgym.encode(policy, images, **length) for images in (query, database))
    second, margin = _second_codes(policy, database, own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        drawn = hashgym.encode(_Sampling(policy), database, **length)
    words = pack(own)[:, None]
    sets = {
        "one": CodeSets.of(own),
        "beam": control(words, pack(second), margin, cell.share, cell.bits),
        "sampled": control(words, pack(drawn), margin, cell.share, cell.bits),
    }
    labels, finished = (dataset.labels[dataset.query], dataset.labels[dataset.database]), []
    for known in _names(cell, dataset):
        found = evaluate(asked, labels[0], sets[known["codes"]], labels[1])
        anhc = sets[known["codes"]].anhc
        finished.append({**known, **scores(found), **lookups(found), "anhc": anhc, **costs(spent)})
    return finished


def _second_codes(policy: Any, features: NDArray[Any], own: Bits) -> tuple[Bits, NDArray[np.float32]]:
    """Return the best code (n, q) of a beam search besides the own one, and how much less probable its second is."""
    parts = []
    for start in range(0, len(features), VECTORS_AT_ONCE):
        image = torch.from_numpy(features[start : start + VECTORS_AT_ONCE]).to(next(policy.parameters()).device)
        with torch.no_grad():
            codes, log_p = (found.cpu().numpy() for found in beam_search(policy, image))
        first, second = codes > 0
        is_own = (first == own[start : start + VECTORS_AT_ONCE]).all(axis=1, keepdims=True)
        parts.append((np.where(is_own, second, first), log_p[1] - log_p[0]))
    codes, margin = (np.concatenate(part) for part in zip(*parts, strict=True))
    return codes, margin


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the table; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "seeds", "jobs", "bits", "methods")
    for method in args.methods:
        check_choice("methods", method, METHODS)
    if not 0 < check_number("share", args.share) <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {args.share}")
    changes = () if args.updates is None else (("updates", args.updates),)
    runs = [
        SecondCell(args.features, method, bits, seed, changes, share=args.share, **args.data)
        for seed in range(args.seeds)
        for bits in args.bits
        for method in args.methods
    ]
    dataset, results = runs[0].load(), Results(args.out, COLUMNS, KEY)
    names = {cell: _names(cell, dataset) for cell in runs}

    def says(rows: Sequence[Row]) -> str:
        return ", ".join(f"{row['codes']} {row['map']:.4f}" for row in rows)

    failed = run_missing(names, run, results, args, console, says=says)
    rows = results.rows_of(row for own in names.values() for row in own)
    if rows:
        console.print(table(rows))
    return failed


def table(rows: Sequence[Row]) -> Table:
    """Means over seeds, and what a second code adds to mAP, paired by seed."""
    shown = Table(title=f"{rows[0]['dataset']}, {rows[0]['features']}")
    for heading in ("bits", "method", "codes", *MEASURES.values(), "over one code"):
        shown.add_column(heading, justify="left" if heading in ("method", "codes") else "right")
    for bits, method, codes in dict.fromkeys((row["bits"], row["method"], row["codes"]) for row in rows):
        own = [row for row in rows if (row["bits"], row["method"]) == (bits, method)]
        one = {row["seed"]: float(row["map"]) for row in own if row["codes"] == "one"}
        here = [row for row in own if row["codes"] == codes]
        means = (f"{np.mean([float(row[measure]) for row in here]):.4f}" for measure in MEASURES)
        gains = [float(row["map"]) - one[row["seed"]] for row in here if codes != "one" and row["seed"] in one]
        shown.add_row(str(bits), method, codes, *means, gain(gains))
    return shown


def _names(cell: SecondCell, dataset: HashingDataset) -> list[dict[str, Any]]:
    """The columns that are known before the run, of the row of each of :data:`CODES`."""
    found = []
    for codes in CODES:
        which = (dataset.name, features_name(dataset), cell.method, codes, cell.bits, cell.seed)
        own = {**config(cell, dataset), **({} if codes == "one" else {"share": cell.share})}
        found.append({**dict(zip(KEY, which, strict=True)), "config": describe(own)})
    return found


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.second_codes")), 1))
