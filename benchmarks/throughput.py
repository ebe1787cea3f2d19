"""Speed of the environments and of training on them, as ratios within one run: ``python -m benchmarks.throughput``.

First steps per second, summed over environments: the native vector environments, the same through HashVecEnv, the torch
back end, and three ways to vectorise the scalar ones, Gymnasium's SyncVectorEnv and AsyncVectorEnv and
Stable-Baselines3's DummyVecEnv. The floor computes nothing and copies the arrays a step must return. Then PPO of
Stable-Baselines3 on HashVecEnv and on DummyVecEnv, with its default networks and with larger ones: frames per second,
and the share of time spent in the environment. PPO's own gradient steps cost both the same, so the ratio of training
tends to 1 with more epochs and larger networks; the ratio of rollouts alone is shown too, and an upper bound.

Actions are drawn before the clock starts, and lie on the torch back end's device. Whole episodes are measured, rounds
of the contestants alternate, and the median of each is shown, because the speed of a machine varies. 16,384
environments take minutes: ``--num-envs 16384 --ppo-num-envs 0``.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

import hashgym
import hashgym.hashers
from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.machine import load_average, peak_mb, revision
from benchmarks.common.results import Results, describe
from hashgym.checks import check_choice
from hashgym.console import Console, Table
from hashgym.data import load
from hashgym.device import resolve_device
from hashgym.integrations.sb3 import HashVecEnv
from hashgym.terminal import command_line, parse

Task = dict[str, Any]
Row = dict[str, Any]

# Stored rows have these names since the first version: `lanes` means num_envs.
KEY = ("env", "dataset", "measure", "contestant", "lanes", "network", "epochs")
COLUMNS = (*KEY, "value", "build_seconds", "build_mb", "versions", "version", "revision", "config")
STEPS = "lane-steps/s"  # the measure of steps per second, summed over environments, in stored rows
DEFAULT_ARCH = (64, 64)  # Stable-Baselines3's
CAPTION = """Gradient steps, and the policy's own work in a rollout, cost both sides the same. This bounds the ratio of
training: an environment that takes no time would give about 1 / (1 - DummyVecEnv's share in environment)."""


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Steps per second of the environments, and frames per second of PPO on them."""

    dataset: str = "digits"
    """dataset name or cache folder"""
    scenes: str = "digit-scenes"
    """the same for RegionKeep-v0 and MultiCodeHashing-v0: a dataset with regions"""
    envs: tuple[str, ...] = ("BitGroupHashing-v0", "RegionKeep-v0", "MultiCodeHashing-v0")
    """environments to measure"""
    num_envs: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--lanes"])] = (1, 64, 1024)
    """numbers of environments to measure"""
    bits: int = 24
    """code length"""
    group_bits: int = 12
    """group length"""
    reward: str = "triplet"
    """reward of BitGroupHashing-v0 by name"""
    region_bits: int = 32
    """code length of RegionKeep-v0 and MultiCodeHashing-v0"""
    rounds: int = 3
    """rounds of every contestant, in turn"""
    seconds: float = 0.2
    """length of a round, which is at least one episode"""
    device: str = "auto"
    """device of the torch back end of BitGroupHashing-v0: auto, cpu, cuda, ..."""
    async_num_envs: Annotated[int, tyro.conf.arg(aliases=["--async-lanes"])] = 64
    """most environments of AsyncVectorEnv, which starts a process for each"""
    ppo_num_envs: Annotated[int, tyro.conf.arg(aliases=["--ppo-lanes"])] = 256
    """number of environments of PPO; 0 skips it"""
    ppo_episodes: int = 4
    """episodes of every environment in a rollout"""
    ppo_batch: int = 2048
    """batch size of PPO"""
    ppo_epochs: tuple[int, ...] = (1, 10)
    """numbers of epochs of PPO to measure; Stable-Baselines3's default is 10"""
    ppo_rollouts: int = 4
    """rollouts of a round of PPO on HashVecEnv; DummyVecEnv makes one"""
    net_arch: tuple[int, ...] = (256, 256)
    """layers of PPO's networks, measured in addition to Stable-Baselines3's default of 64 x 64"""


@dataclass(frozen=True)
class Contestant:
    """A vector environment after its reset, and the time and memory of building it."""

    step: Callable[[Any], Any]
    close: Callable[[], Any]
    seconds: float
    mb: float
    device: torch.device | None = None
    """device of the actions, for tensors"""

    def convert(self, actions: list[Any]) -> list[Any]:
        """Return the actions in the form that ``step`` takes."""
        return actions if self.device is None else [torch.as_tensor(action, device=self.device) for action in actions]

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def steps_per_second(contestant: Contestant, actions: list[Any], horizon: int, seconds: float) -> float:
    """Step on the actions in turn, for whole episodes of ``horizon`` steps; return environments x steps / seconds."""
    given = contestant.convert(actions)
    contestant.wait()
    steps, start = 0, time.perf_counter()
    while True:
        for _ in range(horizon):
            contestant.step(given[steps % len(given)])
            steps += 1
        contestant.wait()
        if (elapsed := time.perf_counter() - start) >= seconds:
            return len(actions[0]) * steps / elapsed


def tasks(args: Args) -> dict[str, tuple[str, str, Task]]:
    """Return the environments by id: dataset, description and arguments of each."""
    digits, scenes = (load(name).standardized() for name in (args.dataset, args.scenes))
    base = hashgym.hashers.make("dch", bits=args.region_bits, hidden=64, updates=100)  # its codes need not be good
    base.fit(scenes.features[scenes.train], scenes.labels[scenes.train])
    groups: Task = {"bits": args.bits, "group_bits": min(args.group_bits, args.bits), "reward": args.reward}
    return {
        "BitGroupHashing-v0": (
            args.dataset,
            f"{args.bits} bits, k = {groups['group_bits']}, {args.reward}",
            {"dataset": digits, **groups},
        ),
        "RegionKeep-v0": (
            args.scenes,
            f"dch, {args.region_bits} bits, {len(scenes.train):,} training images",
            {"dataset": scenes, "base": base},
        ),
        "MultiCodeHashing-v0": (
            args.scenes,
            f"dch, {args.region_bits} bits at once with their credit, {len(scenes.train):,} training images",
            {"dataset": scenes, "base": base, "counterfactual": True},
        ),
    }


def build(make: Callable[[], Any]) -> Contestant:
    """Make and reset a vector environment of either library."""
    before, start = _resident_mb(), time.perf_counter()
    envs = make()
    if isinstance(envs, VecEnv):
        envs.seed(0)
        envs.reset()
    else:
        envs.reset(seed=0)
    device = getattr(envs.unwrapped, "device", None)
    contestant = Contestant(envs.step, envs.close, time.perf_counter() - start, _resident_mb() - before, device)
    contestant.wait()
    return contestant


def measure_steps(args: Args, name: str, task: Task, num_envs: int) -> list[Row]:
    """Return the rows of each contestant's median steps per second on an environment with ``num_envs``."""
    native = gym.make_vec(name, num_envs=num_envs, **task)
    native.action_space.seed(0)
    actions = [native.action_space.sample() for _ in range(8)]
    observation, _ = native.reset(seed=0)
    rewards, ended = np.zeros(num_envs), np.zeros(num_envs, np.bool_)

    def floor(_: Any) -> Any:
        return {key: part.copy() for key, part in observation.items()}, rewards.copy(), ended.copy(), ended.copy(), {}

    def scalar() -> Any:
        return gym.make(name, disable_env_checker=True, **task, **_shared(name))

    makers: dict[str, Callable[[], Any]] = {
        "native": lambda: gym.make_vec(name, num_envs=num_envs, **task),
        "HashVecEnv": lambda: HashVecEnv(gym.make_vec(name, num_envs=num_envs, **task)),
        "SyncVectorEnv": lambda: SyncVectorEnv([scalar] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP),
        "DummyVecEnv": lambda: DummyVecEnv([scalar] * num_envs),
    }
    if name == "BitGroupHashing-v0":
        device = resolve_device(args.device)
        makers[f"torch, {device}"] = lambda: gym.make_vec(name, num_envs, backend="torch", device=device, **task)
    if num_envs <= args.async_num_envs:
        makers["AsyncVectorEnv"] = lambda: AsyncVectorEnv([scalar] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    contestants = {"floor": Contestant(floor, lambda: None, 0.0, 0.0)}
    contestants |= {contestant: build(make) for contestant, make in makers.items()}
    horizon = _horizon(task)
    for key, contestant in contestants.items():
        if key in ("native", "HashVecEnv") or contestant.device:  # compiles; the others need no more than their reset
            steps_per_second(contestant, actions, horizon, 0)
    speeds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for _ in range(args.rounds):
        for key, contestant in contestants.items():
            speeds[key].append(steps_per_second(contestant, actions, horizon, args.seconds))
    for contestant in contestants.values():
        contestant.close()
    return [
        {
            "measure": STEPS,
            "contestant": key,
            "lanes": num_envs,
            "network": "",
            "epochs": "",
            "value": median(speeds[key]),
            "build_seconds": contestant.seconds,
            "build_mb": contestant.mb,
        }
        for key, contestant in contestants.items()
    ]


class Clock(VecEnvWrapper):
    """Counts the seconds spent in an environment's steps."""

    seconds = 0.0

    def reset(self) -> Any:
        """Reset."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Step, and add the seconds that it took."""
        start = time.perf_counter()
        result = self.venv.step_wait()
        self.seconds += time.perf_counter() - start
        return result


class TimedPPO(PPO):
    """PPO that counts the seconds spent in gradient steps."""

    seconds = 0.0

    def train(self) -> None:
        """Train on a rollout, and add the seconds that it took."""
        start = time.perf_counter()
        super().train()
        self.seconds += time.perf_counter() - start


def measure_ppo(args: Args, name: str, task: Task) -> list[Row]:
    """Return the rows of PPO on HashVecEnv and DummyVecEnv: frames per second, also of rollouts alone, and shares."""
    num_envs, n_steps = args.ppo_num_envs, args.ppo_episodes * _horizon(task)
    contestants: dict[str, tuple[Callable[[], VecEnv], int]] = {
        "HashVecEnv": (lambda: HashVecEnv(gym.make_vec(name, num_envs=num_envs, **task)), args.ppo_rollouts),
        "DummyVecEnv": (
            lambda: DummyVecEnv(
                [lambda: Monitor(gym.make(name, disable_env_checker=True, **task, **_shared(name)))] * num_envs
            ),
            1,
        ),
    }
    rows: list[Row] = []
    built = {key: (Clock(make()), rollouts) for key, (make, rollouts) in contestants.items()}
    for arch, epochs in itertools.product(dict.fromkeys((DEFAULT_ARCH, args.net_arch)), args.ppo_epochs):
        settings: Task = {"n_steps": n_steps, "batch_size": min(args.ppo_batch, num_envs * n_steps), "n_epochs": epochs}
        models = {
            key: TimedPPO(
                "MultiInputPolicy", envs, seed=0, device="cpu", policy_kwargs={"net_arch": list(arch)}, **settings
            )
            for key, (envs, _) in built.items()
        }
        measured: dict[tuple[str, str], list[float]] = {}
        for round_ in range(args.rounds + 1):
            for key, (envs, rollouts) in built.items():
                model, frames = models[key], num_envs * n_steps * (rollouts if round_ else 1)
                model.seconds = envs.seconds = 0.0
                start = time.perf_counter()
                model.learn(frames, reset_num_timesteps=round_ == 0)
                elapsed = time.perf_counter() - start
                if round_ == 0:  # warm-up
                    continue
                for measure, value in (
                    ("PPO frames/s", frames / elapsed),
                    ("PPO rollout frames/s", frames / (elapsed - model.seconds)),
                    ("PPO share in environment", envs.seconds / elapsed),
                    ("PPO share in gradient steps", model.seconds / elapsed),
                ):
                    measured.setdefault((measure, key), []).append(value)
        rows += [
            {
                "measure": measure,
                "contestant": key,
                "lanes": num_envs,
                "network": " x ".join(map(str, arch)),
                "epochs": epochs,
                "value": median(values),
                "build_seconds": "",
                "build_mb": "",
            }
            for (measure, key), values in measured.items()
        ]
    for envs, _ in built.values():
        envs.close()
    return rows


def steps_table(title: str, rows: Sequence[Row], async_num_envs: int) -> Table:
    """Return a table of steps per second, and their ratio to the two usual ways to vectorise."""
    table = Table(title=title)
    columns = ("num_envs", "contestant", "steps/s", "against Sync", "against Dummy", "built, s", "MB")
    for heading in columns:
        left = heading == "contestant"
        table.add_column(heading, justify="left" if left else "right", no_wrap=left)
    for num_envs in dict.fromkeys(row["lanes"] for row in rows):
        own = {row["contestant"]: row for row in rows if row["lanes"] == num_envs}
        for contestant, row in own.items():
            ratios = [f"{row['value'] / own[other]['value']:,.1f} x" for other in ("SyncVectorEnv", "DummyVecEnv")]
            built = f"{row['build_seconds']:.1f}", f"{row['build_mb']:,.0f}"
            table.add_row(f"{num_envs:,}", contestant, f"{row['value']:,.0f}", *ratios, *built)
        if num_envs > async_num_envs:
            table.add_row(f"{num_envs:,}", "AsyncVectorEnv", f"not run: {num_envs:,} processes")
        table.add_section()
    return table


def ppo_table(title: str, rows: Sequence[Row]) -> Table:
    """Return a table of PPO's frames per second, shares of its time, and an upper bound of the ratio."""
    table = Table(title=title, caption=" ".join(CAPTION.split()))
    for heading in ("network", "epochs", "measure", "HashVecEnv", "DummyVecEnv", "ratio"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for setting in dict.fromkeys((row["network"], row["epochs"]) for row in rows):
        named = setting[0], str(setting[1])
        own = {(r["measure"], r["contestant"]): r["value"] for r in rows if (r["network"], r["epochs"]) == setting}
        for measure in dict.fromkeys(measure for measure, _ in own):
            native, dummy = own[measure, "HashVecEnv"], own[measure, "DummyVecEnv"]
            share = "share" in measure
            cells = [f"{value:.1%}" if share else f"{value:,.0f}" for value in (native, dummy)]
            cells += ["" if share else f"{native / dummy:.1f} x"]
            table.add_row(*named, measure.removeprefix("PPO ").removeprefix("share "), *cells)
        bound = 1 / (1 - own["PPO share in environment", "DummyVecEnv"])
        table.add_row(*named, "at most, about", "", "", f"{bound:.1f} x")
        table.add_section()
    return table


def main(args: Args) -> list[Row]:
    """Measure every environment, print its tables, and add the rows to the file."""
    console, load = Console(), f"{load_average():.1f}"
    resolve_device(args.device)  # raises for an unknown device before work starts
    for name in args.envs:
        check_choice("envs", name, tasks(args))
    versions = {
        "gymnasium": gym.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    console.print(
        f"hashgym {hashgym.__version__} {revision()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch, load {load}"
    )
    every: list[Row] = []
    for name, (dataset, description, task) in tasks(args).items():
        if name not in args.envs:
            continue
        rows = [row for num_envs in args.num_envs for row in measure_steps(args, name, task, num_envs)]
        if rows:
            console.print(steps_table(f"{name}, {dataset}, {description}", rows, args.async_num_envs))
        if args.ppo_num_envs:
            ppo = measure_ppo(args, name, task)
            console.print(ppo_table(f"PPO on {name}, {args.ppo_num_envs} environments", ppo))
            rows += ppo
        every += [
            {
                "env": name,
                "dataset": dataset,
                **row,
                "versions": json.dumps(versions),
                "version": hashgym.__version__,
                "revision": revision(),
                "config": describe({**asdict(args), "out": None, "threads": torch.get_num_threads(), "load": load}),
            }
            for row in rows
        ]
    console.print(f"peak memory of this process {peak_mb():,.0f} MB")
    if args.out is not None:
        results = Results(args.out, COLUMNS, KEY, "throughput.csv")
        results.append(*every)
        console.print(f"{len(every)} rows in {results.path}")
    return every


def _shared(name: str) -> Task:
    """Return arguments with which scalar environments share codes, as the native vector environment does."""
    return {"codebook": "shared"} if name == "BitGroupHashing-v0" else {}


def _horizon(task: Task) -> int:
    """Steps of an episode."""
    return -(-task["bits"] // task["group_bits"]) if "group_bits" in task else task.get("regions_per_episode", 1)


def _resident_mb() -> float:
    """Memory of this process now, in MB (10^6 bytes); NaN where unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.throughput"))
