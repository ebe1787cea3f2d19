"""The command ``hashgym train``: train an agent, or fit a hasher, and measure its codes.

Agents are in the folder ``agents`` of a checkout, which is installed as ``hashgym.agents``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from hashgym.checks import closest
from hashgym.optional import find_agent
from hashgym.terminal import arguments

__all__ = ["AGENTS", "HASHER", "Fitting", "fit", "read"]

H = TypeVar("H")

AGENTS = ("drlih", "mch", "multicode", "sb3")
HASHER = "hasher.npz"  # file name of a fitted hasher in its folder


@dataclass(frozen=True)
class Fitting(Generic[H]):
    """Fit a hasher to the training images of a dataset and measure its codes."""

    hasher: tyro.conf.OmitArgPrefixes[H]
    dataset: str = "digits"
    """name of an embedded dataset, or a folder made by `hashgym features`"""
    similarity: str | None = None
    """what to learn from instead of labels: `neighbours`, or a CSV file of similar training images, name,name"""
    out: Path | None = None
    """folder to write the hasher (hasher.npz) and an encoder of its features (policy.onnx) to"""


def read(words: Sequence[str]) -> Callable[[], Any]:
    """Read the words after ``hashgym train``, or print help and exit.

    Returns:
        The job, a function that trains and measures.

    Raises:
        ValueError: for a name that is neither an agent nor a hasher, or an argument that the agent rejects.
        SystemExit: with 2 for arguments that cannot be read, 0 after help.
    """
    from hashgym.hashers import available
    from hashgym.hashers.registry import HASHERS

    name, *rest = words
    if name.startswith("-"):
        raise ValueError(f"got {name} before the agent or hasher: write `hashgym train NAME {name} ...`")
    if name in AGENTS:
        agent = find_agent(name)
        return functools.partial(agent.main, agent.command(rest, prog=f"hashgym train {name}"))
    if name not in HASHERS:
        known = [*AGENTS, *available()]
        raise ValueError(f"unknown agent or hasher {name!r}{closest(name, known)}: choose one of {', '.join(known)}")
    job: Any = Fitting[HASHERS.find(name)]  # type: ignore[misc]  # hashers are dataclasses: their settings are options
    with arguments(rest):
        return functools.partial(fit, tyro.cli(job, prog=f"hashgym train {name}", args=rest))


def fit(job: Fitting[Any]) -> Any:
    """Fit a hasher, write it and an encoder of its features, and print the retrieval metrics.

    Returns:
        The :class:`hashgym.retrieval.RetrievalResult`; None for a dataset without labels.

    Raises:
        ValueError: for a dataset that the hasher cannot learn from, and a folder that holds something else.
    """
    from hashgym import console, data, hashers
    from hashgym.data.dataset import LABEL_FREE
    from hashgym.encoders.build import write_hasher
    from hashgym.retrieval import check_labels, evaluate
    from hashgym.storage import owned

    dataset = data.load(job.dataset).standardized()
    if dataset.has_labels:
        check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    elif job.hasher.supervised and job.similarity is None:
        raise data.DataError(
            f"{dataset.name} has no labels to learn from: give --similarity neighbours, or the hasher {LABEL_FREE}"
        )
    learning = dataset if job.similarity is None else dataset.with_similarity(job.similarity)
    if job.out is None:
        console.warn("the hasher is not saved: give --out to save it")
    else:
        if (job.out / HASHER).exists():
            raise ValueError(f"{job.out} has a hasher already: choose another --out")
        owned.create(job.out)
    start_time = time.perf_counter()
    hasher = hashers.fitted(job.hasher, learning)
    seconds = time.perf_counter() - start_time
    if job.out is not None:
        hasher.save(job.out / HASHER)
        try:
            write_hasher(job.out / "policy.onnx", hasher, learning)
        except (ImportError, ValueError) as error:  # ONNX is missing, or has no form of the hasher
            console.warn(f"{job.out / 'policy.onnx'} is not written: {error}")
    query, database = dataset.query, dataset.database
    if not dataset.has_labels:
        console.say(
            f"{hasher.bits} bits on {dataset.name}, fitted in {seconds:.1f} s; without labels they are not measured"
        )
        return None
    codes = hasher.encode(dataset.features)
    result = evaluate(codes[query], dataset.labels[query], codes[database], dataset.labels[database])
    console.say(
        f"{hasher.bits} bits on {dataset.name}: mAP {result.map:.4f} (ties {result.map_pessimistic:.4f} to "
        f"{result.map_optimistic:.4f}), precision within radius 2 {result.precision_within:.4f}, fitted in "
        f"{seconds:.1f} s"
    )
    return result
