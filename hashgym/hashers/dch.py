"""dch: deep Cauchy hashing (Cao, Long, Liu, Wang, CVPR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import PairwiseHasher, cosine_distance

__all__ = ["DCH", "cauchy_loss"]


def cauchy_loss(distance: Tensor, similar: Tensor, gamma: float, nearest: float) -> Tensor:
    """s log(d / gamma) + log(1 + gamma / d): log(1 + d / gamma) of similar and log(1 + gamma / d) of dissimilar pairs.

    Args:
        distance: real numbers in [0, q].
        similar: bool, of a shape that broadcasts with ``distance``.
        gamma: scale of the Cauchy distribution, in bits.
        nearest: in bits; dissimilar pairs that are nearer count as this far apart, for their loss has no bound.
    """
    return torch.where(similar, torch.log1p(distance / gamma), torch.log1p(gamma / distance.clamp(min=nearest)))


@dataclass(kw_only=True, eq=False)
class DCH(DeepHasher, PairwiseHasher):
    """The Cauchy loss of all pairs of a batch, and a Cauchy quantisation loss that draws outputs towards codes.

    Attributes:
        gamma: scale of the Cauchy distribution, in bits.
        quantization: weight of log(1 + q / (2 gamma) (1 - cos(b, u))), b = sign(u).
        nearest: see :func:`cauchy_loss`.
    """

    gamma: float = 10.0
    quantization: float = 0.1
    nearest: float = 0.5

    weighted = True

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`cauchy_loss`."""
        return cauchy_loss(distance, similar, self.gamma, self.nearest)

    def objective(self, labels: Tensor) -> Objective:
        """Mean over the pairs of a batch of w L, plus the mean quantisation loss of its images."""
        self._weigh(labels.cpu().numpy())

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            similar = labels[rows] @ labels[rows].T > 0
            others = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
            pairs = self.weighted_pair_loss(cosine_distance(u, u), similar)[others].mean()
            angle = 1 - torch.cosine_similarity(u, u.detach().sign(), dim=1)
            return pairs + self.quantization * torch.log1p(self.bits / (2 * self.gamma) * angle).mean()

        return loss
