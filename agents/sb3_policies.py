"""Networks for Stable-Baselines3's algorithms, and their greedy actions as a torch module to be exported."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from hashgym.encoders.heads import first_bit

from .sb3_wrappers import flat, wide_keys

__all__ = ["FlatCrossQPolicy", "Greedy", "GreedyCodes", "ImageAndCode", "MultiBinaryLstmPolicy"]


class ImageAndCode(BaseFeaturesExtractor):
    """Features extractor: one layer for the image (and region), concatenated with codes and group, which are small.

    SB3's own extractor would concatenate a few dozen code bits with a thousand raw features and leave all to the
    policy's layers, once for the actor and once for the critic; here both share the one wide layer.
    """

    def __init__(self, observation_space: spaces.Dict, width: int = 256) -> None:
        self.wide = wide_keys(observation_space)
        self.small = [key for key in observation_space.spaces if key not in self.wide]
        small = sum(spaces.flatdim(observation_space[key]) for key in self.small)
        super().__init__(observation_space, width + small)
        dim = sum(spaces.flatdim(observation_space[key]) for key in self.wide)
        self.embedding = nn.Sequential(nn.Linear(dim, width), nn.ReLU())

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return embedding, codes and group, (n, features_dim); the group is one-hot already, by SB3."""
        image = self.embedding(torch.cat([observation[key] for key in self.wide], dim=1))
        return torch.cat([image, *(observation[key].flatten(1) for key in self.small)], dim=1)


class MultiBinaryLstmPolicy(RecurrentMultiInputActorCriticPolicy):
    """RecurrentPPO's policy for bits, which its rollout buffer returns as integers."""

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as sb3-contrib's policy, for integer actions."""
        return super().evaluate_actions(obs, actions.float(), lstm_states, episode_starts)


class FlatCrossQPolicy(CrossQPolicy):
    """CrossQ's policy for :class:`Flat` observations, as it does not support Dict ones."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        """Act on a batch of observations, Dict or flat."""
        if isinstance(observation, dict):
            observation = flat(observation, spaces.flatdim(self.observation_space))
        return super().predict(observation, *args, **kwargs)


class Greedy(nn.Module):
    """Deterministic actions of a policy as real values of bits, for ONNX.

    A value is a probability or an action, minus 0.5, or a difference of Q values; the bit is 1 where it is above 0.
    Logits would have the same signs except where a probability rounds to 0.5, for which the policy's bit is 0.

    Args:
        policy: of any of the algorithms.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy: Any = policy

    def act(self, image: Tensor, code: Tensor, group: int, state: Any) -> tuple[Tensor, Any]:
        """Return real values (n, k) of a group's bits, see :class:`hashgym.encoders.heads.Actor`."""
        groups, space = torch.full_like(code[:, 0], group, dtype=torch.int64), self.policy.action_space
        observation: Any = {"image": image, "code": code, "group": groups}
        if isinstance(self.policy, FlatCrossQPolicy):
            observation = flat(observation, spaces.flatdim(self.policy.observation_space))
        scores, state = self.scores(observation, state)
        if isinstance(space, spaces.Discrete):  # the bits of the index with the best score
            bit = torch.arange(int(space.n)) >> torch.arange(int(space.n).bit_length() - 1)[:, None] & 1
            one, zero = (scores[:, None].masked_fill(bit == other, -torch.inf).amax(2) for other in (0, 1))
            return one - zero, state
        if isinstance(self.policy, MaskableActorCriticPolicy):  # a choice between 0 and 1 for each bit
            choices = scores.reshape(-1, int(space.n), 2).softmax(2)
            return choices[..., 1] - choices[..., 0], state
        return (torch.sigmoid(scores) if isinstance(space, spaces.MultiBinary) else scores) - 0.5, state

    def keep(self, observation: dict[str, Tensor]) -> Tensor:
        """Return 1 where the policy keeps, else 0: (n,)."""
        scores, _ = self.scores(observation, None)
        return (scores[:, 1] > scores[:, 0]).float()

    def scores(self, observation: Any, state: Any) -> tuple[Tensor, Any]:
        """Return logits, Q values or, for Box actions, the action itself; and a recurrent policy's state."""
        policy = self.policy
        if isinstance(policy, QRDQNPolicy):
            return policy.quantile_net(observation).mean(1), None
        if isinstance(policy, DQNPolicy):
            return policy.q_net(observation), None
        if not isinstance(policy, (ActorCriticPolicy, MaskableActorCriticPolicy)):  # actors that squash to -1 and 1
            if isinstance(policy, TD3Policy):
                squashed = policy.actor(observation)
            else:
                squashed = policy.actor.get_action_dist_params(observation)[0].tanh()
            return 0.5 * (squashed + 1), None
        features = BasePolicy.extract_features(policy, observation, policy.pi_features_extractor)
        if isinstance(policy, RecurrentActorCriticPolicy):
            zeros = features.new_zeros(
                policy.lstm_hidden_state_shape[0], features.shape[0], policy.lstm_actor.hidden_size
            )
            outputs, state = policy.lstm_actor(features[None], state or (zeros, zeros))
            features = outputs[0]
        return policy.action_net(policy.mlp_extractor.forward_actor(features)), state


class GreedyCodes(nn.Module):
    """Deterministic actions of a policy of bits on MultiCodeHashing-v0 as logits, for ONNX.

    Args:
        policy: an actor-critic policy whose actions are bits.
        bits: q, the length of a code.
        group_bits: k, the length of a group.
    """

    def __init__(self, policy: BasePolicy, bits: int, group_bits: int) -> None:
        super().__init__()
        self.greedy, self.bits, self.group_bits = Greedy(policy), bits, group_bits

    def embed(self, image: Tensor) -> Tensor:
        """Return the images unchanged."""
        return image

    def act(self, embedded: Tensor, code: Tensor, codes: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Return logits of a group's bits and of keeping the code, see :class:`hashgym.encoders.heads.Writer`."""
        groups = torch.full_like(code[:, 0], group, dtype=torch.int64)
        observation = {"image": embedded, "code": code, "codes": codes, "group": groups}
        scores, _ = self.greedy.scores(observation, None)
        start = first_bit(group, self.bits, self.group_bits)
        return scores[:, : min(self.group_bits, self.bits - start)], scores[:, -1]
