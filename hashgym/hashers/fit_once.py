"""Fit a hasher once for all processes: the workers of a vector environment need the same base at the same time."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

import numpy as np

import hashgym
from hashgym import hashers
from hashgym.hashers.base import Features, Hasher, Labels
from hashgym.storage import user_cache

__all__ = ["fit_once"]

_PATIENCE = 3600.0  # seconds to wait for another process that fits the same hasher


def fit_once(hasher: Hasher, X: Features, y: Labels) -> Hasher:
    """Return the hasher fitted to (X, y), read from the user's cache if a process has fitted it before.

    The cache is keyed by the hasher's name and settings, the bytes of X and y, and the versions of hashgym, NumPy and
    torch, so that a cached hasher equals a fitted one. One process fits while the others wait for it. Without a cache
    folder, and for a class that is not part of hashgym, whose code may change between two runs, the hasher is
    fitted here.

    Args:
        hasher: not fitted yet.
        X: float32 (n, D).
        y: multi-hot uint8 (n, L).

    Raises:
        ValueError: as :meth:`Hasher.fit`.
    """
    place = user_cache.folder()
    if place is None or not type(hasher).__module__.startswith("hashgym."):
        return hasher.fit(X, y)

    import filelock

    from hashgym.versions import versions

    name = hasher._registered_name()
    installed = {"hashgym": hashgym.__version__, **versions(("numpy", "torch"))}
    digest = hashlib.sha256(json.dumps([name, hasher.get_params(), installed, X.shape, y.shape]).encode())
    digest.update(np.ascontiguousarray(X).data)
    digest.update(np.ascontiguousarray(y).data)
    file = place / f"base-{digest.hexdigest()[:32]}.npz"
    try:
        with filelock.FileLock(f"{file}.lock", timeout=_PATIENCE):
            try:
                cached = hashers.load(file)
                if _is_fitted(cached, hasher, X.shape[1]):
                    return cached
                file.unlink()
            except FileNotFoundError:
                pass
            except ValueError:  # damaged
                file.unlink()
            fitted = hasher.fit(X, y)
            with suppress(OSError):  # the disk is full: the next process fits again
                fitted.save(file)
            return fitted
    except (filelock.Timeout, OSError):
        return hasher.fit(X, y)


def _is_fitted(cached: Hasher, hasher: Hasher, dim: int) -> bool:
    """Return whether a cached hasher has the class and settings of ``hasher``, and takes features of this dimension."""
    return (
        type(cached) is type(hasher)
        and cached.get_params() == hasher.get_params()
        and getattr(cached, "n_features_in_", None) == dim
    )
