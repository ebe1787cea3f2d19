"""Coarse to fine search: exact unless its work is bounded, and what it finds then."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import index
from hashgym.codes import CodeSets, hamming, pack, span
from hashgym.index import buckets as module


def clustered(rng, n, bits, spread=0.06):
    """Codes around 40 centres."""
    centres = rng.random((40, bits)) < 0.5
    return centres[rng.integers(40, size=n)] ^ (rng.random((n, bits)) < spread)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([6, 20, 64, 70]), st.integers(1, 20), st.integers(1, 30))
def test_candidates_are_the_nearest_by_prefix_and_ranked_by_all_bits(seed, bits, k, candidates):
    rng = np.random.default_rng(seed)
    codes, queries = clustered(rng, 300, bits), clustered(rng, 4, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COMPARED", 1e-9)  # prefixes are looked up also where comparing all codes is quicker
        with index.make("prefix", bits, prefix=6, candidates=candidates) as found:
            found.add(np.arange(300), CodeSets.of(codes))
            ids, distances = found.search(queries, k)
    words, prefixes = pack(codes), span(pack(codes), 0, 6)
    for query, near, gaps in zip(pack(queries), ids, distances, strict=True):
        whole, coarse = hamming(words, query), hamming(prefixes, span(query, 0, 6))
        for radius in range(7):
            (rows,) = np.nonzero(coarse <= radius)
            order = rows[np.lexsort((rows, whole[rows]))][:k]
            certain = len(order) == k and whole[order[-1]] <= radius
            if len(order) == k and (len(rows) >= candidates or certain or radius == 6):
                break
        np.testing.assert_array_equal(near, order)
        np.testing.assert_array_equal(gaps, whole[order])


def test_most_neighbours_are_found_among_few_candidates():
    rng = np.random.default_rng(0)
    codes, queries = clustered(rng, 20_000, 48), clustered(rng, 50, 48)
    exact, coarse = index.make("brute-force", 48), index.make("prefix", 48, prefix=16, candidates=500)
    for images in (exact, coarse):
        images.add(np.arange(len(codes)), CodeSets.of(codes))
    wanted, found = (images.search(queries, 10)[0] for images in (exact, coarse))
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found, strict=True)])
    assert 0.5 < recall < 1


def test_options_are_saved_and_can_be_replaced(tmp_path):
    made = index.make("prefix", 16, prefix=4, candidates=7)
    made.add([0], CodeSets.of(np.zeros((1, 16), bool)))
    made.save(tmp_path / "a")
    again, exact = index.load(tmp_path / "a"), index.load(tmp_path / "a", candidates=None)
    assert (again.prefix, again.candidates) == (4, 7)
    assert (exact.prefix, exact.candidates) == (4, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": 17}, "prefix=17 is longer than the code"),
        ({"prefix": 0}, "prefix must be at least 1"),
        ({"candidates": 2.5}, "candidates must be an integer"),
        ({"candidate": 2}, "'prefix' takes prefix=, candidates=, got candidate"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        index.make("prefix", 16, **options)
