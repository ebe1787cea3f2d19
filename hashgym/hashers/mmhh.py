"""mmhh: maximum-margin Hamming hashing (Kang, Cao, Long, Wang, Yu, ICCV 2019), as in Table 1 of MCH."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import PairwiseHasher, cosine_distance, pair_weights, signs

__all__ = ["MMHH", "max_margin_loss"]


def max_margin_loss(distance: Tensor, similar: Tensor, radius: float) -> Tensor:
    """Return s log(1 + max(0, d - H)) + (1 - s) log(1 + 1 / max(H, d)).

    Similar pairs inside a ball of radius H cost nothing; dissimilar ones have a gradient only outside it.

    Args:
        distance: real numbers in [0, q].
        similar: bool, of a shape that broadcasts with ``distance``.
        radius: H, in bits, above 0.
    """
    near = torch.log1p((distance - radius).clamp(min=0))
    return torch.where(similar, near, torch.log1p(1 / distance.clamp(min=radius)))


@dataclass(kw_only=True, eq=False)
class MMHH(DeepHasher, PairwiseHasher):
    """The max-margin loss of all pairs of a batch, and the squared distance of outputs u to their codes b = sign(u).

    The loss is that of MCH's Table 1, with cosine distances. The authors' released code differs from this formula, so
    its numbers are not comparable.

    Attributes:
        radius: H, in bits, of the Hamming ball that holds similar images.
        dissimilar: factor of w_ij of dissimilar pairs, in training and in ``pair_weights_``; 1 is exactly
            Table 1. With 1, one code for all images costs little, log(1 + 1 / H) for each dissimilar pair, and if
            labels overlap no other codes cost less: training collapses to that code.
        quantization: weight of ||b - u||^2, summed over bits, mean over images.
    """

    radius: float = 2.0
    dissimilar: float = 30.0
    quantization: float = 0.01

    weighted = True
    least_batch: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius <= 0 or self.dissimilar <= 0 or self.quantization < 0:
            raise ValueError(
                "radius and dissimilar must be above 0, quantization at least 0; "
                f"got {self.radius}, {self.dissimilar} and {self.quantization}"
            )

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`max_margin_loss`."""
        return max_margin_loss(distance, similar, self.radius)

    def _weigh(self, weights: NDArray[np.float64]) -> None:
        super()._weigh(weights * [self.dissimilar, 1])

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean over the pairs of a batch of w L, plus the mean quantisation loss of its images."""
        self._weigh(pair_weights(labels.cpu().numpy()))

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            quantization = ((signs(u) - u) ** 2).sum(1).mean()
            return self.batch_loss(cosine_distance(u, u), labels[rows]) + self.quantization * quantization

        return loss
