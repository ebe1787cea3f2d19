"""The throughput benchmark runs every contestant; what it measures is for people to read."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import throughput
from benchmarks.results import Results

VECTORISED = {"floor", "native", "HashVecEnv", "SyncVectorEnv", "DummyVecEnv"}


def test_every_contestant_is_measured_and_written(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = throughput.Args(
        scenes=folders[0],
        lanes=(2, 3),
        rounds=1,
        seconds=0,
        async_lanes=2,
        ppo_lanes=4,
        ppo_episodes=2,
        ppo_batch=8,
        ppo_epochs=(1, 2),
        ppo_rollouts=1,
        net_arch=(8,),
        device="cpu",
        out=tmp_path,
    )
    rows = throughput.main(args)
    for env in ("BitGroupHashing-v0", "RegionKeep-v0"):
        for lanes, others in ((2, {"AsyncVectorEnv"}), (3, set())):
            steps = [row for row in rows if (row["env"], row["lanes"]) == (env, lanes)]
            tensors = {"torch, cpu"} if env == "BitGroupHashing-v0" else set()
            assert {row["contestant"] for row in steps} == VECTORISED | others | tensors
            assert {row["measure"] for row in steps} == {"lane-steps/s"}
            assert all(row["value"] > 0 for row in steps)
        for network, epochs in itertools.product(("64 x 64", "8"), (1, 2)):
            named = (env, network, epochs)
            ppo = [row for row in rows if (row["env"], row["network"], row["epochs"]) == named]
            assert {row["contestant"] for row in ppo} == {"HashVecEnv", "DummyVecEnv"}
            assert len(ppo) == 8
            shares = [row["value"] for row in ppo if "share" in row["measure"]]
            assert all(0 < share < 1 for share in shares)
    written = Results(tmp_path, throughput.COLUMNS, throughput.KEY, "throughput.csv").rows()
    assert [float(row["value"]) for row in written] == [row["value"] for row in rows]
    printed = capsys.readouterr().out
    assert printed.count("not run:") == 2
    assert printed.count("Gradient steps, and the policy's own work") == 2  # what bounds the ratio
    assert printed.count("at most, about") == 2 * 4
    throughput.main(dataclasses.replace(args, lanes=(), ppo_epochs=(1,)))  # rows of the same name are replaced
    again = Results(tmp_path, throughput.COLUMNS, throughput.KEY, "throughput.csv").rows()
    assert len(again) == len(written)


def test_whole_episodes_are_counted() -> None:
    seen: list[int] = []
    contestant = throughput.Contestant(seen.append, lambda: None, 0.0, 0.0)
    speed = throughput.lane_steps_per_second(contestant, [[1, 2, 3]] * 2, horizon=4, seconds=0)
    assert len(seen) == 4
    assert speed > 0


def test_actions_lie_where_the_contestant_takes_them() -> None:
    seen: list[torch.Tensor] = []
    contestant = throughput.Contestant(seen.append, lambda: None, 0.0, 0.0, torch.device("cpu"))
    throughput.lane_steps_per_second(contestant, [np.ones((3, 2), np.int8)], horizon=2, seconds=0)
    assert [type(action) for action in seen] == [torch.Tensor] * 2
    assert seen[0].shape == (3, 2)


def test_a_device_that_is_not_there_is_refused_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "tasks", None)
    with pytest.raises(ValueError, match="device must be"):
        throughput.main(throughput.Args(device="abacus"))
