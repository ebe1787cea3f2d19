"""Tie-aware average precision as the reward: the retrieval metric itself, which has no gradient."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hashgym.retrieval import kernels
from hashgym.rewards.view import RewardView

__all__ = ["AveragePrecision"]


class AveragePrecision:
    """R = AP of an image's code as a query, ties averaged (McSherry and Najork, 2008), in [0, 1].

    Args:
        against: "codebook" ranks all other training images; "partners" only the image's partners.
    """

    name = "average_precision"

    def __init__(self, against: Literal["codebook", "partners"] = "codebook") -> None:
        if against not in ("codebook", "partners"):
            raise ValueError(f"against must be 'codebook' or 'partners', got {against!r}")
        self.against = against
        self.reads_partners = against == "partners"

    def __call__(self, view: RewardView) -> NDArray[np.floating]:
        """Return the AP, float64 (n,)."""
        if self.against == "partners":
            return _among_partners(view)[0]
        counting = _counting(view)
        relevant, total = counting.distance_histograms(*_sets(view), exclude=view.rows)
        score = counting.average_precision(relevant, total)
        score[score != score] = 0.0  # NaN if nothing is relevant
        return score

    def value_and_credit(self, view: RewardView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return the AP (n,) and each bit's credit (n, s); against the codebook all flips are counted in one pass."""
        if self.against == "codebook":
            return _counting(view).average_precision_credit(*_sets(view), exclude=view.rows)
        score, *flipped = _among_partners(view, flips=True)
        credit = 0.0 * view.signs + score[:, None]
        for bit, other in enumerate(flipped):
            credit[:, bit] -= other
        return score, credit * (2.0 * view.bits - 1.0)


def _among_partners(view: RewardView, flips: bool = False) -> list[Any]:
    """Return the AP (n,) of each code among its partners'; with ``flips`` also of the code with each bit flipped."""
    away = [view.bits[:, None] != (partners > 0.5) for partners in (view.positives, view.negatives)]
    places = view.asarray(np.arange(view.codebook.bits + 1))
    scores = []
    for bit in (None, *range(view.codebook.bits * flips)):
        # Flipping a bit that differs from the partner's reduces their distance by one, else it grows by one.
        change = [0 if bit is None else 1 - 2 * differing[..., bit : bit + 1] for differing in away]
        relevant, irrelevant = (
            (differing.sum(-1)[..., None] + step == places).sum(1) for differing, step in zip(away, change, strict=True)
        )
        scores.append(_counting(view).average_precision(relevant, relevant + irrelevant))
    return scores


def _counting(view: RewardView) -> Any:
    """Return the module of counting kernels for the view's kind of array."""
    if isinstance(view.code, np.ndarray):
        return kernels
    from hashgym.retrieval import torch_kernels

    return torch_kernels


def _sets(view: RewardView) -> tuple[Any, ...]:
    """Return codes and labels of the view and of the codebook, as arguments for that module."""
    book = view.codebook
    if isinstance(view.code, np.ndarray):
        return view.words, view.label_words, book.words, book.label_words, book.bits
    return view.bits, view.labels, book.code, book.labels
