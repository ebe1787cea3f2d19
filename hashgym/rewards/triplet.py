"""Triplet ranking reward: similar images nearer than dissimilar ones by a margin (DRLIH eq. 3 and 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_number
from hashgym.hashers.losses import triplet_hinge
from hashgym.rewards.view import RewardView

__all__ = ["Triplet", "triplet_loss"]


def triplet_loss(positive_distances, negative_distances, margin):  # type: ignore[no-untyped-def]
    """Return J = mean over all pairs (x+, x-) of max(0, m + d(x, x+) - d(x, x-)), DRLIH eq. 3.

    It takes NumPy arrays or torch tensors, so that one function scores bits in the environment and gives the gradient
    on relaxed codes.

    Args:
        positive_distances: (n, P), squared distances of each image to its similar partners.
        negative_distances: (n, M), squared distances to its dissimilar partners.
        margin: m, in units of the distance.

    Returns:
        (n,) losses.
    """
    return triplet_hinge(positive_distances[..., :, None], negative_distances[..., None, :], margin).mean((-2, -1))


class Triplet:
    """R = -J over the image's partners (DRLIH eq. 4).

    Args:
        margin: m of eq. 3, in bits; 1 in the paper.
    """

    name = "triplet"

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = check_number("margin", margin, 0)

    def __call__(self, view: RewardView) -> NDArray[np.floating]:
        """Return -J, floating (n,)."""
        return -triplet_loss(view.positive_distances, view.negative_distances, self.margin)

    def value_and_credit(self, view: RewardView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return -J (n,) and each bit's credit (n, s), from the distances with the bit set to 0 and to 1."""
        losses = []
        for value in (0.0, 1.0):
            positive, negative = (
                distances[..., None] - (view.code[:, None] - partners) ** 2 + (value - partners) ** 2
                for distances, partners in (
                    (view.positive_distances, view.positives),
                    (view.negative_distances, view.negatives),
                )
            )
            losses.append(triplet_loss(positive.swapaxes(1, 2), negative.swapaxes(1, 2), self.margin))
        return self(view), losses[0] - losses[1]
