"""hashnet: deep learning to hash by continuation (Cao, Long, Wang, Yu, ICCV 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import PairwiseHasher, inner_distance, pair_weights

__all__ = ["HashNet", "likelihood_loss"]


def likelihood_loss(distance: Tensor, similar: Tensor, bits: int, alpha: float) -> Tensor:
    """Return log(1 + exp(a)) - s a, a = alpha (q - 2 d): the negative log-likelihood of s of probability sigmoid(a).

    Args:
        distance: real numbers in [0, q].
        similar: bool, of a shape that broadcasts with ``distance``.
        bits: q.
        alpha: slope of the sigmoid, per bit.
    """
    a = alpha * (bits - 2 * distance)
    return -torch.nn.functional.logsigmoid(torch.where(similar, a, -a))


@dataclass(kw_only=True, eq=False)
class HashNet(DeepHasher, PairwiseHasher):
    """The weighted likelihood of all pairs of a batch, on outputs tanh(beta u) that approach signs as beta grows.

    Attributes:
        alpha: slope of the sigmoid from inner products to probabilities; None for 10 / bits, as in the authors' code.
        beta: final scale of the outputs; it grows from 1 as the square root of the share of updates so far (the
            authors' schedule, which ends near 7).
        stages: number of equal stages of the training in which beta grows; with one it stays 1.
    """

    alpha: float | None = None
    beta: float = 7.0
    stages: int = 10

    weighted = True
    least_batch: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.alpha is not None and self.alpha <= 0) or self.beta < 1 or self.stages < 1:
            raise ValueError(
                "alpha must be above 0 (or None), beta and stages at least 1; "
                f"got {self.alpha}, {self.beta} and {self.stages}"
            )

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`likelihood_loss`."""
        alpha = 10 / self.bits if self.alpha is None else self.alpha
        return likelihood_loss(distance, similar, self.bits, alpha)

    def scale(self, update: int) -> float:
        """Return the beta of tanh(beta u) at an update."""
        stage = update * self.stages // self.updates
        return (1 + (self.beta**2 - 1) * stage / max(self.stages - 1, 1)) ** 0.5

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean over the pairs of a batch of w L."""
        self._weigh(pair_weights(labels.cpu().numpy()))

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            h = torch.tanh(self.scale(update) * u)
            return self.batch_loss(inner_distance(h, h), labels[rows])

        return loss
