"""MCH: an agent that keeps or discards the codes of an image's regions on RegionKeep-v0, in one readable file.

    python -m agents.mch --base dch --out runs/mch
    python -m agents.mch paper --base dch --out runs/mch-paper

Li, Jiang and Li, "Multiple Code Hashing for Efficient Image Retrieval", 2020. A base hasher is fitted first and frozen;
then a policy learns which regions' codes bring an image nearer to similar images than to dissimilar ones. Two presets:

* ``paper``: equation 7's REINFORCE unchanged, with the paper's optimizer and 100 updates.
* ``hashgym``: ours. There are two actions and discarding earns 0, so the expected reward of an image is p x the reward
  of keeping, which the environment returns: its gradient is exact, with nothing sampled. The reward is scaled to a mean
  absolute value of 1, and dropout keeps the policy from memorising the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

import hashgym
from hashgym.checks import check_number
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.encoders.heads import RegionsHead, hasher_head
from hashgym.envs.region_keep import RegionKeepTask
from hashgym.hashers import Hasher
from hashgym.retrieval import metrics
from hashgym.terminal import command_line

from . import checkpoint as files
from . import training
from .arguments import Name, RunArgs, read_command
from .bases import base_of_run, save_base

__all__ = [
    "PAPER",
    "PRESETS",
    "Args",
    "Main",
    "Policy",
    "command",
    "encode",
    "exact_loss",
    "load",
    "main",
    "reinforce_loss",
    "self_critical_loss",
    "train",
]

Estimator: TypeAlias = Literal["exact", "reinforce", "self_critical"]

WIDTHS = (1024, 512, 256, 64)  # the paper says five layers and leaves their widths open


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Arguments of a training run; the defaults are the preset ``hashgym``."""

    agent: ClassVar[str] = "mch"

    estimator: Estimator = "exact"
    """of the policy gradient: the exact expectation, REINFORCE, or REINFORCE with the expected reward as baseline"""
    scale_reward: bool = True
    """divide rewards by their mean absolute value in the batch"""
    reduction: Literal["mean", "sum"] = "mean"
    """of the reward over training images; the paper's is the sum"""
    price: float = 0.0
    """cost of a kept code, in units of the reward"""
    regions_per_episode: int = 1
    """regions offered of each image in turn, each rewarded for its gain over the codes kept before"""
    code_dropout: float = 0.0
    """fraction of features dropped when the base encodes training images and regions: .5 where these are few"""
    updates: int = 600
    """gradient steps, each on one batch of regions"""
    optimizer: Literal["adam", "sgd"] = "adam"
    """AdamW, or SGD with momentum 0.9"""
    learning_rate: float = 3e-4
    """step size"""
    weight_decay: float = 0.0
    """of the optimizer"""
    dropout: float = 0.5
    """fraction of the hidden units dropped while training"""
    input_dropout: float = 0.5
    """fraction of the state vector dropped while training"""
    evaluate_every: int = 50
    """updates between evaluations on the held-out images"""
    log_every: int = 10
    """updates between points of the TensorBoard curves"""
    checkpoint_every: int = 50
    """updates between checkpoints, where there is a folder for them"""

    def __post_init__(self) -> None:
        if self.estimator not in LOSSES:
            raise ValueError(f"estimator must be one of {', '.join(LOSSES)}, got {self.estimator!r}")
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer must be adam or sgd, got {self.optimizer!r}")
        self.check_positive("num_envs", "learning_rate", "regions_per_episode")
        self.check_fraction("dropout", "input_dropout", "code_dropout")
        check_number("price", self.price, 0)
        if self.num_envs < 2:
            raise ValueError(f"batch normalisation needs num_envs of at least 2, got {self.num_envs}")
        super().__post_init__()


class Policy(nn.Module):
    """pi(a | h): five fully-connected layers with batch normalisation and ReLU, and a softmax over discard and keep.

    h is equation 3's state: the features of image and region and both codes, 2 D + 2 q numbers; with several regions an
    episode also the nearest kept code, q more.
    """

    def __init__(self, dim: int, bits: int, args: Args) -> None:
        super().__init__()
        self.dim, self.bits, self.args = dim, bits, args
        self.keys = ["image", "region", "image_code", "region_code"]
        if args.regions_per_episode > 1:
            self.keys.append("kept")
        widths = [2 * dim + (len(self.keys) - 2) * bits, *WIDTHS]
        layers: list[nn.Module] = [nn.Dropout(args.input_dropout)]
        for width, following in zip(widths, WIDTHS, strict=False):
            layers += [nn.Linear(width, following), nn.BatchNorm1d(following), nn.ReLU(), nn.Dropout(args.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 2))

    def forward(self, observation: dict[str, Any]) -> Tensor:
        """Return log pi(a | h) of discarding and of keeping, (n, 2)."""
        if missing := [key for key in self.keys if key not in observation]:
            raise ValueError(f"the policy was trained to observe {missing[0]!r}: encode with sequential=True")
        if (bits := observation["image_code"].shape[1]) != self.bits:
            raise ValueError(f"the policy was trained on codes of {self.bits} bits, got {bits}: give it its own base")
        device = next(self.parameters()).device
        state = torch.cat([torch.as_tensor(observation[key]).to(device) for key in self.keys], dim=1)
        return F.log_softmax(self.layers(state), dim=1)

    def keep(self, observation: dict[str, Any]) -> Tensor:
        """Return pi(keep | h), (n,)."""
        return self(observation)[:, 1].exp().clamp(max=1)

    def keep_probability(self, observation: dict[str, Any]) -> NDArray[np.float64]:
        """Return pi(keep | h) of a batch, (n,), which :func:`hashgym.encode_regions` compares with xi."""
        mode = self.training
        self.eval()
        with torch.no_grad():
            p = self.keep(observation).double().cpu().numpy()
        self.train(mode)
        return p

    def predict(
        self, observation: dict[str, Any], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.int64], None]:
        """Act on a batch of observations, as Stable-Baselines3 models do: 1 keeps, 0 discards."""
        p = self.keep_probability(observation)
        chance = 0.5 if deterministic else torch.rand(len(p)).numpy()
        return (p > chance).astype(np.int64), None


def exact_loss(log_pi: Tensor, keep_reward: Tensor) -> Tensor:
    """Minus the expected reward, p(keep) x reward of keeping, averaged over the batch.

    Args:
        log_pi: (n, 2), log probabilities of discarding and keeping.
        keep_reward: (n,), the reward of keeping; discarding earns 0.
    """
    return -(log_pi[:, 1].exp() * keep_reward).mean()


def reinforce_loss(log_pi: Tensor, action: Tensor, keep_reward: Tensor) -> Tensor:
    """Equation 7 as a loss: minus the mean of log pi(a) R(h, a).

    Args:
        log_pi, keep_reward: as for :func:`exact_loss`.
        action: int64 (n,), sampled actions.
    """
    return -(log_pi.gather(1, action[:, None])[:, 0] * action * keep_reward).mean()


def self_critical_loss(log_pi: Tensor, action: Tensor, keep_reward: Tensor) -> Tensor:
    """REINFORCE with each image's own expected reward as its baseline. Arguments as for :func:`reinforce_loss`."""
    advantage = (action - log_pi[:, 1].detach().exp()) * keep_reward
    return -(log_pi.gather(1, action[:, None])[:, 0] * advantage).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exact": lambda log_pi, action, keep_reward: exact_loss(log_pi, keep_reward),
    "reinforce": reinforce_loss,
    "self_critical": self_critical_loss,
}

PAPER = Args(
    estimator="reinforce",
    scale_reward=False,
    reduction="sum",
    updates=100,
    optimizer="sgd",
    learning_rate=1e-4,
    weight_decay=5e-4,
    dropout=0.0,
    input_dropout=0.0,
)
"""Section 5.2.2: SGD with momentum 0.9, learning rate 1e-4, weight decay 5e-4, batches of 256, T = 100."""

PRESETS = {"hashgym": Args(), "paper": PAPER}
"""The default arguments of each preset."""


class Run(training.Run):
    """State of a training run on RegionKeep-v0."""

    policy: Policy
    args: Args
    reads_regions = True

    def __init__(
        self, policy: Policy, base: Hasher, dataset: HashingDataset, held_out: NDArray[np.int64], args: Args
    ) -> None:
        self.base, self.held_out = base, held_out
        envs: Any = gym.make_vec(
            "RegionKeep-v0",
            num_envs=args.num_envs,
            dataset=dataset,
            base=base,
            bits=None,
            regions_per_episode=args.regions_per_episode,
            price=args.price,
            reduction=args.reduction,
            code_dropout=args.code_dropout,
        )
        parameters, decay = policy.parameters(), args.weight_decay
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, args.learning_rate, weight_decay=decay, fused=True)
            if args.optimizer == "adam"
            else torch.optim.SGD(parameters, args.learning_rate, momentum=0.9, weight_decay=decay, fused=True)
        )
        super().__init__(policy, optimizer, envs.unwrapped, dataset, args)

    def update(self) -> dict[str, float]:
        """Make one update: a decision in every environment, the estimator's loss, a gradient step."""
        log_pi = self.policy(self.obs)
        p = log_pi[:, 1].detach().exp()
        action = torch.bernoulli(p).long()
        keep_reward = self.tensor(self.info["keep_reward"])
        self.obs, reward, _, _, self.info = self.envs.step(action.cpu().numpy())

        scale = keep_reward.abs().mean().clamp(min=1e-12) if self.args.scale_reward else 1.0
        loss = LOSSES[self.args.estimator](log_pi, action, keep_reward / scale)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.num_updates += 1
        return {
            "loss": loss.item(),
            "reward/earned": float(reward.mean()),
            "reward/expected": (p * keep_reward).mean().item(),
            "reward/attainable": keep_reward.clamp(min=0).mean().item(),
            "policy/keep_probability": p.mean().item(),
            "policy/entropy_nats": -(log_pi.exp() * log_pi).sum(1).mean().item(),
        }

    def evaluate(self) -> dict[str, float]:
        """Measure lookups and tie-aware mAP among the held-out images, each in turn the query with its own code."""
        rows = self.held_out
        if len(rows) < 2 or self.dataset.regions is None:
            return {}
        return training.retrieval_among(encode(self.policy, self.base, self.dataset, rows), self.dataset.labels[rows])


def encode(
    policy: Policy, base: Hasher, dataset: HashingDataset, rows: NDArray[np.int64], threshold: float = 0.5
) -> CodeSets:
    """Return code sets of some images of a dataset: :func:`hashgym.encode_regions` on their fixed regions."""
    return hashgym.encode_regions(
        policy,
        base,
        dataset.features[rows],
        None if dataset.regions is None else dataset.regions[rows],
        threshold=threshold,
        sequential=policy.args.regions_per_episode > 1,
    )


@files.exclusive
def train(
    dataset: HashingDataset,
    base: Hasher,
    args: Args,
    *,
    out: Path | None = None,
    threshold: float = 0.5,
    resume: bool = False,
    progress: bool = True,
) -> Policy:
    """Train a policy on random regions of the training images.

    Args:
        dataset: with ``train_regions``, on the scale that ``base`` was fitted on.
        base: a fitted pairwise hasher (ksh, hashnet, adsh, dch, mmhh ...); it is not changed.
        args: arguments of the run.
        out: folder for ``base.npz``, ``checkpoint.pt``, TensorBoard's files, and at the end ``policy.pt`` and the
            encoder ``policy.onnx``; None writes nothing.
        threshold: xi, the least probability with which the encoder keeps a region's code.
        resume: continue the run that ``out`` holds; the result is that of a run that was never stopped.
        progress: whether to show a progress bar.

    Returns:
        The policy, in evaluation mode, for :func:`hashgym.encode_regions`.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other arguments; for a base or data that
            the environment rejects; if another process is training into ``out``.
        DiskFullError: if a file does not fit on the disk; the last checkpoint is complete.
    """
    dataset.require("train_regions")
    checkpoint = files.load_checkpoint(out, args, resume)
    device = resolve_device(args.device)
    learning, held_out = training.split(dataset, args)
    with training.seed_everything(args.seed, device):
        policy = Policy(dataset.dim, base.bits, args).to(device).train()
        run = Run(policy, base, learning, held_out, args)
        if out is not None:
            save_base(base, out)
        training.train_loop(run, f"MCH, {base.bits} bits", out=out, checkpoint=checkpoint, progress=progress)
    if out is not None:
        payload = files.policy_payload(policy, dataset, args, dim=dataset.dim, bits=base.bits)
        files.save(payload, out / "policy.pt")
        in_turn = threshold if args.regions_per_episode > 1 else None
        files.write_encoder(
            lambda: RegionsHead(hasher_head(base), policy, threshold=in_turn),
            dataset,
            args,
            out / "policy.onnx",
            bits=base.bits,
            threshold=threshold,
        )
    return policy.eval()


def load(path: Path, device: str = "auto") -> Policy:
    """Load the ``policy.pt`` of a finished run; its base hasher is beside it in ``base.npz``.

    Raises:
        ValueError: if the file is missing, corrupt, or no policy of this agent.
    """
    saved, args = files.load_policy(path, Args)
    policy = Policy(saved["dim"], saved["bits"], args)
    policy.load_state_dict(saved["weights"])
    return policy.to(resolve_device(device)).eval()


@dataclass(frozen=True)
class Main:
    """Fit a base hasher, train an MCH agent on it, and measure their codes."""

    args: tyro.conf.OmitArgPrefixes[Args]
    dataset: str = "digit-scenes"
    """name of an embedded dataset with regions, or a folder made by `hashgym features --regions 5 --train-regions 4`"""
    base: str = "dch"
    """a pairwise hasher by name, or a file that Hasher.save wrote"""
    bits: int = 32
    """length of the codes, where the base is given by name"""
    xi: float = 0.5
    """least probability with which a region's code is kept"""
    similarity: str | None = None
    """what to learn from instead of labels: `neighbours`, or a CSV file of similar training images, name,name"""
    out: Path | None = None
    """folder for base, checkpoint, policy and TensorBoard files"""
    resume: bool = False
    """continue the run in `out`"""
    preset: Name = "hashgym"
    """the arguments to start from: hashgym or paper; `--preset NAME` does the same"""


def command(argv: Sequence[str] | None = None, prog: str | None = None) -> Main:
    """Read the command line, with the preset's defaults. Arguments as in :func:`read_command`."""
    presets = {name: Main(args, preset=name) for name, args in PRESETS.items()}
    return read_command(Main, "mch", "--preset", "hashgym", argv, prog=prog, presets=presets)


def main(run: Main) -> dict[str, metrics.RetrievalResult]:
    """Train, encode queries and database, and print the retrieval metrics with one code and with several."""
    if not 0 <= run.xi <= 1:
        raise ValueError(f"xi is a probability, from 0 to 1, got {run.xi}")
    with training.interruptible(run.out):
        learning, dataset = training.load_dataset(run.dataset, run.similarity)
        dataset.require("train_regions", "regions")
        with files.hold_folder(run.out):
            files.load_checkpoint(run.out, run.args, run.resume)  # before a base is fitted
            resolve_device(run.args.device)
            RegionKeepTask(regions_per_episode=run.args.regions_per_episode).check_regions(learning)
            base = base_of_run(run.base, run.out if run.resume else None, run.bits, run.args.seed, learning)
            training.warn_unsaved(run.out)
            policy = train(learning, base, run.args, out=run.out, threshold=run.xi, resume=run.resume)
        return training.report_codes(base, encode(policy, base, dataset, dataset.database, run.xi), dataset)


if __name__ == "__main__":
    with command_line():
        main(command())
