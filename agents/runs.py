"""What every training run has: a loop that logs, watches and saves, and can be killed and taken up again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.progress import TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from hashgym import codes, console
from hashgym.checks import is_integer
from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.encoders.write import write
from hashgym.hashers.threads import largest_product, limit_threads
from hashgym.retrieval import kernels
from hashgym.storage.atomic import DiskFullError, atomic_write, explain_full_disk, full_disk_error
from hashgym.storage.reading import check_stored
from hashgym.terminal import STOPPED

__all__ = [
    "CommonArgs",
    "Run",
    "RunArgs",
    "as_arrays",
    "as_json",
    "as_tensors",
    "bar_of",
    "drive",
    "exclusive",
    "export",
    "fingerprint",
    "finished",
    "hold_folder",
    "interruptible",
    "load",
    "load_policy",
    "report",
    "resumed",
    "retrieval_among",
    "save",
    "seeded",
    "split",
]

OTHER_DATA = "the checkpoint was made on other data; give the dataset it was trained on, or another --out"
LOCK = ".lock"  # in the folder of a run
MAX_BYTES = 16 << 30  # of a checkpoint, which may hold the buffer of past steps
A = TypeVar("A", bound="CommonArgs")
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CommonArgs:
    """Settings of any training run."""

    agent: ClassVar[str]  # the name of its module, which is __main__ itself where that is run

    holdout: float = 0.05
    """part of the training images kept out of training, on which progress is watched; 0 for none"""
    seed: int = 0
    """determines a run to the bit, on one machine with one number of threads"""
    device: str = "auto"
    """cpu, cuda, ..., or auto: an accelerator where there is one"""

    def __post_init__(self) -> None:
        self.check_fraction("holdout")

    def check_positive(self, *names: str) -> None:
        """Raise ValueError for the first of these settings that is not above 0, or no integer where one is needed."""
        for name in names:
            value = getattr(self, name)
            if type(self).__dataclass_fields__[name].type == "int" and not is_integer(value):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def check_fraction(self, *names: str) -> None:
        """Raise ValueError for the first of these settings that is not in [0, 1)."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunArgs(CommonArgs):
    """Settings of a run of our own agents."""

    updates: int = 1000
    """gradient steps, each on one batch of episodes"""
    lanes: int = 256
    """images in a batch, and lanes of the environment"""
    evaluate_every: int = 500
    """updates between evaluations on the held-out images"""
    log_every: int = 50
    """updates between points of the TensorBoard curves"""
    checkpoint_every: int = 500
    """updates between checkpoints, where there is a folder for them"""

    def __post_init__(self) -> None:
        self.check_positive("updates", "lanes", "evaluate_every", "log_every", "checkpoint_every")
        super().__post_init__()


class Run(ABC):
    """A training run at one moment: policy, optimiser, environment. All it needs to go on is in its checkpoint.

    Attributes:
        update: updates made so far.
        observation: what ``envs`` shows now.
        info: what ``envs`` says now.
    """

    def __init__(
        self, policy: nn.Module, optimizer: torch.optim.Optimizer, envs: Any, dataset: HashingDataset, args: RunArgs
    ) -> None:
        self.policy, self.optimizer, self.envs, self.dataset, self.settings = policy, optimizer, envs, dataset, args
        self.device = next(policy.parameters()).device
        self.update = 0
        self.observation, self.info = envs.reset(seed=args.seed)

    @abstractmethod
    def learn(self) -> dict[str, float]:
        """One update; gives scalars to log."""

    @abstractmethod
    def watch(self) -> dict[str, float]:
        """How well the policy does on the held-out images; the query split is never seen."""

    def checkpoint(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        return {
            "args": as_json(self.settings),
            "data": fingerprint(self.dataset),
            "update": self.update,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "environment": as_tensors(self.envs.get_state()),
            "generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take up the run of a checkpoint."""
        if checkpoint["data"] != fingerprint(self.dataset):
            raise ValueError(OTHER_DATA)
        self.update = checkpoint["update"]
        self.policy.load_state_dict(checkpoint["policy"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.observation, self.info = self.envs.set_state(as_arrays(checkpoint["environment"]))
        torch.set_rng_state(checkpoint["generator"])
        if checkpoint["device_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["device_generator"], self.device)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """An array as float32 on the run's device."""
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)


def drive(run: Run, title: str, *, out: Path | None, checkpoint: dict[str, Any] | None, progress: bool) -> None:
    """Learn until all updates are made; log to TensorBoard and save checkpoints where there is a folder for them."""
    args = run.settings
    if checkpoint is not None:
        run.restore(checkpoint)
    curves = nullcontext() if out is None else SummaryWriter(str(out), purge_step=run.update + 1)
    threads = limit_threads(largest_product(run.policy, args.lanes))
    with threads, curves as writer, bar_of(progress) as bar:
        task = bar.add_task(title, total=args.updates, completed=run.update)
        while run.update < args.updates:
            scalars = run.learn()
            last = run.update == args.updates
            evaluated = last or run.update % args.evaluate_every == 0
            if evaluated:
                scalars |= run.watch()
            if writer is not None and (evaluated or run.update % args.log_every == 0):
                for name, value in scalars.items():
                    writer.add_scalar(name, value, run.update)
            if out is not None and (last or run.update % args.checkpoint_every == 0):
                save(run.checkpoint(), out / "checkpoint.pt")
            bar.update(task, completed=run.update)


@contextmanager
def hold_folder(out: Path | None) -> Iterator[None]:
    """Keep other training runs out of the folder ``out``, and explain a full disk; does nothing for None.

    The lock is the system's, on the file ``.lock`` in the folder: it ends with the process, even one that is killed.
    A thread may hold a folder several times.

    Raises:
        ValueError: if another run holds the folder, it cannot be made, or ``.lock`` in it is somebody else's file.
        DiskFullError: if something cannot be written in the block because the disk is full.
    """
    if out is None:
        yield
        return
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{out} is a file, or a link to nothing: name a folder with --out") from None
    found = out / LOCK
    if os.path.lexists(found) and (found.is_symlink() or not found.is_file() or found.stat().st_size):
        # The lock would empty it.
        raise ValueError(f"{found} was not written by hashgym: move it elsewhere, or choose another --out")
    lock = FileLock(out / LOCK, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another process is training into {out}: wait for it or stop it, or choose another --out"
        ) from None
    try:
        with explain_full_disk(out), _quiet_curves():
            yield
    except DiskFullError as error:
        if "--resume" not in str(error) and (out / "checkpoint.pt").exists():
            hint = f"{error} with --resume: it goes on from {out / 'checkpoint.pt'}, which is whole"
            raise DiskFullError(error.errno, hint) from None
        raise
    finally:
        with suppress(OSError):
            if made and [path.name for path in out.iterdir()] == [LOCK]:  # nothing was begun
                (out / LOCK).unlink()
                out.rmdir()
        lock.release()


def exclusive(train: Callable[P, T]) -> Callable[P, T]:
    """Let a training function hold the folder ``out``, its keyword argument, while it runs: :func:`hold_folder`."""

    @functools.wraps(train)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        out: Any = kwargs.get("out")
        with hold_folder(out):
            return train(*args, **kwargs)

    return alone


@contextmanager
def _quiet_curves() -> Iterator[None]:
    """Print no traceback where TensorBoard's thread cannot write: the error is raised here at the next write too."""
    before = threading.excepthook
    threading.excepthook = lambda ended: None if full_disk_error(ended.exc_value) else before(ended)
    try:
        yield
    finally:
        threading.excepthook = before


def resumed(out: Path | None, args: CommonArgs, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, checked before any work starts.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other settings, or none to resume.
    """
    path = None if out is None else out / "checkpoint.pt"
    if path is None or not os.path.lexists(path):
        if resume:
            raise ValueError(f"there is no run to resume in {out}; leave resume out to begin one")
        for there in () if out is None else (out / "policy.pt", out / "policy.onnx"):
            if os.path.lexists(there):
                raise ValueError(f"{there} exists, but no checkpoint: name another folder, as it would be overwritten")
        return None
    if not resume:
        raise ValueError(f"{out} holds a run: resume it, remove it, or name another folder")
    checkpoint = load(path)
    saved = json.loads(checkpoint["args"])
    if changed := [key for key, value in json.loads(as_json(args)).items() if saved.get(key) != value]:
        raise ValueError(
            f"the run in {out} was begun with another {', '.join(changed)}; give the same, or another folder"
        )
    return checkpoint


def split(dataset: HashingDataset, args: CommonArgs) -> tuple[HashingDataset, NDArray[np.int64]]:
    """The dataset without the held-out training images, and those."""
    order = np.random.default_rng(args.seed).permutation(dataset.train)
    count = round(args.holdout * len(order))
    learning = dataclasses.replace(dataset, train=np.sort(order[count:])) if count else dataset
    return learning, np.sort(order[:count])


def finished(policy: nn.Module, dataset: HashingDataset, args: CommonArgs, **shape: int) -> dict[str, Any]:
    """The content of ``policy.pt``: settings, weights, and the standardisation of the features trained on."""
    moments = {"center": dataset.center, "scale": dataset.scale}
    moments_of = {key: None if part is None else torch.from_numpy(part) for key, part in moments.items()}
    return {"agent": args.agent, "args": as_json(args), **shape, "weights": policy.state_dict(), **moments_of}


def export(
    make_head: Callable[[], nn.Module],
    dataset: HashingDataset,
    args: CommonArgs,
    path: Path,
    *,
    bits: int,
    group_bits: int | None = None,
    threshold: float | None = None,
) -> None:
    """Write ``policy.onnx``, the encoder that :func:`hashgym.load_encoder` opens, or say why there is none.

    Args:
        make_head: gives the head for features as ``dataset`` has them (see :mod:`hashgym.encoders.heads`); with a
            threshold it takes views.
        dataset: what was learnt on: its standardisation becomes part of the encoder.
        args: settings, which the encoder carries along.
        path: of the file.
        bits: q.
        group_bits: k, of BitGroupHashing-v0.
        threshold: xi, of RegionKeep-v0.
    """
    several: dict[str, Any] = {}
    if threshold is not None:
        count = 0 if dataset.regions is None else dataset.regions.shape[1]
        several = {"regions": count, "sigma": dataset.provenance.get("sigma"), "threshold": threshold}
    try:
        write(
            path,
            make_head(),
            dim=dataset.dim,
            bits=bits,
            group_bits=group_bits,
            source={"agent": args.agent, "dataset": dataset.name, "settings": dataclasses.asdict(args)},
            center=dataset.center,
            scale=dataset.scale,
            backbone=dataset.provenance.get("backbone"),
            **several,
        )
    except ValueError as error:  # what was trained is there all the same
        report(f"no {path.name}: {error}. With that mended, the same command with --resume writes it")


def report(problem: object) -> None:
    """Print what went wrong."""
    console.error(problem)


def bar_of(show: bool) -> console.Progress:
    """The progress bar of a training run."""
    return console.bar(TimeRemainingColumn(), show=show)


@contextmanager
def interruptible(out: Path | None) -> Iterator[None]:
    """Run an agent's command line: warn where nothing is kept, and after Ctrl-C say how to continue.

    Args:
        out: the folder of the run, if it has one.

    Raises:
        SystemExit: with 130 after Ctrl-C.
    """
    if out is None:
        console.warn("there is no --out: the trained policy is thrown away at the end; only its measures are printed")
    try:
        yield
    except KeyboardInterrupt:
        if out is None:
            kept = "nothing is kept, because there is no --out"
        elif (out / "checkpoint.pt").exists():
            kept = f"the same command with --resume continues from the checkpoint in {out}"
        else:
            kept = f"{out} has no checkpoint yet, so the same command starts from the beginning"
        console.error(f"stopped; {kept}")
        raise SystemExit(STOPPED) from None


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for a run, and leave the caller's as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fingerprint(dataset: HashingDataset) -> str:
    """Tells data apart: the training images' indices, labels and features."""
    digest = hashlib.sha256(dataset.train.tobytes())
    digest.update(dataset.labels[dataset.train].tobytes())
    digest.update(np.ascontiguousarray(dataset.features[dataset.train]).tobytes())
    return digest.hexdigest()


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint or policy that is whole at every moment: the old file or the new one.

    Raises:
        DiskFullError: if it does not fit on the disk; the old file is there.
    """
    with atomic_write(path) as file:
        torch.save(content, file)


def load(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote; nothing in the file is executed.

    Raises:
        ValueError: for a file that is missing, damaged, or not of a training run.
    """
    try:
        check_stored(path, MAX_BYTES)
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it has changed")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; a training run with an output folder writes it") from None
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        said = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged or no file of ours: {said}") from error
    if not isinstance(loaded, dict) or "args" not in loaded:
        raise ValueError(f"{path} is no file of ours")
    return loaded


def load_policy(path: Path, kind: type[A]) -> tuple[dict[str, Any], A]:
    """What :func:`finished` gave to be saved, and the settings in it.

    Args:
        path: of ``policy.pt``.
        kind: the settings of the agent whose policy it must be.

    Raises:
        ValueError: for a file that is missing, damaged, no policy, or another agent's.
    """
    saved, agent = load(path), kind.agent
    if saved.get("agent") != agent:
        whose = f"a policy of {saved['agent']}" if "agent" in saved else "no policy"
        raise ValueError(f"{path} holds {whose}; a finished run of {agent} writes its own to policy.pt")
    try:
        return saved, kind(**json.loads(saved["args"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} was written by another version of {agent}: train again ({error})") from error


def retrieval_among(sets: CodeSets, labels: NDArray[np.uint8]) -> dict[str, float]:
    """How well images find each other, each in turn the query with its own code alone: scalars to log.

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
    asked = relevant.any(axis=1)
    if not asked.any():
        return {}
    found, relevant, total = relevant[asked, 0], relevant[asked], total[asked]
    return {
        "retrieval/held_out_map": float(kernels.average_precision(relevant, total).mean()),
        "retrieval/held_out_recall_radius0": float((found / relevant.sum(axis=1)).mean()),
        "retrieval/held_out_precision_radius0": float((found / np.maximum(total[:, 0], 1)).mean()),
        "retrieval/anhc": sets.anhc,
    }


def as_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """An environment's state with tensors in place of arrays, which torch saves without pickle."""
    return {key: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for key, part in state.items()}


def as_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """What :func:`as_tensors` was given."""
    return {key: part.numpy() if isinstance(part, Tensor) else part for key, part in state.items()}


def as_json(args: CommonArgs) -> str:
    """Settings as text."""
    return json.dumps(dataclasses.asdict(args))
