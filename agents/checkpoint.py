"""Files of a training run: checkpoints to resume from, the finished policy, its encoder, and the lock of the folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashgym import console
from hashgym.data import HashingDataset
from hashgym.encoders.write import write
from hashgym.storage.atomic import DiskFullError, atomic_write, explain_full_disk, full_disk_error
from hashgym.storage.locks import lock_folder
from hashgym.storage.reading import check_stored

from .arguments import CommonArgs, as_json, current_names

__all__ = [
    "as_arrays",
    "as_tensors",
    "check_data",
    "exclusive",
    "fingerprint",
    "hold_folder",
    "load",
    "load_checkpoint",
    "load_policy",
    "policy_payload",
    "save",
    "write_encoder",
]

LOCK = ".lock"  # in the folder of a run
MAX_BYTES = 16 << 30  # of a checkpoint, which may hold the replay buffer
A = TypeVar("A", bound=CommonArgs)
P = ParamSpec("P")
T = TypeVar("T")


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint or policy atomically: at every moment the file is the old one or the new one.

    Raises:
        DiskFullError: if it does not fit on the disk; the old file is still there.
    """
    with atomic_write(path) as file, _interrupts_delayed():
        torch.save(content, file)


@contextmanager
def _interrupts_delayed() -> Iterator[None]:
    """Delay Ctrl-C until the block ends: within ``torch.save`` it becomes a RuntimeError, or aborts the process."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # Ctrl-C does not interrupt other threads
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; nothing in the file is executed.

    Raises:
        ValueError: for a file that is missing, corrupt, or not of a training run.
    """
    try:
        check_stored(path, MAX_BYTES)
        with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums
            if corrupt := archive.testzip():
                raise ValueError(f"the checksum of {corrupt} in it is wrong")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; a training run with an output folder writes it") from None
    except Exception as error:  # zipfile and torch raise many kinds for a corrupt file
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is corrupt, or not a hashgym checkpoint: {reason}") from error
    if not isinstance(loaded, dict) or "args" not in loaded:
        raise ValueError(f"{path} is not a hashgym checkpoint")
    return loaded


def load_checkpoint(out: Path | None, args: CommonArgs, resume: bool) -> dict[str, Any] | None:
    """Read the checkpoint to resume from, or check that a new run can be written to ``out``.

    Returns:
        The checkpoint, or None for a run that starts from the beginning.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is false, or one with other arguments, or none to resume.
    """
    path = None if out is None else out / "checkpoint.pt"
    if path is None or not os.path.lexists(path):
        if resume:
            where = "without an output folder there is" if out is None else f"{out} holds"
            raise ValueError(f"{where} no run to resume; leave resume out to start one")
        for found in () if out is None else (out / "policy.pt", out / "policy.onnx"):
            if os.path.lexists(found):
                raise ValueError(f"{found} exists, but no checkpoint: name another folder, as it would be overwritten")
        return None
    if not resume:
        raise ValueError(f"{out} holds a run: resume it, remove it, or name another folder")
    checkpoint = load(path)
    # Arguments that did not exist when it was saved had their defaults.
    saved = json.loads(as_json(type(args)())) | current_names(json.loads(checkpoint["args"]))
    if changed := [key for key, value in json.loads(as_json(args)).items() if saved.get(key) != value]:
        raise ValueError(
            f"the run in {out} was started with another {', '.join(changed)}; give the same, or another folder"
        )
    return checkpoint


def check_data(checkpoint: dict[str, Any], data: str) -> None:
    """Raise ValueError if a checkpoint was made on other data than those with this :func:`fingerprint`.

    Checkpoints of earlier versions have no digest of regions.
    """
    if checkpoint["data"] not in (data, data.partition("+")[0]):
        raise ValueError("the checkpoint was made on other data; give the dataset it was trained on, or another --out")


def fingerprint(dataset: HashingDataset, *, regions: bool = False) -> str:
    """Return a digest of the training images' indices, labels and features, or views, which tells data apart.

    With ``regions`` that of their regions is added, after a plus sign. All are read, a part at a time: compute it once
    for a run.
    """
    digest = hashlib.sha256(dataset.train.tobytes())
    digest.update(dataset.labels[dataset.train].tobytes())
    images, rows = dataset.training_rows
    _digest_rows(digest, images, rows)
    whole = digest.hexdigest()
    if regions:
        assert dataset.train_regions is not None
        _digest_rows(digest, dataset.train_regions, dataset.train)
        whole += "+" + digest.hexdigest()
    return whole


def _digest_rows(digest: Any, array: NDArray[Any], rows: NDArray[np.int64]) -> None:
    at_once = max(1, (1 << 26) // array[0].nbytes)
    for start in range(0, len(rows), at_once):
        digest.update(np.ascontiguousarray(array[rows[start : start + at_once]]).data)


def as_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Return an environment's state with tensors in place of arrays, which torch saves without pickle."""
    return {key: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for key, part in state.items()}


def as_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """Undo :func:`as_tensors`."""
    return {key: part.numpy() if isinstance(part, Tensor) else part for key, part in state.items()}


def policy_payload(policy: nn.Module, dataset: HashingDataset, args: CommonArgs, **shape: Any) -> dict[str, Any]:
    """Return the content of ``policy.pt``: arguments, weights, and the standardisation of the training features."""
    moments = as_tensors({"center": dataset.center, "scale": dataset.scale})
    return {"agent": args.agent, "args": as_json(args), **shape, "weights": policy.state_dict(), **moments}


def load_policy(path: Path, kind: type[A]) -> tuple[dict[str, Any], A]:
    """Read a saved :func:`policy_payload`, and the arguments in it.

    Args:
        path: of ``policy.pt``.
        kind: the class of arguments of the agent whose policy it must be.

    Raises:
        ValueError: for a file that is missing, corrupt, no policy, or another agent's.
    """
    saved, agent = load(path), kind.agent
    if saved.get("agent") != agent:
        content = f"a policy of {saved['agent']}" if "agent" in saved else "no policy"
        raise ValueError(f"{path} holds {content}; a finished run of {agent} writes its own to policy.pt")
    try:
        return saved, kind(**current_names(json.loads(saved["args"])))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} was written by another version of {agent}: train again ({error})") from error


def write_encoder(
    make_head: Callable[[], nn.Module],
    dataset: HashingDataset,
    args: CommonArgs,
    path: Path,
    *,
    bits: int,
    group_bits: int | None = None,
    lengths: Sequence[int] = (),
    codes: int = 0,
    threshold: float | None = None,
) -> None:
    """Write ``policy.onnx``, the encoder that :func:`hashgym.load_encoder` opens, or print why it cannot be written.

    Args:
        make_head: returns the head for features as ``dataset`` has them (see :mod:`hashgym.encoders.heads`); with a
            threshold and no further codes it takes views.
        dataset: the training data: its standardisation becomes part of the encoder.
        args: arguments of the run, which are stored in the encoder.
        path: of the file.
        bits: q.
        group_bits: k, of BitGroupHashing-v0.
        lengths: lengths to which codes were trained to be cut.
        codes: number of further codes, of MultiCodeHashing-v0.
        threshold: xi, of RegionKeep-v0 and MultiCodeHashing-v0.
    """
    regions: dict[str, Any] = {}
    if codes:
        regions = {"codes": codes, "threshold": threshold}
    elif threshold is not None:
        if dataset.regions is None:
            console.warn(f"no {path.name}: the dataset has no regions of images to encode (hashgym features --regions)")
            return
        count = dataset.regions.shape[1]
        regions = {"regions": count, "sigma": dataset.provenance.get("sigma"), "threshold": threshold}
    try:
        write(
            path,
            make_head(),
            dim=dataset.dim,
            image_shape=dataset.image_shape,
            bits=bits,
            group_bits=group_bits,
            lengths=lengths,
            source={"agent": args.agent, "dataset": dataset.name, "settings": dataclasses.asdict(args)},
            center=dataset.center,
            scale=dataset.scale,
            backbone=dataset.provenance.get("backbone"),
            **regions,
        )
    except ValueError as error:  # policy.pt is saved nevertheless
        console.error(f"no {path.name}: {error}. Fix this, then run the same command with --resume to write it")


@contextmanager
def hold_folder(out: Path | None) -> Iterator[None]:
    """Keep other training runs out of the folder ``out``, and explain a full disk; does nothing for None.

    The lock, on the file ``.lock`` in the folder, ends with the process, even one that is killed. A thread may hold a
    folder several times.

    Raises:
        ValueError: if another run holds the folder, it cannot be made, or ``.lock`` in it is not a lock file.
        DiskFullError: if something cannot be written in the block because the disk is full.
    """
    if out is None:
        yield
        return
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{out} is a file or a broken link: name a folder with --out") from None
    busy = f"another process is training into {out}: wait for it or stop it, or choose another --out"
    with lock_folder(out, busy, file=LOCK):
        try:
            with explain_full_disk(out), _quiet_curves():
                yield
        except DiskFullError as error:
            if "--resume" not in str(error) and (out / "checkpoint.pt").exists():
                hint = f"{error} with --resume: it continues from {out / 'checkpoint.pt'}, which is complete"
                raise DiskFullError(error.errno, hint) from None
            raise
        finally:
            with suppress(OSError):
                if created and [path.name for path in out.iterdir()] == [LOCK]:  # nothing was written
                    (out / LOCK).unlink()
                    out.rmdir()


def exclusive(train: Callable[P, T]) -> Callable[P, T]:
    """Let a training function hold the folder ``out``, its keyword argument, while it runs: :func:`hold_folder`."""

    @functools.wraps(train)
    def holding(*args: P.args, **kwargs: P.kwargs) -> T:
        out: Any = kwargs.get("out")
        with hold_folder(out):
            return train(*args, **kwargs)

    return holding


@contextmanager
def _quiet_curves() -> Iterator[None]:
    """Hide the traceback of TensorBoard's thread when the disk is full; the next write here raises the same error."""
    before = threading.excepthook
    threading.excepthook = lambda ended: None if full_disk_error(ended.exc_value) else before(ended)
    try:
        yield
    finally:
        threading.excepthook = before
