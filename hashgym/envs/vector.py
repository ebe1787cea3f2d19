"""``gym.make_vec`` of BitGroupHashing-v0: chooses the back end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hashgym.data import HashingDataset
from hashgym.envs.base import LockstepVectorEnv
from hashgym.envs.bit_group_hashing import BitGroupHashingVectorEnv

__all__ = ["make_vector_env"]


def make_vector_env(
    num_envs: int = 1,
    dataset: str | Path | HashingDataset = "digits",
    *,
    backend: Literal["numpy", "torch"] = "numpy",
    device: str | None = None,
    **arguments: Any,
) -> LockstepVectorEnv:
    """Return the environment of ``gym.make_vec("BitGroupHashing-v0", ...)``.

    Args:
        num_envs: number of environments.
        dataset: as for :class:`~hashgym.envs.bit_group_hashing.BitGroupHashingEnv`.
        backend: "numpy" for a :class:`~hashgym.envs.bit_group_hashing.BitGroupHashingVectorEnv`, "torch" for a
            :class:`~hashgym.envs.torch_backend.BitGroupHashingTorchVectorEnv`, whose arrays are tensors.
        device: of the tensors: "auto" (the default), "cpu", "cuda" or "cuda:1".
        arguments: as for ``BitGroupHashingEnv``.

    Raises:
        ValueError: for an unknown backend, a device that is not there, or a device for the NumPy back end.
    """
    if backend == "torch":
        from hashgym.envs.torch_backend import BitGroupHashingTorchVectorEnv

        return BitGroupHashingTorchVectorEnv(num_envs, dataset, device=device or "auto", **arguments)
    if backend != "numpy":
        raise ValueError(f"backend must be 'numpy' or 'torch', got {backend!r}")
    if device is not None:
        raise ValueError(f"device={device!r} is for backend='torch': add it, or leave device out")
    return BitGroupHashingVectorEnv(num_envs, dataset, **arguments)
