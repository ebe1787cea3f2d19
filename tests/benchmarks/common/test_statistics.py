"""Aggregates against SciPy and against double loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.common import statistics
from benchmarks.common.results import Estimate, estimate
from benchmarks.common.statistics import bootstrap, iqm, performance_profile, probability_of_improvement, ranks

scores = st.lists(st.sampled_from(np.linspace(0, 1, 9)), min_size=1, max_size=6)  # ties are common


def same_tasks(methods):
    return st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(scores, min_size=n, max_size=n), **methods))


@given(st.lists(scores, min_size=1, max_size=5))
def test_iqm_is_scipy_trimmed_mean_of_all_runs_together(tasks):
    drawn = [np.array(runs)[None] for runs in tasks]
    assert iqm(drawn)[0] == pytest.approx(stats.trim_mean(np.concatenate(tasks), 0.25))


@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_of_any_number(n):
    values = np.random.default_rng(n).normal(size=n) ** 3
    assert iqm([values[None]])[0] == pytest.approx(stats.trim_mean(values, 0.25))


def test_iqm_by_hand():
    assert iqm([np.array([[0.0, 10, 2, 4]])])[0] == 3
    assert iqm([np.array([[0.0, 1]]), np.array([[2.0, 3, 9]])])[0] == 2  # one of five is cut at each end


def test_bootstrap_of_the_mean_is_the_estimate_of_the_tables():
    rng = np.random.default_rng(0)
    strata = [rng.normal(size=n) for n in (3, 5, 4)]
    ours, theirs = bootstrap(strata, statistics.mean), estimate(strata)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high), abs=1e-12)


def test_bootstrap_draws_inside_strata_only():
    """With equal runs inside each stratum there is nothing to draw, however far apart the strata are."""
    assert bootstrap([[1, 1], [5, 5, 5]], statistics.mean) == Estimate(3, 3, 3)
    assert bootstrap([[1, 1], [5, 5]], iqm) == Estimate(3, 3, 3)


def test_bootstrap_interval_holds_what_resampling_one_by_one_gives():
    tasks, rng = [np.array([0.1, 0.4, 0.35]), np.array([0.8, 0.2])], np.random.default_rng(3)
    naive = [stats.trim_mean(np.concatenate([rng.choice(t, len(t)) for t in tasks]), 0.25) for _ in range(2000)]
    found = bootstrap(tasks, iqm)
    assert [found.low, found.high] == pytest.approx(np.percentile(naive, [2.5, 97.5]), abs=0.03)
    assert found == bootstrap(tasks, iqm)


def test_one_run_has_no_interval_and_none_is_rejected():
    alone = bootstrap([[0.5], [0.1, 0.2]], statistics.mean)
    assert alone.mean == pytest.approx(0.325)
    assert np.isnan([alone.low, alone.high]).all()
    for strata in ([], [[0.1], []]):
        with pytest.raises(ValueError, match="at least one stratum"):
            bootstrap(strata, statistics.mean)


@given(st.lists(scores, min_size=1, max_size=4), st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=5))
def test_performance_profile_counts(tasks, thresholds):
    expected = []
    for tau in thresholds:
        shares = [sum(score > tau for score in runs) / len(runs) for runs in tasks]
        expected.append(sum(shares) / len(shares))
    assert performance_profile(tasks, thresholds) == pytest.approx(expected)


def test_performance_profile_falls_from_one_to_nothing():
    profile = performance_profile([[0.2, 0.4], [0.6, 0.8]], np.linspace(-0.1, 1, 12))
    assert (np.diff(profile) <= 0).all()
    assert profile[0] == 1
    assert profile[-1] == 0


@settings(deadline=None, max_examples=50)
@given(same_tasks({"min_size": 2, "max_size": 2}))
def test_probability_of_improvement_is_mann_and_whitney_u(methods):
    x, y = methods
    u = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(x, y, strict=True)]
    forward, back = (probability_of_improvement(*pair, resamples=10) for pair in ((x, y), (y, x)))
    assert forward.mean == pytest.approx(np.mean(u))
    assert forward.mean + back.mean == pytest.approx(1)


def test_probability_of_improvement_by_hand():
    better = probability_of_improvement([[1, 2, 3]], [[0, 0.5]])
    assert better == Estimate(1, 1, 1)
    mixed = probability_of_improvement([[1, 3], [1, 1]], [[2, 2], [1, 1]])
    assert mixed.mean == 0.5
    assert mixed.low < 0.5 < mixed.high
    with pytest.raises(ValueError, match="same tasks, got 1 and 2"):
        probability_of_improvement([[1]], [[1], [2]])


@settings(deadline=None, max_examples=50)
@given(same_tasks({"min_size": 1, "max_size": 5}))
def test_ranks_are_scipy_ranks_of_means(methods):
    means = np.array([[np.mean(runs) for runs in tasks] for tasks in methods])
    expected = stats.rankdata(-means, axis=0).mean(1)
    found = ranks(methods, resamples=20)
    assert [estimate.mean for estimate in found.mean] == pytest.approx(expected)
    assert found.distribution.sum(0) == pytest.approx(1)
    assert found.distribution.sum(1) == pytest.approx(1)


def test_ranks_by_hand():
    clear = ranks([[[1, 1], [5, 5]], [[3, 3], [6, 6]], [[2, 2], [5, 5]]])  # the first and the last tie on task 2
    assert [estimate.mean for estimate in clear.mean] == [2.75, 1, 2.25]
    assert [(e.low, e.high) for e in clear.mean] == [(2.75, 2.75), (1, 1), (2.25, 2.25)]
    assert clear.distribution.tolist() == [[0, 0.25, 0.75], [1, 0, 0], [0, 0.75, 0.25]]


def test_rank_distribution_is_that_of_resampled_means():
    a, b = np.array([0.1, 0.4, 0.35]), np.array([0.3, 0.2, 0.3])
    rng = np.random.default_rng(1)
    drawn = np.array([[rng.choice(x, 3).mean() for x in (a, b)] for _ in range(5000)])
    first = ((drawn[:, 0] > drawn[:, 1]) + 0.5 * (drawn[:, 0] == drawn[:, 1])).mean()
    found = ranks([[a], [b]], resamples=5000)
    assert found.distribution[0, 0] == pytest.approx(first, abs=0.03)
    assert (found.mean[0].low, found.mean[0].high) == (1, 2)


def test_ranks_need_the_same_tasks_and_two_runs_for_an_interval():
    assert np.isnan(ranks([[[0.1]], [[0.2, 0.3]]]).mean[0].low)
    with pytest.raises(ValueError, match="same tasks"):
        ranks([[[0.1]], [[0.1], [0.2]]])
