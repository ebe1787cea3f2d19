"""ITQ: principal components, rotated so that their signs lose the least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hashgym.hashers.base import Features, Hasher, Labels
from hashgym.hashers.principal import principal_directions

__all__ = ["ITQ"]


@dataclass(kw_only=True, eq=False)
class ITQ(Hasher):
    """Iterative quantisation (Gong and Lazebnik, CVPR 2011; with Gordo and Perronnin, PAMI 2013).

    The centred features are projected on their q leading principal components, V. A rotation R is then sought that
    brings V close to the corners of the cube, by minimising ||B - V R||^2 over B = sign(V R) and over R in turn.

    Attributes:
        iterations: number of updates of B and R.
        center_: float32 (D,), mean of the training features.
        components_: float32 (D, q), principal directions.
        rotation_: float32 (q, q), orthogonal.
        losses_: float64 (iterations + 1,), ||B - V R||^2 / n from the random start on; never increases.
    """

    iterations: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations}")

    def _fit(self, X: Features, y: Labels | None) -> None:
        n = len(X)
        center, directions = principal_directions(X)
        if self.bits > (rank := directions.shape[1]):
            raise ValueError(
                f"ITQ gives a bit for each principal component, and the features of these {n} training images have "
                f"{rank}: ask for at most {rank} bits, give more images that differ, or use 'lsh'"
            )
        components = directions[:, : self.bits]
        V = (X - center) @ components
        R = np.linalg.qr(np.random.default_rng(self.seed).standard_normal((self.bits, self.bits)))[0]
        losses = []
        for step in range(self.iterations + 1):
            projected = V @ R
            B = np.where(projected > 0, 1.0, -1.0)
            losses.append(((B - projected) ** 2).sum() / n)
            if step < self.iterations:  # orthogonal Procrustes: the best R for this B
                left, _, right = np.linalg.svd(V.T @ B)
                R = left @ right
        self.center_ = center.astype(np.float32)
        self.components_, self.rotation_ = components.astype(np.float32), R.astype(np.float32)
        self.losses_ = np.array(losses)

    def _transform(self, X: Features) -> Features:
        return (X - self.center_) @ self.components_ @ self.rotation_
