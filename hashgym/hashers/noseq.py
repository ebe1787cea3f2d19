"""noseq: DRLIH's baseline without sequential decisions, a hash layer in place of the agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hashgym.hashers.base import Features, Labels
from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.losses import triplet_hinge
from hashgym.hashers.pairwise import pair_weights

__all__ = ["NoSeq", "triplet_ranking_loss"]


def triplet_ranking_loss(h: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Return DRLIH eq. 3 over all triplets of a batch: the mean of max(0, margin + ||h - h+||^2 - ||h - h-||^2).

    h+ are all other images that share a label with h, h- all that share none.

    Args:
        h: (n, q) relaxed codes, in [0, 1].
        labels: (n, L) multi-hot, of the same dtype.
        margin: in bits; distances of relaxed codes are squared Euclidean ones, of bits Hamming distances.

    Returns:
        A scalar; 0 if the batch has no triplet.
    """
    similar = labels @ labels.T > 0
    norms = (h * h).sum(1)
    distance = norms[:, None] + norms[None] - 2 * h @ h.T
    anchor, positive = (similar & ~torch.eye(len(h), dtype=torch.bool, device=h.device)).nonzero(as_tuple=True)
    to_negatives = torch.where(similar, torch.inf, distance)[anchor]  # (pairs, n); inf: no hinge
    hinge = triplet_hinge(distance[anchor, positive, None], to_negatives, margin)
    return hinge.sum() / (~similar).sum(1)[anchor].sum().clamp(min=1)


@dataclass(kw_only=True, eq=False)
class NoSeq(DeepHasher):
    """Baseline_noseq of DRLIH (Table II): sigmoid outputs trained by the triplet ranking loss.

    Attributes:
        margin: number of bits by which dissimilar images should be farther than similar ones; None for bits / 12.
    """

    margin: float | None = None

    least_batch: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin is not None and self.margin <= 0:
            raise ValueError(f"margin must be above 0, got {self.margin}")

    def relaxed(self, logits: Tensor) -> Tensor:
        """Return relaxed codes in [0, 1]: the probabilities that bits are 1."""
        return torch.sigmoid(logits)

    def objective(self, labels: Tensor) -> Objective:
        """Return :func:`triplet_ranking_loss` of :meth:`relaxed` codes."""
        margin = self.bits / 12 if self.margin is None else self.margin
        return lambda logits, rows, _: triplet_ranking_loss(self.relaxed(logits), labels[rows], margin)

    def _fit(self, X: Features, y: Labels | None) -> None:
        assert y is not None
        pair_weights(y)  # raises ValueError for labels that form no triplet
        super()._fit(X, y)
