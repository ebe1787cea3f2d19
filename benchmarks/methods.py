"""What the benchmarks of codes compare: every method by name, how it is configured, fitted and measured."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hashgym
import hashgym.data
import hashgym.hashers
from benchmarks.cells import data_digest
from hashgym.checks import closest
from hashgym.data import HashingDataset
from hashgym.retrieval import RetrievalResult, evaluate
from hashgym.retrieval.metrics import check_labels

__all__ = ["AGENTS", "Cell", "config", "fit", "group_bits", "load", "measure", "settings"]

Codes = NDArray[np.bool_]
Encoder = Callable[[NDArray[np.float32]], Codes]

# Methods that are agents, with the arguments that make them (agents/drlih.py); every other name is a hasher's.
# They learn from all training images, as the hashers do. The paper's cell runs bit by bit, at many times the cost of an
# update: its batches and updates are fewer, so that a run stays near two minutes. What differs from the agent's own
# defaults was chosen on held-out training images.
_ALL: Mapping[str, Any] = {"holdout": 0.0}
_CELL: Mapping[str, Any] = {"holdout": 0.0, "num_envs": 64, "updates": 1200}
_PAPER = {**_CELL, "input_dropout": 0.0, "dropout": 0.0}
_RELEASED = {**_CELL, "input_dropout": 0.2}
AGENTS: Mapping[str, Mapping[str, Any]] = {
    "drlih": {"variant": "hashgym", **_ALL},
    "drlih-norec": {"variant": "norec", **_ALL},
    "drlih-paper": {"variant": "paper", **_PAPER},
    "drlih-released": {"variant": "released", **_RELEASED},
    # REINFORCE with a learned baseline, learnt from one call of a recurrent cell over all groups.
    "drlih-gru": {"variant": "gru", **_ALL},
    "drlih-lstm": {"variant": "lstm", **_ALL},
    "ng": {"variant": "hashgym", "group_bits": 1, **_ALL},  # Table II's Baseline_ng: no action groups
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    features: str
    method: str
    bits: int
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()
    """settings that differ from the method's defaults, by name"""
    curves: bool = False
    """whether to measure curves and, for seed 0, to keep searches as examples"""

    def __str__(self) -> str:
        return f"{self.method} {self.bits} bits seed {self.seed}"


def load(features: str) -> HashingDataset:
    """A dataset by name or folder, without the regions of its images, which make most of a folder that has them.

    Raises:
        ValueError: for data that cannot be read, or labels on which any codes score alike.
    """
    dataset = hashgym.data.load(features)
    check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    return dataclasses.replace(dataset, regions=None, train_regions=None, boxes=None, train_boxes=None)


def settings(cell: Cell) -> Any:
    """The method, configured and not trained yet: a hasher, or an agent's ``Args``.

    Raises:
        ValueError: for an unknown method or a number of bits that it refuses.
    """
    if cell.method in AGENTS:
        agent = importlib.import_module("agents.drlih")
        changes = AGENTS[cell.method]
        own = {"bits": cell.bits, "seed": cell.seed, **changes, **dict(cell.changes)}
        return dataclasses.replace(agent.PRESETS[changes["variant"]], **own)
    if cell.method not in hashgym.hashers.HASHERS:
        known = [*hashgym.hashers.available(), *AGENTS]
        close = closest(cell.method, known)
        raise ValueError(f"there is no method {cell.method!r}{close}: choose from {', '.join(known)}")
    return hashgym.hashers.make(cell.method, bits=cell.bits, seed=cell.seed, **dict(cell.changes))


def config(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """What decides a run's outcome besides its name: the method's settings, and a digest of data and splits."""
    configured = settings(cell)
    values = dataclasses.asdict(configured)
    for name in ("bits", "seed", "dataset", "out"):
        values.pop(name, None)
    if values.get("variant") not in ("gru", "lstm"):  # of no meaning to the others
        for name in ("value_weight", "entropy_weight"):
            values.pop(name, None)
    return {**values, "data": data_digest(dataset)}


def fit(
    cell: Cell, dataset: HashingDataset, *, out: Path | None = None, progress: bool = False
) -> tuple[Encoder, float]:
    """Train a method on the training split of a standardised dataset.

    Args:
        cell: which method, code length and seed.
        dataset: see :meth:`HashingDataset.standardized`.
        out: where an agent writes its checkpoint and TensorBoard files.
        progress: whether to show a progress bar, for methods that take long.

    Returns:
        A function from features (n, D) to codes, bool (n, bits), and the seconds that training took (no imports).
    """
    configured = settings(cell)
    start = time.perf_counter()
    if cell.method in AGENTS:
        policy = importlib.import_module("agents.drlih").train(dataset, configured, out=out, progress=progress)
        encode = functools.partial(hashgym.encode, policy, bits=cell.bits, group_bits=configured.group_bits)
    else:
        if hasattr(configured, "verbose"):
            configured.verbose = progress
        encode = configured.fit(dataset.features[dataset.train], dataset.labels[dataset.train]).encode
    return encode, time.perf_counter() - start


def measure(
    encode: Encoder, dataset: HashingDataset, precision_at: Sequence[int] = ()
) -> tuple[tuple[Codes, Codes], RetrievalResult]:
    """Search the database for every query: the codes of queries and database, and how well they did."""
    query, database = dataset.query, dataset.database
    codes = encode(np.asarray(dataset.features[query])), encode(np.asarray(dataset.features[database]))
    labels = dataset.labels[query], dataset.labels[database]
    return codes, evaluate(codes[0], labels[0], codes[1], labels[1], precision_at=precision_at)


def group_bits(cell: Cell) -> int | None:
    """How many bits an agent emits at a time; None for a hasher."""
    return settings(cell).group_bits if cell.method in AGENTS else None
