"""Reward of neighbourhood components analysis: the probability that a random neighbour is similar."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_number
from hashgym.rewards.view import RewardView

__all__ = ["NCA"]


class NCA:
    """R = log sum over similar j of p_j: how likely an image's neighbour, drawn by distance, shares a label with it.

    p_j = exp(scale cos_j) / (sum over k of exp(scale cos_k)), j and k the other training images, cos_j = 1 - 2 d_j / s
    the cosine of two codes of s bits at Hamming distance d_j. This is neighbourhood components analysis (Goldberger,
    Roweis, Hinton and Salakhutdinov, NeurIPS 2004) with cosines to a memory of codes (Wu, Efros and Yu, ECCV 2018).
    Unlike the average precision it is never perfect, so that images that are ranked right are separated further. Where
    no other image is similar, R is 0.

    Args:
        scale: factor of the cosines, above 0 and at most 40; the higher, the more only the nearest images count.
    """

    name = "nca"
    reads_partners = False

    def __init__(self, scale: float = 8.0) -> None:
        self.scale = check_number("scale", scale, 0)
        if not 0 < self.scale <= 40:  # exp(-2 scale) is a normal number of float32
            raise ValueError(f"scale must be above 0 and at most 40, got {scale}")

    def __call__(self, view: RewardView) -> NDArray[np.floating]:
        """Return R, floating (n,)."""
        return _log_ratio(view, *(each.sum(1) for each in self._weights(view)))

    def value_and_credit(self, view: RewardView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return R (n,) and each bit's credit (n, s), from four products of matrices.

        Flipping a bit brings the images that differ in it one bit nearer, which multiplies exp(scale cos_j) by e^a,
        a = 2 scale / s, and takes those that agree one bit further away.
        """
        a = 2 * self.scale / view.codebook.bits
        one = view.codebook.signs > 0
        ones, zeros = one * np.float32(1), ~one * np.float32(1)

        def flipped(weights: Any) -> Any:
            with_one, with_zero = weights @ ones, weights @ zeros
            agreeing = view.xp.where(view.bits, with_one, with_zero)
            differing = view.xp.where(view.bits, with_zero, with_one)
            return math.exp(-a) * agreeing + math.exp(a) * differing

        similar, all_ = self._weights(view)
        value = _log_ratio(view, similar.sum(1), all_.sum(1))
        credit = value[:, None] - _log_ratio(view, flipped(similar), flipped(all_))
        return value, credit * (2.0 * view.bits - 1.0)

    def _weights(self, view: RewardView) -> tuple[Any, Any]:
        """Return exp(scale (cos_j - 1)) of the similar and of all other training images, (n, N) each, else 0."""
        weights = view.xp.exp(np.float32(-2 * self.scale / view.codebook.bits) * view.distances) * view.others
        return weights * view.similar, weights


def _log_ratio(view: RewardView, similar: Any, all_: Any) -> Any:
    """Return log(similar / all), 0 where nothing is similar."""
    return view.xp.log(view.xp.where(similar > 0, similar / all_, 1.0))
