"""The loop that all training runs share."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from agents import runs
from hashgym.data import digits


class Failing(runs.Run):
    """Two updates, then an exception."""

    def learn(self) -> dict[str, float]:
        if self.update == 2:
            raise RuntimeError("out of luck")
        self.update += 1
        return {"train/update": float(self.update)}

    def watch(self) -> dict[str, float]:
        return {}


def test_curves_are_whole_where_training_fails(tmp_path: Path) -> None:
    dataset, policy = digits.load(), nn.Linear(2, 2)
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=dataset)
    run = Failing(policy, torch.optim.Adam(policy.parameters()), envs, dataset, runs.RunArgs(updates=5, log_every=1))
    with pytest.raises(RuntimeError, match="out of luck"):
        runs.drive(run, "failing", out=tmp_path, checkpoint=None, progress=False)
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/update")] == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("name", ["policy.pt", "policy.onnx"])
def test_a_policy_of_another_run_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name} exists, but no checkpoint: name another folder"):
        runs.resumed(tmp_path, runs.CommonArgs(), resume=False)
    assert runs.resumed(tmp_path / "new", runs.CommonArgs(), resume=False) is None
