"""PairwiseHasher: hash functions whose loss is a sum over pairs of L(d_ij, s_ij), the base hashers of MCH (Table 1)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashgym import codes
from hashgym.data.similarity import count_similar
from hashgym.hashers.base import Hasher, Labels

__all__ = [
    "PairwiseHasher",
    "cosine_distance",
    "dissimilar_value",
    "inner_distance",
    "packed_pair_weights",
    "pair_weights",
    "signs",
    "unit",
]


class PairwiseHasher(Hasher):
    """A hasher with a loss L(d, s) of a pair's Hamming distance d and similarity s (1 where a label is shared).

    A subclass sets ``pair_weights_`` while it is fitted. As a function of an integer, L is a table of 2 (q + 1)
    numbers once the hasher is fitted; RegionKeep-v0 computes its reward from it.

    Attributes:
        pair_weights_: float64 (2,), w_ij of dissimilar and of similar pairs; ones if Table 1 has no weights.
    """

    supervised = True
    weighted: ClassVar[bool] = False  # whether Table 1 weighs this method's pairs
    pair_weights_: NDArray[np.float64]

    @abstractmethod
    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """Return L(d, s) of Table 1 without w_ij, element by element.

        Args:
            distance: real numbers in [0, q]: Hamming distances, or relaxed ones.
            similar: bool, of a shape that broadcasts with ``distance``.
        """

    def weighted_pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """Return L(d, s) of Table 1 with w_ij. Arguments as :meth:`pair_loss`."""
        different, same = torch.as_tensor(self.pair_weights_).to(distance)
        return torch.where(similar, same, different) * self.pair_loss(distance, similar)

    def batch_loss(self, distance: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of L(d, s) with w_ij over the pairs of two different images of a batch; 0 for a batch of one.

        Args:
            distance: (n, n), relaxed distances of all pairs.
            labels: float (n, L), multi-hot.
        """
        different = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        losses = self.weighted_pair_loss(distance, labels @ labels.T > 0)[different]
        return losses.sum() / max(len(losses), 1)

    def loss_table(self) -> NDArray[np.float64]:
        """Return L(d, s) with w_ij at every Hamming distance, float64 (2, q + 1): rows of dissimilar and similar pairs.

        Raises:
            NotFittedError: before ``fit``.
        """
        self._check_fitted()
        similar = torch.tensor([[False], [True]])
        return self.weighted_pair_loss(torch.arange(self.bits + 1, dtype=torch.float64), similar).numpy()

    def _weigh(self, weights: NDArray[np.float64]) -> None:
        """Set ``pair_weights_`` from :func:`pair_weights` of the training labels."""
        self.pair_weights_ = weights if self.weighted else np.ones(2)


def pair_weights(labels: Labels) -> NDArray[np.float64]:
    """Return all pairs / dissimilar pairs and all pairs / similar pairs, counted over pairs of two different images.

    Args:
        labels: multi-hot (n, L).

    Raises:
        ValueError: if no two images share a label, or all do.
    """
    return packed_pair_weights(codes.pack(np.asarray(labels) != 0))


def packed_pair_weights(label_words: codes.Words) -> NDArray[np.float64]:
    """:func:`pair_weights` of packed labels, uint64 (n, W)."""
    n = len(label_words)
    similar = int(count_similar(label_words).sum()) - int(label_words.any(axis=1).sum())  # not of an image with itself
    pairs = n * (n - 1)
    if similar == 0:
        raise ValueError(
            "no two training images share a label, so there is nothing to learn from: check labels and split"
        )
    if similar == pairs:
        raise ValueError(
            "all training images share a label, so there is no dissimilar pair to learn from: leave that label out"
        )
    return np.array([pairs / (pairs - similar), pairs / similar])


def dissimilar_value(weights: NDArray[np.float64], given: float | None) -> float:
    """Return r, where S = -r for dissimilar pairs: as given, or for None similar pairs / dissimilar pairs, at most 1.

    Args:
        weights: of :func:`pair_weights`.
        given: a hasher's setting.
    """
    return min(float(weights[0] / weights[1]), 1.0) if given is None else given


def inner_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return (q - a . b) / 2 of rows of a (n, q) and b (m, q): the Hamming distance of codes of -1 and +1 (eq. 1)."""
    return (a.shape[1] - a @ b.T) / 2


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return q / 2 (1 - cos(a, b)) of all rows of a (n, q) and b (m, q): on codes of -1 and +1 the Hamming distance."""
    return a.shape[1] / 2 * (1 - unit(a) @ unit(b).T)


def unit(a: Tensor) -> Tensor:
    """Return the rows of a (n, q) at length 1; rows near 0 stay shorter, so that gradients are finite."""
    return torch.nn.functional.normalize(a, dim=1, eps=1e-3)


def signs(u: Tensor) -> Tensor:
    """Return the code of outputs as -1 and +1, -1 at 0, without a gradient."""
    return torch.where(u.detach() > 0, 1.0, -1.0).to(u.dtype)
