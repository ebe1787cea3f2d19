"""Arguments of agents.sb3, and presets with which each algorithm of Stable-Baselines3 learns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from hashgym.checks import check_choice, check_number, closest
from hashgym.integrations.sb3 import BackboneExtractor

from .arguments import CommonArgs, Name
from .sb3_policies import FlatCrossQPolicy, ImageAndCode, MultiBinaryLstmPolicy

__all__ = ["PRESETS", "Args", "Preset"]

Env: TypeAlias = Literal["BitGroupHashing-v0", "RegionKeep-v0", "MultiCodeHashing-v0"]

_MLP: dict[str, Any] = {"features_extractor_class": ImageAndCode, "net_arch": [256]}
_PPO: dict[str, Any] = {"n_steps": 8, "batch_size": 512, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 1.0}
_A2C: dict[str, Any] = {"n_steps": 2, "learning_rate": 3e-3, "gamma": 1.0, "normalize_advantage": True}
_REPLAY: dict[str, Any] = {"buffer_size": 50_000, "batch_size": 256, "train_freq": 1, "gamma": 1.0}
_VALUE = _REPLAY | {
    "learning_rate": 1e-3,
    "learning_starts": 2_000,
    "gradient_steps": 4,
    "exploration_fraction": 0.3,
    "target_update_interval": 1_000,
}
# The entropy of 12 relaxed bits must not outweigh rewards between 0 and 1.
_ACTOR = _REPLAY | {"learning_rate": 1e-3, "learning_starts": 2_000, "gradient_steps": 4, "ent_coef": 0.001}
# A deterministic actor whose bits saturate early never changes them again: it is updated less often than the critic,
# and still learns on some seeds only.
_TD3 = _REPLAY | {
    "learning_rate": 3e-4,
    "learning_starts": 4_000,
    "gradient_steps": 12,
    "policy_delay": 4,
    "noise": 0.5,
}


@dataclass(frozen=True)
class Preset:
    """Arguments with which an algorithm learns on an environment."""

    algorithm: type[BaseAlgorithm]
    steps: int
    """environment steps, summed over all environments (Stable-Baselines3's total_timesteps)"""
    settings: Mapping[str, Any]
    """arguments of the algorithm's constructor"""
    num_envs: int = 256
    bits: int = 24
    group_bits: int = 12
    action: Literal["bits", "probability", "index"] = "bits"
    input_dropout: float = 0.0
    policy: type[BasePolicy] | None = None
    """class of the policy; None for the algorithm's own for Dict observations"""
    policy_kwargs: Mapping[str, Any] = field(default_factory=lambda: _MLP)

    @property
    def policy_class(self) -> type[BasePolicy]:
        """The class of the policy: ``policy``, or the algorithm's own."""
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
        "dqn": Preset(DQN, 100_000, _VALUE, num_envs=64, action="index", group_bits=4),
        "qrdqn": Preset(
            QRDQN,
            100_000,
            _VALUE | {"learning_rate": 5e-4},
            num_envs=64,
            action="index",
            group_bits=4,
            policy_kwargs=_MLP | {"n_quantiles": 25},
        ),
        "sac": Preset(SAC, 30_000, _ACTOR, num_envs=64, action="probability"),
        "td3": Preset(TD3, 50_000, _TD3, num_envs=64, action="probability"),
        "tqc": Preset(TQC, 30_000, _ACTOR, num_envs=64, action="probability"),
        "crossq": Preset(
            CrossQ,
            50_000,
            _ACTOR,
            num_envs=64,
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
    "MultiCodeHashing-v0": {
        "ppo": Preset(PPO, 200_000, _PPO | {"n_steps": 4}, bits=32, group_bits=0, input_dropout=0.5),
    },
}


@dataclass(frozen=True, kw_only=True)
class Args(CommonArgs):
    """Arguments of a training run; 0 (-1 for ``input_dropout``) means the preset's value."""

    agent: ClassVar[str] = "sb3"

    algo: Name = "ppo"
    """ppo, a2c, trpo, recurrent_ppo, maskable_ppo, dqn, qrdqn, sac, td3, tqc or crossq; `--algo NAME` does the same"""
    env: Env = "BitGroupHashing-v0"
    """BitGroupHashing-v0: any algorithm; RegionKeep-v0: ppo, a2c or dqn; MultiCodeHashing-v0: ppo"""
    bits: int = 0
    """q, length of the code"""
    group_bits: int = 0
    """k, bits emitted in one step of BitGroupHashing-v0 and of MultiCodeHashing-v0, there by default a whole code"""
    codes: int = 1
    """m, number of further codes of MultiCodeHashing-v0"""
    reward: str = "average_precision"
    """reward of BitGroupHashing-v0 by name"""
    steps: int = 0
    """environment steps, summed over all environments"""
    num_envs: int = 0
    """environments that are stepped together, each with one image of the batch"""
    input_dropout: float = -1.0
    """fraction of the features dropped in each episode while training"""
    backbone: str | None = None
    """network trained with the policy: NAME:CUT for activations, NAME for pixels; the dataset's own if left out"""
    backbone_weights: str | None = None
    """file of the backbone's pretrained weights; by default its own"""
    settings: dict[str, int | float] = field(default_factory=dict)
    """arguments of the algorithm's constructor, such as `learning_rate 3e-4 n_epochs 10`"""
    evaluations: int = 20
    """number of evaluations on the held-out images"""
    checkpoints: int = 10
    """number of checkpoints, where there is a folder for them"""

    def __post_init__(self) -> None:
        check_choice("env", self.env, PRESETS)
        check_choice(f"algo for {self.env}", self.algo, PRESETS[self.env])
        preset = self.preset
        for name in ("bits", "group_bits", "steps", "num_envs", "input_dropout"):
            if getattr(self, name) == (-1 if name == "input_dropout" else 0):
                object.__setattr__(self, name, getattr(preset, name))
        if self.env != "MultiCodeHashing-v0":  # there the length of a code is that of the base
            # A code shorter than the preset's group is one group.
            object.__setattr__(self, "group_bits", min(self.group_bits, self.bits))
            self.check_positive("group_bits")
        self.check_positive("steps", "num_envs", "bits", "codes", "evaluations", "checkpoints")
        self.check_fraction("input_dropout")
        known = inspect.signature(preset.algorithm).parameters if self.settings else {}
        for name, value in self.settings.items():
            check_number(f"{name} of settings", value)
            if name not in (*known, "noise"):
                raise ValueError(
                    f"{self.algo} has no setting {name!r}{closest(name, known)}: settings are arguments of its "
                    "constructor in Stable-Baselines3"
                )
        if self.backbone is not None:
            self._check_backbone()
        super().__post_init__()

    def _check_backbone(self) -> None:
        if self.env != "BitGroupHashing-v0" or self.policy_kwargs.get("features_extractor_class") is None:
            raise ValueError(
                f"{self.algo} on {self.env} takes feature vectors, not activations or pixels: choose another algorithm "
                "on BitGroupHashing-v0, such as ppo"
            )
        if self.input_dropout:
            raise ValueError("input_dropout drops features of vectors: leave it out for activations and pixels")

    @property
    def preset(self) -> Preset:
        """The preset of the algorithm on the environment."""
        return PRESETS[self.env][self.algo]

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Arguments of the policy: the preset's, and the features extractor of the backbone if there is one."""
        network = dict(self.preset.policy_kwargs)
        if self.backbone is None or "features_extractor_class" not in network:
            return network
        extractor = {"backbone": self.backbone, "weights": self.backbone_weights}
        return network | {"features_extractor_class": BackboneExtractor, "features_extractor_kwargs": extractor}
