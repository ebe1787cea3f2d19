"""csq: central similarity quantisation (Yuan, Wang, Zhang, Tay, Jie, Liu, Feng, CVPR 2020), and its hash centres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import pair_weights

__all__ = ["CSQ", "central_loss", "majority", "targets"]

_DRAWS = 1000  # random candidates for the code of each class


def targets(classes: int, bits: int, seed: int) -> NDArray[np.float32]:
    """Return a code for each class, far from all others: float32 (classes, bits) of -1 and +1.

    If bits are a power of two and classes at most twice as many, the codes are rows, and then negated rows, of a
    Hadamard matrix, in random order and with random signs: any two differ in half their bits, or in all. Otherwise
    a class gets the one of many random codes whose nearest earlier code is farthest. Half of every code's bits are 1
    (one more or less, if bits are odd), except for the constant row of a Hadamard matrix, the last before negated
    rows, and its negation.
    """
    from scipy.linalg import hadamard

    rng = np.random.default_rng(seed)
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        rows = hadamard(bits)[[*rng.permutation(bits - 1) + 1, 0]] * rng.choice([-1, 1], (bits, 1))
        return np.concatenate([rows, -rows])[:classes].astype(np.float32)
    codes = np.empty((classes, bits), np.float32)
    half = np.where(np.arange(bits) < bits // 2, np.float32(1), np.float32(-1))
    for k in range(classes):
        drawn = rng.permuted(np.tile(half, (_DRAWS, 1)), axis=1) * rng.choice([-1, 1], (_DRAWS, 1))
        codes[k] = drawn[(drawn @ codes[:k].T).max(1, initial=-bits).argmin()]
    return codes


def majority(labels: Tensor, codes: Tensor) -> Tensor:
    """Return the majority code (n, q) of each image's labels, bit by bit; ties are broken at random.

    Args:
        labels: (n, L), multi-hot, of the type of ``codes``.
        codes: (L, q), of -1 and +1.
    """
    votes = labels @ codes
    return torch.where(votes == 0, torch.randint(0, 2, votes.shape).to(votes) * 2 - 1, votes.sign())


def central_loss(u: Tensor, centres: Tensor, quantization: float) -> Tensor:
    """Return cross-entropy of h = (tanh(u) + 1) / 2 with centres, plus ``log cosh(|2 h - 1| - 1)``: means of bits (b,).

    Args:
        u: (b, q), logits.
        centres: (b, q), of -1 and +1.
        quantization: weight of the second term.
    """
    # h = sigmoid(2 u), and |2 h - 1| = |tanh(u)|
    central = -torch.nn.functional.logsigmoid(2 * u * centres)
    return (central + quantization * torch.log(torch.cosh(torch.tanh(u).abs() - 1))).mean(1)


@dataclass(kw_only=True, eq=False)
class CSQ(DeepHasher):
    """Central similarity quantisation: outputs approach the hash centre of an image's label, or of most of its labels.

    Images without a label have no centre and are left out of the loss.

    Attributes:
        quantization: weight of the loss that moves outputs to -1 and 1; see :func:`central_loss`.
    """

    quantization: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantization < 0:
            raise ValueError(f"quantization must be at least 0, got {self.quantization}")

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean of :func:`central_loss` over the labelled images of a batch."""
        pair_weights(labels.cpu().numpy())  # raises if there is no similar or no dissimilar pair
        codes = torch.from_numpy(targets(labels.shape[1], self.bits, self.seed)).to(labels)
        centres, labelled = majority(labels, codes), labels.amax(1)

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            losses = central_loss(u, centres[rows], self.quantization) * labelled[rows]
            return losses.sum() / labelled[rows].sum().clamp(min=1)

        return loss
