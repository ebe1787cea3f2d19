"""dch: deep Cauchy hashing (Cao, Long, Liu, Wang, CVPR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import PairwiseHasher, cosine_distance, pair_weights, signs, unit

__all__ = ["DCH", "cauchy_loss"]


def cauchy_loss(distance: Tensor, similar: Tensor, gamma: float, nearest: float) -> Tensor:
    """Return s log(d / gamma) + log(1 + gamma / d): log(1 + d / gamma) if similar, log(1 + gamma / d) if dissimilar.

    Args:
        distance: real numbers in [0, q].
        similar: bool, of a shape that broadcasts with ``distance``.
        gamma: scale of the Cauchy distribution, in bits.
        nearest: in bits; dissimilar pairs that are nearer count as this far apart, as their loss is not bounded.
    """
    return torch.where(similar, torch.log1p(distance / gamma), torch.log1p(gamma / distance.clamp(min=nearest)))


@dataclass(kw_only=True, eq=False)
class DCH(DeepHasher, PairwiseHasher):
    """The Cauchy loss of all pairs of a batch, and a Cauchy quantisation loss that moves outputs towards codes.

    Attributes:
        gamma: scale of the Cauchy distribution, in bits.
        quantization: weight of log(1 + q / (2 gamma) (1 - cos(b, u))), b = sign(u).
        nearest: see :func:`cauchy_loss`.
    """

    gamma: float = 20.0
    quantization: float = 0.1
    nearest: float = 0.5

    weighted = True
    least_batch: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma <= 0 or self.nearest <= 0 or self.quantization < 0:
            raise ValueError(
                "gamma and nearest must be above 0, quantization at least 0; "
                f"got {self.gamma}, {self.nearest} and {self.quantization}"
            )

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`cauchy_loss`."""
        return cauchy_loss(distance, similar, self.gamma, self.nearest)

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean over the pairs of a batch of w L, plus the mean quantisation loss of its images."""
        self._weigh(pair_weights(labels.cpu().numpy()))

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            angle = 1 - (unit(u) * unit(signs(u))).sum(1)
            quantization = torch.log1p(self.bits / (2 * self.gamma) * angle).mean()
            return self.batch_loss(cosine_distance(u, u), labels[rows]) + self.quantization * quantization

        return loss
