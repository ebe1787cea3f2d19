"""Stable-Baselines3 on the native vector environments: :class:`HashVecEnv`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from hashgym.envs.base import LockstepVectorEnv, Observation

__all__ = ["HashVecEnv"]

_BY_LANE = ("action_masks", "render")  # methods of the vector environments that answer lane by lane


class HashVecEnv(VecEnv):
    """A native vector environment as a Stable-Baselines3 ``VecEnv``: one image a lane, no Python work per lane.

    ```python
    import gymnasium as gym
    from stable_baselines3 import PPO

    import hashgym
    from hashgym.integrations.sb3 import HashVecEnv

    envs = HashVecEnv(gym.make_vec("BitGroupHashing-v0", num_envs=64, bits=16, group_bits=8))
    model = PPO("MultiInputPolicy", envs, n_steps=8, batch_size=256, seed=0)
    model.learn(1_024)
    ```

    ``PPO("MultiInputPolicy", gym.make("BitGroupHashing-v0"))`` works without this class, at one image a step. So does
    ``make_vec_env("BitGroupHashing-v0", 64, env_kwargs={"codebook": "shared"})``, which is slower; without
    ``codebook="shared"`` each of its environments has a codebook of its own, and much less is learnt (mAP .57 in place
    of .82, and .85 with this class: ``python -m benchmarks.codebook``).

    ## What a step returns
    Observations, rewards (float64) and ends are the vector environment's own arrays, not to be written. All lanes end
    together, and the returned observation is then that of the next images. ``infos`` holds an empty dict for every
    running lane, always the same ones, not to be written either; for a finished lane it holds

    - ``terminal_observation``: the last observation, one lane of ``final_obs``;
    - ``episode``: ``r``, the sum of rewards, ``l``, the number of steps, and ``t``, seconds since this was made, which
      SB3 shows as ``rollout/ep_rew_mean`` and ``ep_len_mean`` and uses in evaluations, as a ``Monitor``'s.
      ``VecMonitor`` is not needed; it works, and SB3 then warns that it counts a second time;
    - ``TimeLimit.truncated``: False. The horizon is part of the task.

    Everything else an environment says is in ``last_info``, the vector environment's own info of the last reset or
    step, arrays over lanes. A callback logs reward components without a loop, and at the end of an episode finds those
    of the last step under ``final_info``:

    ```python
    from stable_baselines3.common.callbacks import BaseCallback

    class Components(BaseCallback):
        def _on_step(self):
            info = self.training_env.unwrapped.last_info
            for name, reward in info.get("final_info", info)["rewards"].items():
                if not name.startswith("_"):  # the masks that Gymnasium puts beside every key
                    self.logger.record_mean(f"rewards/{name}", reward.mean())
            return True
    ```

    ## Seeds, options, state
    ``seed(s)``, which SB3 calls with the ``seed`` of a model, seeds the next reset; lanes share one generator.
    ``set_options`` chooses the images of the next reset: a dict for all lanes as the vector environment takes it,
    ``{"index": [...]}``, or a list with one dict for every lane, ``[{"index": 3}, {"index": 8}, ...]``.
    ``get_state()`` and ``set_state(state)`` restore an episode exactly, its statistics included; give a model that goes
    on from there ``model._last_obs = envs.set_state(state)``.

    ## Attributes and methods
    ``get_attr``, ``set_attr`` and ``env_method`` reach the vector environment, through its wrappers. Lanes share it:
    attributes are equal for all lanes and set for all at once, and a method is called once, for all lanes.
    ``set_attr("group_weight", 0.5)``, as ``"global_weight"`` or RegionKeep-v0's ``"price"``, counts from the next step,
    also where a callback sets it: a curriculum.
    ``env_method("action_masks")`` gives each lane its mask, so that MaskablePPO of sb3-contrib works; masking counts as
    supported where the environment has masks (``action="bits"`` and ``"index"`` of BitGroupHashing-v0).

    Args:
        envs: ``gym.make_vec(...)`` of an environment of this package. Gymnasium's vector wrappers around it stay:
            what they do to rewards, actions and infos is what SB3 sees. ``autoreset_mode`` must be "SameStep", the
            default. With ``flat=True`` observations are one array, for ``"MlpPolicy"``.

    Attributes:
        envs: the vector environment.
        last_info: see above; empty before the first reset.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, envs: VectorEnv[Observation, Any, NDArray[Any]]) -> None:
        game = _checked(envs)
        self.envs, self._game = envs, game
        self.last_info: dict[str, Any] = {}
        self.spec = envs.spec
        self._started = time.time()
        self._returns, self._steps = np.zeros(envs.num_envs), 0
        self._reset_with: dict[str, Any] = {}
        self._running: list[dict[str, Any]] = [{} for _ in range(envs.num_envs)]
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Observation:
        """Begin an episode in every lane, with the seed and the options that were set since the last one."""
        seed, options = self._seeds[0], self._reset_with
        self._reset_seeds()  # both are used once, also where the reset refuses them
        self._reset_options()
        observation, self.last_info = self.envs.reset(seed=seed, options=options)
        self._returns, self._steps = np.zeros(self.num_envs), 0
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next step; :meth:`step_wait` makes it."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step: observations, rewards (n,), whether lanes ended (n,), and infos; see the class."""
        observation, rewards, ended, _, self.last_info = self.envs.step(self._actions)
        self._returns += rewards
        self._steps += 1
        return observation, rewards, ended, self._finished() if ended[0] else self._running

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset, of all lanes with one seed; None draws it from NumPy's global generator."""
        self._seeds = [super().seed(seed)[0]] * self.num_envs
        return self._seeds

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Options of the next reset: a dict for all lanes, or a dict for each of them.

        Raises:
            ValueError: for a list of another length, or of dicts that set different options.
        """
        if options is None or isinstance(options, Mapping):
            self._reset_with = dict(options or {})
            return
        if len(options) != self.num_envs or len({frozenset(lane) for lane in options}) > 1:
            raise ValueError(
                f"options must be one dict for all lanes, or a list of {self.num_envs} dicts, one for each lane, that "
                "all set the same options: lanes are reset together"
            )
        self._reset_with = {key: [lane[key] for lane in options] for key in options[0]}

    def get_state(self) -> dict[str, Any]:
        """All that decides what comes next, as the vector environment's ``get_state``, and the episodes' statistics."""
        return self._game.get_state() | {"returns": self._returns.copy(), "steps": self._steps}

    def set_state(self, state: dict[str, Any]) -> Observation:
        """Restore a state, also one of the vector environment itself; returns the observation.

        Raises:
            ValueError: for a state of an environment with other arguments.
        """
        observation, self.last_info = self._game.set_state(state)
        self._returns = np.array(state.get("returns", np.zeros(self.num_envs)))
        self._steps = int(state.get("steps", 0))
        return observation

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The vector environment's attribute, once for every lane asked for."""
        value = getattr(self._holder(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute that the vector environment has, for all lanes.

        Raises:
            AttributeError: if it has none of this name, or one that cannot be set.
            ValueError: for some of the lanes only.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"lanes share one environment: {attr_name!r} can only be set for all, leave indices out")
        setattr(self._holder(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment once; returns what it answers to each lane asked for."""
        answer = getattr(self._holder(method_name), method_name)(*method_args, **method_kwargs)
        by_lane = method_name in _BY_LANE and answer is not None
        return [answer[lane] if by_lane else answer for lane in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Whether a wrapper of this class is around the vector environment, once for every environment asked for.

        True for ``Monitor`` as well, whose statistics are in the infos: SB3 asks before it warns that they are not.
        """
        wrapped = wrapper_class is Monitor or any(
            isinstance(layer, wrapper_class) for layer in self._layers() if layer is not self._game
        )
        return [wrapped for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of every lane, uint8 (h, w, 3) each; needs ``render_mode="rgb_array"``."""
        if self.render_mode != "rgb_array":
            warnings.warn("there are no images: make the environment with render_mode='rgb_array'", stacklevel=2)
            return [None] * self.num_envs
        return self.env_method("render")

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def _reset_options(self) -> None:
        self._reset_with = {}

    def _finished(self) -> list[dict[str, Any]]:
        """The infos of lanes that ended; begins the statistics of the next episodes."""
        seconds, steps = round(time.time() - self._started, 6), self._steps
        infos = [
            {
                "terminal_observation": last,
                "episode": {"r": total, "l": steps, "t": seconds},
                "TimeLimit.truncated": False,
            }
            for last, total in zip(self.last_info["final_obs"], self._returns.tolist(), strict=True)
        ]
        self._returns, self._steps = np.zeros(self.num_envs), 0
        return infos

    def _layers(self) -> Iterator[VectorEnv[Any, Any, Any]]:
        """The vector environment and what is wrapped around it, from the outermost."""
        layer: Any = self.envs
        while isinstance(layer, VectorWrapper):
            yield layer
            layer = layer.env
        yield layer

    def _holder(self, name: str) -> VectorEnv[Any, Any, Any]:
        """The outermost layer that has the attribute."""
        if name == "action_masks" and isinstance(self.action_space, spaces.Box):
            raise AttributeError("probabilities have no action masks: make the environment with action='bits'")
        for layer in self._layers():
            if hasattr(layer, name):
                return layer
        raise AttributeError(f"{type(self._game).__name__} has no attribute {name!r}")


def _checked(envs: Any) -> LockstepVectorEnv:
    """The native vector environment inside ``envs``."""
    remedy = 'make it with gym.make_vec("BitGroupHashing-v0" or "RegionKeep-v0", num_envs=...)'
    if isinstance(envs, gym.Env):
        raise ValueError(
            f"HashVecEnv takes a vector environment, got a scalar one: {remedy}, or give it to SB3 as it is"
        )
    if not isinstance(envs, VectorEnv) or not isinstance(envs.unwrapped, LockstepVectorEnv):
        raise ValueError(
            f"HashVecEnv takes a native vector environment of hashgym, got {type(envs).__name__}: "
            f"{remedy}, without vectorization_mode"
        )
    if envs.unwrapped.autoreset_mode is not AutoresetMode.SAME_STEP:
        raise ValueError(
            f"Stable-Baselines3 resets within the step that ends an episode, got autoreset_mode="
            f"{envs.unwrapped.autoreset_mode.value!r}: leave autoreset_mode out"
        )
    if hasattr(envs.unwrapped, "device"):
        raise ValueError(f"Stable-Baselines3 takes NumPy arrays, not tensors: {remedy}, without backend='torch'")
    return envs.unwrapped
