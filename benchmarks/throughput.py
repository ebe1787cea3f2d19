"""How fast the native vector environments step, as ratios in one run: ``python -m benchmarks.throughput``.

Against two alternatives at the same number of lanes: Gymnasium's SyncVectorEnv of the scalar environment, and the
floor, which computes nothing and copies the arrays a step must return. Actions are drawn before the clock starts.
Rounds of the contestants alternate, and the median of each is shown, because machines have moods.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table

import hashgym
import hashgym.hashers
from hashgym.data import load

Task = dict[str, Any]


@dataclass(frozen=True)
class Args:
    """Lane-steps per second of BitGroupHashing-v0 and RegionKeep-v0."""

    dataset: str = "digits"
    """dataset name or cache folder"""
    scenes: str = "digit-scenes"
    """the same for RegionKeep-v0: a dataset with regions"""
    lanes: tuple[int, ...] = (64, 1024)
    """numbers of lanes to measure"""
    bits: int = 24
    """code length"""
    group_bits: int = 12
    """group length"""
    reward: str = "triplet"
    """reward of BitGroupHashing-v0 by name"""
    region_bits: int = 32
    """code length of RegionKeep-v0"""
    rounds: int = 5
    """rounds of every contestant, taken in turn"""
    steps: int = 100
    """steps of a native round; SyncVectorEnv makes a tenth of them"""


def lane_steps_per_second(step: Callable[[Any], Any], actions: list[Any], lanes: int, steps: int) -> float:
    """Run ``step`` on the actions in turn and return lanes x steps / seconds."""
    start = time.perf_counter()
    for i in range(steps):
        step(actions[i % len(actions)])
    return lanes * steps / (time.perf_counter() - start)


def tasks(args: Args) -> dict[str, tuple[str, Task]]:
    """The environments: in words, and their arguments."""
    digits, scenes = (load(name).standardized() for name in (args.dataset, args.scenes))
    base = hashgym.hashers.make("dch", bits=args.region_bits, hidden=64, updates=100)  # its codes need not be good
    base.fit(scenes.features[scenes.train], scenes.labels[scenes.train])
    groups: Task = {"bits": args.bits, "group_bits": args.group_bits, "reward": args.reward}
    return {
        "BitGroupHashing-v0": (
            f"{args.dataset}, {args.bits} bits, k = {args.group_bits}, {args.reward}",
            {"dataset": digits, **groups},
        ),
        "RegionKeep-v0": (
            f"{args.scenes}, dch, {args.region_bits} bits, {len(scenes.train):,} training images",
            {"dataset": scenes, "base": base},
        ),
    }


def measure(args: Args, name: str, task: Task, lanes: int) -> dict[str, float]:
    """Median lane-steps per second of each contestant in one environment at one number of lanes."""
    native = gym.make_vec(name, num_envs=lanes, **task)
    sync = SyncVectorEnv(
        [lambda: gym.make(name, disable_env_checker=True, **task)] * lanes, autoreset_mode=AutoresetMode.SAME_STEP
    )
    observation, _ = native.reset(seed=0)
    sync.reset(seed=0)
    native.action_space.seed(0)
    actions = [native.action_space.sample() for _ in range(8)]
    rewards, ended = np.zeros(lanes), np.zeros(lanes, np.bool_)

    def floor(_: Any) -> Any:
        return {key: part.copy() for key, part in observation.items()}, rewards.copy(), ended.copy(), ended.copy(), {}

    few = max(2, args.steps // 10)
    contestants = {
        "floor (copies only)": (floor, args.steps),
        "native": (native.step, args.steps),
        "SyncVectorEnv": (sync.step, few),
    }
    for step, _ in contestants.values():
        lane_steps_per_second(step, actions, lanes, 2)  # warm up
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, (step, steps) in contestants.items():
            speeds[name].append(lane_steps_per_second(step, actions, lanes, steps))
    native.close()
    sync.close()
    return {name: median(rounds) for name, rounds in speeds.items()}


def main(args: Args) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Measure every environment at every number of lanes and print a table of each."""
    results = {}
    for name, (words, task) in tasks(args).items():
        versions = f"hashgym {hashgym.__version__}, gymnasium {gym.__version__}, numpy {np.__version__}"
        table = Table(title=f"{name}, {words} ({versions})")
        for heading in ("lanes", "contestant", "lane-steps/s", "against SyncVectorEnv", "against the floor"):
            table.add_column(heading, justify="left" if heading == "contestant" else "right")
        results[name] = [(lanes, measure(args, name, task, lanes)) for lanes in args.lanes]
        for lanes, speeds in results[name]:
            for contestant, speed in speeds.items():
                sync, floor = speeds["SyncVectorEnv"], speeds["floor (copies only)"]
                ratios = f"{speed / sync:,.1f} x", f"{speed / floor:.4f} x"
                table.add_row(str(lanes), contestant, f"{speed:,.0f}", *ratios)
            table.add_section()
        Console().print(table)
    return results


if __name__ == "__main__":
    main(tyro.cli(Args))
