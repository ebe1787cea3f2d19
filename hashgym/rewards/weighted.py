"""Weighted sums of rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_number
from hashgym.rewards import registry
from hashgym.rewards.registry import Reward, RewardLike
from hashgym.rewards.view import RewardView

__all__ = ["Weighted", "weighted"]


class Weighted:
    """R = sum of weight x reward.

    Args:
        terms: (weight, reward) pairs; a reward is anything that :func:`hashgym.rewards.make` takes.
    """

    name = "weighted"

    def __init__(self, terms: Iterable[tuple[float, RewardLike]]) -> None:
        try:
            pairs = [(weight, reward) for weight, reward in terms]
        except (TypeError, ValueError):
            raise ValueError(f"terms must be (weight, reward) pairs, or {{name: weight}}, got {terms!r:.60}") from None
        if not pairs:
            raise ValueError("terms must hold at least one (weight, reward) pair")
        self.terms: list[tuple[float, Reward]] = [
            (check_number("the weight of a reward", weight), registry.make(reward)) for weight, reward in pairs
        ]

    @property
    def reads_partners(self) -> bool:
        """Whether any of the rewards reads the partners."""
        return any(getattr(reward, "reads_partners", True) for _, reward in self.terms)

    def __call__(self, view: RewardView) -> NDArray[np.floating]:
        """Return the sum, float64 (n,)."""
        return sum(weight * registry.value(reward, view) for weight, reward in self.terms)  # type: ignore[return-value]

    def value_and_credit(self, view: RewardView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return the sums of values (n,) and of credits (n, s)."""
        parts = [(weight, *registry.value_and_credit(reward, view)) for weight, reward in self.terms]
        value, credit = (sum(weight * part[i] for weight, *part in parts) for i in range(2))
        return value, credit  # type: ignore[return-value]


def weighted(terms: Mapping[str, float] | Iterable[tuple[float, RewardLike]]) -> Weighted:
    """Return the weighted sum of ``{"triplet": 0.5, "average_precision": 1.0}`` or of (weight, reward) pairs."""
    if isinstance(terms, Mapping):
        return Weighted((weight, name) for name, weight in terms.items())
    return Weighted(terms)
