"""How fast the native vector environment steps, as ratios in one run: ``python -m benchmarks.throughput``.

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
from hashgym.data import load


@dataclass(frozen=True)
class Args:
    """Lane-steps per second of BitGroupHashing-v0."""

    dataset: str = "digits"
    """dataset name or cache folder"""
    lanes: tuple[int, ...] = (64, 1024)
    """numbers of lanes to measure"""
    bits: int = 24
    """code length"""
    group_bits: int = 12
    """group length"""
    reward: str = "triplet"
    """reward by name"""
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


def measure(args: Args, lanes: int) -> dict[str, float]:
    """Median lane-steps per second of each contestant at one number of lanes."""
    task: dict[str, Any] = {"bits": args.bits, "group_bits": args.group_bits, "reward": args.reward}
    dataset = load(args.dataset).standardized()
    native = gym.make_vec("BitGroupHashing-v0", num_envs=lanes, dataset=dataset, **task)
    sync = SyncVectorEnv(
        [lambda: gym.make("BitGroupHashing-v0", dataset=dataset, disable_env_checker=True, **task)] * lanes,
        autoreset_mode=AutoresetMode.SAME_STEP,
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


def main(args: Args) -> list[tuple[int, dict[str, float]]]:
    """Measure at every number of lanes and print the table."""
    table = Table(
        title=f"BitGroupHashing-v0, {args.dataset}, {args.bits} bits, k = {args.group_bits}, {args.reward} "
        f"(hashgym {hashgym.__version__}, gymnasium {gym.__version__}, numpy {np.__version__})"
    )
    for heading in ("lanes", "contestant", "lane-steps/s", "against SyncVectorEnv", "against the floor"):
        table.add_column(heading, justify="left" if heading == "contestant" else "right")
    results = [(lanes, measure(args, lanes)) for lanes in args.lanes]
    for lanes, speeds in results:
        for name, speed in speeds.items():
            sync, floor = speeds["SyncVectorEnv"], speeds["floor (copies only)"]
            table.add_row(str(lanes), name, f"{speed:,.0f}", f"{speed / sync:,.1f} x", f"{speed / floor:.4f} x")
        table.add_section()
    Console().print(table)
    return results


if __name__ == "__main__":
    main(tyro.cli(Args))
