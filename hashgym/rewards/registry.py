"""Rewards by name, and checked calls of a reward: its value, and the credit of each bit.

The same code serves NumPy arrays and torch tensors: the view converts to its kind of array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, Protocol, TypeAlias, TypeVar, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hashgym.registry import Registry, named_settings
from hashgym.rewards.view import RewardView
from hashgym.storage.errors import describe

__all__ = [
    "Reward",
    "RewardError",
    "RewardLike",
    "available",
    "flip_credit",
    "make",
    "register",
    "value",
    "value_and_credit",
]


class RewardError(ValueError):
    """The reward failed or returned an invalid shape, dtype or value."""


class Reward(Protocol):
    """Any callable that scores a span of bits.

    It may also have ``value_and_credit(view)``, which returns ``(value, credit)`` with credit (n, s), R(bit = 1) -
    R(bit = 0) for every bit with all others as emitted. Without it the environment evaluates both values of every bit.

    A reward that never reads the partners may have ``reads_partners = False``: the environment then draws none, which
    saves time on large multi-label datasets, and reading the partners' bits or distances raises an error.
    """

    def __call__(self, view: RewardView, /) -> NDArray[np.floating]:
        """Return one number for each environment, floating (n,); higher is better."""
        ...


@runtime_checkable
class _HasCredit(Protocol):
    def value_and_credit(self, view: RewardView, /) -> tuple[NDArray[np.floating], NDArray[np.floating]]: ...


RewardLike: TypeAlias = "str | Mapping[str, Any] | Reward"
Factory = TypeVar("Factory", bound=Callable[..., Any])

REWARDS: Registry[Callable[..., Any]] = Registry("reward")


@overload
def register(name: str) -> Callable[[Factory], Factory]: ...
@overload
def register(name: str, factory: Callable[..., Reward] | str) -> None: ...
def register(name: str, factory: Callable[..., Reward] | str | None = None) -> Callable[[Factory], Factory] | None:
    """Register a reward under a name; also as a decorator, ``@register("contrast")``, of a class or function.

    Other processes only have the rewards registered by modules that they import: if worker processes make the
    environments, name a reward of your own as ``"package.module:Name"``.

    Args:
        name: the reward's name.
        factory: ``factory(**options)`` returns the reward; or the factory's import path, "package.module:Name".

    Raises:
        ValueError: if the name is taken by another factory.
    """
    return REWARDS.register(name, factory)


def available() -> list[str]:
    """Return the names of all registered rewards."""
    return sorted(REWARDS.entries)


def make(reward: RewardLike, **options: Any) -> Reward:
    """Return a reward built from its name or from ``{"name": ..., option: ...}``, or a reward object unchanged.

    A name is one of :func:`available`; ``"package.module:Name"``, where Name is a factory, a reward, or a name that the
    module registers; or a weighted sum of these, ``"nca+0.5*balance"``.

    Raises:
        ValueError: for an unknown name, options the reward does not take, or a weight that is not a number.
    """
    if isinstance(reward, Mapping):
        options = {**reward, **options}
        if "name" not in options:
            raise ValueError(f"a mapping must name the reward, {{'name': 'triplet', ...}}; got the keys {[*options]}")
        reward = options.pop("name")
    if not isinstance(reward, str):
        if not callable(reward):
            raise ValueError(f"a reward must be a name, a mapping with a 'name', or a callable, got {reward!r:.60}")
        if options:
            given = ", ".join(map(str, options))
            raise ValueError(f"options ({given}) are only for a reward given by name: set them on the reward itself")
        return reward
    if reward not in REWARDS.entries and ("+" in reward or "*" in reward):
        options, reward = {"terms": _terms(reward), **options}, "weighted"
    factory = REWARDS.find(reward)
    if not callable(factory):
        raise ValueError(
            f"reward {reward!r} is a {type(factory).__name__}: it must be a reward, or a factory of rewards"
        )
    parameters = signature(factory).parameters.values()
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        named_settings(f"reward {reward!r}", options, [parameter.name for parameter in parameters])
    if not options and not isinstance(factory, type) and not _binds(factory) and _binds(factory, "view"):
        return factory  # a function of a view is the reward itself
    try:
        made = factory(**options)
    except TypeError as error:
        raise ValueError(f"reward {reward!r}: {error}") from error
    if not callable(made):
        raise ValueError(f"the factory of reward {reward!r} returned {type(made).__name__}: it must return a callable")
    return made


def _terms(text: str) -> list[tuple[float, str]]:
    """Return the weights and names of a sum, 1 where no weight is given.

    Raises:
        ValueError: for a weight that is not a number.
    """
    terms = []
    for term in text.split("+"):
        weight, _, name = term.rpartition("*")
        try:
            terms.append((float(weight or 1), name.strip()))
        except ValueError:
            raise ValueError(
                f"the weight {weight!r} in the reward {text!r} is not a number: write 0.5*balance"
            ) from None
    return terms


def _binds(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def value(reward: Reward, view: RewardView) -> NDArray[np.float64]:
    """Return the reward of each environment, float64 (n,).

    Raises:
        RewardError: if the reward fails, or returns another shape or type, or a number that is not finite.
    """
    return _checked(reward, view, "its value", _called(reward, view, reward), view.code.shape[:1])


def value_and_credit(reward: Reward, view: RewardView) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the reward (n,) and every bit's credit R(bit = 1) - R(bit = 0), (n, s), both float64.

    Raises:
        RewardError: as :func:`value`.
    """
    if not isinstance(reward, _HasCredit):
        return value(reward, view), flip_credit(reward, view)
    both = _called(reward, view, reward.value_and_credit)
    if not isinstance(both, tuple) or len(both) != 2:
        raise _error(reward, view, f"value_and_credit must return a tuple (value, credit), got {describe(both)}")
    return (
        _checked(reward, view, "its value", both[0], view.code.shape[:1]),
        _checked(reward, view, "its credit", both[1], view.code.shape),
    )


def flip_credit(reward: Reward, view: RewardView) -> NDArray[np.float64]:
    """Return every bit's credit (n, s), evaluating the reward with the bit 1 and with the bit 0: 2 s evaluations."""
    credit = view.numbers(0 * view.code, view.code.shape)  # float64 of the view's kind of array
    for bit in range(view.code.shape[-1]):
        credit[:, bit] = value(reward, view.with_bit(bit, 1)) - value(reward, view.with_bit(bit, 0))
    return credit


def _called(reward: Reward, view: RewardView, function: Callable[[RewardView], Any]) -> Any:
    try:
        return function(view)
    except RewardError:  # of a term of a sum
        raise
    except Exception as error:
        shape = f"{view.code.shape[0]} environments and {view.code.shape[1]} bits"
        raise _error(reward, view, f"failed for {shape} with {type(error).__name__}: {error}") from error


def _checked(reward: Reward, view: RewardView, what: str, array: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        numbers = view.numbers(array, shape)
    except TypeError as error:
        hint = ": is a return missing?" if array is None else ""
        raise _error(reward, view, f"{what} must be {error}{hint}") from None
    finite = view.xp.isfinite(numbers)
    if not finite.all():
        place = tuple(np.argwhere(np.logical_not(finite.tolist()))[0].tolist())
        where = " bit ".join(map(str, place))
        raise _error(reward, view, f"{what} must be finite, got {numbers[place]} in environment {where}")
    return numbers


def _error(reward: Reward, view: RewardView, message: str) -> RewardError:
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    return RewardError(f"reward {name}, {view.scope} scope: {message}")
