from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes
from hashgym.data import similarity
from hashgym.data.similarity import count_similar, label_patterns


@given(seed=st.integers(0, 10_000), n=st.integers(1, 90), labels=st.integers(1, 130), density=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_counts_are_those_of_a_double_loop(seed: int, n: int, labels: int, density: float) -> None:
    hot = np.random.default_rng(seed).random((n, labels)) < density
    naive = [sum(bool((a & b).any()) for b in hot) for a in hot]
    np.testing.assert_array_equal(count_similar(codes.pack(hot)), naive)


def test_counts_do_not_depend_on_the_block_size(monkeypatch) -> None:
    hot = np.random.default_rng(0).random((300, 12)) < 0.2
    whole = count_similar(codes.pack(hot))
    monkeypatch.setattr(similarity, "_BLOCK", 7)
    np.testing.assert_array_equal(count_similar(codes.pack(hot)), whole)


def test_patterns_put_the_rows_together_again() -> None:
    words = codes.pack(np.random.default_rng(0).random((200, 70)) < 0.02)
    patterns, pattern_of, counts = label_patterns(words)
    np.testing.assert_array_equal(patterns[pattern_of], words)
    np.testing.assert_array_equal(np.bincount(pattern_of), counts)
    assert len(np.unique(patterns, axis=0)) == len(patterns)
