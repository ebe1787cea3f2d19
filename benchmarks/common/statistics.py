"""Aggregates over tasks with intervals, after Agarwal et al., "Deep reinforcement learning at the edge of the
statistical precipice", 2021.

A task is a dataset, its features and a code length; its scores are those of the runs, one a seed. Intervals are
percentile bootstraps, stratified: runs are drawn with replacement inside each task, never across.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Estimate",
    "Ranks",
    "bootstrap",
    "iqm",
    "mean",
    "performance_profile",
    "probability_of_improvement",
    "ranks",
]

Scores: TypeAlias = NDArray[np.float64]
Tasks: TypeAlias = Sequence[ArrayLike]  # the scores of one method, an array of runs for each task


@dataclass(frozen=True)
class Estimate:
    """A mean over runs with its confidence interval; the bounds are NaN where a stratum has one run."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """``.671`` and, on a second line, ``[.668, .674]``."""
        spread = "" if np.isnan(self.low) else f"\n[{_short(self.low)}, {_short(self.high)}]"
        return _short(self.mean) + spread


def bootstrap(
    strata: Tasks,
    aggregate: Callable[[list[Scores]], Scores],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """An aggregate of scores with its stratified percentile bootstrap interval.

    With few runs the interval is too narrow: it cannot leave the range of the observed scores.

    Args:
        strata: one array of scores for each stratum, not necessarily equally long.
        aggregate: takes an array (samples, runs) for each stratum and returns one number per sample, (samples,).
        confidence: confidence level of the interval.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        The aggregate of the scores themselves, with bounds that are NaN where a stratum has one score.

    Raises:
        ValueError: for no strata or an empty one.
    """
    scores = _checked(strata)
    value = float(aggregate([stratum[None] for stratum in scores])[0])
    if any(len(stratum) == 1 for stratum in scores):
        return Estimate(value, np.nan, np.nan)
    low, high = np.percentile(aggregate(_resampled(scores, resamples, seed)), _tails(confidence))
    return Estimate(value, float(low), float(high))


def mean(draws: Sequence[Scores]) -> Scores:
    """The mean over tasks of the mean over runs, (samples,): an ``aggregate`` of :func:`bootstrap`."""
    return np.mean([draw.mean(-1) for draw in draws], axis=0)


def iqm(draws: Sequence[Scores]) -> Scores:
    """The interquartile mean of the runs of all tasks together, (samples,): an ``aggregate`` of :func:`bootstrap`.

    Takes (samples, runs) for each task, or (runs,) for one number. Of n scores the floor(n / 4) lowest and as many of
    the highest are left out (Agarwal et al., section 4.3).
    """
    together = np.sort(np.concatenate(draws, axis=-1), axis=-1)
    cut = together.shape[-1] // 4
    return together[..., cut : together.shape[-1] - cut].mean(-1)


def performance_profile(tasks: Tasks, thresholds: ArrayLike) -> Scores:
    """The share of runs that score above each threshold, mean over tasks: the run-score distribution.

    Agarwal et al., equation 1. Every task weighs the same, however many runs it has.

    Args:
        tasks: one array of scores for each task.
        thresholds: (t,).

    Returns:
        Shares, float64 (t,).

    Raises:
        ValueError: for no tasks or an empty one.
    """
    above = np.asarray(thresholds, np.float64)[:, None]
    return np.mean([(runs > above).mean(-1) for runs in _checked(tasks)], axis=0)


def probability_of_improvement(x: Tasks, y: Tasks, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Probability that a run of one method scores higher than a run of another on the same task, mean over tasks.

    On each task P(X > Y) + P(X = Y) / 2 over all pairs of runs, that is Mann and Whitney's U / (n m) (Agarwal et al.,
    section 4.3). The bootstrap draws runs of both methods.

    Args:
        x: one array of scores for each task.
        y: the other method's, of the same tasks in the same order.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: for no tasks, an empty one, or different numbers of tasks.
    """
    if len(x) != len(y):
        raise ValueError(f"both methods need scores of the same tasks, got {len(x)} and {len(y)}")

    def aggregate(draws: list[Scores]) -> Scores:
        return np.mean([_beats(a, b) for a, b in zip(draws[: len(x)], draws[len(x) :], strict=True)], axis=0)

    return bootstrap([*x, *y], aggregate, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Ranks:
    """Ranks of m methods; 1 is the best.

    Attributes:
        mean: the mean rank of each method over tasks.
        distribution: float64 (m, m), the probability of rank k + 1 for each method, over tasks and bootstrap samples;
            rows and columns sum to 1.
    """

    mean: list[Estimate]
    distribution: Scores


def ranks(methods: Sequence[Tasks], confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Ranks:
    """Ranks of methods by their mean score on each task, the highest first, with intervals and a distribution.

    Methods that tie share the mean of their ranks, and the ranks themselves in equal parts in the distribution.

    Args:
        methods: for each method one array of scores for each task, the same tasks in the same order.
        confidence: confidence level of the intervals.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: for no tasks, an empty one, or methods with different numbers of tasks.
    """
    counts = {len(tasks) for tasks in methods}
    if len(counts) != 1:
        raise ValueError(f"all methods need scores of the same tasks, got {sorted(counts)} tasks")
    m, scores = len(methods), [_checked(tasks) for tasks in methods]
    observed = np.array([[runs.mean() for runs in tasks] for tasks in scores])  # (m, tasks)
    drawn = _resampled([runs for tasks in scores for runs in tasks], resamples, seed)
    means = np.array([runs.mean(-1) for runs in drawn]).reshape(m, -1, resamples)
    # (m, tasks, samples): numbers of methods that are better, and of equal ones, itself included
    better, equal = np.array([[(means > own).sum(0), (means == own).sum(0)] for own in means]).swapaxes(0, 1)
    share = [((better <= k) & (k < better + equal)) / equal for k in range(m)]
    low, high = np.percentile((better + (equal + 1) / 2).mean(1), _tails(confidence), axis=1)
    if any(len(runs) == 1 for tasks in scores for runs in tasks):
        low = high = np.full(m, np.nan)
    above = [((observed > own).sum(0) + ((observed == own).sum(0) + 1) / 2).mean() for own in observed]
    estimates = [Estimate(float(rank), float(a), float(b)) for rank, a, b in zip(above, low, high, strict=True)]
    return Ranks(estimates, np.mean(share, axis=(2, 3)).T)


def _checked(strata: Tasks) -> list[Scores]:
    scores = [np.asarray(stratum, np.float64).ravel() for stratum in strata]
    if not scores or not all(len(stratum) for stratum in scores):
        raise ValueError("an estimate needs at least one stratum and one score in each")
    return scores


def _resampled(scores: Sequence[Scores], resamples: int, seed: int) -> list[Scores]:
    """Return an array (resamples, runs) for each stratum, drawn with replacement."""
    rng = np.random.default_rng(seed)
    return [stratum[rng.integers(len(stratum), size=(resamples, len(stratum)))] for stratum in scores]


def _tails(confidence: float) -> list[float]:
    return [50 * (1 - confidence), 50 * (1 + confidence)]


def _short(value: float) -> str:
    """.671 rather than 0.671, as the field writes it."""
    return f"{value:.3f}".removeprefix("0")


def _beats(x: Scores, y: Scores) -> Scores:
    """P(X > Y) + P(X = Y) / 2 over all pairs of (..., n) and (..., m), (...)."""
    x, y = x[..., :, None], y[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean((-2, -1))
