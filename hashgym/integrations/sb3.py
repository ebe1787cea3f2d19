"""Stable-Baselines3 on the native vector environments, and with trained backbones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
from torch import Tensor, nn

from hashgym.data import HashingDataset
from hashgym.envs.base import LockstepVectorEnv, Observation
from hashgym.features.trainable import TrainableBackbone

__all__ = ["BackboneExtractor", "HashVecEnv"]

_AT_ONCE = 64  # images in a pass that measures averages

_PER_ENV = ("action_masks", "render")  # methods of the vector environments that return one result per environment


class HashVecEnv(VecEnv):
    """A native vector environment as a Stable-Baselines3 ``VecEnv``, without Python loops over its environments.

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
    ``codebook="shared"`` each of its environments has a codebook of its own, and training learns much less (mAP .57
    instead of .82, and .85 with this class: ``python -m benchmarks.codebook``).

    ## Results of a step
    Observations, rewards (float64) and dones are the vector environment's own arrays, read-only. Episodes end together,
    and the returned observation is then that of the next images. During an episode ``infos`` holds the same empty
    dicts at every step, read-only too; at its end the info of each environment holds

    - ``terminal_observation``: the last observation, from ``final_obs``;
    - ``episode``: ``r``, the sum of rewards, ``l``, the number of steps, and ``t``, seconds since construction, which
      SB3 logs as ``rollout/ep_rew_mean`` and ``ep_len_mean`` and uses in evaluations, as a ``Monitor``'s.
      ``VecMonitor`` is not needed; it works, and SB3 then warns that statistics are recorded twice;
    - ``TimeLimit.truncated``: False. The horizon is part of the task.

    All other information is in ``last_info``, the vector environment's own info of the last reset or step, as arrays
    over environments. A callback logs reward components without a loop; at the end of an episode those of the last
    step are under ``final_info``:

    ```python
    from stable_baselines3.common.callbacks import BaseCallback

    class Components(BaseCallback):
        def _on_step(self):
            info = self.training_env.unwrapped.last_info
            for name, reward in info.get("final_info", info)["rewards"].items():
                if not name.startswith("_"):  # the masks that Gymnasium adds for every key
                    self.logger.record_mean(f"rewards/{name}", reward.mean())
            return True
    ```

    ## Seeds, options, state
    ``seed(s)``, which SB3 calls with the ``seed`` of a model, seeds the next reset; environments share one generator.
    ``set_options`` chooses the images of the next reset: a dict for all environments, as of the vector environment,
    ``{"index": [...]}``, or a list with one dict for each, ``[{"index": 3}, {"index": 8}, ...]``.
    ``get_state()`` and ``set_state(state)`` save and restore an episode exactly, its statistics included; a model that
    continues from there needs ``model._last_obs = envs.set_state(state)``.

    ## Attributes and methods
    ``get_attr``, ``set_attr`` and ``env_method`` reach the vector environment, through its wrappers:
    attributes are equal for all environments and set for all at once, and a method is called once, for all of them.
    ``set_attr("group_weight", 0.5)`` takes effect at the next step, so that a callback can implement a curriculum;
    likewise ``"global_weight"``, and ``"price"`` of RegionKeep-v0.
    ``env_method("action_masks")`` returns each environment's mask, so that MaskablePPO of sb3-contrib works; masking is
    reported as supported if the environment has masks (``action="bits"`` and ``"index"`` of BitGroupHashing-v0).

    Args:
        envs: ``gym.make_vec(...)`` of an environment of this package. Gymnasium's vector wrappers around it stay:
            SB3 gets their rewards, actions and infos. ``autoreset_mode`` must be "SameStep", the
            default. With ``flat=True`` observations are one array, for ``"MlpPolicy"``.

    Attributes:
        envs: the vector environment.
        last_info: the info of the last reset or step; empty before the first reset.

    Raises:
        ValueError: for any other environment.
    """

    def __init__(self, envs: VectorEnv[Observation, Any, NDArray[Any]]) -> None:
        native = _checked(envs)
        self.envs, self._native = envs, native
        self.last_info: dict[str, Any] = {}
        self.spec = envs.spec
        self._started = time.time()
        self._returns, self._steps = np.zeros(envs.num_envs), 0
        self._reset_with: dict[str, Any] = {}
        self._running: list[dict[str, Any]] = [{} for _ in range(envs.num_envs)]
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Observation:
        """Begin an episode in every environment, with the seed and options set since the last reset."""
        seed, options = self._seeds[0], self._reset_with
        self._reset_seeds()  # both are used once, even if the reset raises an error
        self._reset_options()
        observation, self.last_info = self.envs.reset(seed=seed, options=options)
        self._returns, self._steps = np.zeros(self.num_envs), 0
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions of the next step for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Run the step; return observations, rewards (n,), dones (n,) and infos; see the class."""
        observation, rewards, dones, _, self.last_info = self.envs.step(self._actions)
        self._returns += rewards
        self._steps += 1
        return observation, rewards, dones, self._final_infos() if dones[0] else self._running

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Set the seed of the next reset, one for all environments; None draws it from NumPy's global generator."""
        self._seeds = [super().seed(seed)[0]] * self.num_envs
        return self._seeds

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next reset: one dict for all environments, or a dict for each of them.

        Raises:
            ValueError: for a list of another length, or of dicts that set different options.
        """
        if options is None or isinstance(options, Mapping):
            self._reset_with = dict(options or {})
            return
        if len(options) != self.num_envs or len({frozenset(each) for each in options}) > 1:
            raise ValueError(
                f"options must be one dict for all environments, or a list of {self.num_envs} dicts, one for each, "
                "with the same options: environments are reset together"
            )
        self._reset_with = {key: [each[key] for each in options] for key in options[0]}

    def get_state(self) -> dict[str, Any]:
        """Return the state of the vector environment (its ``get_state``) and of the episodes' statistics."""
        return self._native.get_state() | {"returns": self._returns.copy(), "steps": self._steps}

    def set_state(self, state: dict[str, Any]) -> Observation:
        """Restore a state, also one of the vector environment itself; return the observation.

        Raises:
            ValueError: if the state is of an environment with other arguments.
        """
        observation, self.last_info = self._native.set_state(state)
        self._returns = np.array(state.get("returns", np.zeros(self.num_envs)))
        self._steps = int(state.get("steps", 0))
        return observation

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the vector environment's attribute, once for every environment in ``indices``."""
        value = getattr(self._holder(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an existing attribute of the vector environment, for all environments.

        Raises:
            AttributeError: if there is no such attribute, or it cannot be set.
            ValueError: for ``indices`` of only some environments.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"{attr_name!r} can only be set for all environments, which share it: leave indices out")
        setattr(self._holder(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment once; return its result for every environment in ``indices``."""
        result = getattr(self._holder(method_name), method_name)(*method_args, **method_kwargs)
        per_env = method_name in _PER_ENV and result is not None
        return [result[i] if per_env else result for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return whether the vector environment has a wrapper of this class, once for every environment in ``indices``.

        True also for ``Monitor``, whose statistics the infos hold, so that SB3 does not warn that they are missing.
        """
        wrapped = wrapper_class is Monitor or any(
            isinstance(layer, wrapper_class) for layer in self._layers() if layer is not self._native
        )
        return [wrapped for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return a picture of every environment, uint8 (h, w, 3) each; needs ``render_mode="rgb_array"``."""
        if self.render_mode != "rgb_array":
            warnings.warn("there are no images: make the environment with render_mode='rgb_array'", stacklevel=2)
            return [None] * self.num_envs
        return self.env_method("render")

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def _reset_options(self) -> None:
        self._reset_with = {}

    def _final_infos(self) -> list[dict[str, Any]]:
        """Return the infos at the end of the episodes, and reset the statistics."""
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
        """Yield the wrappers, from the outermost, and the vector environment."""
        layer: Any = self.envs
        while isinstance(layer, VectorWrapper):
            yield layer
            layer = layer.env
        yield layer

    def _holder(self, name: str) -> VectorEnv[Any, Any, Any]:
        """Return the outermost layer that has the attribute."""
        if name == "action_masks" and isinstance(self.action_space, spaces.Box):
            raise AttributeError("probabilities have no action masks: make the environment with action='bits'")
        for layer in self._layers():
            if hasattr(layer, name):
                return layer
        raise AttributeError(f"{type(self._native).__name__} has no attribute {name!r}")


class BackboneExtractor(BaseFeaturesExtractor):
    """Features extractor for activations and pixels: the image through a backbone, followed by code and group.

    Stable-Baselines3 then trains the backbone with the policy, by the policy's learning rate. Pixels may be fewer than
    the 36 x 36 that Stable-Baselines3's own extractor for pictures needs.

    Normalisation layers of the backbone use fixed averages and pixels are not augmented, so that updates evaluate the
    policy that acted. The averages are those of the weights, or of training images after :meth:`measure`.

    Args:
        observation_space: of BitGroupHashing-v0 on activations or pixels.
        backbone: ``NAME:CUT`` for activations after block CUT, ``NAME`` for pixels.
        width: of a layer with ReLU between the backbone's features and the code; 0 for none.
        normalized_image: whether pixels come divided by 255, as from a policy with ``normalize_images=True``, the
            default of Stable-Baselines3.
        weights, pretrained: as for :class:`hashgym.features.trainable.TrainableBackbone`.

    Raises:
        ValueError: for other observations, or images that the backbone does not take.
        DataError: if the weights of the backbone are missing or damaged.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        backbone: str,
        *,
        width: int = 256,
        normalized_image: bool = True,
        weights: str | None = None,
        pretrained: bool = True,
    ) -> None:
        image = observation_space["image"] if isinstance(observation_space, spaces.Dict) else None
        if image is None or image.shape is None or len(image.shape) != 3:
            raise ValueError(
                "BackboneExtractor takes observations of BitGroupHashing-v0 on a dataset of activations or pixels, "
                f"without flat=True; got {observation_space}"
            )
        trained = TrainableBackbone(backbone, image.shape, augment="none", weights=weights, pretrained=pretrained)
        self.small = [key for key in observation_space.spaces if key != "image"]
        small = sum(spaces.flatdim(observation_space[key]) for key in self.small)
        super().__init__(observation_space, (width or trained.dim) + small)
        self.backbone, self.scale = trained.eval(), 255 if normalized_image and image.dtype == np.uint8 else 1
        self.layer = nn.Sequential(nn.Linear(trained.dim, width), nn.ReLU()) if width else nn.Identity()

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return features of the image, code and group, (n, features_dim); the group is one-hot already, by SB3."""
        image = observation["image"]
        if self.scale != 1:
            image = (image * self.scale).round()  # exactly the pixels
        features = self.layer(self.backbone(image))
        return torch.cat([features, *(observation[key].flatten(1) for key in self.small)], dim=1)

    def apply(self, fn: Callable[[nn.Module], None]) -> BackboneExtractor:
        """Apply ``fn`` to all but the backbone: SB3 initialises weights by this call, and would reset trained ones."""
        self.layer.apply(fn)
        return self

    def train(self, mode: bool = True) -> BackboneExtractor:
        """Set the mode of all but the backbone, which stays in evaluation mode while its weights are trained."""
        super().train(mode)
        self.backbone.eval()
        return self

    @staticmethod
    def measure(policy: nn.Module, dataset: HashingDataset, images: int = 1024) -> None:
        """Set the averages of normalisation layers, of every backbone in a policy, to those of training images.

        Args:
            policy: ``model.policy``, before ``learn``.
            dataset: of the environments.
            images: the number of training images at most, taken at equal intervals.
        """
        rows = dataset.train[:: -(-len(dataset.train) // images)]
        device = next(policy.parameters()).device
        for backbone in [module.backbone for module in policy.modules() if isinstance(module, BackboneExtractor)]:
            layers = [layer for layer in backbone.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
            momenta = [layer.momentum for layer in layers]
            for layer in layers:
                layer.momentum = None  # averages over all batches
                layer.reset_running_stats()
            backbone.train()
            with torch.no_grad():
                for batch in np.array_split(rows, -(-len(rows) // _AT_ONCE)):
                    backbone(torch.from_numpy(dataset.images(batch)).to(device))
            backbone.eval()
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def _checked(envs: Any) -> LockstepVectorEnv:
    """Return the native vector environment inside ``envs``."""
    fix = 'make it with gym.make_vec("BitGroupHashing-v0" or "RegionKeep-v0", num_envs=...)'
    if isinstance(envs, gym.Env):
        raise ValueError(
            f"HashVecEnv takes a vector environment, got a scalar one: {fix}, or pass the scalar one to SB3 directly"
        )
    if not isinstance(envs, VectorEnv) or not isinstance(envs.unwrapped, LockstepVectorEnv):
        raise ValueError(
            f"HashVecEnv takes a native vector environment of hashgym, got {type(envs).__name__}: "
            f"{fix}, without vectorization_mode"
        )
    if envs.unwrapped.autoreset_mode is not AutoresetMode.SAME_STEP:
        raise ValueError(
            f"Stable-Baselines3 resets within the step that ends an episode, got autoreset_mode="
            f"{envs.unwrapped.autoreset_mode.value!r}: leave autoreset_mode out"
        )
    if hasattr(envs.unwrapped, "device"):
        raise ValueError(f"Stable-Baselines3 takes NumPy arrays, not tensors: {fix}, without backend='torch'")
    return envs.unwrapped
