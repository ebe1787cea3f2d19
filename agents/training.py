"""Training shared by all agents: a loop that logs, evaluates and saves checkpoints, and can be resumed to the bit."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import hashgym
from hashgym import codes, console, data
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.device import explain_out_of_memory
from hashgym.features.trainable import TrainableBackbone, spec_of
from hashgym.hashers import Hasher
from hashgym.policies import MAPS_AT_ONCE, VECTORS_AT_ONCE
from hashgym.retrieval import kernels, metrics
from hashgym.terminal import STOPPED
from hashgym.threads import largest_product, limit_threads

from . import checkpoint as files
from .arguments import CommonArgs, RunArgs, as_json

__all__ = [
    "UNMEASURED",
    "Run",
    "encode",
    "interruptible",
    "limited_threads",
    "load_dataset",
    "progress_bar",
    "report_codes",
    "retrieval_among",
    "seed_everything",
    "set_cosine",
    "split",
    "train_loop",
    "warn_unsaved",
    "with_backbone",
]

UNMEASURED = "without labels its codes are not measured"

A = TypeVar("A", bound=CommonArgs)


class Run(ABC):
    """State of a training run: policy, optimizer, environments. Its checkpoint holds everything needed to continue.

    Attributes:
        args: the arguments.
        num_updates: updates made so far.
        reads_regions: whether the environments read the training images' regions.
        obs: observations that ``envs`` returned last.
        info: info that ``envs`` returned last.
    """

    reads_regions: ClassVar[bool] = False

    def __init__(
        self, policy: nn.Module, optimizer: torch.optim.Optimizer, envs: Any, dataset: HashingDataset, args: RunArgs
    ) -> None:
        self.policy, self.optimizer, self.envs, self.dataset, self.args = policy, optimizer, envs, dataset, args
        self.device = next(policy.parameters()).device
        self.num_updates = 0
        self.obs, self.info = envs.reset(seed=args.seed)

    @abstractmethod
    def update(self) -> dict[str, float]:
        """Make one update: act in the environments, then a gradient step. Returns scalars to log."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Measure the policy on the held-out images; the query split is never seen. Returns scalars to log."""

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that decides how the run continues."""
        return {
            "args": as_json(self.args),
            "data": self._fingerprint,
            "update": self.num_updates,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "environment": files.as_tensors(self.envs.get_state()),
            "generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: if it was made on other data.
        """
        files.check_data(checkpoint, self._fingerprint)
        self.num_updates = checkpoint["update"]
        self.policy.load_state_dict(checkpoint["policy"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.obs, self.info = self.envs.set_state(files.as_arrays(checkpoint["environment"]))
        torch.set_rng_state(checkpoint["generator"])
        if checkpoint["device_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["device_generator"], self.device)

    @cached_property
    def _fingerprint(self) -> str:
        return files.fingerprint(self.dataset, regions=self.reads_regions)

    def images(self, array: NDArray[Any]) -> Tensor:
        """Return observed images on the run's device: float32, or uint8 for pixels."""
        return torch.from_numpy(array).to(self.device) if array.dtype == np.uint8 else self.tensor(array)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Return an array as float32 on the run's device."""
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)


def train_loop(run: Run, title: str, *, out: Path | None, checkpoint: dict[str, Any] | None, progress: bool) -> None:
    """Update until all updates are made; log to TensorBoard and save checkpoints where there is a folder for them."""
    args = run.args
    if checkpoint is not None:
        run.restore(checkpoint)
    curves = nullcontext() if out is None else SummaryWriter(str(out), purge_step=run.num_updates + 1)
    threads = limited_threads(run.policy, args.num_envs)
    with threads, explain_out_of_memory("num_envs", args.num_envs), curves as writer, progress_bar(progress) as bar:
        task = bar.add_task(title, total=args.updates, completed=run.num_updates)
        while run.num_updates < args.updates:
            scalars = run.update()
            last = run.num_updates == args.updates
            evaluated = last or run.num_updates % args.evaluate_every == 0
            if evaluated:
                scalars |= run.evaluate()
            if writer is not None and (evaluated or run.num_updates % args.log_every == 0):
                for name, value in scalars.items():
                    writer.add_scalar(name, value, run.num_updates)
            if out is not None and (last or run.num_updates % args.checkpoint_every == 0):
                files.save(run.checkpoint(), out / "checkpoint.pt")
            bar.update(task, completed=run.num_updates)


def with_backbone(args: A, dataset: HashingDataset) -> A:
    """Return the arguments of an agent with the backbone of the dataset's images, where ``backbone`` is None.

    Raises:
        ValueError: as :func:`hashgym.features.trainable.spec_of`.
    """
    given: Any = args
    named: dict[str, Any] = {"backbone": spec_of(dataset, given.backbone, given.backbone_weights)}
    return dataclasses.replace(args, **named)


def encode(
    policy: Any, dataset: HashingDataset, rows: NDArray[np.int64], *, bits: int, group_bits: int
) -> NDArray[np.bool_]:
    """Return the codes of some images of a dataset, bool (n, bits), reading a part of them into memory at a time."""
    at_once = MAPS_AT_ONCE if dataset.has_maps else VECTORS_AT_ONCE
    encoded = np.zeros((len(rows), bits), np.bool_)
    for start in range(0, len(rows), at_once):
        block = slice(start, start + at_once)
        encoded[block] = hashgym.encode(policy, dataset.features[rows[block]], bits=bits, group_bits=group_bits)
    return encoded


def limited_threads(network: nn.Module, batch: int) -> AbstractContextManager[None]:
    """Limit the threads of torch to those that a network gains by; the convolutions of a backbone gain by all."""
    if any(isinstance(module, TrainableBackbone) for module in network.modules()):
        return nullcontext()
    return limit_threads(largest_product(network, batch))


def load_dataset(source: str, similarity: str | None) -> tuple[HashingDataset, HashingDataset]:
    """Return a standardised dataset to learn from, with labels or what is given instead, and one to measure on.

    Args:
        source: see :func:`hashgym.data.load`.
        similarity: see :meth:`HashingDataset.with_similarity`; None to learn from the labels.

    Raises:
        ValueError: for labels by which codes cannot be measured, or none without ``similarity``.
    """
    dataset = data.load(source).standardized()
    if similarity is None or dataset.has_labels:
        metrics.check_labels(dataset.labels[dataset.query], dataset.labels[dataset.database])
    return dataset if similarity is None else dataset.with_similarity(similarity), dataset


def split(dataset: HashingDataset, args: CommonArgs) -> tuple[HashingDataset, NDArray[np.int64]]:
    """Return the dataset without the held-out training images, and the indices of those."""
    order = np.random.default_rng(args.seed).permutation(dataset.train)
    count = round(args.holdout * len(order))
    learning = dataclasses.replace(dataset, train=np.sort(order[count:])) if count else dataset
    return learning, np.sort(order[:count])


@contextmanager
def seed_everything(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for a run; afterwards restore them, and NumPy's, which Stable-Baselines3 seeds itself."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def retrieval_among(sets: CodeSets, labels: NDArray[np.uint8]) -> dict[str, float]:
    """Measure how well images find each other, each in turn the query with its own code alone. Returns scalars to log.

    Args:
        sets: the codes of n images.
        labels: multi-hot (n, L).

    Returns:
        Tie-aware mAP, recall and precision within radius 0, and the average number of codes; empty where no two images
        share a label.
    """
    packed = codes.pack(labels)
    relevant, total = kernels.distance_histograms(
        sets.words[:, 0], packed, sets.filled, packed, sets.bits, exclude=np.arange(len(sets))
    )
    answerable = relevant.any(axis=1)
    if not answerable.any():
        return {}
    found, relevant, total = relevant[answerable, 0], relevant[answerable], total[answerable]
    return {
        "retrieval/held_out_map": float(kernels.average_precision(relevant, total).mean()),
        "retrieval/held_out_recall_radius0": float((found / relevant.sum(axis=1)).mean()),
        "retrieval/held_out_precision_radius0": float((found / np.maximum(total[:, 0], 1)).mean()),
        "retrieval/anhc": sets.anhc,
    }


def report_codes(base: Hasher, several: CodeSets, dataset: HashingDataset) -> dict[str, metrics.RetrievalResult]:
    """Print the retrieval metrics of a database with one code an image and with several; return them by name.

    Of a dataset without labels only the average number of codes is printed.

    Args:
        base: encodes the queries.
        several: the code sets of the database.
        dataset: on the scale that ``base`` was fitted on.
    """
    if not dataset.has_labels:
        console.say(f"on average {several.anhc:.2f} codes an image; {UNMEASURED}")
        return {}
    query, labels = base.encode(dataset.features[dataset.query]), dataset.labels[dataset.query]
    own = CodeSets(several.words[:, :1], several.kept[:, :1], several.bits)
    results = {}
    for name, sets in {"one code": own, "several codes": several}.items():
        results[name] = result = metrics.evaluate(query, labels, sets, dataset.labels[dataset.database])
        console.say(
            f"{name:13} an image (on average {sets.anhc:.2f}): mAP {result.map:.4f}, within radius 0 "
            f"recall {result.recall_by_radius[0]:.4f}, precision {result.precision_by_radius[0]:.4f}"
        )
    return results


def set_cosine(optimizer: torch.optim.Optimizer, learning_rates: Sequence[float], progress: float) -> None:
    """Set the learning rate of each group of parameters on a cosine from its start to 0, at a progress from 0 to 1."""
    for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = learning_rate * (1 + math.cos(math.pi * progress)) / 2


def progress_bar(show: bool) -> console.Progress:
    """Return the progress bar of a training run."""
    return console.bar(TimeRemainingColumn(), show=show)


def warn_unsaved(out: Path | None) -> None:
    """Warn where a command has no folder to write to."""
    if out is None:
        console.warn("there is no --out: the trained policy is not saved; only its measures are printed")


@contextmanager
def interruptible(out: Path | None) -> Iterator[None]:
    """Run an agent's command; after Ctrl-C print how to continue.

    Args:
        out: the folder of the run, if it has one.

    Raises:
        SystemExit: with 130 after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        if out is None:
            kept = "nothing is saved, because there is no --out"
        elif (out / "checkpoint.pt").exists():
            kept = f"the same command with --resume continues from the checkpoint in {out}"
        else:
            kept = f"{out} has no checkpoint yet, so the same command starts from the beginning"
        console.error(f"stopped; {kept}")
        raise SystemExit(STOPPED) from None
