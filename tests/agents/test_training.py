"""The loop that all training runs share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from agents import checkpoint, training
from agents.arguments import RunArgs
from hashgym.data.readers import digits
from hashgym.storage.atomic import DiskFullError
from tests.conftest import file_limit


class Failing(training.Run):
    """Two updates, then an exception."""

    def update(self) -> dict[str, float]:
        if self.num_updates == 2:
            raise RuntimeError("out of luck")
        self.num_updates += 1
        return {"train/update": float(self.num_updates)}

    def evaluate(self) -> dict[str, float]:
        return {}


def test_curves_are_whole_where_training_fails(tmp_path: Path) -> None:
    dataset, policy = digits.load(), nn.Linear(2, 2)
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=dataset)
    run = Failing(policy, torch.optim.Adam(policy.parameters()), envs, dataset, RunArgs(updates=5, log_every=1))
    with pytest.raises(RuntimeError, match="out of luck"):
        training.train_loop(run, "failing", out=tmp_path, checkpoint=None, progress=False)
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/update")] == [(1, 1.0), (2, 2.0)]


class Counting(Failing):
    """A run whose checkpoint grows."""

    def update(self) -> dict[str, float]:
        self.num_updates += 1
        return {f"train/{i}": float(self.num_updates) for i in range(20)}

    def checkpoint(self) -> dict[str, Any]:
        return {"args": "", "update": self.num_updates, "policy": torch.zeros(self.num_updates * 10_000)}


def counting(**options: int) -> Counting:
    dataset, policy = digits.load(), nn.Linear(2, 2)
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=dataset)
    return Counting(policy, torch.optim.Adam(policy.parameters()), envs, dataset, RunArgs(**options))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    run = counting(updates=9, log_every=100, evaluate_every=100, checkpoint_every=1)
    with pytest.raises(DiskFullError) as caught, checkpoint.hold_folder(tmp_path), file_limit(150_000):
        training.train_loop(run, "counting", out=tmp_path, checkpoint=None, progress=False)
    path = tmp_path / "checkpoint.pt"
    assert str(caught.value).startswith(f"{path} cannot be written: ")
    assert str(caught.value).endswith(
        f"the same command again with --resume: it continues from {path}, which is complete"
    )
    assert checkpoint.load(path)["update"] == run.num_updates - 1 == 3
    assert not list(tmp_path.glob(".*.hashgym-tmp"))


def test_curves_that_do_not_fit_are_explained_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = counting(updates=400, log_every=1, evaluate_every=1000, checkpoint_every=1000)
    with pytest.raises(DiskFullError, match="cannot be written"), checkpoint.hold_folder(tmp_path), file_limit(20_000):
        training.train_loop(run, "counting", out=tmp_path, checkpoint=None, progress=False)
    assert 0 < run.num_updates < 400
    assert "Exception" not in capfd.readouterr().err


def test_a_full_disk_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    command = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)); "
        "sys.argv[0] = 'agents.drlih'; runpy._run_module_as_main('agents.drlih')"
    )
    words = ["--bits", "4", "--group-bits", "2", "--updates", "2", "--num-envs", "4", "--out", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", command, *words], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "checkpoint.pt cannot be written: file too large" in " ".join(ended.stderr.split())
