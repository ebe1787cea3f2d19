"""The RBF kernel to anchors, which KSH and SDH learn on."""

from __future__ import annotations

import numpy as np

from hashgym.hashers.base import Features

__all__ = ["rbf", "squared_distances"]


def squared_distances(X: Features, anchors: Features) -> Features:
    """Squared Euclidean distances, float32 (n, m), of rows of X (n, D) to anchors (m, D)."""
    center = anchors.mean(0)  # far from the origin, products would hide differences
    X, anchors = X - center, anchors - center
    norms, anchor_norms = (np.einsum("nd,nd->n", rows, rows) for rows in (X, anchors))
    return np.maximum(norms[:, None] + anchor_norms - 2 * X @ anchors.T, 0)


def rbf(squares: Features, width: float) -> Features:
    """exp(-squares / (2 width^2))."""
    return np.exp(squares / np.float32(-2 * width**2))
