"""Tie-aware average precision as the reward: the retrieval metric itself, which no gradient reaches."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hashgym.retrieval import kernels
from hashgym.rewards import registry
from hashgym.rewards.view import RewardView

__all__ = ["AveragePrecision"]


class AveragePrecision:
    """R = AP of the lane's code as a query, ties averaged (McSherry and Najork, 2008), in [0, 1].

    Args:
        against: "codebook" ranks all training images but the lane's own; "partners" the lane's partners alone.
    """

    name = "average_precision"

    def __init__(self, against: Literal["codebook", "partners"] = "codebook") -> None:
        if against not in ("codebook", "partners"):
            raise ValueError(f"against must be 'codebook' or 'partners', got {against!r}")
        self.against = against

    def __call__(self, view: RewardView) -> NDArray[np.floating]:
        """Return the AP, float64 (n,)."""
        if self.against == "codebook":
            relevant, total = kernels.distance_histograms(
                view.words,
                view.label_words,
                view.codebook.words,
                view.codebook.label_words,
                view.codebook.bits,
                exclude=view.rows,
            )
        else:
            relevant, irrelevant = (
                (codes_away[..., None] == np.arange(view.codebook.bits + 1)).sum(1)
                for codes_away in (
                    (view.bits[:, None] != (partners > 0.5)).sum(-1) for partners in (view.positives, view.negatives)
                )
            )
            total = relevant + irrelevant
        return np.nan_to_num(kernels.average_precision(relevant, total))

    def value_and_credit(self, view: RewardView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return the AP (n,) and each bit's credit (n, s); against the codebook all flips are counted in one pass."""
        if self.against == "partners":
            return registry.value(self, view), registry.flip_credit(self, view)
        return kernels.average_precision_credit(
            view.words,
            view.label_words,
            view.codebook.words,
            view.codebook.label_words,
            view.codebook.bits,
            exclude=view.rows,
        )
