"""Weights from a file, read without executing anything in it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgym.optional import require
from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["empty", "fill", "read"]


def read(path: Path) -> dict[str, Any]:
    """Read the state dictionary in a torch or a safetensors file, memory-mapped if its format allows.

    Raises:
        DataError: if the file is missing, damaged, or holds anything but named tensors.
    """
    import torch

    if not path.is_file():
        raise DataError(f"no weights at {path}: name a file that torch.save wrote from a state_dict")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises many types for damaged files
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path} is damaged, or not a file of weights: save a state_dict with torch.save ({reason})"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # a training checkpoint around the weights
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(f"{path} holds no weights: save the network's state_dict with torch.save")
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    library = require("safetensors.torch", f"reading {path}")
    try:
        state: dict[str, Any] = library.load_file(path)
    except Exception as error:  # its errors derive from Exception
        raise DataError(f"{path} is damaged, or not a file of weights in safetensors' format ({error})") from error
    return state


def empty(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network in evaluation mode with uninitialised weights, to be loaded later."""
    return network.to_empty(device="cpu").float().eval().requires_grad_(False)


def fill(network: torch.nn.Module, state: dict[str, Any], path: Path, name: str) -> torch.nn.Module:
    """Load ``state`` into ``network``, in evaluation mode and float32, without copying.

    Raises:
        DataError: if a tensor is missing, left over, or of another shape, or is not finite.
    """
    import torch

    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise DataError(f"{path} holds the weights of another network than {name}: {' '.join(lines)[:300]}") from error
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{path}: the weights {key} hold NaN or infinity; get the file again")
    return network.float().eval().requires_grad_(False)
