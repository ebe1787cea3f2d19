"""The device that torch computes on, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hashgym.optional import require

if TYPE_CHECKING:
    import torch

__all__ = ["computes_bfloat16", "explain_out_of_memory", "resolve_device"]


def resolve_device(device: str | torch.device = "auto", kinds: tuple[str, ...] = ()) -> torch.device:
    """Return the torch device of this name; "auto" is CUDA if it is available, else the CPU.

    Args:
        device: "auto", or a device of torch: "cpu", "cuda", "cuda:1", "mps".
        kinds: the types of device that the caller can use; empty for all.

    Raises:
        ValueError: if torch is not installed, and for another name, a type that is not among ``kinds``, or a device
            that is not available.
    """
    require("torch", "a device")
    import torch

    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or (kinds and resolved.type not in kinds):
        known = " or ".join(kinds) or "a device of torch, such as 'cpu' or 'cuda:1'"
        raise ValueError(f"device must be 'auto' or {known}, got {device!r}")
    try:
        torch.empty(0, device=resolved)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={str(device)!r} cannot be used here ({reason}): use 'auto' or 'cpu'") from error
    return resolved


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 by instructions of its own, which pays in training a network."""
    import torch

    if device.type == "cuda":  # is_bf16_supported() also counts cards that emulate it
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch do not say
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def explain_out_of_memory(setting: str, value: int) -> Iterator[None]:
    """Explain that a GPU has too little memory for a training loop.

    Args:
        setting: the name of the setting that determines the size of a batch.
        value: its value.

    Raises:
        MemoryError: in place of torch's error, naming the setting to lower.
    """
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:  # torch 2.4 has it there alone
        reason = str(error).partition(". ")[0]
        raise MemoryError(
            f"{reason}: lower {setting} (now {value}), or use a smaller picture or a later cut"
        ) from error
