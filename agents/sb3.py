"""Stable-Baselines3 on both environments: any of eleven algorithms by one command, with presets that learn.

    python -m agents.sb3 --algo ppo --dataset digits --bits 24 --out runs/ppo
    python -m agents.sb3 --algo dqn --env RegionKeep-v0 --dataset digit-scenes

The algorithms are Stable-Baselines3's and sb3-contrib's own. What is added here: the environments through
:class:`hashgym.integrations.sb3.HashVecEnv`, a features extractor for their observations, features dropped at random
while training, the best policy by held-out training images, checkpoints that a killed run resumes from, and a file
format without pickle.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

import hashgym
import hashgym.hashers
from agents import mch, runs
from hashgym import console, data
from hashgym.checks import closest
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.encoders.heads import GroupsHead, RegionsHead, hasher_head
from hashgym.envs.bit_group_hashing import HashingTask
from hashgym.envs.region_keep import RegionKeepTask
from hashgym.hashers import Hasher
from hashgym.hashers.threads import largest_product, limit_threads
from hashgym.integrations.sb3 import HashVecEnv
from hashgym.retrieval import metrics
from hashgym.terminal import command_line, parse

__all__ = ["PRESETS", "Args", "FeatureDropout", "ImageAndCode", "encode", "load", "train"]

LOGS = 100  # points of the TensorBoard curves
COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")
BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")

Env: TypeAlias = Literal["BitGroupHashing-v0", "RegionKeep-v0"]


class ImageAndCode(BaseFeaturesExtractor):
    """The image (and region) through one layer; codes and group, which are small, beside it as they are.

    SB3's own extractor would lay a few dozen code bits beside a thousand raw features and leave all to the policy's
    layers, once for the actor and once for the critic; here both share the one wide layer.
    """

    def __init__(self, observation_space: spaces.Dict, width: int = 256) -> None:
        self.wide = _wide(observation_space)
        self.small = [key for key in observation_space.spaces if key not in self.wide]
        small = sum(spaces.flatdim(observation_space[key]) for key in self.small)
        super().__init__(observation_space, width + small)
        dim = sum(spaces.flatdim(observation_space[key]) for key in self.wide)
        self.embedding = nn.Sequential(nn.Linear(dim, width), nn.ReLU())

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Embedding, then the rest, (n, features_dim); SB3 has made the group one-hot."""
        image = self.embedding(torch.cat([observation[key] for key in self.wide], dim=1))
        return torch.cat([image, *(observation[key].flatten(1) for key in self.small)], dim=1)


class FeatureDropout(VecEnvWrapper):
    """Leaves a random part of the features out of every episode, and scales up the rest.

    Dropout inside the policy would draw another mask when a step is learnt from than when it was taken, so that the
    ratio of their probabilities would say nothing. Here the mask belongs to the observation. Terminal observations
    are left whole: nothing is bootstrapped from an episode that terminated.
    """

    def __init__(self, venv: VecEnv, rate: float, seed: int) -> None:
        super().__init__(venv)
        self.rate, self.rng = rate, np.random.default_rng(seed)
        assert isinstance(venv.observation_space, spaces.Dict)
        self.dims = {key: spaces.flatdim(venv.observation_space[key]) for key in _wide(venv.observation_space)}
        self._draw()

    def reset(self) -> Any:
        """Observations of new episodes."""
        self._draw()
        return self._masked(self.venv.reset())

    def step_wait(self) -> Any:
        """A step; lanes end together, so that masks are drawn for all at once."""
        observation, reward, done, infos = self.venv.step_wait()
        if done[0]:
            self._draw()
        return self._masked(observation), reward, done, infos

    def get_state(self) -> dict[str, Any]:
        """Masks and generator, beside what the environment says of itself."""
        masks = {f"mask/{key}": mask for key, mask in self.masks.items()}
        own = masks | {"mask/generator": json.dumps(self.rng.bit_generator.state)}
        return self.venv.get_state() | own  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> Any:
        """Take up where :meth:`get_state` was called; returns the observation there."""
        self.masks = {key: state[f"mask/{key}"] for key in self.dims}
        self.rng.bit_generator.state = json.loads(state["mask/generator"])
        rest = {key: part for key, part in state.items() if not key.startswith("mask/")}
        return self._masked(self.venv.set_state(rest))  # type: ignore[attr-defined]

    def _draw(self) -> None:
        self.masks = {
            key: (self.rng.random((self.num_envs, dim), np.float32) >= self.rate) / np.float32(1 - self.rate)
            for key, dim in self.dims.items()
        }

    def _masked(self, observation: Any) -> Any:
        return observation | {key: observation[key] * mask for key, mask in self.masks.items()}


class MultiBinaryLstmPolicy(RecurrentMultiInputActorCriticPolicy):
    """RecurrentPPO's policy, which learns from bits too: its rollout buffer hands them back as integers."""

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in sb3-contrib."""
        return super().evaluate_actions(obs, actions.float(), lstm_states, episode_starts)


class FlatCrossQPolicy(CrossQPolicy):
    """CrossQ knows no Dict observations; this one acts on them laid out flat, as :class:`Flat` shows them."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        """Act on a batch of observations, Dict or flat."""
        if isinstance(observation, dict):
            observation = flat(observation, spaces.flatdim(self.observation_space))
        return super().predict(observation, *args, **kwargs)


def flat(observation: dict[str, Any], width: int) -> Any:
    """Observations of BitGroupHashing-v0 in one array (n, width): image, code, and the group one-hot in the rest.

    Tensors become a tensor.
    """
    image, code, group = (observation[key] for key in ("image", "code", "group"))
    groups = width - image.shape[-1] - code.shape[-1]
    if isinstance(image, Tensor):
        return torch.cat([image, code, nn.functional.one_hot(group, groups).float()], dim=-1)
    return np.concatenate([image, code, np.eye(groups, dtype=np.float32)[group]], axis=-1)


class Flat(VecEnvWrapper):
    """BitGroupHashing-v0 with observations laid out flat, for algorithms that know no Dict."""

    def __init__(self, venv: VecEnv) -> None:
        assert isinstance(venv.observation_space, spaces.Dict)
        self.width = spaces.flatdim(venv.observation_space)
        super().__init__(venv, self.space(venv.observation_space))

    @staticmethod
    def space(observation_space: spaces.Dict) -> spaces.Box:
        """Space of the flat observations."""
        return spaces.Box(-np.inf, np.inf, (spaces.flatdim(observation_space),), np.float32)

    def reset(self) -> Any:
        """Observations of new episodes."""
        return flat(self.venv.reset(), self.width)  # type: ignore[arg-type]

    def step_wait(self) -> Any:
        """A step."""
        observation, reward, done, infos = self.venv.step_wait()
        if done[0]:
            for info in infos:
                info["terminal_observation"] = flat(info["terminal_observation"], self.width)
        return flat(observation, self.width), reward, done, infos  # type: ignore[arg-type]

    def get_state(self) -> dict[str, Any]:
        """What the wrapped environment says of itself."""
        return self.venv.get_state()  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> Any:
        """Take up a state; returns the observation there."""
        return flat(self.venv.set_state(state), self.width)  # type: ignore[attr-defined]


class Greedy(nn.Module):
    """What a policy does deterministically, as real values of bits: probability or action - 0.5, or a lead in Q value.

    Logits would have the same signs but where a probability rounds to 0.5, which is a 0 to the policy.

    Args:
        policy: of any of the algorithms.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy: Any = policy

    def act(self, image: Tensor, code: Tensor, group: int, state: Any) -> tuple[Tensor, Any]:
        """Real values (n, k) of a group's bits, see :class:`hashgym.encoders.heads.Actor`."""
        groups, space = torch.full_like(code[:, 0], group, dtype=torch.int64), self.policy.action_space
        observation: Any = {"image": image, "code": code, "group": groups}
        if isinstance(self.policy, FlatCrossQPolicy):
            observation = flat(observation, spaces.flatdim(self.policy.observation_space))
        scores, state = self._scores(observation, state)
        if isinstance(space, spaces.Discrete):  # a bit is that of the index with the best score
            bit = torch.arange(int(space.n)) >> torch.arange(int(space.n).bit_length() - 1)[:, None] & 1
            one, zero = (scores[:, None].masked_fill(bit == other, -torch.inf).amax(2) for other in (0, 1))
            return one - zero, state
        if isinstance(self.policy, MaskableActorCriticPolicy):  # a choice between 0 and 1 for each bit
            choices = scores.reshape(-1, int(space.n), 2).softmax(2)
            return choices[..., 1] - choices[..., 0], state
        return (torch.sigmoid(scores) if isinstance(space, spaces.MultiBinary) else scores) - 0.5, state

    def keep(self, observation: dict[str, Tensor]) -> Tensor:
        """1 where the policy keeps, else 0: (n,)."""
        scores, _ = self._scores(observation, None)
        return (scores[:, 1] > scores[:, 0]).float()

    def _scores(self, observation: Any, state: Any) -> tuple[Tensor, Any]:
        """Logits, Q values or, of Box actions, the action itself; and a recurrent policy's state."""
        policy = self.policy
        if isinstance(policy, QRDQNPolicy):
            return policy.quantile_net(observation).mean(1), None
        if isinstance(policy, DQNPolicy):
            return policy.q_net(observation), None
        if not isinstance(policy, (ActorCriticPolicy, MaskableActorCriticPolicy)):  # actors that squash to -1 and 1
            twin = isinstance(policy, TD3Policy)
            squashed = policy.actor(observation) if twin else policy.actor.get_action_dist_params(observation)[0].tanh()
            return 0.5 * (squashed + 1), None
        seen = BasePolicy.extract_features(policy, observation, policy.pi_features_extractor)
        if isinstance(policy, RecurrentActorCriticPolicy):
            zeros = seen.new_zeros(policy.lstm_hidden_state_shape[0], seen.shape[0], policy.lstm_actor.hidden_size)
            outputs, state = policy.lstm_actor(seen[None], state or (zeros, zeros))
            seen = outputs[0]
        return policy.action_net(policy.mlp_extractor.forward_actor(seen)), state


_MLP: dict[str, Any] = {"features_extractor_class": ImageAndCode, "net_arch": [256]}
_PPO: dict[str, Any] = {"n_steps": 8, "batch_size": 512, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 1.0}
_A2C: dict[str, Any] = {"n_steps": 2, "learning_rate": 3e-3, "gamma": 1.0, "normalize_advantage": True}
_REPLAY: dict[str, Any] = {"buffer_size": 50_000, "batch_size": 256, "train_freq": 1, "gamma": 1.0}
_VALUE = (
    _REPLAY
    | {"learning_rate": 1e-3, "learning_starts": 2_000, "gradient_steps": 4}
    | {
        "exploration_fraction": 0.3,
        "target_update_interval": 1_000,
    }
)
# The entropy of 12 relaxed bits must not outweigh rewards between 0 and 1.
_ACTOR = _REPLAY | {"learning_rate": 1e-3, "learning_starts": 2_000, "gradient_steps": 4, "ent_coef": 0.001}
# A deterministic actor whose bits saturate early never leaves them: it learns slower, behind a critic that leads. It
# still learns on some seeds only.
_TD3 = _REPLAY | {
    "learning_rate": 3e-4,
    "learning_starts": 4_000,
    "gradient_steps": 12,
    "policy_delay": 4,
    "noise": 0.5,
}


@dataclass(frozen=True)
class Preset:
    """Settings with which an algorithm learns on an environment."""

    algorithm: type[BaseAlgorithm]
    steps: int
    """of a lane, summed over all lanes (Stable-Baselines3's total_timesteps)"""
    settings: Mapping[str, Any]
    """of the algorithm's constructor"""
    lanes: int = 256
    bits: int = 24
    group_bits: int = 12
    action: Literal["bits", "probability", "index"] = "bits"
    input_dropout: float = 0.0
    policy: type[BasePolicy] | None = None
    """None: the algorithm's own for Dict observations"""
    policy_kwargs: Mapping[str, Any] = field(default_factory=lambda: _MLP)

    @property
    def policy_class(self) -> type[BasePolicy]:
        """The policy's class."""
        return self.policy or self.algorithm.policy_aliases["MultiInputPolicy"]


PRESETS: dict[str, dict[str, Preset]] = {
    "BitGroupHashing-v0": {
        "ppo": Preset(PPO, 120_000, _PPO),
        "a2c": Preset(A2C, 300_000, _A2C),
        "trpo": Preset(TRPO, 150_000, {"n_steps": 8, "batch_size": 512, "learning_rate": 1e-3, "gamma": 1.0}),
        "recurrent_ppo": Preset(
            RecurrentPPO,
            80_000,
            _PPO | {"learning_rate": 2e-3},
            policy=MultiBinaryLstmPolicy,
            policy_kwargs=_MLP | {"lstm_hidden_size": 128},
        ),
        "maskable_ppo": Preset(MaskablePPO, 120_000, _PPO),
        "dqn": Preset(DQN, 100_000, _VALUE, lanes=64, action="index", group_bits=4),
        "qrdqn": Preset(
            QRDQN,
            100_000,
            _VALUE | {"learning_rate": 5e-4},
            lanes=64,
            action="index",
            group_bits=4,
            policy_kwargs=_MLP | {"n_quantiles": 25},
        ),
        "sac": Preset(SAC, 30_000, _ACTOR, lanes=64, action="probability"),
        "td3": Preset(TD3, 50_000, _TD3, lanes=64, action="probability"),
        "tqc": Preset(TQC, 30_000, _ACTOR, lanes=64, action="probability"),
        "crossq": Preset(
            CrossQ,
            50_000,
            _ACTOR,
            lanes=64,
            action="probability",
            policy=FlatCrossQPolicy,
            policy_kwargs={"net_arch": [256, 256]},
        ),
    },
    "RegionKeep-v0": {
        "ppo": Preset(PPO, 100_000, _PPO, bits=32, input_dropout=0.5),
        "a2c": Preset(
            A2C, 100_000, _A2C | {"n_steps": 1, "learning_rate": 1e-3, "ent_coef": 0.1}, bits=32, input_dropout=0.5
        ),
        "dqn": Preset(DQN, 100_000, _VALUE, bits=32, input_dropout=0.5),
    },
}


@dataclass(frozen=True, kw_only=True)
class Args(runs.CommonArgs):
    """Settings of a training run; 0 (of ``input_dropout`` -1) stands for the preset's."""

    agent: ClassVar[str] = "sb3"

    algo: str = "ppo"
    """ppo, a2c, trpo, recurrent_ppo, maskable_ppo, dqn, qrdqn, sac, td3, tqc or crossq"""
    env: Env = "BitGroupHashing-v0"
    """BitGroupHashing-v0: any algorithm; RegionKeep-v0: ppo, a2c or dqn"""
    bits: int = 0
    """q, length of the code"""
    group_bits: int = 0
    """k, bits emitted in one step of BitGroupHashing-v0"""
    reward: str = "average_precision"
    """reward of BitGroupHashing-v0 by name"""
    steps: int = 0
    """steps of a lane, summed over all lanes"""
    lanes: int = 0
    """images in a batch, and lanes of the environment"""
    input_dropout: float = -1.0
    """part of the features left out of each episode while training"""
    settings: dict[str, int | float] = field(default_factory=dict)
    """of the algorithm's constructor, e.g. `learning_rate 3e-4 n_epochs 10`"""
    evaluations: int = 20
    """how often the held-out images are encoded"""
    checkpoints: int = 10
    """how often the run is saved, where there is a folder for it"""

    def __post_init__(self) -> None:
        if self.env not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"env must be one of {known}, got {self.env!r}{closest(self.env, PRESETS)}")
        if self.algo not in PRESETS[self.env]:
            known, close = ", ".join(PRESETS[self.env]), closest(self.algo, PRESETS[self.env])
            raise ValueError(f"algo for {self.env} must be one of {known}, got {self.algo!r}{close}")
        preset = self.preset
        for name in ("bits", "group_bits", "steps", "lanes", "input_dropout"):
            if getattr(self, name) == (-1 if name == "input_dropout" else 0):
                object.__setattr__(self, name, getattr(preset, name))
        # A code shorter than the preset's group is one group.
        object.__setattr__(self, "group_bits", min(self.group_bits, self.bits))
        self.check_positive("steps", "lanes", "bits", "group_bits", "evaluations", "checkpoints")
        self.check_fraction("input_dropout")
        super().__post_init__()

    @property
    def preset(self) -> Preset:
        """The preset of the algorithm on the environment."""
        return PRESETS[self.env][self.algo]


def make_envs(dataset: HashingDataset, args: Args, base: Hasher | None) -> VecEnv:
    """The environment that a run learns on, as a VecEnv of Stable-Baselines3."""
    task: dict[str, Any]
    if args.env == "BitGroupHashing-v0":
        task = {"bits": args.bits, "group_bits": args.group_bits, "action": args.preset.action, "reward": args.reward}
    else:
        task = {"base": base}
    envs: VecEnv = HashVecEnv(gym.make_vec(args.env, num_envs=args.lanes, dataset=dataset, **task))
    if args.input_dropout:
        envs = FeatureDropout(envs, args.input_dropout, args.seed)
    return Flat(envs) if args.algo == "crossq" else envs


def make_model(envs: VecEnv, args: Args) -> BaseAlgorithm:
    """The algorithm, untrained."""
    preset = args.preset
    settings = {**preset.settings, **args.settings}
    if "noise" in settings:  # a deterministic actor explores by noise alone
        sigma = np.full(args.group_bits, settings.pop("noise"))
        settings["action_noise"] = NormalActionNoise(np.zeros(args.group_bits), sigma)
    try:
        return preset.algorithm(
            preset.policy_class,
            envs,
            policy_kwargs=dict(preset.policy_kwargs),
            seed=args.seed,
            device=resolve_device(args.device),
            **settings | {"learning_rate": LinearSchedule(settings["learning_rate"], 0.0, 1.0)},
        )
    except TypeError as error:
        raise ValueError(f"{args.algo}: {error}; settings are those of its constructor in Stable-Baselines3") from error


@runs.exclusive
def train(
    dataset: HashingDataset,
    args: Args,
    *,
    base: Hasher | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> BaseAlgorithm:
    """Train an algorithm on the training images of a dataset.

    A part of them is held out and encoded now and then; the policy that ranks them best, or on RegionKeep-v0 earns
    most on them, is the one that is kept.

    Args:
        dataset: standardised features do best (``HashingDataset.standardized``).
        args: settings.
        base: the fitted base hasher, for RegionKeep-v0.
        out: folder for ``base.npz``, ``checkpoint.pt``, TensorBoard's files, and at the end ``policy.pt`` and the
            encoder ``policy.onnx``; None writes nothing.
        resume: take up the run that ``out`` holds; the result is that of a run that was never stopped.
        progress: whether to show a progress bar.

    Returns:
        The algorithm with its best policy, to be run by :func:`hashgym.encode` or :func:`hashgym.encode_regions`.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other settings; for arguments or data
            that the environment or the algorithm refuses; if another process is training into ``out``.
        DiskFullError: if a file does not fit on the disk; the last checkpoint is whole.
    """
    if (base is None) != (args.env == "BitGroupHashing-v0"):
        raise ValueError("RegionKeep-v0 needs base=, a fitted hasher, and BitGroupHashing-v0 none")
    checkpoint = runs.resumed(out, args, resume)
    learning, held_out = runs.split(dataset, args)
    with _seeded(args):
        if base is not None and out is not None and not resume:
            mch.save_base(base, out)
        model = make_model(make_envs(learning, args, base), args)
        model.set_logger(configure(None if out is None else str(out), [] if out is None else ["tensorboard"]))
        watch = _Watch(args, dataset, held_out, base, out, progress)
        if checkpoint is not None:
            watch.restore(model, checkpoint)
        batch_size = getattr(model, "batch_size", args.lanes)
        with watch.bar, limit_threads(largest_product(model.policy, batch_size)):
            model.learn(
                args.steps - model.num_timesteps,
                watch,
                log_interval=None,  # type: ignore[arg-type]  # the watch writes the curves
                reset_num_timesteps=checkpoint is None,
            )
    if out is not None:
        bits = args.bits if base is None else base.bits
        runs.save(runs.finished(model.policy, dataset, args, dim=dataset.dim, bits=bits), out / "policy.pt")
        # Read back, since the trained one may hold on to tensors of its last update, which cannot be copied.
        greedy, path = Greedy(load(out / "policy.pt", "cpu")), out / "policy.onnx"
        if base is None:
            code = {"bits": bits, "group_bits": args.group_bits}
            runs.export(lambda: GroupsHead(greedy, **code), dataset, args, path, **code)
        else:
            runs.export(lambda: RegionsHead(hasher_head(base), greedy), dataset, args, path, bits=bits, threshold=0.5)
    return model


def load(path: Path, device: str = "auto") -> BasePolicy:
    """Load the ``policy.pt`` of a finished run: a policy that encodes as the one that was saved, to the last bit.

    Raises:
        ValueError: if the file is missing, damaged, or no policy of this agent.
    """
    saved, args = runs.load_policy(path, Args)
    if args.env == "BitGroupHashing-v0":
        task = HashingTask(bits=saved["bits"], group_bits=args.group_bits, action=args.preset.action)
        shown: Any = task.observation_space(saved["dim"])
        action = task.action_space()
    else:
        shown, action = RegionKeepTask().observation_space(saved["dim"], saved["bits"]), spaces.Discrete(2)
    if args.algo == "crossq":
        shown = Flat.space(shown)
    policy = args.preset.policy_class(shown, action, lambda _: 0.0, **args.preset.policy_kwargs)
    policy.load_state_dict(saved["weights"])
    policy.set_training_mode(False)
    return policy.to(resolve_device(device))


def encode(
    policy: Any, args: Args, dataset: HashingDataset, rows: NDArray[np.int64], base: Hasher | None = None
) -> CodeSets:
    """Codes of some images of a dataset: one each, or on RegionKeep-v0 with those of the regions that are kept."""
    if base is None:
        bits = hashgym.encode(policy, dataset.features[rows], bits=args.bits, group_bits=args.group_bits)
        return CodeSets.of(bits)
    regions = None if dataset.regions is None else dataset.regions[rows]
    return hashgym.encode_regions(policy, base, dataset.features[rows], regions)


def measure(
    policy: Any, args: Args, dataset: HashingDataset, base: Hasher | None = None
) -> tuple[metrics.RetrievalResult, CodeSets]:
    """Search the database for every query, on RegionKeep-v0 with its own code alone: how well, and in which codes."""
    query: Any = (
        encode(policy, args, dataset, dataset.query) if base is None else base.encode(dataset.features[dataset.query])
    )
    database = encode(policy, args, dataset, dataset.database, base)
    return metrics.evaluate(query, dataset.labels[dataset.query], database, dataset.labels[dataset.database]), database


class _Watch(BaseCallback):
    """What happens beside the learning: progress, curves, the best policy on held-out images, checkpoints."""

    def __init__(
        self,
        args: Args,
        dataset: HashingDataset,
        held_out: NDArray[np.int64],
        base: Hasher | None,
        out: Path | None,
        progress: bool,
    ) -> None:
        super().__init__()
        self.args, self.dataset, self.held_out, self.base, self.out = args, dataset, held_out, base, out
        self.bar = runs.bar_of(progress)
        self.best, self.weights, self.marks = -np.inf, dict[str, Tensor](), dict[str, int]()

    def _on_training_start(self) -> None:
        self.task = self.bar.add_task(f"{self.args.algo}, {self.args.env}", total=self.args.steps)

    def _on_rollout_start(self) -> None:
        """Between learning and acting: the one moment that a run can be taken up at."""
        if self._due("log", LOGS):
            self.model.dump_logs()
        if self._due("evaluate", self.args.evaluations):
            self._evaluate()
        if self.out is not None and self._due("save", self.args.checkpoints):
            runs.save(self.checkpoint(), self.out / "checkpoint.pt")

    def _on_step(self) -> bool:
        self.bar.update(self.task, completed=self.num_timesteps)
        info = self.training_env.unwrapped.last_info  # type: ignore[attr-defined]
        for name, part in info.get("final_info", info)["rewards"].items():
            if not name.startswith("_"):
                self.logger.record_mean(f"reward/{name}", float(part.mean()))
        return True

    def _on_training_end(self) -> None:
        self._evaluate()
        self.model.dump_logs()
        if self.weights:
            self.model.policy.load_state_dict(self.weights)
        self.model.policy.set_training_mode(False)

    def _due(self, what: str, times: int) -> bool:
        """Whether another of so many equal parts of the run is over."""
        parts = self.num_timesteps * times // self.args.steps
        over = parts > self.marks.get(what, 0)
        self.marks[what] = parts
        return over

    def _evaluate(self) -> None:
        """How held-out images find each other, and what decisions on them earn; the query split is never seen.

        The best policy has the highest tie-aware mAP of these; on RegionKeep-v0 it earns most. Retrieval among a few
        images would prefer to keep all their regions, whatever else these regions are near to.
        """
        if len(self.held_out) < 2:
            return
        codes = encode(self.model, self.args, self.dataset, self.held_out, self.base)
        scores = runs.retrieval_among(codes, self.dataset.labels[self.held_out])
        if self.base is not None:
            scores["reward/held_out"] = self._earned()
        for name, score in scores.items():
            self.logger.record(name, score)
        # Without two held-out images that share a label there is no score, and the last policy is kept.
        score = scores.get("retrieval/held_out_map" if self.base is None else "reward/held_out", -np.inf)
        if score > self.best:
            self.best = score
            self.weights = {name: part.clone() for name, part in self.model.policy.state_dict().items()}

    def _earned(self) -> float:
        """Mean reward of decisions on each of the held-out images' regions, against all training images."""
        rewards = []
        for region in range(self.dataset.train_regions.shape[1]):  # type: ignore[union-attr]
            options = {"index": self.held_out, "regions": np.full((len(self.held_out), 1), region)}
            observation, info = self._exam.reset(options=options)
            action, _ = self.model.predict(observation, deterministic=True)
            rewards.append(np.where(action == 1, info["keep_reward"], 0.0).mean())
        return float(np.mean(rewards))

    @cached_property
    def _exam(self) -> Any:
        return gym.make_vec("RegionKeep-v0", num_envs=len(self.held_out), dataset=self.dataset, base=self.base)

    def checkpoint(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        model: Any = self.model
        recurrent = getattr(model, "_last_lstm_states", None)
        buffer = getattr(model, "replay_buffer", None)
        return {
            "args": runs.as_json(self.args),
            "data": runs.fingerprint(self.dataset),
            "parameters": model.get_parameters(),
            "variables": {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]},
            "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
            "recurrent": None if recurrent is None else [list(pair) for pair in recurrent],
            "buffer": None if buffer is None else _contents(buffer),
            "environment": runs.as_tensors(self.training_env.get_state()),  # type: ignore[attr-defined]
            "starts": torch.from_numpy(model._last_episode_starts),
            "watch": {"best": self.best, "weights": self.weights, "marks": self.marks},
            "generators": _generators(model),
        }

    def restore(self, model: Any, checkpoint: dict[str, Any]) -> None:
        """Take up the run of a checkpoint."""
        if checkpoint["data"] != runs.fingerprint(self.dataset):
            raise ValueError(runs.OTHER_DATA)
        model.set_parameters(checkpoint["parameters"])
        for name, variable in checkpoint["variables"].items():
            getattr(model, name).data.copy_(variable)
        for name, count in checkpoint["counters"].items():
            setattr(model, name, count)
        if checkpoint["recurrent"] is not None:
            model._last_lstm_states = RNNStates(
                *(tuple(t.to(model.device) for t in p) for p in checkpoint["recurrent"])
            )
        if checkpoint["buffer"] is not None:
            _fill(model.replay_buffer, checkpoint["buffer"])
        model._last_obs = model.get_env().set_state(runs.as_arrays(checkpoint["environment"]))
        model._last_episode_starts = checkpoint["starts"].numpy()
        self.best, self.weights, self.marks = (checkpoint["watch"][key] for key in ("best", "weights", "marks"))
        generators = checkpoint["generators"]
        torch.set_rng_state(generators["torch"])
        legacy = ("MT19937", generators["numpy"].numpy(), *generators["numpy_rest"])
        np.random.set_state(legacy)  # noqa: NPY002
        model.action_space.np_random.bit_generator.state = json.loads(generators["actions"])
        if generators["device"] is not None and model.device.type == "cuda":
            torch.cuda.set_rng_state(generators["device"], model.device)


def _generators(model: Any) -> dict[str, Any]:
    """States of the generators that Stable-Baselines3 draws from: torch's, NumPy's global one, the action space's."""
    _, state, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
        "numpy": torch.from_numpy(state),
        "numpy_rest": rest,
        "actions": json.dumps(model.action_space.np_random.bit_generator.state),
    }


def _contents(buffer: Any) -> dict[str, Any]:
    """What a replay buffer holds; its empty part is left out."""
    size = buffer.buffer_size if buffer.full else buffer.pos
    parts = {name: getattr(buffer, name) for name in BUFFER}
    arrays = {name: {"": part} if isinstance(part, np.ndarray) else part for name, part in parts.items()}
    return {
        "arrays": {name: {key: torch.from_numpy(a[:size]) for key, a in part.items()} for name, part in arrays.items()},
        "pos": buffer.pos,
        "full": buffer.full,
    }


def _fill(buffer: Any, contents: dict[str, Any]) -> None:
    """Put back what :func:`_contents` took out."""
    for name, arrays in contents["arrays"].items():
        for key, array in arrays.items():
            part = getattr(buffer, name)
            (part if key == "" else part[key])[: len(array)] = array.numpy()
    buffer.pos, buffer.full = contents["pos"], contents["full"]


@contextmanager
def _seeded(args: Args) -> Iterator[None]:
    """Stable-Baselines3 seeds the global generators; leave the caller's as they were."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        with runs.seeded(args.seed, resolve_device(args.device)):
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _wide(observation_space: spaces.Dict) -> list[str]:
    """The features of an observation; what else it holds is small."""
    return [key for key in ("image", "region") if key in observation_space.spaces]


@dataclass(frozen=True)
class Main:
    """Train one of Stable-Baselines3's algorithms and measure its codes."""

    args: tyro.conf.OmitArgPrefixes[Args]
    dataset: str | None = None
    """an embedded dataset or a folder made by `hashgym features`; digits, or digit-scenes for RegionKeep-v0"""
    base: str = "dch"
    """base hasher of RegionKeep-v0 by name, or a file that Hasher.save wrote"""
    out: Path | None = None
    """folder for checkpoint, policy and TensorBoard files"""
    resume: bool = False
    """go on with the run in `out`"""


def main(run: Main) -> metrics.RetrievalResult:
    """Train, encode queries and database, and print the retrieval metrics."""
    args, base = run.args, None
    keep = args.env == "RegionKeep-v0"
    dataset = data.load(run.dataset or ("digit-scenes" if keep else "digits")).standardized()
    metrics.check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    with runs.hold_folder(run.out):
        runs.resumed(run.out, args, run.resume)  # before the base is fitted
        if keep:
            dataset.require("train_regions", "regions")
            base = mch.base_of_run(run.base, run.out if run.resume else None, args.bits, args.seed, dataset)
        began = time.perf_counter()
        model = train(dataset, args, base=base, out=run.out, resume=run.resume)
    seconds = time.perf_counter() - began
    result, codes = measure(model, args, dataset, base)
    console.say(
        f"{args.algo}, {args.bits if base is None else base.bits} bits on {dataset.name}: mAP {result.map:.4f} "
        f"(ties {result.map_pessimistic:.4f} to {result.map_optimistic:.4f}), "
        f"within radius 0 recall {result.recall_by_radius[0]:.4f}, precision {result.precision_by_radius[0]:.4f}, "
        f"{codes.anhc:.2f} codes an image, trained in {seconds:.1f} s"
    )
    return result


if __name__ == "__main__":
    with command_line():
        asked = parse(Main, "agents.sb3")
        with runs.interruptible(asked.out):
            main(asked)
