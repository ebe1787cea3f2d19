"""dsh: deep supervised hashing (Liu, Wang, Shan, Chen, CVPR 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import PairwiseHasher, pair_weights

__all__ = ["DSH", "contrastive_loss"]


def contrastive_loss(distance: Tensor, similar: Tensor, margin: float) -> Tensor:
    """Return D / 2 of similar and max(0, margin - D) / 2 of dissimilar pairs, D = 4 d = ||b1 - b2||^2.

    Args:
        distance: real numbers from 0 up, Hamming distances d or relaxed ones.
        similar: bool, of a shape that broadcasts with ``distance``.
        margin: m, as a squared distance of codes of -1 and +1.
    """
    return torch.where(similar, 2 * distance, (margin - 4 * distance).clamp(min=0) / 2)


@dataclass(kw_only=True, eq=False)
class DSH(DeepHasher, PairwiseHasher):
    """The contrastive loss of all pairs of a batch, on unbounded outputs, and a regulariser towards -1 and +1.

    Bits are not balanced: if nearly as many pairs are similar as not, some bits become the same for all images; a
    larger ``margin`` gives fewer of those.

    Attributes:
        margin: m, the squared distance that dissimilar images should have, 4 for each bit; None for twice the bits, as
            in the paper, which is half of the code.
        alpha: weight of ``|| |b| - 1 ||_1``, summed over bits and a pair's two images.
    """

    margin: float | None = None
    alpha: float = 0.01

    least_batch: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.margin is not None and self.margin <= 0) or self.alpha < 0:
            raise ValueError(f"margin must be above 0 (or None), alpha at least 0; got {self.margin} and {self.alpha}")

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`contrastive_loss`."""
        return contrastive_loss(distance, similar, 2 * self.bits if self.margin is None else self.margin)

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean over the pairs of a batch."""
        self._weigh(pair_weights(labels.cpu().numpy()))

        def loss(b: Tensor, rows: Tensor, update: int) -> Tensor:
            norms = (b * b).sum(1)
            distance = (norms[:, None] + norms[None] - 2 * b @ b.T) / 4
            return self.batch_loss(distance, labels[rows]) + 2 * self.alpha * (b.abs() - 1).abs().sum(1).mean()

        return loss
