"""How fast the environments step and agents train on them, as ratios in one run: ``python -m benchmarks.throughput``.

First lane-steps per second: the native vector environments, the same through HashVecEnv, the torch back end, and three
ways to vectorise the scalar ones, Gymnasium's SyncVectorEnv and AsyncVectorEnv and Stable-Baselines3's DummyVecEnv. The
floor computes nothing and copies the arrays a step must return. Then PPO of Stable-Baselines3 on HashVecEnv and on
DummyVecEnv, with its default networks and with larger ones: frames per second, and the share of time spent in the
environment. PPO's own gradient steps cost both the same, so the ratio of training tends to 1 with more epochs and
larger networks; that of rollouts alone is shown beside it, and the most an environment that takes no time could give.

Actions are drawn before the clock starts, and lie on the torch back end's device. Whole episodes are measured, rounds
of the contestants alternate, and the median of each is shown, because machines have moods. 16,384 lanes take minutes:
``--lanes 16384 --ppo-lanes 0``.
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
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

import hashgym
import hashgym.hashers
from benchmarks.results import Results, describe, peak_mb, revision
from hashgym.console import Console, Table
from hashgym.data import load
from hashgym.device import resolve_device
from hashgym.integrations.sb3 import HashVecEnv
from hashgym.terminal import command_line, parse

Task = dict[str, Any]
Row = dict[str, Any]

KEY = ("env", "dataset", "measure", "contestant", "lanes", "network", "epochs")
COLUMNS = (*KEY, "value", "build_seconds", "build_mb", "versions", "version", "revision", "config")
DEFAULT_ARCH = (64, 64)  # Stable-Baselines3's
CAPTION = """Gradient steps, and the policy's own work in a rollout, cost both sides the same. This bounds the ratio of
training: an environment that takes no time would give about 1 / (1 - DummyVecEnv's share in environment)."""


@dataclass(frozen=True)
class Args:
    """Lane-steps per second of BitGroupHashing-v0 and RegionKeep-v0, and frames per second of PPO on them."""

    dataset: str = "digits"
    """dataset name or cache folder"""
    scenes: str = "digit-scenes"
    """the same for RegionKeep-v0: a dataset with regions"""
    lanes: tuple[int, ...] = (1, 64, 1024)
    """numbers of lanes to measure"""
    bits: int = 24
    """code length"""
    group_bits: int = 12
    """group length"""
    reward: str = "triplet"
    """reward of BitGroupHashing-v0 by name"""
    region_bits: int = 32
    """code length of RegionKeep-v0"""
    rounds: int = 3
    """rounds of every contestant, taken in turn"""
    seconds: float = 0.2
    """length of a round, which is at least one episode"""
    device: str = "auto"
    """where the torch back end of BitGroupHashing-v0 keeps its tensors: auto, cpu, cuda, ..."""
    async_lanes: int = 64
    """most lanes of AsyncVectorEnv, which starts a process for each"""
    ppo_lanes: int = 256
    """lanes of PPO; 0 leaves it out"""
    ppo_episodes: int = 4
    """episodes of every lane in a rollout"""
    ppo_batch: int = 2048
    """batch size of PPO"""
    ppo_epochs: tuple[int, ...] = (1, 10)
    """numbers of epochs of PPO to measure; Stable-Baselines3's default is 10"""
    ppo_rollouts: int = 4
    """rollouts of a round of PPO on HashVecEnv; DummyVecEnv makes one"""
    net_arch: tuple[int, ...] = (256, 256)
    """layers of PPO's networks, measured beside Stable-Baselines3's default of 64 x 64"""
    out: Path | None = None
    """folder to add the rows to, in throughput.csv"""


@dataclass(frozen=True)
class Contestant:
    """A vector environment after its reset, and what it took to build."""

    step: Callable[[Any], Any]
    close: Callable[[], Any]
    seconds: float
    mb: float
    device: torch.device | None = None
    """where actions have to be, for tensors"""

    def given(self, actions: list[Any]) -> list[Any]:
        """The actions as this takes them."""
        return actions if self.device is None else [torch.as_tensor(action, device=self.device) for action in actions]

    def wait(self) -> None:
        """Let the device finish what it was given."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def lane_steps_per_second(contestant: Contestant, actions: list[Any], horizon: int, seconds: float) -> float:
    """Step on the actions in turn, for whole episodes of ``horizon`` steps; return lanes x steps / seconds."""
    given = contestant.given(actions)
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
    """The environments: their dataset, the rest in words, and their arguments."""
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


def measure_steps(args: Args, name: str, task: Task, lanes: int) -> list[Row]:
    """Median lane-steps per second of each contestant in one environment at one number of lanes."""
    native = gym.make_vec(name, num_envs=lanes, **task)
    native.action_space.seed(0)
    actions = [native.action_space.sample() for _ in range(8)]
    observation, _ = native.reset(seed=0)
    rewards, ended = np.zeros(lanes), np.zeros(lanes, np.bool_)

    def floor(_: Any) -> Any:
        return {key: part.copy() for key, part in observation.items()}, rewards.copy(), ended.copy(), ended.copy(), {}

    def scalar() -> Any:
        return gym.make(name, disable_env_checker=True, **task, **_shared(name))

    makers: dict[str, Callable[[], Any]] = {
        "native": lambda: gym.make_vec(name, num_envs=lanes, **task),
        "HashVecEnv": lambda: HashVecEnv(gym.make_vec(name, num_envs=lanes, **task)),
        "SyncVectorEnv": lambda: SyncVectorEnv([scalar] * lanes, autoreset_mode=AutoresetMode.SAME_STEP),
        "DummyVecEnv": lambda: DummyVecEnv([scalar] * lanes),
    }
    if name == "BitGroupHashing-v0":
        device = resolve_device(args.device)
        makers[f"torch, {device}"] = lambda: gym.make_vec(name, lanes, backend="torch", device=device, **task)
    if lanes <= args.async_lanes:
        makers["AsyncVectorEnv"] = lambda: AsyncVectorEnv([scalar] * lanes, autoreset_mode=AutoresetMode.SAME_STEP)
    contestants = {"floor": Contestant(floor, lambda: None, 0.0, 0.0)}
    contestants |= {contestant: build(make) for contestant, make in makers.items()}
    horizon = _horizon(task)
    for key, contestant in contestants.items():
        if key in ("native", "HashVecEnv") or contestant.device:  # compiles what is compiled; resets warmed the others
            lane_steps_per_second(contestant, actions, horizon, 0)
    speeds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for _ in range(args.rounds):
        for key, contestant in contestants.items():
            speeds[key].append(lane_steps_per_second(contestant, actions, horizon, args.seconds))
    for contestant in contestants.values():
        contestant.close()
    return [
        {
            "measure": "lane-steps/s",
            "contestant": key,
            "lanes": lanes,
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
        """Step, by the clock."""
        start = time.perf_counter()
        result = self.venv.step_wait()
        self.seconds += time.perf_counter() - start
        return result


class TimedPPO(PPO):
    """PPO that counts the seconds spent in gradient steps."""

    seconds = 0.0

    def train(self) -> None:
        """Train on a rollout, by the clock."""
        start = time.perf_counter()
        super().train()
        self.seconds += time.perf_counter() - start


def measure_ppo(args: Args, name: str, task: Task) -> list[Row]:
    """PPO on HashVecEnv and on DummyVecEnv: frames per second, of training and of rollouts alone, and shares."""
    lanes, n_steps = args.ppo_lanes, args.ppo_episodes * _horizon(task)
    contestants: dict[str, tuple[Callable[[], VecEnv], int]] = {
        "HashVecEnv": (lambda: HashVecEnv(gym.make_vec(name, num_envs=lanes, **task)), args.ppo_rollouts),
        "DummyVecEnv": (
            lambda: DummyVecEnv(
                [lambda: Monitor(gym.make(name, disable_env_checker=True, **task, **_shared(name)))] * lanes
            ),
            1,
        ),
    }
    rows: list[Row] = []
    built = {key: (Clock(make()), rollouts) for key, (make, rollouts) in contestants.items()}
    for arch, epochs in itertools.product(dict.fromkeys((DEFAULT_ARCH, args.net_arch)), args.ppo_epochs):
        settings: Task = {"n_steps": n_steps, "batch_size": min(args.ppo_batch, lanes * n_steps), "n_epochs": epochs}
        models = {
            key: TimedPPO(
                "MultiInputPolicy", envs, seed=0, device="cpu", policy_kwargs={"net_arch": list(arch)}, **settings
            )
            for key, (envs, _) in built.items()
        }
        measured: dict[tuple[str, str], list[float]] = {}
        for round_ in range(args.rounds + 1):
            for key, (envs, rollouts) in built.items():
                model, frames = models[key], lanes * n_steps * (rollouts if round_ else 1)
                model.seconds = envs.seconds = 0.0
                start = time.perf_counter()
                model.learn(frames, reset_num_timesteps=round_ == 0)
                elapsed = time.perf_counter() - start
                if round_ == 0:  # warm up
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
                "lanes": lanes,
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


def steps_table(title: str, rows: Sequence[Row], async_lanes: int) -> Table:
    """Lane-steps per second, and how many times as many as the two usual ways."""
    table = Table(title=title)
    columns = ("lanes", "contestant", "lane-steps/s", "against Sync", "against Dummy", "built, s", "MB")
    for heading in columns:
        left = heading == "contestant"
        table.add_column(heading, justify="left" if left else "right", no_wrap=left)
    for lanes in dict.fromkeys(row["lanes"] for row in rows):
        own = {row["contestant"]: row for row in rows if row["lanes"] == lanes}
        for contestant, row in own.items():
            ratios = [f"{row['value'] / own[other]['value']:,.1f} x" for other in ("SyncVectorEnv", "DummyVecEnv")]
            built = f"{row['build_seconds']:.1f}", f"{row['build_mb']:,.0f}"
            table.add_row(f"{lanes:,}", contestant, f"{row['value']:,.0f}", *ratios, *built)
        if lanes > async_lanes:
            table.add_row(f"{lanes:,}", "AsyncVectorEnv", f"not run: {lanes:,} processes")
        table.add_section()
    return table


def ppo_table(title: str, rows: Sequence[Row]) -> Table:
    """What PPO does in a second, where its time goes, and how far an environment could speed it up at most."""
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
    console = Console()
    resolve_device(args.device)  # refuses one that is not there
    versions = {
        "gymnasium": gym.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    console.print(
        f"hashgym {hashgym.__version__} {revision()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch, load {_load()}"
    )
    every: list[Row] = []
    for name, (dataset, words, task) in tasks(args).items():
        rows = [row for lanes in args.lanes for row in measure_steps(args, name, task, lanes)]
        if rows:
            console.print(steps_table(f"{name}, {dataset}, {words}", rows, args.async_lanes))
        if args.ppo_lanes:
            ppo = measure_ppo(args, name, task)
            console.print(ppo_table(f"PPO on {name}, {args.ppo_lanes} lanes", ppo))
            rows += ppo
        every += [
            {
                "env": name,
                "dataset": dataset,
                **row,
                "versions": json.dumps(versions),
                "version": hashgym.__version__,
                "revision": revision(),
                "config": describe({**asdict(args), "out": None, "threads": torch.get_num_threads(), "load": _load()}),
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
    """What scalar environments need to learn together as the native vector environment does."""
    return {"codebook": "shared"} if name == "BitGroupHashing-v0" else {}


def _horizon(task: Task) -> int:
    """Steps of an episode."""
    return -(-task["bits"] // task["group_bits"]) if "group_bits" in task else task.get("regions_per_episode", 1)


def _resident_mb() -> float:
    """Memory of this process now, in MB (10^6 bytes); NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _load() -> str:
    """How busy the machine is: processes that ran or waited over the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.throughput"))
