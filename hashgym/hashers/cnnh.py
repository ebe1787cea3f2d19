"""CNNH: codes that factorise the similarities of the training images, then a network that gives these codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashgym.hashers.base import Labels
from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import dissimilar_value, pair_weights

__all__ = ["CNNH", "best_entry", "similarity_codes"]

Matrix = NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class CNNH(DeepHasher):
    """Convolutional neural network hashing (Xia, Pan, Lai, Liu and Yan, AAAI 2014), on features.

    First :func:`similarity_codes` finds codes whose inner products are the training images' similarities S, 1 and -1;
    then the network learns their bits from the features, each by the binary cross entropy of its logit. (The paper's
    CNNH+ has outputs for the labels as well; it is not implemented.)

    Attributes:
        passes: number of passes of coordinate descent over all entries of the codes.
        dissimilar: r, where S = -r for dissimilar pairs: 1 in the paper; None for similar pairs / dissimilar pairs, at
            most 1, so that S sums to 0 and dissimilar pairs do not outweigh few similar ones.
        code_losses_: float64 (passes + 1,), ||S - H H^T / q||^2 / n^2 from the random start on; never increases.
    """

    passes: int = 5
    dissimilar: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes < 1 or (self.dissimilar is not None and self.dissimilar < 0):
            raise ValueError(
                f"passes must be at least 1, dissimilar at least 0 (or None); got {self.passes} and {self.dissimilar}"
            )

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean binary cross entropy of a batch's logits to the codes learnt here."""
        hot = labels.cpu().numpy().astype(np.uint8)
        r = dissimilar_value(pair_weights(hot), self.dissimilar)
        H, self.code_losses_ = similarity_codes(hot, self.bits, r, self.passes, np.random.default_rng(self.seed))
        codes = torch.from_numpy(H > 0).to(labels)

        def loss(logits: Tensor, rows: Tensor, update: int) -> Tensor:
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, codes[rows])

        return loss


def similarity_codes(
    labels: Labels, bits: int, dissimilar: float, passes: int, rng: np.random.Generator
) -> tuple[Matrix, NDArray[np.float64]]:
    """Minimise ||S - H H^T / q||^2 over H in [-1, 1]^(n, q), one entry after the other, each exactly.

    For column h of H, with R = q S - (the other columns' h h^T), entry x = h_i costs x^4 + 2 (s - R_ii) x^2 - 4 c x,
    where s = sum over l != i of h_l^2 and c = sum over l != i of R_il h_l. Neither S nor R is stored: images of the
    same labels have the same row of S, so S h needs h only as a sum over each distinct set of labels.

    Args:
        labels: multi-hot (n, L); S is 1 where two share a label, -``dissimilar`` elsewhere.
        bits: q.
        dissimilar: a number from 0 up.
        passes: number of passes over all entries.
        rng: draws the uniform start.

    Returns:
        H, and the objective / n^2 at the start and after each pass; time O(passes n q (q + U)), U distinct label sets.
    """
    sets, index = np.unique(labels, axis=0, return_inverse=True)
    index = index.reshape(-1)
    hot = sets.astype(np.float64)
    S = np.where(hot @ hot.T > 0, 1.0, -dissimilar)
    counts = np.bincount(index, minlength=len(sets))
    H = rng.uniform(-1, 1, (len(labels), bits))
    squared = counts @ S**2 @ counts

    def loss() -> float:
        sums = np.zeros((len(sets), bits))
        np.add.at(sums, index, H)
        return float(squared - 2 / bits * (sums * (S @ sums)).sum() + ((H.T @ H) ** 2).sum() / bits**2) / len(H) ** 2

    losses = [loss()]
    qS, own, where = bits * S, (bits * S.diagonal())[index], index.tolist()
    for _ in range(passes):
        for j in range(bits):
            h = H[:, j].copy()
            others = H.copy()
            others[:, j] = 0
            R_own = own - (others**2).sum(1)  # R_ii
            sums, inner, square = np.bincount(index, h, len(sets)), others.T @ h, float(h @ h)
            for i, (x, row, r_ii) in enumerate(zip(h.tolist(), where, R_own.tolist(), strict=True)):
                c = float(qS[row] @ sums - others[i] @ inner) - r_ii * x
                new = best_entry(square - x * x - r_ii, c)
                if new != x:
                    sums[row] += new - x
                    inner += (new - x) * others[i]
                    square += new * new - x * x
                    H[i, j] = new
        losses.append(loss())
    return H, np.array(losses)


def best_entry(a: float, c: float) -> float:
    """Return the x in [-1, 1] that minimises x^4 + 2 a x^2 - 4 c x.

    It has the sign of c; for c > 0 it is the one positive root of x^3 + a x - c, or 1 if that root is above 1.
    """
    size = abs(c)
    if 1 + a <= size:
        return 1.0 if c >= 0 else -1.0
    x = 1.0  # right of the root, where the cubic is convex and rises: Newton's steps never overshoot
    for _ in range(100):
        step = (x * x * x + a * x - size) / (3 * x * x + a)
        x -= step
        if step < 1e-12:
            break
    return x if c >= 0 else -x
