"""Partners: uniform over all similar and all dissimilar images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes
from hashgym.data import DataError
from hashgym.envs.partners import PartnerSampler


@given(seed=st.integers(0, 10_000), n=st.integers(3, 40), labels=st.integers(1, 70), density=st.floats(0.02, 0.6))
@settings(max_examples=60, deadline=None)
def test_partners_have_the_right_relation(seed: int, n: int, labels: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    hot = rng.random((n, labels)) < density
    similar = (hot.astype(int) @ hot.T.astype(int)) > 0
    others = similar & ~np.eye(n, dtype=bool)
    eligible = np.flatnonzero(others.any(1) & (~similar).any(1) & hot.any(1))
    if not eligible.size:
        with pytest.raises(DataError):
            PartnerSampler(codes.pack(hot))
        return
    sampler = PartnerSampler(codes.pack(hot))
    np.testing.assert_array_equal(sampler.eligible, eligible)
    rows = rng.choice(eligible, 5)
    positives, negatives = sampler.draw(rows, 6, rng)
    assert others[rows[:, None], positives].all()
    assert not similar[rows[:, None], negatives].any()


def test_partners_are_uniform() -> None:
    rng = np.random.default_rng(0)
    hot = rng.random((30, 4)) < 0.3
    hot[0] = [True, False, True, False]
    sampler = PartnerSampler(codes.pack(hot))
    similar = (hot & hot[0]).any(1)
    positives, negatives = sampler.draw(np.zeros(400, np.int64), 50, rng)
    for drawn, allowed in ((positives, similar & (np.arange(30) > 0)), (negatives, ~similar)):
        share = np.bincount(drawn.ravel(), minlength=30) / drawn.size
        # 20,000 draws: the deviation of a share near 1/10 is 0.002.
        np.testing.assert_allclose(share, allowed / allowed.sum(), atol=0.011)


def test_skipping_leaves_the_generator_where_drawing_does() -> None:
    hot = np.eye(5, dtype=bool)[np.arange(30) % 5]
    sampler = PartnerSampler(codes.pack(hot))
    drawing, skipping = (np.random.default_rng(3) for _ in range(2))
    sampler.draw(np.arange(7), 4, drawing)
    sampler.skip(7, 4, skipping)
    assert drawing.random() == skipping.random()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 80))
def test_a_sample_is_stratified_by_pattern(seed, n, count):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    labels[:2] = 0, 1
    labels[-1] = labels[0] if n > 2 else 1
    hot = np.eye(4, dtype=np.uint8)[labels]
    if len(set(labels)) < 2 or max(np.bincount(labels)) < 2:
        return
    sampler = PartnerSampler(codes.pack(hot))
    drawn = sampler.sample(count, rng)
    assert len(drawn) == min(count, n)
    assert (np.diff(drawn) > 0).all()
    assert drawn.min() >= 0
    assert drawn.max() < n
    found, wanted = np.bincount(labels[drawn], minlength=4), np.bincount(labels, minlength=4) * len(drawn) / n
    assert (np.abs(found - wanted) < 2).all()


def test_every_row_is_sampled_equally_often():
    labels = np.repeat(np.arange(3), [10, 20, 37])
    sampler = PartnerSampler(codes.pack(np.eye(3, dtype=np.uint8)[labels]))
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([sampler.sample(15, rng) for _ in range(4000)]), minlength=67)
    np.testing.assert_allclose(counts / 4000, 15 / 67, rtol=0.12)
