"""orthohash: one cosine loss to orthogonal targets (Hoe, Ng, Zhang, Chan, Song, Xiang, NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hashgym.hashers.base import Features, Labels
from hashgym.hashers.csq import targets
from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import pair_weights, unit

__all__ = ["OrthoHash", "cosine_softmax_loss"]

_FLAT = 1e-5  # added to variances, as batch normalisation does


def cosine_softmax_loss(z: Tensor, codes: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Return the cross-entropy (b,) of labels y, as shares of 1, with softmax(scale (cos(z, code) - margin y)).

    Args:
        z: (b, q).
        codes: (L, q), a target for each label.
        labels: (b, L), multi-hot; the loss of an image without labels is 0.
        scale: s.
        margin: m, by how much the cosines to an image's own targets are lowered.
    """
    logits = scale * (unit(z) @ unit(codes).T - margin * labels)
    shares = labels / labels.sum(1, keepdim=True).clamp(min=1)
    return -(shares * torch.log_softmax(logits, 1)).sum(1)


@dataclass(kw_only=True, eq=False)
class OrthoHash(DeepHasher):
    """Codes by a linear layer and batch normalisation, trained towards the direction of their labels' targets.

    After training, codes are normalised by their mean and deviation over the training images without dropout, not by
    running averages; both become part of the layer. Batch normalisation has no scale and shift of its own.

    Attributes:
        scale: s, factor of the cosines before the softmax.
        margin: m, by how much the cosines to an image's own targets are lowered while training.
    """

    scale: float = 8.0
    margin: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0 or self.margin < 0:
            raise ValueError(f"scale must be above 0, margin at least 0; got {self.scale} and {self.margin}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, since batches are normalised; got {self.batch_size}")

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean of :func:`cosine_softmax_loss` over the labelled images of a batch."""
        pair_weights(labels.cpu().numpy())  # raises if there is no similar or no dissimilar pair
        codes = torch.from_numpy(targets(labels.shape[1], self.bits, self.seed)).to(labels)

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            y = labels[rows]
            z = torch.nn.functional.batch_norm(u, None, None, training=True, eps=_FLAT)
            losses = cosine_softmax_loss(z, codes, y, self.scale, self.margin)
            return losses.sum() / y.amax(1).sum().clamp(min=1)

        return loss

    def _fit(self, X: Features, y: Labels | None) -> None:
        super()._fit(X, y)
        values = self._transform(X[:, 0] if X.ndim == 5 else X)
        deviation = (values.var(0) + _FLAT) ** 0.5
        self.code_weight_ /= deviation
        self.code_bias_ = (self.code_bias_ - values.mean(0)) / deviation
