"""Retrieval measures against loops over items, and against rankings that are really sorted."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hashgym.codes import CodeSets
from hashgym.retrieval import (
    evaluate,
    mean_average_precision,
    metrics,
    precision_at,
    precision_recall_by_radius,
    precision_within,
    recall_within,
)


def make_data(seed, n, m, bits, labels, rate=0.3):
    rng = np.random.default_rng(seed)
    return (
        rng.random((n, bits)) < 0.5,
        rng.random((n, labels)) < rate,
        rng.random((m, bits)) < 0.5,
        rng.random((m, labels)) < rate,
    )


datasets = st.builds(
    make_data,
    seed=st.integers(0, 2**32),
    n=st.integers(1, 6),
    m=st.integers(1, 25),
    bits=st.sampled_from([1, 3, 6, 70]),
    labels=st.sampled_from([1, 4, 70]),
    rate=st.sampled_from([0.02, 0.3]),
)


def distances_and_relevance(data):
    """For every query with something relevant: distances (m,) and relevance (m,), from the tables themselves."""
    queries, query_labels, database, database_labels = (np.asarray(x).astype(bool) for x in data)
    pairs = [
        ((code != database).sum(1), (labels & database_labels).any(1))
        for code, labels in zip(queries, query_labels, strict=True)
    ]
    return [(d, r) for d, r in pairs if r.any()]


def make_sets(seed, n, m, bits, labels, codes, query_codes=1):
    """Tables (n, K, q) of codes, which of them are kept, and labels, for queries and database."""
    rng = np.random.default_rng(seed)
    tables = []
    for size, most in ((n, query_codes), (m, codes)):
        kept = rng.random((size, most)) < 0.6
        kept[:, 0] = True
        tables.append((rng.random((size, most, bits)) < 0.5, kept, rng.random((size, labels)) < 0.3))
    return tables


sets = st.builds(
    make_sets,
    seed=st.integers(0, 2**32),
    n=st.integers(1, 4),
    m=st.integers(1, 12),
    bits=st.sampled_from([1, 4, 70]),
    labels=st.sampled_from([1, 4]),
    codes=st.integers(1, 4),
    query_codes=st.integers(1, 3),
)


def packed_sets(tables):
    return [part for bits, kept, labels in tables for part in (CodeSets.of(bits, kept), labels)]


def closest_pairs(tables):
    """As :func:`distances_and_relevance`, the distance of two items from a loop over the codes they keep."""
    (queries, own, query_labels), (database, kept, labels) = tables
    measured = []
    for codes, keeps, label in zip(queries, own, query_labels, strict=True):
        distance = [
            min(int((a != b).sum()) for a in codes[keeps] for b in others[held])
            for others, held in zip(database, kept, strict=True)
        ]
        if (relevant := (labels & label).any(1)).any():
            measured.append((np.array(distance), relevant))
    return measured


def sorted_average_precision(distance, relevant, tiebreak, topk):
    shown = relevant[np.lexsort((tiebreak, distance))][:topk]
    ranks = np.flatnonzero(shown) + 1
    return np.sum(np.arange(1, len(ranks) + 1) / ranks) / min(relevant.sum(), len(shown))


@given(datasets, st.none() | st.integers(1, 30))
def test_bounds_are_rankings_sorted_with_the_labels_in_sight(data, topk):
    measured = distances_and_relevance(data)
    assume(measured)
    result = evaluate(*data, topk=topk)
    best = np.mean([sorted_average_precision(d, r, ~r, topk) for d, r in measured])
    worst = np.mean([sorted_average_precision(d, r, r, topk) for d, r in measured])
    assert result.map_optimistic == pytest.approx(best, abs=1e-12)
    assert result.map_pessimistic == pytest.approx(worst, abs=1e-12)
    assert worst - 1e-12 <= result.map <= best + 1e-12
    assert (result.queries, result.queries_without_relevant) == (len(measured), len(data[0]) - len(measured))


@given(sets, st.none() | st.integers(1, 12))
def test_measures_of_code_sets_take_the_least_distance(tables, topk):
    measured, data = closest_pairs(tables), packed_sets(tables)
    assume(measured)
    bits, size = data[0].bits, len(data[2])
    # What the ranking by these distances scores: as many one-code items, at their distance from one zero query.
    scores = []
    for distance, relevant in measured:
        codes = np.tri(bits + 1, bits, -1, dtype=bool)[distance]
        one = (np.zeros((1, bits), bool), [[1]], codes, relevant[:, None])
        scores.append(evaluate(*one, topk=topk, precision_at=(1, size), radius=1))
    result = evaluate(*data, topk=topk, precision_at=(1, size), radius=1)
    for name in ("map", "map_optimistic", "map_pessimistic", "precision_within", "recall_within"):
        assert getattr(result, name) == pytest.approx(np.mean([getattr(s, name) for s in scores]), abs=1e-12)
    for k in (1, size):
        assert result.precision_at[k] == pytest.approx(np.mean([s.precision_at[k] for s in scores]), abs=1e-12)
        assert precision_at(k, *data) == pytest.approx(result.precision_at[k], abs=1e-12)
    own_bucket = [relevant[distance == 0] for distance, relevant in measured]
    assert result.precision_by_radius[0] == pytest.approx(np.mean([r.mean() if r.size else 0 for r in own_bucket]))
    recalls = [hits.sum() / r.sum() for hits, (_, r) in zip(own_bucket, measured, strict=True)]
    assert result.recall_by_radius[0] == pytest.approx(np.mean(recalls))
    assert mean_average_precision(*data, topk=topk) == pytest.approx(result.map, abs=1e-12)
    assert precision_within(*data, radius=1) == pytest.approx(result.precision_within, abs=1e-12)
    assert recall_within(*data, radius=1) == pytest.approx(result.recall_within, abs=1e-12)
    np.testing.assert_allclose(precision_recall_by_radius(*data)[1], result.recall_by_radius)


@given(sets)
def test_sets_that_keep_one_code_are_plain_codes(tables):
    data = [part for bits, kept, labels in tables for part in (bits[:, 0], labels)]
    assume(distances_and_relevance(data))
    first = [(bits, np.arange(bits.shape[1]) == np.zeros((len(bits), 1)), labels) for bits, _, labels in tables]
    plain, single = evaluate(*data, precision_at=(1,)), evaluate(*packed_sets(first), precision_at=(1,))
    for one, other in zip(dataclasses.astuple(plain), dataclasses.astuple(single), strict=True):
        np.testing.assert_equal(one, other)


@given(sets)
def test_one_code_more_never_lowers_recall(tables):
    assume(closest_pairs(tables))
    queries, (bits, kept, labels) = tables
    fewer = kept & (np.arange(kept.shape[1]) < kept.shape[1] - 1) | (np.arange(kept.shape[1]) == 0)
    less, more = (precision_recall_by_radius(*packed_sets([queries, (bits, k, labels)]))[1] for k in (fewer, kept))
    assert (more >= less - 1e-12).all()


def test_code_sets_worked_by_hand():
    # The second image's own code is far from the query, its region's code is the query's; the third is not relevant.
    database = CodeSets.of([[[1, 0], [1, 0]], [[1, 1], [0, 0]], [[0, 0], [1, 1]]])
    result = evaluate([[0, 0]], [[1]], database, [[1], [1], [0]])
    assert result.recall_by_radius.tolist() == [0.5, 1, 1]
    assert result.precision_by_radius.tolist() == pytest.approx([0.5, 2 / 3, 2 / 3])
    assert result.map == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2)


@pytest.mark.parametrize("topk", [None, 10])
def test_map_is_what_random_orders_of_ties_give_on_average(topk):
    data = make_data(5, 10, 60, 5, 4)
    measured = distances_and_relevance(data)
    rng = np.random.default_rng(0)
    sampled = [
        np.mean([sorted_average_precision(d, r, rng.random(len(d)), topk) for d, r in measured]) for _ in range(1000)
    ]
    tolerance = 4 * np.std(sampled) / np.sqrt(len(sampled))
    assert tolerance < 0.01
    assert mean_average_precision(*data, topk=topk) == pytest.approx(np.mean(sampled), abs=tolerance)


def test_without_ties_map_is_the_textbook_one_and_ties_do_not_matter():
    # Database codes at distance 0, 1, ..., 8 from the query; relevant at ranks 1, 4 and 9.
    database = np.tri(9, 8, -1, dtype=bool)
    labels = np.isin(np.arange(9), [0, 3, 8]).astype(np.uint8)[:, None]
    data = (np.zeros((1, 8), bool), [[1]], database, labels)
    for ties in ("average", "best", "worst"):
        assert mean_average_precision(*data, ties=ties) == pytest.approx((1 + 2 / 4 + 3 / 9) / 3)
        assert mean_average_precision(*data, ties=ties, topk=5) == pytest.approx((1 + 2 / 4) / 3)
        assert mean_average_precision(*data, ties=ties, topk=5, denominator="retrieved") == pytest.approx(1.5 / 2)
    assert precision_at(4, *data) == pytest.approx(2 / 4)
    assert precision_within(*data, radius=2) == pytest.approx(1 / 3)
    assert recall_within(*data, radius=3) == pytest.approx(2 / 3)


@given(datasets, st.data())
def test_precision_at_k_is_the_expected_share_of_hits(data, draw):
    measured = distances_and_relevance(data)
    assume(measured)
    k = draw.draw(st.integers(1, len(data[2])))
    expected = []
    for distance, relevant in measured:
        # Everything nearer than the k-th item is shown, and of those as far as it the same share of each.
        edge = np.sort(distance)[k - 1]
        rest = k - (distance < edge).sum()
        expected.append((relevant[distance < edge].sum() + rest * relevant[distance == edge].mean()) / k)
    assert precision_at(k, *data) == pytest.approx(np.mean(expected), abs=1e-12)


@given(datasets)
def test_lookups_within_a_radius(data):
    measured = distances_and_relevance(data)
    assume(measured)
    precision, recall = precision_recall_by_radius(*data)
    bits = data[0].shape[1]
    assert precision.shape == recall.shape == (bits + 1,)
    for radius in range(bits + 3):
        found = [(r[d <= radius], r) for d, r in measured]
        expected_precision = np.mean([hits.mean() if hits.size else 0.0 for hits, _ in found])
        expected_recall = np.mean([hits.sum() / r.sum() for hits, r in found])
        assert precision_within(*data, radius=radius) == pytest.approx(expected_precision, abs=1e-12)
        assert recall_within(*data, radius=radius) == pytest.approx(expected_recall, abs=1e-12)
        if radius <= bits:
            assert precision[radius] == pytest.approx(expected_precision, abs=1e-12)
            assert recall[radius] == pytest.approx(expected_recall, abs=1e-12)
    assert recall[-1] == 1


def test_an_empty_lookup_scores_zero():
    data = ([[0, 0, 0]], [[1]], [[1, 1, 1]], [[1]])
    assert (precision_within(*data), recall_within(*data)) == (0, 0)
    assert (precision_within(*data, radius=3), recall_within(*data, radius=3)) == (1, 1)


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_evaluate_gives_what_the_single_measures_give(backend):
    data = make_data(1, 30, 300, 10, 4)
    result = evaluate(*data, topk=50, precision_at=(1, 20), radius=3, backend=backend)
    assert result.map == pytest.approx(mean_average_precision(*data, topk=50))
    assert result.map_optimistic == pytest.approx(mean_average_precision(*data, topk=50, ties="best"))
    assert result.map_pessimistic == pytest.approx(mean_average_precision(*data, topk=50, ties="worst"))
    assert result.precision_at == pytest.approx({1: precision_at(1, *data), 20: precision_at(20, *data)})
    assert result.precision_within == pytest.approx(precision_within(*data, radius=3))
    assert result.recall_within == pytest.approx(recall_within(*data, radius=3))
    precision, recall = precision_recall_by_radius(*data)
    np.testing.assert_allclose(result.precision_by_radius, precision)
    np.testing.assert_allclose(result.recall_by_radius, recall)
    assert (result.topk, result.radius) == (50, 3)
    retrieved = evaluate(*data, topk=50, denominator="retrieved", backend=backend)
    assert retrieved.map == pytest.approx(mean_average_precision(*data, topk=50, denominator="retrieved"))
    assert retrieved.map != result.map


def test_blocks_of_queries_change_nothing(monkeypatch):
    data = make_data(2, 50, 40, 8, 70, rate=0.02)  # some queries have nothing relevant
    whole = evaluate(*data, topk=7, precision_at=(3,))
    assert 0 < whole.queries_without_relevant < 50
    monkeypatch.setattr(metrics, "_QUERIES", 7)
    for one, other in zip(
        dataclasses.astuple(whole), dataclasses.astuple(evaluate(*data, topk=7, precision_at=(3,))), strict=True
    ):
        assert other == pytest.approx(one)


def test_the_order_of_the_database_changes_nothing():
    queries, query_labels, database, database_labels = make_data(3, 20, 400, 6, 3)
    order = np.argsort(database_labels[:, 0])  # sorted by class, what makes untied measures lie
    one = evaluate(queries, query_labels, database, database_labels, topk=30)
    other = evaluate(queries, query_labels, database[order], database_labels[order], topk=30)
    assert one.map == other.map


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({0: np.ones((4, 9), bool)}, "query codes have 9 bits, database codes 8"),
        ({1: np.ones((4, 2), bool)}, "query labels have 2 columns, database labels 3"),
        ({1: np.ones((5, 3), bool)}, "4 query codes, but labels for 5"),
        ({3: np.ones((5, 3), bool)}, "6 database codes, but labels for 5"),
        ({0: np.ones((4, 8), np.float32)}, "query codes: .*float32; threshold"),
        ({2: np.full((6, 8), -1)}, "database codes: bits must be 0 or 1"),
        (
            {3: np.arange(6)},
            r"database labels must be a 0/1 table .*\(6,\); convert classes y by `y\[:, None\] == cl",
        ),
        ({0: np.ones((0, 8), bool), 1: np.ones((0, 3), bool)}, "query codes must be .* not empty"),
        ({2: np.ones((0, 8), bool), 3: np.ones((0, 3), bool)}, "database codes must be .* not empty"),
        ({1: np.zeros((4, 3), bool)}, "no query has a relevant item"),
        ({2: CodeSets.of(np.ones((6, 2, 9), bool))}, "query codes have 8 bits, database codes 9"),
        ({2: CodeSets.of(np.ones((5, 2, 8), bool))}, "5 database codes, but labels for 6"),
    ],
)
def test_wrong_data_is_named(change, reason):
    data = [np.ones((4, 8), bool), np.ones((4, 3), bool), np.ones((6, 8), bool), np.ones((6, 3), bool)]
    for index, table in change.items():
        data[index] = table
    for measure in (evaluate, mean_average_precision, precision_recall_by_radius, precision_within, recall_within):
        with pytest.raises(ValueError, match=reason):
            measure(*data)
    with pytest.raises(ValueError, match=reason):
        precision_at(1, *data)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"topk": 0}, "topk must be at least 1"),
        ({"topk": 2.5}, "topk must be an integer, got 2.5"),
        ({"topk": True}, "topk must be an integer, got True"),
        ({"radius": 1.0}, "radius must be an integer, got 1.0"),
        ({"precision_at": (2.5,)}, "precision at 2.5: the rank must be an integer"),
        ({"denominator": "all"}, "denominator must be"),
        ({"radius": -1}, "radius must be at least 0"),
        ({"precision_at": (0,)}, "precision at 0"),
        ({"precision_at": (5, 26)}, "precision at 26: .* the 25 database items"),
        ({"backend": "gpu"}, "backend must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        evaluate(*make_data(4, 3, 25, 8, 2, rate=1.0), **arguments)


def test_numpy_integers_are_integers():
    data = make_data(4, 3, 25, 8, 2, rate=1.0)
    got = evaluate(*data, topk=np.int64(3), radius=np.uint8(2), precision_at=(np.int32(5),))
    wanted = evaluate(*data, topk=3, radius=2, precision_at=(5,))
    assert (got.map, got.precision_within, got.precision_at[5]) == (
        wanted.map,
        wanted.precision_within,
        wanted.precision_at[5],
    )


def test_labels_of_one_class_measure_nothing():
    """Any codes at all score 1 on them: a warning with the numbers, and an error before long work."""
    rng = np.random.default_rng(0)
    queries, database = rng.random((3, 8)) < 0.5, rng.random((20, 8)) < 0.5
    one, one_of_two = np.ones((20, 1), np.uint8), np.tile(np.array([[0, 1]], np.uint8), (20, 1))
    for labels in (one, one_of_two):
        for measure in (mean_average_precision, partial(precision_within, radius=8)):
            with pytest.warns(UserWarning, match="at least two classes") as caught:
                assert measure(queries, labels[:3], database, labels) == 1
            assert caught[0].filename == __file__
        with pytest.raises(ValueError, match="at least two classes"):
            metrics.check_labels(labels[:3], labels)
    nobody = np.zeros((20, 2), np.uint8)
    with pytest.raises(ValueError, match="no query has a relevant item"):
        metrics.check_labels(one_of_two[:3], nobody)
    for wrong in (np.arange(20), np.eye(20, 3)):
        with pytest.raises(ValueError, match=r"labels must be multi-hot, \(n, L\) and \(m, L\), got .*np.eye"):
            metrics.check_labels(wrong, one_of_two)
    two = one_of_two.copy()
    two[7] = [1, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.check_labels(one_of_two[:3], two)
        assert mean_average_precision(queries, one_of_two[:3], database, two) < 1
