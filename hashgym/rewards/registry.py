"""Rewards by name, and the two things an environment asks of one: its value, and what each bit was worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hashgym.rewards.view import RewardView

__all__ = ["Reward", "RewardLike", "available", "flip_credit", "make", "register", "value", "value_and_credit"]


class Reward(Protocol):
    """Any callable that scores a span of bits.

    It may also have ``value_and_credit(view)``, which returns ``(value, credit)`` with credit (n, s), R(bit = 1) -
    R(bit = 0) for every bit with all others as emitted. Without it the environment evaluates the flips one by one.
    """

    def __call__(self, view: RewardView, /) -> NDArray[np.floating]:
        """One number for each lane: floating, shape (n,); higher is better."""
        ...


@runtime_checkable
class _HasCredit(Protocol):
    def value_and_credit(self, view: RewardView, /) -> tuple[NDArray[np.floating], NDArray[np.floating]]: ...


RewardLike: TypeAlias = "str | Mapping[str, Any] | Reward"
_FACTORIES: dict[str, Callable[..., Reward]] = {}


def register(name: str, factory: Callable[..., Reward]) -> None:
    """Make a reward known by name; ``factory(**options)`` builds it. A name can be registered once.

    Raises:
        ValueError: if the name is taken by another factory.
    """
    if _FACTORIES.setdefault(name, factory) is not factory:
        raise ValueError(f"a reward named {name!r} is registered already; choose another name")


def available() -> list[str]:
    """Names of all registered rewards."""
    return sorted(_FACTORIES)


def make(reward: RewardLike, **options: Any) -> Reward:
    """Build a reward from its name, from ``{"name": ..., option: ...}``, or take an object as it is.

    Raises:
        ValueError: for an unknown name or options the reward does not take.
    """
    if isinstance(reward, Mapping):
        options = {**reward, **options}
        reward = options.pop("name", "")
    if not isinstance(reward, str):
        if not callable(reward):
            raise ValueError(f"a reward is a name, a mapping with a 'name', or a callable, got {reward!r}")
        return reward
    if reward not in _FACTORIES:
        raise ValueError(f"unknown reward {reward!r}; there are {', '.join(available())}")
    try:
        return _FACTORIES[reward](**options)
    except TypeError as error:
        raise ValueError(f"reward {reward!r}: {error}") from error


def value(reward: Reward, view: RewardView) -> NDArray[np.float64]:
    """The reward of each lane, float64 (n,).

    Raises:
        ValueError: if the reward returns another shape or type, or a number that is not finite.
    """
    return _checked(reward, "its value", reward(view), view.code.shape[:1])


def value_and_credit(reward: Reward, view: RewardView) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The reward (n,) and every bit's credit R(bit = 1) - R(bit = 0), (n, s), both float64.

    Raises:
        ValueError: as :func:`value`.
    """
    if isinstance(reward, _HasCredit):
        scores, credit = reward.value_and_credit(view)
        return (
            _checked(reward, "its value", scores, view.code.shape[:1]),
            _checked(reward, "its credit", credit, view.code.shape),
        )
    return value(reward, view), flip_credit(reward, view)


def flip_credit(reward: Reward, view: RewardView) -> NDArray[np.float64]:
    """Every bit's credit (n, s) by evaluating the reward with that bit 1 and with that bit 0: 2 s evaluations."""
    credit = np.empty(view.code.shape)
    for bit in range(view.code.shape[-1]):
        one, zero = view.code.copy(), view.code.copy()
        one[:, bit], zero[:, bit] = 1, 0
        credit[:, bit] = value(reward, view.with_code(one)) - value(reward, view.with_code(zero))
    return credit


def _checked(reward: Reward, what: str, array: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    got = np.asarray(array)
    name = getattr(reward, "__name__", type(reward).__name__)
    if got.shape != shape or got.dtype.kind not in "fiu":
        raise ValueError(f"reward {name}: {what} must be real numbers of shape {shape}, got {got.dtype} {got.shape}")
    if not np.isfinite(got).all():
        lane = int(np.argwhere(~np.isfinite(got))[0][0])
        raise ValueError(f"reward {name}: {what} must be finite, got {got[lane]} in lane {lane}")
    return got.astype(np.float64, copy=False)
