"""Methods by name, hashers and agents: configure, fit and measure them."""

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
from benchmarks.common.arguments import Split
from benchmarks.common.cells import data_digest
from benchmarks.common.machine import import_optimizers
from hashgym.checks import closest
from hashgym.data import HashingDataset
from hashgym.envs.bit_group_hashing import DEFAULT_GROUP_BITS
from hashgym.retrieval import RetrievalResult, evaluate
from hashgym.retrieval.metrics import check_labels

__all__ = [
    "AGENTS",
    "HASHERS",
    "NESTED",
    "Cell",
    "DataCell",
    "config",
    "encode_both",
    "fit",
    "group_bits",
    "load",
    "measure",
    "reward_variants",
    "search",
    "settings",
    "settings_of",
    "unused_settings",
]

Bits = NDArray[np.bool_]
Encoder = Callable[[NDArray[np.float32]], Bits]

# Settings of agents.drlih by method; every other name is a hasher's. Agents learn from all training images, as hashers
# do. The paper's cell runs bit by bit, at many times the cost of an update, so its batches are smaller and its updates
# fewer: a run takes about two minutes. Settings other than the variant's defaults were chosen on held-out training
# images.
_ALL: Mapping[str, Any] = {"holdout": 0.0}
_BIT_BY_BIT: Mapping[str, Any] = {"holdout": 0.0, "num_envs": 64, "updates": 1200}
AGENTS: Mapping[str, Mapping[str, Any]] = {
    "drlih": {"variant": "hashgym", **_ALL},
    "drlih-norec": {"variant": "norec", **_ALL},
    "drlih-paper": {"variant": "paper", "input_dropout": 0.0, "dropout": 0.0, **_BIT_BY_BIT},
    "drlih-released": {"variant": "released", "input_dropout": 0.2, **_BIT_BY_BIT},
    "drlih-gru": {"variant": "gru", **_ALL},
    "drlih-lstm": {"variant": "lstm", **_ALL},
    "ng": {"variant": "hashgym", "group_bits": 1, **_ALL},  # Table II's Baseline_ng: no action groups
    # drlih-norec by another reward and with normalised logits, which learns as much in a quarter of the time.
    "drlih-nca": {"variant": "norec", "reward": "nca", "logit_scale": 3.0, "updates": 1500, "num_envs": 128, **_ALL},
    "nested": {"variant": "nested", **_ALL},
    "nested-norec": {"variant": "nested-norec", **_ALL},
    # The same by average precision, which suits images with several labels; it needs more updates, of more images.
    "nested-ap": {
        "variant": "nested-norec",
        **{"reward": "average_precision", "logit_scale": 0.0, "updates": 3000, "num_envs": 256},
        **_ALL,
    },
}

# Hashers by another name than their own, with settings of their own.
HASHERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    f"{name}-nested": (name, {"nested": DEFAULT_GROUP_BITS}) for name in ("noseq", "orthohash")
}
NESTED: Mapping[str, str] = {
    **{"nested": "drlih", "nested-norec": "drlih-nca", "nested-ap": "drlih-norec"},
    **{method: name for method, (name, _) in HASHERS.items()},
}
"""Methods that are trained once, at the greatest length, for all of them; each with its like for one length."""


def reward_variants() -> list[str]:
    """Variants of agents.drlih that learn from any reward."""
    from agents import drlih

    return [name for name, variant in drlih.VARIANTS.items() if variant.reward is not drlih.triplet_reward]


BACKBONE = ("augment", "backbone", "backbone_learning_rate", "backbone_weights", "head_updates")
"""Settings of a backbone that is trained, which have no effect on feature vectors."""


def unused_settings(variant: str) -> tuple[str, ...]:
    """Settings that have no effect on a variant of agents.drlih, and are left out of the configuration of its rows."""
    from agents import drlih

    has_critic = issubclass(drlih.VARIANTS[variant].network, drlih.FusedGRU)
    return () if has_critic else ("value_weight", "entropy_weight")


@dataclass(frozen=True)
class DataCell(Split):
    """One run on the features of a folder or an embedded dataset."""

    features: str

    def load(self) -> HashingDataset:
        """Its dataset; see :func:`load`."""
        return load(self.features, split=self.split, queries=self.queries, train=self.train)


@dataclass(frozen=True)
class Cell(DataCell):
    """One run of a method."""

    method: str
    bits: int
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()
    """settings that differ from the method's defaults, by name"""
    curves: bool = False
    """measure curves and, for seed 0, keep the results of some searches as examples"""
    prefixes: tuple[int, ...] = ()
    """lengths at which the codes are measured, each with a row of its own, of a method of NESTED; else empty"""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The code lengths of its rows."""
        return self.prefixes or (self.bits,)

    def __str__(self) -> str:
        return f"{self.method} {self.bits} bits seed {self.seed}"


def load(features: str, **split: Any) -> HashingDataset:
    """A dataset by name or folder, without its regions, which take most of the memory.

    Args:
        features: the name or folder.
        **split: ``split``, ``queries`` and ``train`` of :func:`hashgym.data.load`, instead of its own.

    Raises:
        ValueError: for data that cannot be read, or labels with which all codes have the same score.
    """
    dataset = hashgym.data.load(features, **split)
    check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    return dataclasses.replace(dataset, regions=None, train_regions=None, boxes=None, train_boxes=None)


def settings(cell: Cell) -> Any:
    """The configured, untrained method: a hasher, or an agent's ``Args``.

    Raises:
        ValueError: for an unknown method, or a number of bits that it does not support.
    """
    if cell.method in AGENTS:
        agent = importlib.import_module("agents.drlih")
        changes = AGENTS[cell.method]
        own = {"bits": cell.bits, "seed": cell.seed, **changes, **dict(cell.changes)}
        return dataclasses.replace(agent.PRESETS[changes["variant"]], **own)
    name, nested = HASHERS.get(cell.method, (cell.method, {}))
    if name not in hashgym.hashers.HASHERS:
        known = [*hashgym.hashers.available(), *HASHERS, *AGENTS]
        close = closest(cell.method, known)
        raise ValueError(f"there is no method {cell.method!r}{close}: choose from {', '.join(known)}")
    return hashgym.hashers.make(name, bits=cell.bits, seed=cell.seed, **{**nested, **dict(cell.changes)})


def settings_of(configured: Any, dataset: HashingDataset) -> dict[str, Any]:
    """The settings by name of a hasher, or of an agent's ``Args``.

    Settings that rows of earlier versions do not have are left out where they make no difference: those of a backbone
    where there is none, logits that are not normalised, prefixes that are not trained, a codebook that is whole, and
    codes without dropout.
    """
    values = configured.get_params() if hasattr(configured, "get_params") else dataclasses.asdict(configured)
    for name in ("logit_scale", "nested", "codebook_sample", "code_dropout"):
        if not values.get(name, True):
            del values[name]
    return {name: value for name, value in values.items() if dataset.has_maps or name not in BACKBONE}


def config(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """Settings that decide a run's outcome besides its key: those of the method, and a digest of data and splits."""
    configured = settings(cell)
    values = settings_of(configured, dataset)
    ignored = unused_settings(configured.variant) if cell.method in AGENTS else ()
    for name in ("bits", "seed", "dataset", "out", *ignored):
        values.pop(name, None)
    if cell.prefixes:
        values["trained_bits"] = cell.bits
    return {**values, "data": data_digest(dataset)}


def fit(
    cell: Cell, dataset: HashingDataset, *, out: Path | None = None, progress: bool = False
) -> tuple[Encoder, float]:
    """Train a method on the training split of a standardised dataset.

    Args:
        cell: method, code length and seed.
        dataset: see :meth:`HashingDataset.standardized`.
        out: folder for an agent's checkpoint and TensorBoard files.
        progress: show a progress bar, for methods that take long.

    Returns:
        A function from features (n, D) to codes, bool (n, bits), and the seconds of training (without imports).
    """
    configured = settings(cell)
    if hasattr(configured, "updates"):
        import_optimizers()
    encode: Encoder
    start = time.perf_counter()
    if cell.method in AGENTS:
        policy = importlib.import_module("agents.drlih").train(dataset, configured, out=out, progress=progress)
        encode = functools.partial(hashgym.encode, policy, bits=cell.bits, group_bits=configured.group_bits)
    else:
        if hasattr(configured, "verbose"):
            configured.verbose = progress
        encode = hashgym.hashers.fitted(configured, dataset).encode
    return encode, time.perf_counter() - start


def measure(
    encode: Encoder, dataset: HashingDataset, precision_at: Sequence[int] = ()
) -> tuple[tuple[Bits, Bits], RetrievalResult]:
    """Encode queries and database, search the database for every query; return both codes and the metrics."""
    codes = encode_both(encode, dataset)
    return codes, search(*codes, dataset, precision_at)


def encode_both(encode: Encoder, dataset: HashingDataset) -> tuple[Bits, Bits]:
    """Return the codes of the queries and of the database."""
    query, database = dataset.query, dataset.database
    if dataset.has_maps:  # encoded from the file, which may be larger than the memory
        whole = encode(dataset.features)
        return whole[query], whole[database]
    return encode(np.asarray(dataset.features[query])), encode(np.asarray(dataset.features[database]))


def search(query: Bits, database: Bits, dataset: HashingDataset, precision_at: Sequence[int] = ()) -> RetrievalResult:
    """Search the database for every query; return the metrics."""
    labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
    return evaluate(query, labels[0], database, labels[1], precision_at=precision_at)


def group_bits(cell: Cell) -> int | None:
    """Bits that an agent emits in one step; None for a hasher."""
    return settings(cell).group_bits if cell.method in AGENTS else None
