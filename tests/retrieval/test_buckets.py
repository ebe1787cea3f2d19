"""The table of buckets against Algorithm 1 of MCH, walked bucket by bucket, and against distances to everything."""

from __future__ import annotations

import itertools
import math
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hashgym import codes
from hashgym.codes import CodeSets
from hashgym.retrieval import BucketTable, f1_bucket_curve, recall_within

BACKENDS = ["numpy", "numba"] if find_spec("numba") else ["numpy"]
backends = pytest.mark.parametrize("backend", BACKENDS)


def make_sets(seed, n, bits, most, spread=0.5, rate=0.5):
    rng = np.random.default_rng(seed)
    kept = rng.random((n, most)) < rate
    kept[:, 0] = True
    return CodeSets.of((rng.random(bits) < 0.5) ^ (rng.random((n, most, bits)) < spread), kept)


short = st.builds(
    make_sets,
    seed=st.integers(0, 2**32),
    n=st.integers(1, 30),
    bits=st.integers(1, 8),
    most=st.integers(1, 4),
    spread=st.sampled_from([0.1, 0.5]),
)
long = st.builds(
    make_sets,
    seed=st.integers(0, 2**32),
    n=st.integers(1, 40),
    bits=st.sampled_from([32, 64, 65, 128]),
    most=st.integers(1, 3),
    spread=st.sampled_from([0.0, 0.02, 0.5]),
)


def number(bits):
    return sum(1 << b for b, bit in enumerate(bits) if bit)


def buckets_of(sets):
    """Images by the number that a code is."""
    table = {}
    for image, (words, kept) in enumerate(zip(sets.words, sets.kept, strict=True)):
        for code in codes.unpack(words[kept], sets.bits):
            table.setdefault(number(code), []).append(image)
    return table


def walk(sets, query):
    """Every bucket there is, in the order of visiting: its distance and the images not found before."""
    table, found = buckets_of(sets), set()
    for radius in range(sets.bits + 1):
        for mask in sorted(
            sum(1 << b for b in flipped) for flipped in itertools.combinations(range(sets.bits), radius)
        ):
            images = [image for image in table.get(number(query) ^ mask, []) if image not in found]
            found.update(images)
            yield radius, images


def algorithm_1(sets, query, k):
    ids, distances = [], []
    for visited, (radius, images) in enumerate(walk(sets, query), start=1):
        ids += images
        distances += [radius] * len(images)
        if len(ids) >= k:
            return ids[:k], distances[:k], visited
    raise AssertionError


def by_brute_force(sets, query, radius):
    """(distance, mask, image) of the images within the radius, sorted, from every pair of codes."""
    rows = []
    for image, (words, kept) in enumerate(zip(sets.words, sets.kept, strict=True)):
        masks = [number(query ^ code) for code in codes.unpack(words[kept], sets.bits)]
        rows.append((*min((mask.bit_count(), mask) for mask in masks), image))
    return sorted(row for row in rows if row[0] <= radius)


def table_of(sets, backend, flips):
    """A table that always flips bits, always scans, or chooses by itself."""
    table = BucketTable(sets, backend)
    if flips is not None:
        table._worth_flipping = lambda radius: flips
    return table


def query_near(sets, seed, flips):
    """A query some bits away from a code."""
    rng = np.random.default_rng(seed)
    code = codes.unpack(sets.words[rng.integers(len(sets)), 0], sets.bits)
    return code ^ (rng.permutation(sets.bits) < min(flips, sets.bits))


ways = st.sampled_from([None, True, False])


@backends
@given(sets=short, seed=st.integers(0, 2**32), flips=ways, data=st.data())
def test_search_is_algorithm_1(backend, sets, seed, flips, data):
    query = np.random.default_rng(seed).random(sets.bits) < 0.5
    k = data.draw(st.integers(1, len(sets)))
    found = table_of(sets, backend, flips).search(query, k)
    assert (found.ids.tolist(), found.distances.tolist(), found.buckets) == algorithm_1(sets, query, k)
    assert isinstance(found.buckets, int)


@backends
@given(sets=short, seed=st.integers(0, 2**32), flips=ways, radius=st.integers(0, 9))
def test_lookup_is_the_search_up_to_its_radius(backend, sets, seed, flips, radius):
    query = np.random.default_rng(seed).random(sets.bits) < 0.5
    ids, distances = table_of(sets, backend, flips).lookup(query, radius)
    expected = [(i, r) for r, images in walk(sets, query) if r <= radius for i in images]
    assert list(zip(ids.tolist(), distances.tolist(), strict=True)) == expected
    assert ids.dtype == distances.dtype == np.int64


@backends
@given(sets=long, seed=st.integers(0, 2**32), flips=st.sampled_from([None, False]), near=st.integers(0, 3))
def test_long_codes_against_all_distances(backend, sets, seed, flips, near):
    query = query_near(sets, seed, near)
    table = table_of(sets, backend, flips)
    for radius in (0, 1, 2, sets.bits // 2, sets.bits):
        expected = by_brute_force(sets, query, radius)
        ids, distances = table.lookup(query, radius)
        assert ids.tolist() == [image for *_, image in expected]
        assert distances.tolist() == [distance for distance, *_ in expected]
    assert len(ids) == len(set(ids.tolist())) == len(sets)
    for k in {1, len(sets)}:
        found = table.search(query, k)
        assert found.ids.tolist() == ids[:k].tolist()
        assert found.distances.tolist() == distances[:k].tolist()


@backends
@given(sets=long, seed=st.integers(0, 2**32), near=st.integers(0, 2))
@settings(max_examples=20)
def test_flips_of_long_codes(backend, sets, seed, near):
    query, table = query_near(sets, seed, near), table_of(sets, backend, True)
    ids, distances = table.lookup(query, 2)
    assert list(zip(distances, ids, strict=True)) == [(d, image) for d, _, image in by_brute_force(sets, query, 2)]


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("bits", [9, 64, 70])
def test_buckets_visited_of_long_codes(bits, flips):
    query = np.random.default_rng(bits).random(bits) < 0.5
    visited = 0
    for radius in range(3):
        for order, chosen in enumerate(sorted(itertools.combinations(range(bits), radius), key=lambda c: c[::-1])):
            visited += 1
            if order % 97 == 0 or order == math.comb(bits, radius) - 1:
                code = query.copy()
                code[list(chosen)] ^= True
                assert table_of(code[None], "numpy", flips).search(query, 1).buckets == visited


def test_the_farthest_bucket_is_the_last_of_all():
    for bits in (1, 32, 63, 64, 65, 200):
        query = np.arange(bits) % 3 == 0
        table = BucketTable(~query[None])
        assert table.search(query, 1).buckets == 2**bits
        # All but bit 0 flipped is the last bucket at its distance.
        assert table.search(query ^ (np.arange(bits) == 0), 1).buckets == 2**bits - 1


@backends
@given(sets=st.one_of(short, long), seed=st.integers(0, 2**32), flips=st.sampled_from([None, False]))
def test_many_lookups_are_single_ones(backend, sets, seed, flips):
    queries = np.array([query_near(sets, seed + i, i) for i in range(4)])
    table = table_of(sets, backend, flips)
    for radius in (0, 1, 3):
        offsets, ids, distances = table.lookup_many(queries, radius)
        packed = table.lookup_many(codes.pack(queries), radius)
        assert (offsets[0], offsets[-1], len(offsets)) == (0, len(ids), 5)
        assert offsets.dtype == ids.dtype == distances.dtype == np.int64
        for i, query in enumerate(queries):
            own = slice(offsets[i], offsets[i + 1])
            for given_as in (query, codes.pack(query), query.astype(int).tolist()):
                np.testing.assert_array_equal((ids[own], distances[own]), table.lookup(given_as, radius))
        for one, other in zip((offsets, ids, distances), packed, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="numba is not installed")
@pytest.mark.parametrize(("bits", "spread"), [(16, 0.2), (32, 0.03), (70, 0.02)])
def test_backends_agree_on_a_large_table(bits, spread):
    sets = make_sets(1, 8_000, bits, 4, spread)  # crowded buckets; more keys than NumPy takes at once
    queries = codes.unpack(sets.words[:200, 0], bits)
    plain, compiled = (BucketTable(sets, backend) for backend in BACKENDS)
    for radius in (0, 1, 2):
        for one, other in zip(plain.lookup_many(queries, radius), compiled.lookup_many(queries, radius), strict=True):
            np.testing.assert_array_equal(one, other)
    distance = codes.hamming(codes.pack(queries)[:, None, None], sets.filled).min(axis=2)
    np.testing.assert_array_equal(np.diff(plain.lookup_many(queries, 2)[0]), (distance <= 2).sum(axis=1))


@given(short, st.integers(0, 2**32))
def test_rows_of_the_database_may_come_in_any_order(sets, seed):
    rng = np.random.default_rng(seed)
    order, queries = rng.permutation(len(sets)), rng.random((3, sets.bits)) < 0.5
    for query in queries:
        one, other = (dict(zip(*BucketTable(s).lookup(query, 3), strict=True)) for s in (sets, sets[order]))
        assert one == {order[i]: d for i, d in other.items()}


@given(short, st.integers(0, 2**32))
def test_lookups_give_the_recall_that_the_metrics_count(sets, seed):
    rng = np.random.default_rng(seed)
    queries, labels, own = rng.random((3, sets.bits)) < 0.5, rng.random((len(sets), 2)) < 0.5, rng.random((3, 2)) < 0.8
    relevant = (own[:, None] & labels).any(axis=2)
    assume(relevant.any())
    table = BucketTable(sets)
    for radius in (0, 1, 2):
        hits = [
            r[table.lookup(q, radius)[0]].sum() / r.sum() for q, r in zip(queries, relevant, strict=True) if r.any()
        ]
        assert recall_within(queries, own, sets, labels, radius=radius) == pytest.approx(np.mean(hits))


def naive_curve(sets, queries, relevant, k):
    """F1 and buckets of the first k images: the mean over every choice of images from the last bucket."""
    scores, buckets = [], []
    for query, wanted in zip(queries, relevant, strict=True):
        if not wanted.any():
            continue
        found = []
        for visited, (_, images) in enumerate(walk(sets, query), start=1):
            if len(found) + len(images) >= k:
                buckets.append(visited)
                break
            found += images
        hits = [wanted[[*found, *part]].sum() for part in itertools.combinations(images, k - len(found))]
        scores.append(np.mean([2 * h / (k + wanted.sum()) for h in hits]))
    return np.mean(scores), np.mean(buckets)


@given(sets=short, seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_f1_bucket_curve_is_the_mean_over_orders_of_the_last_bucket(sets, seed):
    sets, rng = sets[:12], np.random.default_rng(seed)
    queries, labels, own = rng.random((3, sets.bits)) < 0.5, rng.random((len(sets), 3)) < 0.4, rng.random((3, 3)) < 0.5
    relevant = (own[:, None] & labels).any(axis=2)
    assume(relevant.any())
    ks = [len(sets), *range(1, len(sets) + 1)]  # in any order, and twice
    f1, buckets = f1_bucket_curve(queries, own, sets, labels, ks)
    expected = [naive_curve(sets, queries, relevant, k) for k in ks]
    np.testing.assert_allclose(np.transpose([f1, buckets]), expected, rtol=1e-12)
    order = rng.permutation(len(sets))
    again = f1_bucket_curve(codes.pack(queries), own, BucketTable(sets[order]), labels[order], ks)
    np.testing.assert_allclose(again, (f1, buckets), rtol=1e-12)


def test_f1_bucket_curve_worked_by_hand():
    # Query 00. Images 0 and 1 in its bucket (0 relevant), 2 (relevant) in bucket 2 away and, by a region, in 10.
    database = CodeSets.of([[[0, 0], [0, 0]], [[0, 0], [1, 1]], [[1, 1], [0, 1]]])
    f1, buckets = f1_bucket_curve([[0, 0]], [[1]], database, [[1], [0], [1]], [1, 2, 3])
    assert f1 == pytest.approx([2 * 0.5 / 3, 2 * 1 / 4, 2 * 2 / 5])
    assert buckets.tolist() == [1, 1, 3]  # 00; then 10 (mask 1, empty) and 01 (mask 2)
    found = BucketTable(database).search([0, 0], 3)
    assert (found.ids.tolist(), found.distances.tolist(), found.buckets) == ([0, 1, 2], [0, 0, 1], 3)


TABLE = BucketTable(np.eye(5, 8, dtype=bool))
CODE, LABELS = np.zeros(8, bool), np.ones((5, 2), bool)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: TABLE.lookup(CODE[:7]), r"codes of 8 bits: queries are bits of shape \(8,\), got \(7,\)"),
        (lambda: TABLE.lookup(CODE[None]), r"\(8,\), got \(1, 8\)"),
        (lambda: TABLE.lookup_many(CODE), r"\(n, 8\), got \(8,\)"),
        (lambda: TABLE.lookup_many(np.zeros((0, 8), bool)), r"got \(0, 8\)"),
        (lambda: TABLE.lookup(np.zeros(2, np.uint64)), r"packed words, uint64 \(1,\), got \(2,\)"),
        (lambda: TABLE.lookup(np.array([256], np.uint64)), "bits set beyond bit 7"),
        (lambda: TABLE.lookup(CODE.astype(float)), "threshold"),
        (lambda: TABLE.lookup(CODE, -1), "radius must be at least 0, got -1"),
        (lambda: TABLE.search(CODE, 0), "between 1 and the 5 indexed, got 0"),
        (lambda: TABLE.search(CODE, 6), "between 1 and the 5 indexed, got 6"),
        (lambda: BucketTable(np.zeros((0, 8), bool)), "not empty"),
        (lambda: BucketTable(np.zeros((2, 3, 8), bool)), r"got shape \(2, 3, 8\)"),
        (lambda: BucketTable(np.zeros((2, 8))), "threshold"),
        (lambda: BucketTable(np.zeros((2, 8), bool), "gpu"), "backend must be"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[:1], TABLE, LABELS, []), "ks must be a list"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[:1], TABLE, LABELS, [0.5]), "ks must be a list"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[:1], TABLE, LABELS, [1, 6]), "got 6"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[:1], TABLE, LABELS, [3, 0]), "got 0"),
        (lambda: f1_bucket_curve(CODE[None], LABELS, TABLE, LABELS, [1]), "1 query codes, but labels for 5"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[:1], TABLE, LABELS[:4], [1]), "5 database codes, but labels for 4"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[:1, :1], TABLE, LABELS, [1]), "1 columns, database labels 2"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[:1], TABLE, LABELS * 2, [1]), "database labels: .* 0 or 1"),
        (lambda: f1_bucket_curve(CODE[None], LABELS[0], TABLE, LABELS, [1]), "query labels must be a 0/1 table"),
        (lambda: f1_bucket_curve(CODE[None], ~LABELS[:1], TABLE, LABELS, [1]), "no query has a relevant item"),
    ],
)
def test_wrong_arguments_are_named(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
