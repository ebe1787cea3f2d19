"""What a codebook of each environment's own costs: ``python -m benchmarks.codebook``.

PPO of Stable-Baselines3 learns BitGroupHashing-v0 with equal settings and steps from 64 images at once, which come from

- ``make_vec_env`` with ``codebook="own"``: each scalar environment writes and reads codes that no other knows;
- ``make_vec_env`` with ``codebook="shared"``: all of them write and read the same codes;
- ``HashVecEnv``: one native vector environment.

Shown is the mean average precision of the queries' codes, by seed. Ordinary vectorisation of scalar environments with
codebooks of their own is what a user gets who does not know: each codebook gets one in 64 of the updates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import hashgym
from benchmarks.results import add_rows
from hashgym import data
from hashgym.console import Console, Table
from hashgym.data import HashingDataset
from hashgym.integrations.sb3 import HashVecEnv
from hashgym.retrieval import evaluate
from hashgym.terminal import command_line, parse

__all__ = ["Args", "main", "mean_average_precision"]

ENV = "BitGroupHashing-v0"
PPO_SETTINGS: dict[str, Any] = {"n_steps": 8, "batch_size": 512, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 1.0}


@dataclass(frozen=True)
class Args:
    """Settings."""

    dataset: str = "digits"
    """an embedded dataset or a folder made by `hashgym features`"""
    bits: int = 24
    """length of the code"""
    num_envs: int = 64
    """images at once"""
    steps: int = 100_000
    """environment steps, summed over all images"""
    seeds: int = 3
    """runs of each kind"""
    out: Path | None = None
    """folder to add the rows to, in codebook.csv"""


def mean_average_precision(envs: Any, dataset: HashingDataset, bits: int, steps: int, seed: int) -> float:
    """Train PPO on ``envs`` and return the mAP of the query codes against the database codes."""
    model = PPO("MultiInputPolicy", envs, seed=seed, device="cpu", **PPO_SETTINGS)
    model.learn(steps)
    codes = hashgym.encode(model, dataset.features, bits=bits, group_bits=min(12, bits))
    query, database, labels = dataset.query, dataset.database, dataset.labels
    return evaluate(codes[query], labels[query], codes[database], labels[database]).map


def main(args: Args) -> dict[str, list[float]]:
    """Train each kind with each seed, print a table, and return the mAPs by kind."""
    dataset = data.load(args.dataset).standardized()
    task: dict[str, Any] = {"dataset": dataset, "bits": args.bits}
    kinds: dict[str, Callable[[], Any]] = {
        f"make_vec_env, codebook={codebook!r}": lambda codebook=codebook: make_vec_env(  # type: ignore[misc]
            ENV, args.num_envs, env_kwargs=task | {"codebook": codebook}
        )
        for codebook in ("own", "shared")
    }
    kinds["HashVecEnv"] = lambda: HashVecEnv(gym.make_vec(ENV, num_envs=args.num_envs, **task))
    found: dict[str, list[float]] = {}
    table = Table("environments", "mAP", *(f"seed {seed}" for seed in range(args.seeds)), "seconds a run")
    for kind, make in kinds.items():
        began = time.perf_counter()
        found[kind] = [
            mean_average_precision(make(), dataset, args.bits, args.steps, seed) for seed in range(args.seeds)
        ]
        seconds = (time.perf_counter() - began) / args.seeds
        table.add_row(kind, f"{mean(found[kind]):.3f}", *(f"{map_:.3f}" for map_ in found[kind]), f"{seconds:.0f}")
    Console().print(f"{args.num_envs} environments on {dataset.name}, {args.bits} bits, {args.steps:,} steps")
    Console().print(table)
    rows = [
        {"dataset": dataset.name, "environments": kind, "seed": seed, "map": map_}
        for kind, maps in found.items()
        for seed, map_ in enumerate(maps)
    ]
    config = {"bits": args.bits, "num_envs": args.num_envs, "steps": args.steps, "ppo": PPO_SETTINGS}
    add_rows(args.out, "codebook.csv", ("dataset", "environments", "seed"), rows, config)
    return found


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.codebook"))
