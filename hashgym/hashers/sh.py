"""SH: spectral hashing; bits are the smoothest waves along the principal directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hashgym.hashers.base import Features, Hasher, Labels, namespace
from hashgym.hashers.principal import principal_directions

__all__ = ["SH"]


@dataclass(kw_only=True, eq=False)
class SH(Hasher):
    """Spectral hashing (Weiss, Torralba and Fergus, NIPS 2008). It is deterministic: ``seed`` makes no difference.

    Codes that are balanced, uncorrelated and similar for neighbours are thresholded eigenfunctions of the Laplacian.
    For data that are uniform on [a, b] along each principal direction these are, for modes k = 1, 2, ...,

        sin(pi / 2 + k pi (x - a) / (b - a)),   with eigenvalue 1 - exp(-(eps^2 / 2) (k pi / (b - a))^2),

    and the bits are the q of smallest eigenvalue, that is of smallest k / (b - a), over directions and modes. So a long
    direction gives several bits before a short one gives any; eps does not change the choice.

    Attributes:
        components: number of leading principal directions that may give bits; None for ``bits``. Fewer are used if
            the data have fewer.
        trim: share of the training images beyond each end of [a, b]; 0 is the paper's whole range, which an outlier
            stretches until bits hardly vary.
        center_: float32 (D,), mean of the training features.
        components_: float32 (D, p), principal directions.
        low_: float32 (p,), a of each.
        range_: float32 (p,), b - a of each.
        directions_: int64 (q,), column of ``components_`` that a bit reads.
        modes_: int64 (q,), its k.
    """

    components: int | None = None
    trim: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components is not None and self.components < 1:
            raise ValueError(f"components must be at least 1 (or None), got {self.components}")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim must be at least 0 and below 0.5, got {self.trim}")

    def _fit(self, X: Features, y: Labels | None) -> None:
        center, directions = principal_directions(X)
        components = directions[:, : self.components or self.bits]
        V = (X - center) @ components
        low, high = np.quantile(V, [self.trim, 1 - self.trim], axis=0)
        flat = high - low <= 1e-6 * np.ptp(V, axis=0)  # all but a few values are equal: use the whole range
        low, high = np.where(flat, V.min(0), low), np.where(flat, V.max(0), high)

        frequencies = np.arange(1, self.bits + 1) / (high - low)[:, None]  # (p, q), in half waves
        chosen = np.argsort(frequencies, axis=None, kind="stable")[: self.bits]
        self.directions_, modes = np.divmod(chosen, self.bits)
        self.modes_ = modes + 1
        self.center_, self.components_ = center.astype(np.float32), components.astype(np.float32)
        self.low_, self.range_ = low.astype(np.float32), (high - low).astype(np.float32)

    def _transform(self, X: Features) -> Features:
        position = ((X - self.center_) @ self.components_ - self.low_) / self.range_
        xp = namespace(X)
        return xp.cos(math.pi * xp.asarray(self.modes_, dtype=xp.float32) * position[:, self.directions_])
