"""Rewards that are written once for NumPy and torch: equal numbers through both back ends."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import hashgym  # noqa: F401  # registers the environments

pytest.importorskip("torch")

REWARDS = {
    "dch": "pairwise:dch",
    "hashnet": "pairwise:hashnet",
    "adsh": "pairwise:adsh",
    "ksh": "pairwise:ksh",
    "ksh-relaxed": "pairwise:ksh-relaxed",
    "mmhh": "pairwise:mmhh",
    "partners": {"name": "pairwise:dch", "against": "partners"},
    "nca": {"name": "nca", "scale": 4.0},
    "balance": {"name": "balance", "decorrelation": 0.5},
    "sum": {"name": "weighted", "terms": {"pairwise:hashnet": 0.5, "balance": 2.0}},
}


@pytest.mark.parametrize("action", ["bits", "probability"])
@pytest.mark.parametrize("name", REWARDS)
def test_both_back_ends_give_the_same_rewards_and_credit(name: str, action: str) -> None:
    task = {"bits": 9, "group_bits": 8, "reward": REWARDS[name], "action": action, "counterfactual": True}
    back_ends: tuple[dict[str, str], ...] = ({"backend": "numpy"}, {"backend": "torch", "device": "cpu"})
    envs = [gym.make_vec("BitGroupHashing-v0", num_envs=6, **back_end, **task) for back_end in back_ends]
    for env in envs:
        env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(4):  # groups of 8 bits and of a single one
        actions = rng.random((6, 8)).astype(np.float32)
        actions = actions if action == "probability" else (actions > 0.5).astype(np.int8)
        steps = [env.step(actions) for env in envs]
        infos = [step[4].get("final_info", step[4]) for step in steps]
        scale = 1 + np.abs(steps[0][1]).max()
        np.testing.assert_allclose(steps[1][1].numpy(), steps[0][1], atol=2e-6 * scale)
        for key in ("bit_credit", "code_credit"):
            if key in infos[0]:
                np.testing.assert_allclose(infos[1][key].numpy(), infos[0][key], atol=2e-6 * scale)
