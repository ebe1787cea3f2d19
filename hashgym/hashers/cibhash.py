"""cibhash: contrastive codes without labels (Qiu, Su, Ou, Yu, Chen, IJCAI 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hashgym.hashers.base import Features, Labels
from hashgym.hashers.deep import DeepHasher, Objective

__all__ = ["CIBHash", "contrastive_loss", "divergence"]


def contrastive_loss(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the mean of -log exp(cos(a, a') / T) / sum exp(cos(a, x) / T), over both views a of every image.

    a' is the other view of the image, x are all other views of the batch, a' among them.

    Args:
        one, other: (b, q), the views.
        temperature: T.
    """
    views = torch.nn.functional.normalize(torch.cat([one, other]), dim=1)
    logits = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(one))
    return torch.nn.functional.cross_entropy(logits, partner)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the mean over images of the KL divergence of bits with probabilities p (b, bits) from those with q."""
    p, q = p.clamp(1e-6, 1 - 1e-6), q.clamp(1e-6, 1 - 1e-6)
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()


@dataclass(kw_only=True, eq=False)
class CIBHash(DeepHasher):
    """The contrastive loss of sampled codes of two views of every image, and the divergence of their bits.

    The views are the same features under different dropout; the paper augments pixels, which frozen features cannot be.
    Bits are drawn with probability sigmoid(u), and the gradient passes through as that of the probability.

    Attributes:
        temperature: T of :func:`contrastive_loss`.
        bottleneck: weight of the mean of both :func:`divergence` of the two views.
    """

    temperature: float = 0.3
    bottleneck: float = 1e-3

    supervised = False
    views: ClassVar[int] = 2
    least_batch: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.bottleneck < 0:
            raise ValueError(
                f"temperature must be above 0 and bottleneck at least 0, got {self.temperature} and {self.bottleneck}"
            )

    def _fit(self, X: Features, y: Labels | None) -> None:
        super()._fit(X, np.zeros((len(X), 0), np.uint8))

    def objective(self, labels: Tensor) -> Objective:
        """Return the loss of a batch with both views of every image, one half after the other."""

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            p = u.sigmoid()
            bits = torch.bernoulli(p.detach())
            one, other = (2 * (bits - p.detach() + p) - 1).chunk(2)
            first, second = p.chunk(2)
            both = divergence(first, second) + divergence(second, first)
            return contrastive_loss(one, other, self.temperature) + self.bottleneck * both / 2

        return loss
