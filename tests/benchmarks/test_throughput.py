"""The throughput benchmark runs every contestant; the measured numbers are not asserted."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import throughput
from benchmarks.common.results import Results
from hashgym.terminal import parse

VECTORISED = {"floor", "native", "HashVecEnv", "SyncVectorEnv", "DummyVecEnv"}


def test_every_contestant_is_measured_and_written(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = throughput.Args(
        scenes=folders[0],
        num_envs=(2, 3),
        rounds=1,
        seconds=0,
        async_num_envs=2,
        ppo_num_envs=4,
        ppo_episodes=2,
        ppo_batch=8,
        ppo_epochs=(1, 2),
        ppo_rollouts=1,
        net_arch=(8,),
        device="cpu",
        out=tmp_path,
    )
    rows = throughput.main(args)
    for env in ("BitGroupHashing-v0", "RegionKeep-v0", "MultiCodeHashing-v0"):
        for num_envs, others in ((2, {"AsyncVectorEnv"}), (3, set())):
            steps = [row for row in rows if (row["env"], row["lanes"]) == (env, num_envs)]
            tensors = {"torch, cpu"} if env == "BitGroupHashing-v0" else set()
            assert {row["contestant"] for row in steps} == VECTORISED | others | tensors
            assert {row["measure"] for row in steps} == {throughput.STEPS}
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
    assert printed.count("not run:") == 3
    assert printed.count("Gradient steps, and the policy's own work") == 3  # what bounds the ratio
    assert printed.count("at most, about") == 3 * 4
    throughput.main(dataclasses.replace(args, num_envs=(), ppo_epochs=(1,)))  # rows of the same name are replaced
    again = Results(tmp_path, throughput.COLUMNS, throughput.KEY, "throughput.csv").rows()
    assert len(again) == len(written)


def test_whole_episodes_are_counted() -> None:
    seen: list[int] = []
    contestant = throughput.Contestant(seen.append, lambda: None, 0.0, 0.0)
    speed = throughput.steps_per_second(contestant, [[1, 2, 3]] * 2, horizon=4, seconds=0)
    assert len(seen) == 4
    assert speed > 0


def test_actions_are_on_the_device_of_the_contestant() -> None:
    seen: list[torch.Tensor] = []
    contestant = throughput.Contestant(seen.append, lambda: None, 0.0, 0.0, torch.device("cpu"))
    throughput.steps_per_second(contestant, [np.ones((3, 2), np.int8)], horizon=2, seconds=0)
    assert [type(action) for action in seen] == [torch.Tensor] * 2
    assert seen[0].shape == (3, 2)


def test_an_unknown_device_is_rejected_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "tasks", None)
    with pytest.raises(ValueError, match="device must be"):
        throughput.main(throughput.Args(device="abacus"))


def test_an_unknown_environment_is_rejected_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "measure_steps", None)
    with pytest.raises(ValueError, match=r"envs must be one of .* got 'CartPole-v1'"):
        throughput.main(throughput.Args(envs=("RegionKeep-v0", "CartPole-v1")))


def test_the_old_names_of_options_are_accepted() -> None:
    words = ["--lanes", "2", "3", "--async-lanes", "4", "--ppo-lanes", "0"]
    args = parse(throughput.Args, "benchmarks.throughput", words)
    assert (args.num_envs, args.async_num_envs, args.ppo_num_envs) == ((2, 3), 4, 0)


def test_rows_of_older_versions_are_read_and_replaced(tmp_path: Path) -> None:
    stored = Path(throughput.__file__).parent / "results" / "throughput" / "throughput.csv"
    shutil.copy(stored, tmp_path)
    results = Results(tmp_path, throughput.COLUMNS, throughput.KEY, "throughput.csv")
    rows = results.rows()
    results.append({**rows[0], "value": 1.0})
    assert len(results.rows()) == len(rows)
    assert results.rows()[-1]["value"] == "1.0"
