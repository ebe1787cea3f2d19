"""encode shows a policy what the environment would, group by group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hashgym
from hashgym.data import HashingDataset
from hashgym.envs.bit_group_hashing import BitGroupHashingEnv

BITS, GROUP = 10, 4


def rule(observation: dict[str, Any]) -> np.ndarray:
    """A policy that depends on everything it sees."""
    mixed = observation["image"].sum(1) + observation["code"] @ np.linspace(1, 2, BITS) + observation["group"]
    return np.sin(mixed[:, None] * np.arange(1, GROUP + 1)) > 0


class Stateful:
    """A recurrent policy: Stable-Baselines3's predict, with a state it must be given back."""

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        assert deterministic
        assert episode_start.all() == (state is None)
        count = 0 if state is None else state
        assert (observation["group"] == count).all()
        return rule(observation).astype(np.float32), count + 1


@pytest.mark.parametrize("policy", [rule, Stateful()])
@pytest.mark.parametrize("batch_size", [7, 4096])
def test_encode_equals_episodes_in_the_environment(multi_label: HashingDataset, policy: Any, batch_size: int) -> None:
    encoded = hashgym.encode(policy, multi_label.features, bits=BITS, group_bits=GROUP, batch_size=batch_size)
    env = BitGroupHashingEnv(multi_label, bits=BITS, group_bits=GROUP)
    env.reset(seed=0)
    for image in multi_label.train[:10]:
        observation, _ = env.reset(options={"index": image})
        done = False
        while not done:
            batch = {key: np.asarray(part)[None] for key, part in observation.items()}
            observation, _, done, _, _ = env.step(rule(batch)[0])
        np.testing.assert_array_equal(encoded[image], observation["code"] > 0)


def test_index_actions(multi_label: HashingDataset) -> None:
    encoded = hashgym.encode(lambda o: o["group"] + 5, multi_label.features, bits=6, group_bits=4)
    np.testing.assert_array_equal(encoded, np.tile([True, False, True, False, False, True], (60, 1)))


def test_probabilities_are_thresholded_above_one_half(multi_label: HashingDataset) -> None:
    encoded = hashgym.encode(lambda o: np.full((60, 2), [0.5, 0.6]), multi_label.features, bits=2, group_bits=2)
    np.testing.assert_array_equal(encoded, np.tile([False, True], (60, 1)))


def test_a_stable_baselines3_model_encodes(multi_label: HashingDataset) -> None:
    from stable_baselines3 import PPO

    model = PPO(
        "MultiInputPolicy", BitGroupHashingEnv(multi_label, bits=BITS, group_bits=GROUP), n_steps=8, batch_size=8
    )
    assert hashgym.encode(model, multi_label.features, bits=BITS, group_bits=GROUP).shape == (60, BITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros(6, np.float32)}, "shape"),
        ({"features": np.full((2, 6), np.nan, np.float32)}, "NaN"),
        ({"bits": 0}, "bits must be"),
        ({"group_bits": 11}, "longer than the code"),
        ({"batch_size": 0}, "batch_size"),
        ({"policy": lambda o: np.zeros((2, 3))}, r"shape \(2, 4\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments = {"policy": rule, "features": np.zeros((2, 6), np.float32), "bits": BITS, "group_bits": GROUP}
    with pytest.raises(ValueError, match=message):
        hashgym.encode(**{**arguments, **change})
