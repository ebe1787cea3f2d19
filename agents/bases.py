"""The base hasher of an agent that gives images several codes: fitted, saved with the run, found again."""

from __future__ import annotations

import os
from pathlib import Path

import hashgym.hashers
from hashgym.data import HashingDataset
from hashgym.hashers import Hasher
from hashgym.hashers.pairwise import PairwiseHasher

__all__ = ["base_of_run", "fitted_base", "make_base", "save_base"]


def make_base(name: str, bits: int, seed: int) -> PairwiseHasher:
    """Return a base hasher by name, not fitted yet.

    Raises:
        ValueError: for an unknown name, or a hasher without a pairwise loss.
    """
    base = hashgym.hashers.make(name, bits=bits, seed=seed)
    if not isinstance(base, PairwiseHasher):
        raise ValueError(f"{name} has no pairwise loss, so it cannot be a base: choose dch, adsh, hashnet, ksh or mmhh")
    return base


def fitted_base(source: str | Path, bits: int, seed: int, dataset: HashingDataset) -> Hasher:
    """Return a fitted base hasher: read from a file, or made by name and fitted on the training images.

    Raises:
        ValueError: as :func:`make_base` and :func:`hashgym.hashers.fitted`.
    """
    if isinstance(source, str) and source in hashgym.hashers.HASHERS:
        return hashgym.hashers.fitted(make_base(source, bits, seed), dataset)
    return hashgym.hashers.fitted(source, dataset)


def base_of_run(name: str, resume_from: Path | None, bits: int, seed: int, dataset: HashingDataset) -> Hasher:
    """Return the base hasher of a run: fitted now, or the one that the resumed run was started with.

    Args:
        name: of the hasher, or its file.
        resume_from: the folder of the run that is resumed, or None.
        bits, seed, dataset: as for :func:`fitted_base`.

    Raises:
        ValueError: as :func:`fitted_base`; if the resumed run was started with another hasher or number of bits.
    """
    if resume_from is None or name not in hashgym.hashers.HASHERS:
        return fitted_base(name, bits, seed, dataset)
    wanted = make_base(name, bits, seed)  # imports "module:Class"; loading a file never imports a module
    base = fitted_base(resume_from / "base.npz", bits, seed, dataset)
    if (type(base), base.bits) != (type(wanted), bits):
        raise ValueError(
            f"the run in {resume_from} was started with the base {type(base).__name__} of {base.bits} bits, got {name} "
            f"of {bits}: give the same, or another --out"
        )
    return base


def save_base(base: Hasher, out: Path) -> None:
    """Write the base hasher of a run to ``base.npz`` in its folder, where it is not there yet.

    Raises:
        ValueError: if another file is there: it may be the only copy of a hasher of the user, or the base that the run
            was started with.
    """
    file = out / "base.npz"
    if not os.path.lexists(file):
        base.save(file)
    elif not base.is_saved_in(file):
        raise ValueError(f"{file} exists and is not the base hasher of this run: move it, or choose another --out")
