"""Principal directions, for ITQ and SH."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashgym.hashers.base import ALIKE, Features

__all__ = ["principal_directions"]


def principal_directions(X: Features) -> tuple[Any, Any]:
    """Return the mean (D,) of features (n, D), and the directions along which they vary, (D, rank), most first.

    Raises:
        ValueError: if the features do not vary.
    """
    n, dim = X.shape
    center = X.mean(0, dtype=np.float64)
    X = np.repeat(X, 2, axis=0) if n == 1 else X  # NumPy before 2.2 treats a single row as a single variable
    variances, directions = np.linalg.eigh(np.cov(X - center, rowvar=False, bias=True).reshape(dim, dim))
    rank = min(int((variances > dim * 1e-12 * variances[-1]).sum()), n - 1)
    if not rank:
        raise ValueError(ALIKE.format(n=n))
    return center, directions[:, : -rank - 1 : -1]  # eigh sorts upwards
