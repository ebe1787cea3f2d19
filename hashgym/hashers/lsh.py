"""LSH: random hyperplanes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hashgym.hashers.base import Features, Hasher, Labels

__all__ = ["LSH"]


@dataclass(kw_only=True, eq=False)
class LSH(Hasher):
    """Signs of random projections of the centred features.

    Two vectors differ in one bit with probability angle / pi (Charikar, "Similarity estimation techniques from
    rounding algorithms", 2002), so the Hamming distance estimates the angle between them.

    Attributes:
        center_: float32 (D,), mean of the training features.
        planes_: float32 (D, q), normals of the hyperplanes.
    """

    learns = False

    def _fit(self, X: Features, y: Labels | None) -> None:
        self.center_ = X.mean(0, dtype=np.float64).astype(np.float32)
        self.planes_ = np.random.default_rng(self.seed).standard_normal((X.shape[1], self.bits), np.float32)

    def _transform(self, X: Features) -> Features:
        return (X - self.center_) @ self.planes_
