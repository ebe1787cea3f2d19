"""The RBF kernel to anchors, for KSH and SDH."""

from __future__ import annotations

from hashgym.hashers.base import Features, namespace

__all__ = ["rbf", "squared_distances"]


def squared_distances(X: Features, anchors: Features) -> Features:
    """Return squared Euclidean distances, float32 (n, m), of rows of X (n, D) to anchors (m, D)."""
    center = anchors.mean(0)  # products of large numbers would lose the differences
    X, anchors = X - center, anchors - center
    norms, anchor_norms = (namespace(X).einsum("nd,nd->n", rows, rows) for rows in (X, anchors))
    return (norms[:, None] + anchor_norms - 2 * X @ anchors.T).clip(0)


def rbf(squares: Features, width: float) -> Features:
    """Return exp(-squares / (2 width^2))."""
    return namespace(squares).exp(squares / (-2 * width**2))
