"""PCA: principal components under a random rotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hashgym.hashers.base import Features, Hasher, Labels
from hashgym.hashers.principal import principal_directions

__all__ = ["PCA"]


@dataclass(kw_only=True, eq=False)
class PCA(Hasher):
    """Signs of the q leading principal components under a random rotation, where ITQ starts.

    Without a rotation the first bits vary most and the last ones hardly; a random one shares the variance out among
    them (Jegou, Douze, Schmid and Perez, CVPR 2010). It needs no labels and one decomposition.

    Attributes:
        rotate: whether to rotate; without, the bits are the signs of the components themselves.
        center_: float32 (D,), mean of the training features.
        components_: float32 (D, q), rotated principal directions.
    """

    rotate: bool = True

    def _fit(self, X: Features, y: Labels | None) -> None:
        center, directions = principal_directions(X)
        if self.bits > (rank := directions.shape[1]):
            raise ValueError(
                f"PCA gives a bit for each principal component, and the features of these {len(X)} training images "
                f"have {rank}: ask for at most {rank} bits, give more images that differ, or use 'lsh'"
            )
        components = directions[:, : self.bits]
        if self.rotate:
            components = (
                components @ np.linalg.qr(np.random.default_rng(self.seed).standard_normal((self.bits, self.bits)))[0]
            )
        self.center_, self.components_ = center.astype(np.float32), components.astype(np.float32)

    def _transform(self, X: Features) -> Features:
        return (X - self.center_) @ self.components_
