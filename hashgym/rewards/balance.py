"""Reward for bits that are 1 as often as 0 and uncorrelated with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_number
from hashgym.rewards.view import RewardView

__all__ = ["Balance"]


class Balance:
    """Effect of an image's code on the balance and the decorrelation of all training codes.

    R = -(mean over bits b of x_b m_b) - decorrelation x (mean over pairs b != c of x_b x_c C_bc),

    x the image's signs (2 p - 1 for probabilities), m_b the mean of bit b's signs over the other N - 1 training images
    and C_bc that of the products of bits b and c. With the image's own code the means are
    M_b = ((N - 1) m_b + x_b) / N. As x_b^2 = 1, the part of M_b^2 that depends on the code is 2 (N - 1) / N^2 x_b m_b;
    for products likewise. So R is, up to a constant and the factor N^2 / (2 (N - 1)), minus

        mean over b of M_b^2 + decorrelation x (mean over pairs of the squared mean product),

    which is 0 for balanced, uncorrelated bits. It ignores labels: use it in a sum with a reward that reads them.

    Args:
        decorrelation: weight of the pairs relative to the bits. A span of one bit has no pairs.
    """

    name = "balance"
    reads_partners = False

    def __init__(self, decorrelation: float = 1.0) -> None:
        self.decorrelation = check_number("decorrelation", decorrelation, 0)

    def __call__(self, view: RewardView) -> NDArray[np.floating]:
        """Return R, floating (n,)."""
        return self.value_and_credit(view)[0]

    def value_and_credit(self, view: RewardView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return R (n,) and each bit's credit (n, s), twice the slope, as R is linear in each bit."""
        x, signs = view.signs, view.codebook.signs
        own: Any = signs[view.rows]
        others, length = max(1, len(view.codebook) - 1), view.codebook.bits
        m = (signs.sum(0) - own) / others
        # sum over c != b of C_bc x_c: all products, minus the image's own, minus b with itself (1 in every image)
        related = (x @ (signs.T @ signs) - own * (own * x).sum(-1)[:, None]) / others - x
        per_pair = self.decorrelation / (length * (length - 1)) if length > 1 else 0.0
        value = -(x * m).sum(-1) / length - per_pair * (x * related).sum(-1)
        return value, -2 * m / length - 4 * per_pair * related
