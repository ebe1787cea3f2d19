"""DRLIH: policy gradient agents that learn to hash on BitGroupHashing-v0, one readable file.

    python -m agents.drlih --dataset digits --bits 24 --out runs/drlih

Peng, Zhang and Ye, "Deep Reinforcement Learning for Image Hashing", 2018. Six variants of one loop:

* ``paper``: the paper's cell and equations 5 to 9 with the signs put right: REINFORCE on the group reward of sampled
  bits, and the gradient of the triplet ranking loss of the whole relaxed code.
* ``released``: the objective of the authors' released code, which differs: nothing is sampled, there are no groups, and
  the term called policy loss raises the probability of penalised bits.
* ``hashgym``: our recurrent policy, trained by per-bit credit: the environment says what every emitted bit was worth
  in average precision, so that each bit is its own one-step bandit with a known advantage.
* ``norec``: the same objective and sizes without recurrence: the ablation that says what sequential decisions bring.
* ``gru`` and ``lstm``: the ordinary recurrent policy gradient, which asks nothing of a reward but its value: REINFORCE
  on reward-to-go with a learned baseline, trained in one call of the cell over all groups.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

import hashgym
from agents import runs
from hashgym import console, data
from hashgym.checks import closest
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.encoders.heads import GroupsHead
from hashgym.envs.bit_group_hashing import DEFAULT_GROUP_BITS
from hashgym.hashers.noseq import triplet_ranking_loss
from hashgym.retrieval import metrics
from hashgym.terminal import command_line, parse

__all__ = [
    "PRESETS",
    "Args",
    "Policy",
    "baseline_loss",
    "credit_loss",
    "load",
    "reinforce_loss",
    "released_loss",
    "reward_to_go",
    "train",
]

Variant: TypeAlias = Literal["hashgym", "norec", "paper", "released", "gru", "lstm"]
State: TypeAlias = tuple[Any, ...]  # tensors, or what a cell of torch's makes of them


@dataclass(frozen=True, kw_only=True)
class Args(runs.RunArgs):
    """Settings of a training run."""

    agent: ClassVar[str] = "drlih"

    variant: Variant = "hashgym"
    """which of the objectives and networks; `gru` and `lstm` have other defaults than shown here, see PRESETS"""
    bits: int = 24
    """q, length of the code"""
    group_bits: int = DEFAULT_GROUP_BITS
    """k, bits emitted in one step; `bits` where the code is shorter"""
    reward: str = "average_precision"
    """reward by name; `paper` and `released` are defined by the triplet reward"""
    margin: float = 1.0
    """m of equation 3, for `paper` and `released`"""
    updates: int = 5000
    """gradient steps, each on one batch of episodes"""
    hidden: int = 512
    """width of the hidden layer (the paper: 4096)"""
    history: int = 64
    """width of the recurrent state of `hashgym`, `gru` and `lstm`"""
    dropout: float = 0.4
    """part of the hidden units left out while training"""
    input_dropout: float = 0.5
    """part of the features left out while training"""
    learning_rate: float = 1e-3
    """Adam's, at the start of a cosine that ends at 0"""
    weight_decay: float = 1e-4
    """L2 penalty on the weights, in the gradient"""
    group_weight: float = 0.0
    """weight of the group reward beside the whole code's, but for `paper` and `released`"""
    value_weight: float = 0.5
    """weight of the baseline's squared error, for `gru` and `lstm`"""
    entropy_weight: float = 3e-3
    """weight of the bits' entropy, in nats, for `gru` and `lstm`"""

    def __post_init__(self) -> None:
        if self.variant not in NETWORKS:
            known = ", ".join(NETWORKS)
            raise ValueError(f"variant must be one of {known}, got {self.variant!r}{closest(self.variant, NETWORKS)}")
        self.check_positive("bits", "group_bits", "hidden", "history", "learning_rate")
        object.__setattr__(self, "group_bits", min(self.group_bits, self.bits))
        self.check_fraction("dropout", "input_dropout")
        for name in ("value_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        super().__post_init__()


class Policy(nn.Module):
    """A stochastic policy over groups of bits: given the image and the bits so far, a group's bits are independent.

    Subclasses say what is computed once for an image (:meth:`begin`) and the logits of a group (:meth:`step`).
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__()
        self.dim, self.args = dim, args
        self.groups = [
            (start, min(start + args.group_bits, args.bits)) for start in range(0, args.bits, args.group_bits)
        ]

    def begin(self, image: Tensor) -> State:
        """State at the start of an episode, from images (n, D)."""
        raise NotImplementedError

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """Logits (n, bits of the group) of a group, and the next state; code (n, q) is -1, +1, and 0 where unset."""
        raise NotImplementedError

    def act(self, image: Tensor, code: Tensor, group: int, state: State | None) -> tuple[Tensor, State]:
        """As :meth:`step`, but the state is None at the start of an episode."""
        return self.step(self.begin(image) if state is None else state, code, group)

    def predict(
        self,
        observation: dict[str, Any],
        state: State | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int8], State]:
        """Act on a batch of observations, as Stable-Baselines3 models do; lanes are in lockstep.

        Args:
            observation: ``image`` (n, D), ``code`` (n, q), ``group`` (n,), as the environment gives them.
            state: what the last call returned, None at the start of the episodes.
            episode_start: not needed: ``state`` says it.
            deterministic: the likelier bits; else sampled ones.

        Returns:
            Bits int8 (n, group_bits), 0 for the surplus bits of a short group; and the next state.
        """
        device = next(self.parameters()).device
        image, code = (torch.as_tensor(observation[key]).to(device) for key in ("image", "code"))
        training = self.training
        self.eval()
        with torch.no_grad():
            logits, state = self.act(image, code, int(observation["group"][0]), state)
            bits = logits > 0 if deterministic else torch.bernoulli(torch.sigmoid(logits)) > 0
        self.train(training)
        action = np.zeros((len(bits), self.args.group_bits), np.int8)
        action[:, : bits.shape[1]] = bits.cpu().numpy()
        return action, state

    def _hidden(self, layer: nn.Linear, image: Tensor) -> Tensor:
        image = self._dropped(image, self.args.input_dropout)
        return self._dropped(F.relu(layer(image)), self.args.dropout)

    def _dropped(self, x: Tensor, rate: float) -> Tensor:
        """Dropout; on a CPU a mask of uniform numbers costs a quarter of torch's own."""
        if not self.training or rate == 0:
            return x
        return x * (torch.rand_like(x) >= rate) / (1 - rate)


class FeedForward(Policy):
    """``norec``: all bits from one hidden layer; earlier groups are not looked at."""

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.hidden = nn.Linear(dim, args.hidden)
        self.head = nn.Linear(args.hidden, args.bits)

    def begin(self, image: Tensor) -> State:
        """Logits of the whole code."""
        return (self.head(self._hidden(self.hidden, image)),)

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """The group's part of them."""
        start, stop = self.groups[group]
        return state[0][:, start:stop], state


class Recurrent(FeedForward):
    """``hashgym``: the same direct path, corrected by a GRU that reads the bits emitted so far.

    The correction starts at zero, so that training begins as ``norec`` and departs from it only where the emitted bits
    (sampled ones, mistakes included) say something the image does not.
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.cell = nn.GRUCell(args.group_bits, args.history)
        self.correction = nn.Linear(args.history, args.bits)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def begin(self, image: Tensor) -> State:
        """Direct logits of the whole code, and an empty history."""
        return *super().begin(image), image.new_zeros(image.shape[0], self.args.history)

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """Direct logits plus the correction by the history, which has now read the last group's bits."""
        direct, history = state
        start, stop = self.groups[group]
        if group == 0:
            return direct[:, start:stop], state
        history = self.cell(code[:, start - self.args.group_bits : start], history)
        seen = self._dropped(history, self.args.dropout)
        correction = F.linear(seen, self.correction.weight[start:stop], self.correction.bias[start:stop])
        return direct[:, start:stop] + correction, (direct, history)


class PaperCell(Policy):
    """``paper`` and ``released``: the recurrence of equations 5 and 6 with its history carried from group to group.

    A group begins with x_0 = i (the image) and c_0 = h (the history: the last group's last hidden state), and goes on
    with x_t = c_(t-1), where W_x x_t + W_h c_(t-1) is one product with W_x + W_h. The released code knows no groups: it
    begins once, with x_0 = c_0 = i. The image is embedded by a layer that stands for the network's own last one.
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.embedding = nn.Linear(dim, args.hidden)
        self.w_x = nn.Linear(args.hidden, args.hidden)
        self.w_h = nn.Linear(args.hidden, args.hidden)
        self.policy_layer = nn.Linear(args.hidden, 1)

    def begin(self, image: Tensor) -> State:
        """The embedded image i, and the history: none, or for ``released`` the image again."""
        i = self._hidden(self.embedding, image)
        return i, i if self.args.variant == "released" else torch.zeros_like(i)

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """c_t = tanh(W_x x_t + b_x + W_h c_(t-1) + b_h); the logit of bit t is w c_t + v."""
        i, c = state
        both = self.w_x.weight + self.w_h.weight, self.w_x.bias + self.w_h.bias
        logits = []
        start, stop = self.groups[group]
        for t in range(stop - start):
            image_enters = t == 0 and (group == 0 or self.args.variant == "paper")
            c = torch.tanh(self.w_x(i) + self.w_h(c) if image_enters else F.linear(c, *both))
            logits.append(self.policy_layer(c))
        return torch.cat(logits, dim=1), (i, c)


class FusedRecurrent(Policy):
    """``gru`` and ``lstm``: h_g = cell([e, bits of group g - 1], h_(g-1)), and an actor and a critic that see [e, h_g].

    e is the embedded image; it also goes past the cell, for without that learning is slower. The critic's gradient
    goes into all that it sees, which on held-out images was better than to stop it.

    Acting is step by step, learning one call of the cell over (T, n, inputs): all lanes begin and end together. Both
    read the same e, made once an episode with its dropout, and nothing after it is dropped: what is differentiated is
    the log-probability under the very policy that sampled.
    """

    def __init__(self, dim: int, args: Args) -> None:
        super().__init__(dim, args)
        self.embedding = nn.Linear(dim, args.hidden)
        self.cell = CELLS[args.variant](args.hidden + args.group_bits, args.history)
        self.actor = nn.Linear(args.hidden + args.history, args.group_bits)
        self.critic = nn.Linear(args.hidden + args.history, 1)

    def begin(self, image: Tensor) -> State:
        """The embedded image, and the cell's hidden state: zeros."""
        zeros = image.new_zeros(1, image.shape[0], self.args.history)
        return self._hidden(self.embedding, image), (zeros, zeros) if self.args.variant == "lstm" else zeros

    def step(self, state: State, code: Tensor, group: int) -> tuple[Tensor, State]:
        """The actor's logits, of a shorter last group the first ones; and the cell's new hidden state."""
        embedding, hidden = state
        start, stop = self.groups[group]
        seen, hidden = self._seen(embedding, self._delayed(code)[:, group][None], hidden)
        return self.actor(seen[0])[:, : stop - start], (embedding, hidden)

    def unroll(self, state: State, code: Tensor) -> tuple[Tensor, Tensor]:
        """All groups at once, from the state at the start and the whole code: logits (n, q) and values V_g (n, T)."""
        seen, _ = self._seen(state[0], self._delayed(code).transpose(0, 1), state[1])
        logits = self.actor(seen).transpose(0, 1).flatten(1)[:, : self.args.bits]
        return logits, self.critic(seen).squeeze(2).T

    def _seen(self, embedding: Tensor, previous: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """What actor and critic see over some groups (T, n, ...), given the bits before each; and the cell's state."""
        image = embedding.expand(len(previous), -1, -1)
        outputs, hidden = self.cell(torch.cat([image, previous], dim=2), hidden)
        return torch.cat([image, outputs], dim=2), hidden

    def _delayed(self, code: Tensor) -> Tensor:
        """The bits that each group sees, (n, T, k): those of the group before, and zeros for the first."""
        k, count = self.args.group_bits, len(self.groups)
        return F.pad(code, (k, 0))[:, : count * k].unflatten(1, (count, k))


CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}

NETWORKS: dict[str, type[Policy]] = {
    "hashgym": Recurrent,
    "norec": FeedForward,
    "paper": PaperCell,
    "released": PaperCell,
    "gru": FusedRecurrent,
    "lstm": FusedRecurrent,
}

# Sampled rewards are noisy: more lanes, and fewer updates of a smaller network, so that a run takes no longer.
_FUSED: Any = {"updates": 2000, "lanes": 512, "hidden": 128, "history": 128, "learning_rate": 3e-3, "dropout": 0.2}
PRESETS: dict[str, Args] = {
    variant: Args(variant=cast(Variant, variant), **(_FUSED if network is FusedRecurrent else {}))
    for variant, network in NETWORKS.items()
}
"""The settings each variant begins with on the command line; chosen on held-out training images."""


def credit_loss(logits: Tensor, credit: Tensor) -> Tensor:
    """Local expectation gradients (Titsias and Lazaro-Gredilla, 2015) of independent bits, as a loss.

    Its gradient is minus the sum over bits of p (1 - p) x credit x d logit, averaged over images.

    Args:
        logits: (n, q), of the probability p that a bit is 1.
        credit: (n, q), R(bit = 1) - R(bit = 0) with all other bits as emitted.
    """
    p = torch.sigmoid(logits.detach())
    return -(p * (1 - p) * credit * logits).sum(1).mean()


def reinforce_loss(logits: Tensor, bits: Tensor, reward: Tensor) -> Tensor:
    """Equation 8 as a loss: minus the sum over groups of (R^g - baseline) log pi(A), averaged over images.

    The baseline, the mean reward of the other images' groups, leaves the expected gradient as it is and takes out most
    of its noise; without it the paper's cell does not learn.

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
    penalty, the reverse of equation 8; so it was released.
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
    """G_g = r_g + r_(g+1) + ... + r_T, what is earned from group g on; (n, T) of (n, T)."""
    return reward.flip(1).cumsum(1).flip(1)


def baseline_loss(logits: Tensor, bits: Tensor, reward: Tensor, value: Tensor, args: Args) -> Tensor:
    """REINFORCE with a learned baseline: minus the sum over groups of (G_g - V_g) log pi(A_g), averaged over images.

    V_g has seen the image and the groups before g, not A_g, so that the expected gradient is that of the expected
    reward. Beside it stand ``value_weight`` times the sum of (G_g - V_g)^2, by which alone V learns, and minus
    ``entropy_weight`` times the entropy of the bits, which keeps them from being decided too early.

    Args:
        logits: (n, q).
        bits: (n, q), the sampled bits, 0.0 and 1.0.
        reward: (n, T), what every step earned.
        value: (n, T), V_g.
        args: k, with which bits follow groups (the last group may be shorter), and the weights.
    """
    error = reward_to_go(reward) - value
    advantage = error.detach().repeat_interleave(args.group_bits, dim=1)[:, : bits.shape[1]]
    log_pi = -F.binary_cross_entropy_with_logits(logits, bits, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(logits, torch.sigmoid(logits), reduction="none")
    return (
        -(advantage * log_pi).sum(1).mean()
        + args.value_weight * error.square().sum(1).mean()
        - args.entropy_weight * entropy.sum(1).mean()
    )


@runs.exclusive
def train(
    dataset: HashingDataset, args: Args, *, out: Path | None = None, resume: bool = False, progress: bool = True
) -> Policy:
    """Train a policy on the training images of a dataset.

    Args:
        dataset: standardised features do best (``HashingDataset.standardized``).
        args: settings.
        out: folder for ``checkpoint.pt``, TensorBoard's files, and at the end ``policy.pt`` and the encoder
            ``policy.onnx``; None writes nothing.
        resume: take up the run that ``out`` holds; the result is that of a run that was never stopped.
        progress: whether to show a progress bar.

    Returns:
        The policy, in evaluation mode, to be run by :func:`hashgym.encode`.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other settings; for arguments or data
            that the environment refuses; if another process is training into ``out``.
        DiskFullError: if a file does not fit on the disk; the last checkpoint is whole.
    """
    checkpoint = runs.resumed(out, args, resume)
    device = resolve_device(args.device)
    learning, held_out = runs.split(dataset, args)
    with runs.seeded(args.seed, device):
        policy = NETWORKS[args.variant](dataset.dim, args).to(device).train()
        run = _Run(policy, learning, held_out, args)
        runs.drive(run, f"{args.variant}, {args.bits} bits", out=out, checkpoint=checkpoint, progress=progress)
    if out is not None:
        runs.save(runs.finished(policy, dataset, args, dim=policy.dim), out / "policy.pt")
        code = {"bits": args.bits, "group_bits": args.group_bits}
        runs.export(lambda: GroupsHead(policy, **code), dataset, args, out / "policy.onnx", **code)
    return policy.eval()


def load(path: Path, device: str = "auto") -> Policy:
    """Load the ``policy.pt`` of a finished run; it encodes as the policy that was saved, to the last bit.

    Raises:
        ValueError: if the file is missing, damaged, or no policy of this agent.
    """
    saved, args = runs.load_policy(path, Args)
    policy = NETWORKS[args.variant](saved["dim"], args)
    policy.load_state_dict(saved["weights"])
    return policy.to(resolve_device(device)).eval()


@dataclass(frozen=True)
class Rollout:
    """One episode in every lane, what a loss is made of; (lanes, q) where nothing else is said."""

    logits: Tensor
    bits: Tensor
    group_reward: Tensor
    credit: Tensor
    labels: Tensor  # (lanes, L)
    reward: Tensor  # (lanes, T), what every step earned
    value: Tensor  # (lanes, T), what the policy expected to be earned from there on; 0 if it has no critic


class _Run(runs.Run):
    """A training run of a policy on BitGroupHashing-v0."""

    def __init__(self, policy: Policy, dataset: HashingDataset, held_out: NDArray[np.int64], args: Args) -> None:
        optimizer = torch.optim.Adam(policy.parameters(), weight_decay=args.weight_decay, fused=True)
        envs: Any = gym.make_vec("BitGroupHashing-v0", num_envs=args.lanes, dataset=dataset, **_task(args))
        super().__init__(policy, optimizer, envs.unwrapped, dataset, args)
        self.policy: Policy = policy
        self.args, self.held_out = args, held_out

    def learn(self) -> dict[str, float]:
        """One update: an episode in every lane and a gradient step. Returns scalars to watch."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * (1 + math.cos(math.pi * self.update / self.args.updates)) / 2
        rollout, scalars = self.rollout()
        loss = LOSSES[self.args.variant](rollout, self.args)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.update += 1
        speed = len(self.policy.groups) * self.args.lanes / (time.perf_counter() - began)
        return {"loss": loss.item(), **scalars, "speed/lane_steps_per_second": speed}

    def rollout(self) -> tuple[Rollout, dict[str, float]]:
        """Emit the code of every lane's image, group by group, with bits sampled from the policy."""
        labels = self.tensor(self.dataset.labels[self.info["index"]])
        begun = state = self.policy.begin(self.tensor(self.observation["image"]))
        fused = self.policy if isinstance(self.policy, FusedRecurrent) else None  # acts without a graph
        code = torch.zeros(self.args.lanes, self.args.bits, device=self.device)  # -1, +1, 0 where not emitted
        credit = torch.zeros_like(code)
        logits, group_reward, reward = [], [], []
        for g, (start, stop) in enumerate(self.policy.groups):
            with torch.set_grad_enabled(fused is None):
                logit, state = self.policy.step(state, code, g)
            bits = torch.bernoulli(torch.sigmoid(logit.detach()))
            action = np.zeros((self.args.lanes, self.args.group_bits), np.int8)
            action[:, : stop - start] = bits.cpu().numpy()
            self.observation, earned, _, _, self.info = self.envs.step(action)  # after the last group: the next images
            final = self.info.get("final_info", self.info)
            code = torch.cat([code[:, :start], 2 * bits - 1, code[:, stop:]], dim=1)
            logits.append(logit)
            parts = {name: part for name, part in final["rewards"].items() if not name.startswith("_")}
            own = sum(part for name, part in parts.items() if name.startswith("group/"))
            group_reward.append(self.tensor(own)[:, None].expand_as(logit))
            reward.append(self.tensor(earned))
            if "bit_credit" in final:
                credit[:, start:stop] += self.tensor(final["bit_credit"][:, : stop - start])
        if "code_credit" in final:
            credit += self.tensor(final["code_credit"])
        rewards = torch.stack(reward, 1)
        whole, value = (torch.cat(logits, 1), torch.zeros_like(rewards)) if fused is None else fused.unroll(begun, code)
        rollout = Rollout(whole, (code + 1) / 2, torch.cat(group_reward, 1), credit, labels, rewards, value)
        p = torch.sigmoid(rollout.logits.detach())
        return rollout, {
            **{f"reward/{name}": float(part.mean()) for name, part in parts.items()},
            "policy/entropy_nats_per_bit": F.binary_cross_entropy(p, p).item(),
            "policy/bit_imbalance": (rollout.bits.mean(0) - 0.5).abs().mean().item(),
            **({} if fused is None else {"policy/value_error": (reward_to_go(rewards) - value).square().mean().item()}),
        }

    def watch(self) -> dict[str, float]:
        """Tie-aware mAP among the held-out images, each in turn the query.

        They are not searched for among the learnt images: those sit where training put them, and would flatter a
        policy that remembers them.
        """
        if len(self.held_out) < 2:
            return {}
        features, labels = self.dataset.features[self.held_out], self.dataset.labels[self.held_out]
        bits = hashgym.encode(self.policy, features, bits=self.args.bits, group_bits=self.args.group_bits)
        scores = runs.retrieval_among(CodeSets.of(bits), labels)
        return {"retrieval/held_out_map": scores.get("retrieval/held_out_map", math.nan)}


LOSSES: dict[str, Callable[[Rollout, Args], Tensor]] = {
    "hashgym": lambda r, args: credit_loss(r.logits, r.credit),
    "norec": lambda r, args: credit_loss(r.logits, r.credit),
    "paper": lambda r, args: (
        reinforce_loss(r.logits, r.bits, r.group_reward)
        + triplet_ranking_loss(torch.sigmoid(r.logits), r.labels, args.margin)
    ),
    "released": lambda r, args: released_loss(r.logits, r.labels, args.margin),
    "gru": lambda r, args: baseline_loss(r.logits, r.bits, r.reward, r.value, args),
    "lstm": lambda r, args: baseline_loss(r.logits, r.bits, r.reward, r.value, args),
}


def _task(args: Args) -> dict[str, Any]:
    """The environment each variant is trained in."""
    task = {"bits": args.bits, "group_bits": args.group_bits}
    if args.variant in ("paper", "released"):
        return {**task, "reward": {"name": "triplet", "margin": args.margin}}
    # The whole code is what is searched: if nothing else is asked for, its reward alone counts.
    credit = args.variant in ("hashgym", "norec")
    return {**task, "reward": args.reward, "group_weight": args.group_weight, "counterfactual": credit}


@dataclass(frozen=True)
class Main:
    """Train a DRLIH agent and measure its codes."""

    args: tyro.conf.OmitArgPrefixes[Args]
    dataset: str = "digits"
    """name of an embedded dataset, or a folder made by `hashgym features`"""
    out: Path | None = None
    """folder for checkpoint, policy and TensorBoard files"""
    resume: bool = False
    """go on with the run in `out`"""


def command(words: list[str] | None = None) -> Main:
    """Read the command line; what it does not say is the variant's preset."""
    variant = parse(Main, "agents.drlih", words).args.variant
    return parse(Main, "agents.drlih", words, default=Main(PRESETS[variant]))


def main(run: Main) -> metrics.RetrievalResult:
    """Train, encode queries and database, and print the retrieval metrics."""
    dataset = data.load(run.dataset).standardized()
    metrics.check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    began = time.perf_counter()
    policy = train(dataset, run.args, out=run.out, resume=run.resume)
    seconds = time.perf_counter() - began
    query, database = (
        hashgym.encode(policy, dataset.features[rows], bits=run.args.bits, group_bits=run.args.group_bits)
        for rows in (dataset.query, dataset.database)
    )
    result = metrics.evaluate(query, dataset.labels[dataset.query], database, dataset.labels[dataset.database])
    console.say(
        f"{run.args.variant}, {run.args.bits} bits on {dataset.name}: mAP {result.map:.4f} "
        f"(ties {result.map_pessimistic:.4f} to {result.map_optimistic:.4f}), "
        f"precision within radius 2 {result.precision_within:.4f}, trained in {seconds:.1f} s"
    )
    return result


if __name__ == "__main__":
    with command_line():
        asked = command()
        with runs.interruptible(asked.out):
            main(asked)
