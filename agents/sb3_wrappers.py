"""Wrappers of Stable-Baselines3's vector environments: features dropped per episode, and flat observations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor, nn

__all__ = ["FeatureDropout", "Flat", "flat", "wide_keys"]


def wide_keys(observation_space: spaces.Dict) -> list[str]:
    """Return the keys of an observation that hold features; its other parts are small."""
    return [key for key in ("image", "region") if key in observation_space.spaces]


class FeatureDropout(VecEnvWrapper):
    """Dropout of features, with one mask for all steps of an episode; the remaining features are scaled up.

    Dropout inside the policy would draw another mask in the update than in the rollout, so that the ratio of their
    probabilities would be meaningless. Here the mask is part of the observation. Terminal observations are not masked:
    nothing is bootstrapped from an episode that terminated.
    """

    def __init__(self, venv: VecEnv, rate: float, seed: int) -> None:
        super().__init__(venv)
        self.rate, self.rng = rate, np.random.default_rng(seed)
        assert isinstance(venv.observation_space, spaces.Dict)
        self.dims = {key: spaces.flatdim(venv.observation_space[key]) for key in wide_keys(venv.observation_space)}
        self._draw_masks()

    def reset(self) -> Any:
        """Return observations of new episodes."""
        self._draw_masks()
        return self._masked(self.venv.reset())

    def step_wait(self) -> Any:
        """Finish a step; episodes end together, so that masks are drawn for all at once."""
        observation, reward, done, infos = self.venv.step_wait()
        if done[0]:
            self._draw_masks()
        return self._masked(observation), reward, done, infos

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environment with the masks and the generator."""
        masks = {f"mask/{key}": mask for key, mask in self.masks.items()}
        own = masks | {"mask/generator": json.dumps(self.rng.bit_generator.state)}
        return self.venv.get_state() | own  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> Any:
        """Restore a state of :meth:`get_state`; return the observation."""
        self.masks = {key: state[f"mask/{key}"] for key in self.dims}
        self.rng.bit_generator.state = json.loads(state["mask/generator"])
        rest = {key: part for key, part in state.items() if not key.startswith("mask/")}
        return self._masked(self.venv.set_state(rest))  # type: ignore[attr-defined]

    def _draw_masks(self) -> None:
        self.masks = {
            key: (self.rng.random((self.num_envs, dim), np.float32) >= self.rate) / np.float32(1 - self.rate)
            for key, dim in self.dims.items()
        }

    def _masked(self, observation: Any) -> Any:
        return observation | {key: observation[key] * mask for key, mask in self.masks.items()}


def flat(observation: dict[str, Any], width: int) -> Any:
    """Return observations of BitGroupHashing-v0, arrays or tensors, as one (n, width): image, code, one-hot group."""
    image, code, group = (observation[key] for key in ("image", "code", "group"))
    groups = width - image.shape[-1] - code.shape[-1]
    if isinstance(image, Tensor):
        return torch.cat([image, code, nn.functional.one_hot(group, groups).float()], dim=-1)
    return np.concatenate([image, code, np.eye(groups, dtype=np.float32)[group]], axis=-1)


class Flat(VecEnvWrapper):
    """BitGroupHashing-v0 with flat observations, for algorithms that do not support Dict ones."""

    def __init__(self, venv: VecEnv) -> None:
        assert isinstance(venv.observation_space, spaces.Dict)
        self.width = spaces.flatdim(venv.observation_space)
        super().__init__(venv, self.space(venv.observation_space))

    @staticmethod
    def space(observation_space: spaces.Dict) -> spaces.Box:
        """Return the space of the flat observations."""
        return spaces.Box(-np.inf, np.inf, (spaces.flatdim(observation_space),), np.float32)

    def reset(self) -> Any:
        """Return observations of new episodes."""
        return flat(self.venv.reset(), self.width)  # type: ignore[arg-type]

    def step_wait(self) -> Any:
        """Finish a step."""
        observation, reward, done, infos = self.venv.step_wait()
        if done[0]:
            for info in infos:
                info["terminal_observation"] = flat(info["terminal_observation"], self.width)
        return flat(observation, self.width), reward, done, infos  # type: ignore[arg-type]

    def get_state(self) -> dict[str, Any]:
        """Return the state of the wrapped environment."""
        return self.venv.get_state()  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> Any:
        """Restore a state of :meth:`get_state`; return the observation."""
        return flat(self.venv.set_state(state), self.width)  # type: ignore[attr-defined]
