"""Multicode: an agent that gives an image further codes on MultiCodeHashing-v0, from one look at it.

    python -m agents.multicode --base dch --out runs/multicode
    python -m agents.multicode --base dch --codes 2 --group-bits 8 --out runs/multicode-groups

A base hasher is fitted first and frozen; it gives every image its first code, as in MCH. The policy emits further
codes, each conditioned on those before, and decides whether a code is kept. The environment returns the effect of every
bit on the reward, so that each bit is its own one-step bandit with a known advantage (``credit_loss`` in drlih.py), and
the reward of keeping the code (:func:`keep_loss`). The credit of a bit is that of a kept code, whatever the policy
decides: weighted by the probability of keeping, a policy that keeps nothing at first would learn nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

import hashgym
import hashgym.hashers
from hashgym.checks import check_number
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.encoders.heads import CodesHead, first_bit, hasher_head
from hashgym.envs.multi_code_hashing import MultiCodeTask, check_images
from hashgym.hashers import Hasher
from hashgym.retrieval import metrics
from hashgym.terminal import command_line

from . import checkpoint as files
from . import training
from .arguments import RunArgs, read_arguments
from .bases import base_of_run, save_base
from .drlih import credit_loss

__all__ = ["Args", "Main", "Policy", "command", "encode", "keep_loss", "last_code", "load", "main", "train"]


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Arguments of a training run."""

    agent: ClassVar[str] = "multicode"

    codes: int = 1
    """m, number of further codes"""
    group_bits: int = 0
    """k, bits emitted in one step; 0 for a whole code"""
    price: float = 0.0
    """cost of a kept code, in units of the reward"""
    code_dropout: float = 0.5
    """fraction of features dropped when the base encodes training images, whose codes are too good otherwise"""
    code_copies: int = 4
    """number of versions of the training images' codes, each with other features dropped"""
    updates: int = 1500
    """gradient steps, each on one batch of images"""
    num_envs: int = 128
    """images in a batch"""
    hidden: int = 512
    """width of both hidden layers"""
    start: float = 0.5
    """weight of the last code before (the base's or a kept one) in the logits of a new code"""
    dropout: float = 0.5
    """fraction of the hidden units dropped while training"""
    input_dropout: float = 0.5
    """fraction of the features dropped while training"""
    learning_rate: float = 1e-3
    """initial learning rate of AdamW; it falls to 0 along a cosine"""
    weight_decay: float = 1e-4
    """of AdamW"""
    evaluate_every: int = 250
    """updates between evaluations on the held-out images"""
    log_every: int = 25
    """updates between points of the TensorBoard curves"""
    checkpoint_every: int = 250
    """updates between checkpoints, where there is a folder for them"""

    def __post_init__(self) -> None:
        self.check_positive("codes", "code_copies", "hidden", "learning_rate")
        self.check_fraction("dropout", "input_dropout", "code_dropout")
        for name in ("group_bits", "price", "start"):
            check_number(name, getattr(self, name), 0)
        super().__post_init__()


class Policy(nn.Module):
    """pi(bits, keep | image, codes so far): a group's bits are independent, and so is the decision to keep the code.

    The embedded image, the sum of the codes before and the bits of this code so far go through a second hidden layer.
    Logits begin at ``start`` times the last code before, so that a new code departs from it bit by bit.
    """

    def __init__(self, dim: int, bits: int, args: Args) -> None:
        super().__init__()
        self.dim, self.bits, self.args = dim, bits, args
        self.group_bits = args.group_bits or bits
        self.embedding = nn.Linear(dim, args.hidden)
        self.hidden = nn.Linear(args.hidden + 2 * bits, args.hidden)
        self.code = nn.Linear(args.hidden, bits)
        self.keep = nn.Linear(args.hidden, 1)
        self.input_dropout, self.dropout = nn.Dropout(args.input_dropout), nn.Dropout(args.dropout)

    def embed(self, image: Tensor) -> Tensor:
        """Return the embedded images (n, hidden), the same for all steps of an episode, of features (n, D)."""
        return self.dropout(F.relu(self.embedding(self.input_dropout(image))))

    def act(self, embedded: Tensor, code: Tensor, codes: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Return logits (n, k) of a group's bits, fewer in a code's last group, and (n,) of keeping the code.

        Args:
            embedded: (n, hidden), of :meth:`embed`.
            code: (n, q), the code so far, -1 and +1, and 0 for bits not emitted.
            codes: (n, 1 + m, q), the codes before, 0 where there is none.
            group: the group to emit, counted over all codes.
        """
        start = first_bit(group, self.bits, self.group_bits)
        h = self.dropout(F.relu(self.hidden(torch.cat([embedded, codes.sum(1), code], dim=1))))
        logits = self.code(h) + self.args.start * last_code(codes)
        return logits[:, start : start + self.group_bits], self.keep(h)[:, 0]

    def probabilities(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        """Return the probabilities of the bits of an action, (n, k + 1), for :func:`hashgym.encode_codes`."""
        if (shape := observation["code"].shape[1]) != self.bits:
            raise ValueError(f"the policy was trained on codes of {self.bits} bits, got {shape}: give it its own base")
        device, mode = self.keep.weight.device, self.training
        image, code, codes = (
            torch.from_numpy(np.ascontiguousarray(observation[key])).to(device) for key in ("image", "code", "codes")
        )
        self.eval()
        with torch.no_grad():
            logits, keep = self.act(self.embed(image), code, codes, int(observation["group"][0]))
            p = F.pad(logits.sigmoid(), (0, self.group_bits - logits.shape[1]))
            both = torch.cat([p, keep.sigmoid()[:, None]], dim=1)
        self.train(mode)
        return both.cpu().numpy()

    def predict(
        self, observation: dict[str, Any], state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.int8], None]:
        """Act on a batch of observations at the same group, as Stable-Baselines3 models do."""
        p = self.probabilities(observation)
        chance = 0.5 if deterministic else torch.rand(p.shape).numpy()
        return (p > chance).astype(np.int8), None


def last_code(codes: Tensor) -> Tensor:
    """Return the last of the codes (n, 1 + m, q) that is not 0, (n, q)."""
    places = torch.arange(codes.shape[1], device=codes.device)
    last = (codes.abs().amax(2).long() * places).amax(1)
    return codes.gather(1, last[:, None, None].expand(-1, 1, codes.shape[2]))[:, 0]


def keep_loss(logit: Tensor, reward: Tensor) -> Tensor:
    """Return the cross-entropy of keeping a code where its reward is positive, weighted by the reward's size.

    The probability p of keeping is best at E[R+] / (E[R+] + E[R-]), above 1/2 where the expected reward is positive, as
    with the gradient of the expected reward p R itself. That one vanishes where p is near 0: a policy that has learnt
    to discard the poor codes of its first updates would discard all later ones too.

    Args:
        logit: (n,), of p.
        reward: (n,), of keeping; discarding earns 0.
    """
    return F.binary_cross_entropy_with_logits(logit, (reward > 0).float(), reward.abs())


class Run(training.Run):
    """State of a training run on MultiCodeHashing-v0."""

    policy: Policy
    args: Args

    def __init__(
        self, policy: Policy, base: Hasher, dataset: HashingDataset, held_out: NDArray[np.int64], args: Args
    ) -> None:
        self.base, self.held_out = base, held_out
        envs: Any = gym.make_vec(
            "MultiCodeHashing-v0",
            num_envs=args.num_envs,
            dataset=dataset,
            base=base,
            codes=args.codes,
            group_bits=policy.group_bits,
            price=args.price,
            code_dropout=args.code_dropout,
            code_copies=args.code_copies,
            counterfactual=True,
        )
        optimizer = torch.optim.AdamW(
            policy.parameters(), args.learning_rate, weight_decay=args.weight_decay, fused=True
        )
        super().__init__(policy, optimizer, envs.unwrapped, dataset, args)

    def update(self) -> dict[str, float]:
        """Make one update: the codes of every environment's image, a gradient step. Returns scalars to log."""
        args, policy, bits = self.args, self.policy, self.policy.bits
        training.set_cosine(self.optimizer, [args.learning_rate], self.num_updates / args.updates)
        embedded = policy.embed(self.tensor(self.obs["image"]))
        loss, earned, expected, keeping = torch.zeros((), device=self.device), 0.0, 0.0, 0.0
        for _ in range(args.codes):
            logits: list[Tensor] = []
            for _ in range(0, bits, policy.group_bits):
                code, codes = self.tensor(self.obs["code"]), self.tensor(self.obs["codes"])
                emitted, keep = policy.act(embedded, code, codes, int(self.obs["group"][0]))
                p = keep.detach().sigmoid()
                decided = torch.bernoulli(torch.cat([emitted.detach().sigmoid(), p[:, None]], dim=1))
                action = np.zeros((args.num_envs, policy.group_bits + 1), np.int8)
                action[:, : emitted.shape[1]], action[:, -1] = decided[:, :-1].cpu(), decided[:, -1].cpu()
                self.obs, reward, _, _, self.info = self.envs.step(action)
                logits.append(emitted)
            final = self.info.get("final_info", self.info)
            keep_reward, credit = self.tensor(final["keep_reward"]), self.tensor(final["code_credit"])
            scale = keep_reward.abs().mean().clamp(min=1e-12)  # losses of bases are of very different size
            loss = loss + credit_loss(torch.cat(logits, dim=1), credit / scale)
            loss = loss + keep_loss(keep, keep_reward / scale)
            earned, expected = earned + float(reward.mean()), expected + (p * keep_reward).mean().item()
            keeping += p.mean().item() / args.codes
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.num_updates += 1
        return {
            "loss": loss.item(),
            "reward/earned": earned,
            "reward/expected": expected,
            "policy/keep_probability": keeping,
        }

    def evaluate(self) -> dict[str, float]:
        """Measure lookups and tie-aware mAP among the held-out images, each in turn the query with its own code."""
        rows = self.held_out
        if len(rows) < 2:
            return {}
        sets = encode(self.policy, self.base, self.dataset.features[rows])
        return training.retrieval_among(sets, self.dataset.labels[rows])


def encode(policy: Policy, base: Hasher, features: NDArray[np.float32], threshold: float = 0.5) -> CodeSets:
    """Return code sets of images: :func:`hashgym.encode_codes` with the policy's own settings."""
    code: dict[str, Any] = {"codes": policy.args.codes, "group_bits": policy.group_bits}
    return hashgym.encode_codes(policy, base, features, threshold=threshold, **code)


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
    """Train a policy on the training images.

    Args:
        dataset: feature vectors on the scale that ``base`` was fitted on.
        base: a fitted pairwise hasher (ksh, hashnet, adsh, dch, mmhh ...); it is not changed.
        args: arguments of the run.
        out: folder for ``base.npz``, ``checkpoint.pt``, TensorBoard's files, and at the end ``policy.pt`` and the
            encoder ``policy.onnx``; None writes nothing.
        threshold: xi, the least probability with which the encoder keeps a code.
        resume: continue the run that ``out`` holds; the result is that of a run that was never stopped.
        progress: whether to show a progress bar.

    Returns:
        The policy, in evaluation mode, for :func:`hashgym.encode_codes`.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other arguments; for a base or data that
            the environment rejects; if another process is training into ``out``.
        DiskFullError: if a file does not fit on the disk; the last checkpoint is complete.
    """
    checkpoint = files.load_checkpoint(out, args, resume)
    device = resolve_device(args.device)
    learning, held_out = training.split(dataset, args)
    with training.seed_everything(args.seed, device):
        policy = Policy(dataset.dim, base.bits, args).to(device).train()
        run = Run(policy, base, learning, held_out, args)
        if out is not None:
            save_base(base, out)
        training.train_loop(run, f"multicode, {base.bits} bits", out=out, checkpoint=checkpoint, progress=progress)
    if out is not None:
        payload = files.policy_payload(policy, dataset, args, dim=dataset.dim, bits=base.bits)
        files.save(payload, out / "policy.pt")
        files.write_encoder(
            lambda: CodesHead(hasher_head(base), policy, args.codes, threshold),
            dataset,
            args,
            out / "policy.onnx",
            bits=base.bits,
            codes=args.codes,
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
    """Fit a base hasher, train an agent that adds codes to it, and measure their codes."""

    args: tyro.conf.OmitArgPrefixes[Args]
    dataset: str = "digit-scenes"
    """name of an embedded dataset, or a folder made by `hashgym features`"""
    base: str = "dch"
    """a pairwise hasher by name, or a file that Hasher.save wrote"""
    bits: int = 32
    """length of the codes, where the base is given by name"""
    xi: float = 0.5
    """least probability with which a code is kept"""
    similarity: str | None = None
    """what to learn from instead of labels: `neighbours`, or a CSV file of similar training images, name,name"""
    out: Path | None = None
    """folder for base, checkpoint, policy and TensorBoard files"""
    resume: bool = False
    """continue the run in `out`"""


def command(argv: Sequence[str] | None = None, prog: str | None = None) -> Main:
    """Read the command line. Arguments as in :func:`read_arguments`."""
    return read_arguments(Main, "multicode", sys.argv[1:] if argv is None else argv, prog=prog)


def main(run: Main) -> dict[str, metrics.RetrievalResult]:
    """Train, encode queries and database, and print the retrieval metrics with one code and with several."""
    if not 0 <= run.xi <= 1:
        raise ValueError(f"xi is a probability, from 0 to 1, got {run.xi}")
    with training.interruptible(run.out):
        learning, dataset = training.load_dataset(run.dataset, run.similarity)
        check_images(dataset)
        with files.hold_folder(run.out):
            files.load_checkpoint(run.out, run.args, run.resume)  # before a base is fitted
            resolve_device(run.args.device)
            if run.base in hashgym.hashers.HASHERS:
                MultiCodeTask(group_bits=run.args.group_bits or None).group_length(run.bits)
            base = base_of_run(run.base, run.out if run.resume else None, run.bits, run.args.seed, learning)
            training.warn_unsaved(run.out)
            policy = train(learning, base, run.args, out=run.out, threshold=run.xi, resume=run.resume)
        several = encode(policy, base, dataset.features[dataset.database], run.xi)
        return training.report_codes(base, several, dataset)


if __name__ == "__main__":
    with command_line():
        main(command())
