"""Effect of one codebook per environment on mAP: ``python -m benchmarks.codebook``.

PPO of Stable-Baselines3 learns BitGroupHashing-v0 with equal settings and steps in 64 environments, made by

- ``make_vec_env`` with ``codebook="own"``: each scalar environment writes and reads its own codes;
- ``make_vec_env`` with ``codebook="shared"``: all of them write and read the same codes;
- ``HashVecEnv``: one native vector environment.

The table shows the mean average precision of the queries' codes, by seed. With ``codebook="own"``, the result of
ordinary vectorisation, each codebook gets one in 64 of the updates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import hashgym
from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.results import publish
from hashgym import data
from hashgym.console import Table
from hashgym.data import HashingDataset
from hashgym.integrations.sb3 import HashVecEnv
from hashgym.retrieval import evaluate
from hashgym.terminal import command_line, parse

__all__ = ["Args", "main", "mean_average_precision"]

ENV = "BitGroupHashing-v0"
KEY = ("dataset", "environments", "seed")
PPO_SETTINGS: dict[str, Any] = {"n_steps": 8, "batch_size": 512, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 1.0}


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """mAP of PPO by the way its environments are vectorised and share codes."""

    dataset: str = "digits"
    """an embedded dataset or a folder made by `hashgym features`"""
    bits: int = 24
    """length of the code"""
    num_envs: int = 64
    """number of environments"""
    steps: int = 100_000
    """steps of all environments together"""
    seeds: int = 3
    """runs of each kind"""


def mean_average_precision(envs: Any, dataset: HashingDataset, bits: int, steps: int, seed: int) -> float:
    """Train PPO on ``envs`` and return the mAP of the query codes against the database codes."""
    model = PPO("MultiInputPolicy", envs, seed=seed, device="cpu", **PPO_SETTINGS)
    model.learn(steps)
    codes = hashgym.encode(model, dataset.features, bits=bits, group_bits=min(12, bits))
    query, database, labels = dataset.query, dataset.database, dataset.labels
    return evaluate(codes[query], labels[query], codes[database], labels[database]).map


def measure(args: Args) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train each kind with each seed; return the rows, and the seconds of a run by kind."""
    dataset = data.load(args.dataset).standardized()
    task: dict[str, Any] = {"dataset": dataset, "bits": args.bits}
    kinds: dict[str, Callable[[], Any]] = {
        f"make_vec_env, codebook={codebook!r}": lambda codebook=codebook: make_vec_env(  # type: ignore[misc]
            ENV, args.num_envs, env_kwargs=task | {"codebook": codebook}
        )
        for codebook in ("own", "shared")
    }
    kinds["HashVecEnv"] = lambda: HashVecEnv(gym.make_vec(ENV, num_envs=args.num_envs, **task))
    rows, seconds = [], {}
    for kind, make in kinds.items():
        start = time.perf_counter()
        for seed in range(args.seeds):
            score = mean_average_precision(make(), dataset, args.bits, args.steps, seed)
            rows.append({"dataset": dataset.name, "environments": kind, "seed": seed, "map": score})
        seconds[kind] = (time.perf_counter() - start) / args.seeds
    return rows, seconds


def table(rows: list[dict[str, Any]], seconds: dict[str, float], args: Args) -> Table:
    """Return a table of mAP by kind and seed."""
    title = f"{args.num_envs} environments on {args.dataset}, {args.bits} bits, {args.steps:,} steps"
    shown = Table("environments", "mAP", *(f"seed {seed}" for seed in range(args.seeds)), "seconds a run", title=title)
    for kind in seconds:
        scores = [row["map"] for row in rows if row["environments"] == kind]
        shown.add_row(kind, f"{mean(scores):.3f}", *(f"{score:.3f}" for score in scores), f"{seconds[kind]:.0f}")
    return shown


def main(args: Args) -> list[dict[str, Any]]:
    """Train, print the table, and add the rows to codebook.csv."""
    rows, seconds = measure(args)
    config = {"bits": args.bits, "num_envs": args.num_envs, "steps": args.steps, "ppo": PPO_SETTINGS}
    publish(rows, table(rows, seconds, args), args.out, "codebook.csv", KEY, config)
    return rows


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.codebook"))
