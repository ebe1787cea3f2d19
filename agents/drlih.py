"""DRLIH: policy gradient agents that learn to hash on BitGroupHashing-v0, in one readable file.

    python -m agents.drlih --dataset digits --bits 24 --out runs/drlih
    python -m agents.drlih gru --dataset digits --bits 24 --out runs/gru

Peng, Zhang and Ye, "Deep Reinforcement Learning for Image Hashing", 2018. A variant is one entry of :data:`VARIANTS`:

* ``paper``: the paper's cell and equations 5 to 9 with the signs corrected: REINFORCE on the group reward of sampled
  bits, and the gradient of the triplet ranking loss of the whole relaxed code.
* ``released``: the objective of the authors' released code, which differs: nothing is sampled, there are no groups, and
  the term called policy loss raises the probability of penalised bits.
* ``hashgym``: our recurrent policy, trained by per-bit credit: the environment returns the effect of every emitted bit
  on the average precision, so that each bit is its own one-step bandit with a known advantage (:func:`credit_loss`).
* ``norec``: the same objective and sizes without recurrence, an ablation of sequential decisions.
* ``nested`` and ``nested-norec``: the same two networks, rewarded for every prefix of the code that ends at a group, so
  that one training gives codes of every length; their reward is ``nca``, on normalised logits.
* ``gru`` and ``lstm``: the ordinary recurrent policy gradient, which needs only the value of a reward: REINFORCE on
  reward-to-go with a learned baseline, trained in one call of the cell over all groups.

On a dataset of activations or pixels a variant owns a backbone, the rest of the network after them, and trains it too::

    python -m agents.drlih --dataset digits-pixels --augment none --updates 100 --out runs/pixels

The file reads from top to bottom: arguments, networks, losses, variants, and one update (:meth:`Run.rollout`,
:meth:`Run.update`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

import hashgym
from hashgym import console
from hashgym.checks import check_choice
from hashgym.codes import CodeSets, prefix_lengths
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.encoders.heads import GroupsHead
from hashgym.envs.bit_group_hashing import DEFAULT_GROUP_BITS
from hashgym.features.trainable import AUGMENTATIONS, TrainableBackbone
from hashgym.hashers.noseq import triplet_ranking_loss
from hashgym.retrieval import metrics
from hashgym.terminal import command_line

from . import checkpoint as files
from . import training
from .arguments import Name, RunArgs, read_command

__all__ = [
    "PRESETS",
    "VARIANTS",
    "Args",
    "Main",
    "Policy",
    "Variant",
    "any_reward",
    "baseline_loss",
    "bit_credit",
    "build",
    "command",
    "credit_loss",
    "load",
    "main",
    "parameter_groups",
    "prefix_credit",
    "reinforce_loss",
    "released_loss",
    "reward_to_go",
    "train",
    "triplet_reward",
]

State: TypeAlias = tuple[Any, ...]  # tensors, or the state of a cell of torch's


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Arguments of a training run."""

    agent: ClassVar[str] = "drlih"

    variant: Name = "hashgym"
    """objective and network: hashgym, norec, nested, nested-norec, gru, lstm, paper or released; or `--variant NAME`"""
    bits: int = 24
    """q, length of the code"""
    group_bits: int = DEFAULT_GROUP_BITS
    """k, bits emitted in one step; `bits` where the code is shorter"""
    reward: str = "average_precision"
    """reward by name, or a sum, `nca+0.5*balance`; `paper` and `released` are defined by the triplet reward"""
    margin: float = 1.0
    """m of equation 3, for `paper` and `released`"""
    updates: int = 5000
    """gradient steps, each on one batch of episodes"""
    hidden: int = 512
    """width of the hidden layer (the paper: 4096)"""
    rnn_hidden: int = 64
    """width of the recurrent state of `hashgym`, `gru` and `lstm`"""
    dropout: float = 0.4
    """fraction of the hidden units dropped while training"""
    input_dropout: float = 0.5
    """fraction of the features dropped while training"""
    learning_rate: float = 1e-3
    """initial learning rate of Adam; it falls to 0 along a cosine"""
    weight_decay: float = 1e-4
    """L2 penalty on the weights, in the gradient"""
    backbone: str | None = None
    """network trained with the policy: NAME:CUT for activations, NAME for pixels; the dataset's own if left out"""
    backbone_learning_rate: float = 5e-4
    """initial learning rate of Adam for the backbone, on the same cosine"""
    backbone_weights: str | None = None
    """file of the backbone's pretrained weights; by default its own"""
    head_updates: int = 0
    """updates of the policy alone, on features of the frozen backbone, before both are trained; 0 for none"""
    augment: str = "crop-flip"
    """how pixels are augmented in training: crop-flip, or none"""
    logit_scale: float = 0.0
    """normalise each bit's logits to this deviation over a batch, before the GRU's part (bit credit only); 0: off"""
    group_weight: float = 0.0
    """weight of the group reward relative to the whole code's; not for `paper`, `released` and the nested variants"""
    codebook_sample: int | None = None
    """number of training images that a batch is compared with, all by default; not for `paper` and `released`"""
    value_weight: float = 0.5
    """weight of the baseline's squared error, for `gru` and `lstm`"""
    entropy_weight: float = 3e-3
    """weight of the bits' entropy, in nats, for `gru` and `lstm`"""

    def __post_init__(self) -> None:
        for name, choices in {"variant": VARIANTS, "augment": AUGMENTATIONS}.items():
            check_choice(name, getattr(self, name), choices)
        self.check_positive("bits", "group_bits", "hidden", "rnn_hidden", "learning_rate", "backbone_learning_rate")
        object.__setattr__(self, "group_bits", min(self.group_bits, self.bits))
        self.check_fraction("dropout", "input_dropout")
        for name in ("value_weight", "entropy_weight", "head_updates", "logit_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if self.codebook_sample is not None and VARIANTS[self.variant].reward is triplet_reward:
            raise ValueError(
                f"codebook_sample has no use for {self.variant}, whose reward compares with partners alone"
            )
        if self.logit_scale and self.num_envs == 1:
            raise ValueError("logit_scale normalises over a batch: num_envs must be at least 2")
        super().__post_init__()


class Policy(nn.Module):
    """A stochastic policy over groups of bits: given the image and the bits so far, a group's bits are independent.

    Subclasses implement :meth:`initial_state`, computed once for an image from its features, and :meth:`step`, the
    logits of a group.

    Attributes:
        dim: D, the number of features.
        backbone: images (n, C, H, W) -> features (n, D), trained with the policy; None if images are feature vectors.
        groups: the first bit and the end of each group.
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__()
        self.dim, self.args = dim, args
        self.backbone: TrainableBackbone | None = None
        self.groups = [
            (start, min(start + args.group_bits, args.bits)) for start in range(0, args.bits, args.group_bits)
        ]

    def initial_state(self, image: Tensor) -> State:
        """Return the state at the start of an episode, from features (n, D)."""
        raise NotImplementedError

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """Return logits (n, bits of the group) and the next state; code (n, q) is -1, +1, and 0 where unset."""
        raise NotImplementedError

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image: (D,), or (C, H, W) with a backbone."""
        return (self.dim,) if self.backbone is None else self.backbone.image_shape

    def begin(self, image: Tensor) -> State:
        """Return the state at the start of an episode, from images (n, D), or (n, C, H, W) with a backbone."""
        return self.initial_state(image if self.backbone is None else self.backbone(image))

    def act(self, image: Tensor, code: Tensor, group: int, state: State | None) -> tuple[Tensor, State]:
        """Return the same as :meth:`step`; a state of None starts an episode."""
        return self.step(self.begin(image) if state is None else state, code, group)

    def predict(
        self,
        observation: dict[str, Any],
        state: State | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int8], State]:
        """Act on a batch of observations, as Stable-Baselines3 models do; all are at the same group.

        Args:
            observation: ``image`` (n, D) or (n, C, H, W), ``code`` (n, q), ``group`` (n,), as the environment returns
                them.
            state: the state that the last call returned, None at the start of the episodes.
            episode_start: ignored, as an episode starts where ``state`` is None.
            deterministic: return the likelier bits; otherwise sample them.

        Returns:
            Bits int8 (n, group_bits), 0 for the surplus bits of a short group; and the next state.

        Raises:
            ValueError: for images of another shape, or codes of another length, than the policy was trained on.
        """
        if (bits := observation["code"].shape[1]) != self.args.bits:
            raise ValueError(f"the policy was trained on codes of {self.args.bits} bits, got {bits}: give its own bits")
        if (shape := tuple(observation["image"].shape[1:])) != self.image_shape:
            raise ValueError(f"the policy was trained on images of shape {self.image_shape}, got {shape}")
        device = next(self.parameters()).device
        image, code = (torch.as_tensor(observation[key]).to(device) for key in ("image", "code"))
        mode = self.training
        self.eval()
        with torch.no_grad():
            logits, state = self.act(image, code, int(observation["group"][0]), state)
            bits = logits > 0 if deterministic else torch.bernoulli(torch.sigmoid(logits)) > 0
        self.train(mode)
        action = np.zeros((len(bits), self.args.group_bits), np.int8)
        action[:, : bits.shape[1]] = bits.cpu().numpy()
        return action, state

    def _hidden(self, layer: nn.Linear, image: Tensor) -> Tensor:
        image = self._dropped(image, self.args.input_dropout)
        return self._dropped(F.relu(layer(image)), self.args.dropout)

    def _dropped(self, x: Tensor, rate: float) -> Tensor:
        """Apply dropout; on a CPU a mask of uniform numbers costs a quarter of torch's own."""
        if not self.training or rate == 0:
            return x
        return x * (torch.rand_like(x) >= rate) / (1 - rate)


class FeedForward(Policy):
    """``norec``: all bits are computed from one hidden layer; earlier groups have no influence.

    With ``logit_scale`` the logits of each bit have mean 0 and this deviation over a batch. So bits stay balanced, and
    few are so certain that the gradient of their expected reward vanishes. To encode, they are normalised by running
    averages of the logits without dropout, whose mean is another.
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.hidden = nn.Linear(dim, args.hidden)
        self.head = nn.Linear(args.hidden, args.bits)
        self.normalize = nn.BatchNorm1d(args.bits, affine=False) if args.logit_scale else None

    def initial_state(self, image: Tensor) -> State:
        """Return the logits of the whole code."""
        logits = self.head(self._hidden(self.hidden, image))
        if self.normalize is None:
            return (logits,)
        if self.training:
            with torch.no_grad():
                self.normalize(self.head(F.relu(self.hidden(image))))
            logits = F.batch_norm(logits, None, None, training=True)
        else:
            logits = self.normalize(logits)
        return (self.args.logit_scale * logits,)

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """Return the group's part of them."""
        start, stop = self.groups[group]
        return state[0][:, start:stop], state


class Recurrent(FeedForward):
    """``hashgym``: the same direct path, corrected by a GRU that reads the bits emitted so far.

    The correction starts at zero, so that training begins as ``norec`` and departs from it only where the emitted bits
    (sampled ones, mistakes included) carry information that the image does not. ``logit_scale`` normalises the direct
    path alone.
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.cell = nn.GRUCell(args.group_bits, args.rnn_hidden)
        self.correction = nn.Linear(args.rnn_hidden, args.bits)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def initial_state(self, image: Tensor) -> State:
        """Return direct logits of the whole code, and a recurrent state of zeros."""
        return *super().initial_state(image), image.new_zeros(image.shape[0], self.args.rnn_hidden)

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """Return direct logits plus the correction by the recurrent state, updated with the last group's bits."""
        direct, h = state
        start, stop = self.groups[group]
        if group == 0:
            return direct[:, start:stop], state
        h = self.cell(code[:, start - self.args.group_bits : start], h)
        features = self._dropped(h, self.args.dropout)
        correction = F.linear(features, self.correction.weight[start:stop], self.correction.bias[start:stop])
        return direct[:, start:stop] + correction, (direct, h)


class PaperCell(Policy):
    """``paper``: the recurrence of equations 5 and 6 with its history carried from group to group.

    A group begins with x_0 = i (the image) and c_0 = h (the history: the last group's last hidden state), and continues
    with x_t = c_(t-1), where W_x x_t + W_h c_(t-1) is one product with W_x + W_h. The image is embedded by a layer that
    takes the place of the paper's last network layer.
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.embedding = nn.Linear(dim, args.hidden)
        self.w_x = nn.Linear(args.hidden, args.hidden)
        self.w_h = nn.Linear(args.hidden, args.hidden)
        self.policy_layer = nn.Linear(args.hidden, 1)

    def initial_state(self, image: Tensor) -> State:
        """Return the embedded image i, and a history of zeros."""
        i = self._hidden(self.embedding, image)
        return i, torch.zeros_like(i)

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """Compute c_t = tanh(W_x x_t + b_x + W_h c_(t-1) + b_h); the logit of bit t is w c_t + v."""
        i, c = state
        both = self.w_x.weight + self.w_h.weight, self.w_x.bias + self.w_h.bias
        logits = []
        start, stop = self.groups[group]
        for t in range(stop - start):
            image_enters = t == 0 and self._image_enters(group)
            c = torch.tanh(self.w_x(i) + self.w_h(c) if image_enters else F.linear(c, *both))
            logits.append(self.policy_layer(c))
        return torch.cat(logits, dim=1), (i, c)

    def _image_enters(self, group: int) -> bool:
        """Whether the image is the input of the cell at the first bit of a group."""
        return True


class ReleasedCell(PaperCell):
    """``released``: as in the released code there are no groups: the recurrence begins once, with x_0 = c_0 = i."""

    def initial_state(self, image: Tensor) -> State:
        """Return the embedded image i, and i again as the history."""
        i = self._hidden(self.embedding, image)
        return i, i

    def _image_enters(self, group: int) -> bool:
        return group == 0


class FusedGRU(Policy):
    """``gru``: h_g = cell([e, bits of group g - 1], h_(g-1)), and an actor and a critic with the inputs [e, h_g].

    e is the embedded image; its skip connection around the cell speeds up learning. The critic's gradient flows into
    all its inputs, which was better on held-out images than stopping it.

    A rollout calls the cell once for each group, an update once over (T, n, inputs), as all episodes have the same
    length. Both use the same e, computed once an episode with its dropout, and there is no dropout after it: an update
    differentiates the log-probability of exactly the policy that sampled.
    """

    cell_type: ClassVar[type[nn.GRU] | type[nn.LSTM]] = nn.GRU

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.embedding = nn.Linear(dim, args.hidden)
        self.cell = self.cell_type(args.hidden + args.group_bits, args.rnn_hidden)
        self.actor = nn.Linear(args.hidden + args.rnn_hidden, args.group_bits)
        self.critic = nn.Linear(args.hidden + args.rnn_hidden, 1)

    def initial_state(self, image: Tensor) -> State:
        """Return the embedded image, and the cell's initial state."""
        h = self._initial_h(image)
        return self._hidden(self.embedding, image), h

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """Return the actor's logits (the first ones for a shorter last group) and the next state."""
        embedding, h = state
        start, stop = self.groups[group]
        features, h = self._features(embedding, self._previous_bits(code)[:, group][None], h)
        return self.actor(features[0])[:, : stop - start], (embedding, h)

    def unroll(self, state: State, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, q) and values V_g (n, T) of all groups, from the initial state and the whole code."""
        features, _ = self._features(state[0], self._previous_bits(code).transpose(0, 1), state[1])
        logits = self.actor(features).transpose(0, 1).flatten(1)[:, : self.args.bits]
        return logits, self.critic(features).squeeze(2).T

    def _initial_h(self, image: Tensor) -> Any:
        return image.new_zeros(1, image.shape[0], self.args.rnn_hidden)

    def _features(self, embedding: Tensor, previous_bits: Tensor, h: Any) -> tuple[Tensor, Any]:
        """Return inputs of actor and critic over some groups (T, n, ...), given the bits before each, and the state."""
        image = embedding.expand(len(previous_bits), -1, -1)
        outputs, h = self.cell(torch.cat([image, previous_bits], dim=2), h)
        return torch.cat([image, outputs], dim=2), h

    def _previous_bits(self, code: Tensor) -> Tensor:
        """Return the bits of the group before each group, (n, T, k): zeros for the first."""
        k, count = self.args.group_bits, len(self.groups)
        return F.pad(code, (k, 0))[:, : count * k].unflatten(1, (count, k))


class FusedLSTM(FusedGRU):
    """``lstm``: the same with an LSTM as the cell."""

    cell_type = nn.LSTM

    def _initial_h(self, image: Tensor) -> Any:
        zeros = super()._initial_h(image)
        return zeros, zeros


def credit_loss(logits: Tensor, credit: Tensor) -> Tensor:
    """A loss of independent bits from the credit of each: local expectation gradients (Titsias, Lazaro-Gredilla, 2015).

    Its gradient is minus the sum over bits of p (1 - p) x credit x d logit, averaged over images: that of the expected
    reward, other bits as emitted. It vanishes where p is near 0 or 1, also for a bit that is wrong.

    Args:
        logits: (n, q), of the probability p that a bit is 1.
        credit: (n, q), R(bit = 1) - R(bit = 0) with all other bits as emitted.
    """
    p = torch.sigmoid(logits.detach())
    return -(p * (1 - p) * credit * logits).sum(1).mean()


def reinforce_loss(logits: Tensor, bits: Tensor, reward: Tensor) -> Tensor:
    """Equation 8 as a loss: minus the sum over groups of (R^g - baseline) log pi(A), averaged over images.

    The baseline, the mean reward of the other images' groups, does not change the expected gradient and removes most of
    its noise; without it the paper's cell does not learn.

    Args:
        logits: (n, q).
        bits: (n, q), the sampled bits, 0.0 and 1.0.
        reward: (n, q), each bit's reward, which is its group's.
    """
    log_pi = -F.binary_cross_entropy_with_logits(logits, bits, reduction="none")
    baseline = (reward.sum(0) - reward) / max(1, len(reward) - 1)
    return -((reward - baseline) * log_pi).sum(1).mean()


def released_loss(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """0.001 x mean(-log pi(thresholded bits) x J) + 0.999 x J, J the batch's mean triplet loss, constant in the first.

    J's distances are not squared. Minimising the first term raises the probability of bits in proportion to their
    penalty, the reverse of equation 8, as in the released code.
    """
    codes = torch.sigmoid(logits)
    similar = labels @ labels.T > 0
    distance = (codes[:, None] - codes[None]).square().sum(-1).clamp(min=1e-12).sqrt()
    anchor, positive = (similar & ~torch.eye(len(codes), dtype=torch.bool, device=codes.device)).nonzero(as_tuple=True)
    hinge = (margin + distance[anchor, positive, None] - distance[anchor]).clamp(min=0) * ~similar[anchor]
    j = hinge.sum() / (~similar).sum(1)[anchor].sum().clamp(min=1)
    nll = F.binary_cross_entropy_with_logits(logits, (logits.detach() > 0).to(logits), reduction="mean")
    return 0.001 * nll * j.detach() + 0.999 * j


def reward_to_go(reward: Tensor) -> Tensor:
    """Return G_g = r_g + r_(g+1) + ... + r_T, the return from group g on; (n, T) of (n, T)."""
    return reward.flip(1).cumsum(1).flip(1)


def baseline_loss(logits: Tensor, bits: Tensor, reward: Tensor, value: Tensor, args: Args) -> Tensor:
    """REINFORCE with a learned baseline: minus the sum over groups of (G_g - V_g) log pi(A_g), averaged over images.

    V_g depends on the image and the groups before g, not on A_g, so that the expected gradient is that of the expected
    reward. Added are ``value_weight`` times the sum of (G_g - V_g)^2, the only term that trains V, and minus
    ``entropy_weight`` times the entropy of the bits, which keeps them from saturating too early.

    Args:
        logits: (n, q).
        bits: (n, q), the sampled bits, 0.0 and 1.0.
        reward: (n, T), the reward of every step.
        value: (n, T), V_g.
        args: k, which maps bits to groups (the last group may be shorter), and the weights.
    """
    error = reward_to_go(reward) - value
    advantage = error.detach().repeat_interleave(args.group_bits, dim=1)[:, : bits.shape[1]]
    log_pi = -F.binary_cross_entropy_with_logits(logits, bits, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(logits, torch.sigmoid(logits), reduction="none")
    pg_loss = -(advantage * log_pi).sum(1).mean()
    v_loss = error.square().sum(1).mean()
    entropy_loss = entropy.sum(1).mean()
    return pg_loss + args.value_weight * v_loss - args.entropy_weight * entropy_loss


@dataclass(frozen=True)
class Rollout:
    """One episode in every environment, the input of a loss; tensors are (num_envs, q) unless noted."""

    logits: Tensor
    bits: Tensor
    group_reward: Tensor
    credit: Tensor
    labels: Tensor  # (num_envs, L)
    reward: Tensor  # (num_envs, T), of every step
    value: Tensor  # (num_envs, T), the critic's estimate of the return from there on; 0 without a critic
    components: Mapping[str, NDArray[Any]]  # of the last step's reward, (num_envs,) each


@dataclass(frozen=True)
class Variant:
    """The parts in which variants differ."""

    network: type[Policy]
    loss: Callable[[Rollout, Args], Tensor]
    reward: Callable[[Args], dict[str, Any]]
    """returns keyword arguments of the environment that set its reward"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """arguments that differ from those of :class:`Args`; chosen on held-out training images"""


def triplet_reward(args: Args) -> dict[str, Any]:
    """Return the environment's arguments for the paper's reward."""
    return {"reward": {"name": "triplet", "margin": args.margin}}


def any_reward(args: Args) -> dict[str, Any]:
    """Return the environment's arguments for a reward by name, by default of the whole code alone."""
    return {"reward": args.reward, "group_weight": args.group_weight, "codebook_sample": args.codebook_sample}


def bit_credit(args: Args) -> dict[str, Any]:
    """Return the environment's arguments for a reward by name and the credit of every bit."""
    return {**any_reward(args), "counterfactual": True}


def prefix_credit(args: Args) -> dict[str, Any]:
    """Return the environment's arguments for a reward of every prefix, all of equal weight, and the credit of bits."""
    return {**bit_credit(args), "group_scope": "prefix", "group_weight": 1.0, "global_weight": 0.0}


# Sampled rewards are noisy: larger batches, and fewer updates of a smaller network, so that a run takes no longer.
_FUSED = {"updates": 2000, "num_envs": 512, "hidden": 128, "rnn_hidden": 128, "learning_rate": 3e-3, "dropout": 0.2}

# Scoring every prefix makes an update slower: fewer updates on smaller batches take as long, and with normalised logits
# they learn as much.
_NESTED = {"reward": "nca", "logit_scale": 3.0, "updates": 2000, "num_envs": 128}

VARIANTS: dict[str, Variant] = {
    "hashgym": Variant(Recurrent, lambda r, args: credit_loss(r.logits, r.credit), bit_credit),
    "norec": Variant(FeedForward, lambda r, args: credit_loss(r.logits, r.credit), bit_credit),
    "nested": Variant(Recurrent, lambda r, args: credit_loss(r.logits, r.credit), prefix_credit, _NESTED),
    "nested-norec": Variant(FeedForward, lambda r, args: credit_loss(r.logits, r.credit), prefix_credit, _NESTED),
    "paper": Variant(
        PaperCell,
        lambda r, args: (
            reinforce_loss(r.logits, r.bits, r.group_reward)
            + triplet_ranking_loss(torch.sigmoid(r.logits), r.labels, args.margin)
        ),
        triplet_reward,
    ),
    "released": Variant(ReleasedCell, lambda r, args: released_loss(r.logits, r.labels, args.margin), triplet_reward),
    "gru": Variant(
        FusedGRU, lambda r, args: baseline_loss(r.logits, r.bits, r.reward, r.value, args), any_reward, _FUSED
    ),
    "lstm": Variant(
        FusedLSTM, lambda r, args: baseline_loss(r.logits, r.bits, r.reward, r.value, args), any_reward, _FUSED
    ),
}


def unused(args: Args) -> list[str]:
    """Return the arguments that were changed from the variant's defaults, and that it does not use."""
    variant = VARIANTS[args.variant]
    without: list[str] = []
    if variant.reward is triplet_reward:
        without += ["reward", "group_weight"]
    else:
        without += ["margin", *(["group_weight"] if variant.reward is prefix_credit else [])]
    if not issubclass(variant.network, FeedForward):
        without += ["logit_scale"]
    if not issubclass(variant.network, FusedGRU):
        without += ["value_weight", "entropy_weight"]
    usual = Args(variant=args.variant, **variant.defaults)
    return [name for name in without if getattr(args, name) != getattr(usual, name)]


PRESETS = {name: Args(variant=name, **variant.defaults) for name, variant in VARIANTS.items()}
"""The default arguments of each variant."""


def build(image_shape: tuple[int, ...], args: Args, *, pretrained: bool = True) -> Policy:
    """Return a new policy for images of this shape: (D,), or (C, H, W) with a backbone.

    With ``pretrained=False`` the weights of its backbone are not read, since they are loaded into the policy.

    Raises:
        ValueError: for images that the backbone does not take.
        DataError: if the weights of the backbone are missing or damaged.
    """
    network = VARIANTS[args.variant].network
    if args.backbone is None:
        return network(image_shape[0], args)
    options: dict[str, Any] = {"weights": args.backbone_weights, "pretrained": pretrained}
    backbone = TrainableBackbone(args.backbone, image_shape, augment=args.augment, **options)
    policy = network(backbone.dim, args)
    policy.backbone = backbone
    return policy


def parameter_groups(policy: Policy, args: Args) -> list[dict[str, Any]]:
    """Return the weights of the head and of the backbone, each with its learning rate at the start, for Adam."""
    head = [p for name, p in policy.named_parameters() if not name.startswith("backbone.")]
    groups: list[dict[str, Any]] = [{"params": head, "lr": args.learning_rate}]
    if policy.backbone is not None:
        backbone = [p for p in policy.backbone.parameters() if p.requires_grad]
        groups.append({"params": backbone, "lr": args.backbone_learning_rate})
    return groups


class Run(training.Run):
    """State of a training run on BitGroupHashing-v0."""

    policy: Policy
    args: Args

    def __init__(self, policy: Policy, dataset: HashingDataset, held_out: NDArray[np.int64], args: Args) -> None:
        self.variant, self.held_out = VARIANTS[args.variant], held_out
        groups = parameter_groups(policy, args)
        self.learning_rates = [group["lr"] for group in groups]
        optimizer = torch.optim.Adam(groups, weight_decay=args.weight_decay, fused=True)
        task = {"bits": args.bits, "group_bits": args.group_bits, **self.variant.reward(args)}
        envs: Any = gym.make_vec("BitGroupHashing-v0", num_envs=args.num_envs, dataset=dataset, **task)
        super().__init__(policy, optimizer, envs.unwrapped, dataset, args)

    def take_codebook(self, other: Run) -> None:
        """Start with the codes that another run on the same training images has reached."""
        codebook = other.envs.get_state()["codebook"]
        self.obs, self.info = self.envs.set_state({**self.envs.get_state(), "codebook": codebook})

    def rollout(self) -> Rollout:
        """Emit the code of every environment's image, group by group, with bits sampled from the policy."""
        args, policy = self.args, self.policy
        labels = self.tensor(self.dataset.labels[self.info["index"]])
        initial = state = policy.begin(self.images(self.obs["image"]))
        fused = policy if isinstance(policy, FusedGRU) else None  # acts without a graph, and has a critic
        code = torch.zeros(args.num_envs, args.bits, device=self.device)  # -1, +1, 0 where not emitted
        credit = torch.zeros_like(code)
        group_logits, group_rewards, rewards = [], [], []
        for group, (start, stop) in enumerate(policy.groups):
            with torch.set_grad_enabled(fused is None):
                logits, state = policy.step(state, code, group)
            bits = torch.bernoulli(torch.sigmoid(logits.detach()))
            action = np.zeros((args.num_envs, args.group_bits), np.int8)
            action[:, : stop - start] = bits.cpu().numpy()
            # After the last group, obs and info are those of the next images.
            self.obs, reward, _, _, self.info = self.envs.step(action)
            final = self.info.get("final_info", self.info)
            code = torch.cat([code[:, :start], 2 * bits - 1, code[:, stop:]], dim=1)
            components = {name: part for name, part in final["rewards"].items() if not name.startswith("_")}
            group_reward = sum(part for name, part in components.items() if not name.startswith("global/"))
            group_logits.append(logits)
            group_rewards.append(self.tensor(group_reward)[:, None].expand_as(logits))
            rewards.append(self.tensor(reward))
            if "prefix_credit" in final:
                credit += self.tensor(final["prefix_credit"])
            elif "bit_credit" in final:
                credit[:, start:stop] += self.tensor(final["bit_credit"][:, : stop - start])
        if "code_credit" in final:
            credit += self.tensor(final["code_credit"])
        reward = torch.stack(rewards, 1)
        if fused is None:
            logits, value = torch.cat(group_logits, 1), torch.zeros_like(reward)
        else:
            logits, value = fused.unroll(initial, code)
        bits = (code + 1) / 2
        return Rollout(logits, bits, torch.cat(group_rewards, 1), credit, labels, reward, value, components)

    def update(self) -> dict[str, float]:
        """Make one update: a rollout, the variant's loss, a gradient step. Returns scalars to log."""
        start_time = time.perf_counter()
        args, optimizer = self.args, self.optimizer
        training.set_cosine(optimizer, self.learning_rates, self.num_updates / args.updates)

        rollout = self.rollout()
        loss = self.variant.loss(rollout, args)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        self.num_updates += 1

        speed = len(self.policy.groups) * args.num_envs / (time.perf_counter() - start_time)
        p = torch.sigmoid(rollout.logits.detach())
        scalars = {
            "loss": loss.item(),
            **{f"reward/{name}": float(part.mean()) for name, part in rollout.components.items()},
            "policy/entropy_nats_per_bit": F.binary_cross_entropy(p, p).item(),
            "policy/bit_imbalance": (rollout.bits.mean(0) - 0.5).abs().mean().item(),
            "speed/steps_per_second": speed,
        }
        if isinstance(self.policy, FusedGRU):
            error = reward_to_go(rollout.reward) - rollout.value
            scalars["policy/value_error"] = error.square().mean().item()
        return scalars

    def evaluate(self) -> dict[str, float]:
        """Measure the tie-aware mAP among the held-out images, each in turn the query.

        The images that the policy was trained on are not in the database, because a policy that memorises them would
        score too high.
        """
        if len(self.held_out) < 2:
            return {}
        code = {"bits": self.args.bits, "group_bits": self.args.group_bits}
        bits = training.encode(self.policy, self.dataset, self.held_out, **code)
        scores = training.retrieval_among(CodeSets.of(bits), self.dataset.labels[self.held_out])
        return {"retrieval/held_out_map": scores.get("retrieval/held_out_map", math.nan)}


def train_head(policy: Policy, dataset: HashingDataset, args: Args, *, progress: bool) -> Run:
    """Train a policy without its backbone, on the features that this gives as it is; return the finished run."""
    backbone = policy.backbone
    assert backbone is not None
    policy.backbone = None
    features, rows = backbone.start_from(dataset.features, dataset.train), np.arange(len(dataset.train))
    labels = dataset.labels[dataset.train]
    vectors = HashingDataset(dataset.name, features, labels, query=rows[:0], database=rows, train=rows)
    head_args = dataclasses.replace(args, updates=args.head_updates, backbone=None)
    run = Run(policy, vectors, rows[:0], head_args)
    training.train_loop(run, f"{args.variant}, head", out=None, checkpoint=None, progress=progress)
    policy.backbone = backbone
    return run


@files.exclusive
def train(
    dataset: HashingDataset, args: Args, *, out: Path | None = None, resume: bool = False, progress: bool = True
) -> Policy:
    """Train a policy on the training images of a dataset.

    Args:
        dataset: feature vectors, which do best standardised (``HashingDataset.standardized``), or activations or
            pixels, from which a backbone is trained as well.
        args: arguments of the run.
        out: folder for ``checkpoint.pt``, TensorBoard's files, and at the end ``policy.pt`` and the encoder
            ``policy.onnx``; None writes nothing.
        resume: continue the run that ``out`` holds; the result is that of a run that was never stopped.
        progress: whether to show a progress bar.

    Returns:
        The policy, in evaluation mode, for :func:`hashgym.encode`.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other arguments; for arguments or data
            that the environment rejects; for a backbone that does not take the images; if another process is training
            into ``out``.
        DiskFullError: if a file does not fit on the disk; the last checkpoint is complete.
    """
    args = training.with_backbone(args, dataset)
    checkpoint = files.load_checkpoint(out, args, resume)
    if needless := unused(args):
        console.warn(f"{args.variant} makes no use of {' and '.join(needless)}")
    device = resolve_device(args.device)
    learning, held_out = training.split(dataset, args)
    with training.seed_everything(args.seed, device):
        policy = build(dataset.image_shape, args).to(device).train()
        with_head = args.backbone and args.head_updates and checkpoint is None
        head = train_head(policy, learning, args, progress=progress) if with_head else None
        run, title = Run(policy, learning, held_out, args), f"{args.variant}, {args.bits} bits"
        if head is not None:
            run.take_codebook(head)
        training.train_loop(run, title, out=out, checkpoint=checkpoint, progress=progress)
    if out is not None:
        shape: dict[str, Any] = {"dim": policy.dim, "image_shape": list(dataset.image_shape)}
        files.save(files.policy_payload(policy, dataset, args, **shape), out / "policy.pt")
        code = {"bits": args.bits, "group_bits": args.group_bits}
        nested = VARIANTS[args.variant].reward is prefix_credit
        lengths = prefix_lengths(args.bits, args.group_bits) if nested else ()
        path = out / "policy.onnx"
        files.write_encoder(lambda: GroupsHead(policy, **code), dataset, args, path, **code, lengths=lengths)
    return policy.eval()


def load(path: Path, device: str = "auto") -> Policy:
    """Load the ``policy.pt`` of a finished run; it encodes as the policy that was saved, to the last bit.

    Raises:
        ValueError: if the file is missing, corrupt, or no policy of this agent.
    """
    saved, args = files.load_policy(path, Args)
    policy = build(tuple(saved.get("image_shape", [saved["dim"]])), args, pretrained=False)
    policy.load_state_dict(saved["weights"])
    return policy.to(resolve_device(device)).eval()


@dataclass(frozen=True)
class Main:
    """Train a DRLIH agent and measure its codes."""

    args: tyro.conf.OmitArgPrefixes[Args]
    dataset: str = "digits"
    """name of an embedded dataset, or a folder made by `hashgym features`"""
    similarity: str | None = None
    """what to learn from instead of labels: `neighbours`, or a CSV file of similar training images, name,name"""
    out: Path | None = None
    """folder for checkpoint, policy and TensorBoard files"""
    resume: bool = False
    """continue the run in `out`"""


def command(argv: Sequence[str] | None = None, prog: str | None = None) -> Main:
    """Read the command line, with the variant's defaults. Arguments as in :func:`read_command`."""
    presets = {name: Main(args) for name, args in PRESETS.items()}
    return read_command(Main, "drlih", "--variant", "hashgym", argv, prog=prog, presets=presets)


def main(run: Main) -> metrics.RetrievalResult | None:
    """Train, encode queries and database, and print the retrieval metrics; None without labels."""
    with training.interruptible(run.out):
        learning, dataset = training.load_dataset(run.dataset, run.similarity)
        args = training.with_backbone(run.args, dataset)
        with files.hold_folder(run.out):
            files.load_checkpoint(run.out, args, run.resume)  # rejects the folder before anything is printed
            training.warn_unsaved(run.out)
            start_time = time.perf_counter()
            policy = train(learning, args, out=run.out, resume=run.resume)
            seconds = time.perf_counter() - start_time
        if not dataset.has_labels:
            console.say(
                f"{args.variant}, {args.bits} bits on {dataset.name}, trained in {seconds:.1f} s; {training.UNMEASURED}"
            )
            return None
        query, database = dataset.query, dataset.database
        codes = hashgym.encode(policy, dataset.features, bits=args.bits, group_bits=args.group_bits)
        result = metrics.evaluate(codes[query], dataset.labels[query], codes[database], dataset.labels[database])
        console.say(
            f"{args.variant}, {args.bits} bits on {dataset.name}: mAP {result.map:.4f} "
            f"(ties {result.map_pessimistic:.4f} to {result.map_optimistic:.4f}), "
            f"precision within radius 2 {result.precision_within:.4f}, trained in {seconds:.1f} s"
        )
        return result


if __name__ == "__main__":
    with command_line():
        main(command())
