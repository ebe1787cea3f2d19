"""The kernels against loops over bits, over single items and over every order of tied items."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes
from hashgym.retrieval import average_precision, average_precision_credit, distance_histograms

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
backends = pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=needs_numba)])


@dataclass(frozen=True)
class Problem:
    queries: np.ndarray
    query_labels: np.ndarray
    database: np.ndarray
    database_labels: np.ndarray
    exclude: np.ndarray

    @property
    def packed(self):
        tables = (self.queries, self.query_labels, self.database, self.database_labels)
        return (*map(codes.pack, tables), self.queries.shape[1])

    def neighbours(self, i, code=None):
        """Distance and relevance of every database item that is not left out, item by item."""
        code = self.queries[i] if code is None else code
        return [
            (
                sum(a != b for a, b in zip(code, item, strict=True)),
                any(a and b for a, b in zip(self.query_labels[i], labels, strict=True)),
            )
            for j, (item, labels) in enumerate(zip(self.database, self.database_labels, strict=True))
            if j != self.exclude[i]
        ]


def make_problem(seed, n, m, bits, labels, spread=0.5, rate=0.3):
    """Codes a few flips from one another, so that many distances are the same."""
    rng = np.random.default_rng(seed)
    center = rng.random(bits) < 0.5
    return Problem(
        center ^ (rng.random((n, bits)) < spread),
        rng.random((n, labels)) < rate,
        center ^ (rng.random((m, bits)) < spread),
        rng.random((m, labels)) < rate,
        rng.integers(-1, m, n),
    )


problems = st.builds(
    make_problem,
    seed=st.integers(0, 2**32),
    n=st.integers(1, 4),
    m=st.integers(1, 12),
    bits=st.sampled_from([1, 2, 5, 8, 12, 63, 64, 65, 130]),
    labels=st.sampled_from([1, 3, 64, 65, 130]),
    spread=st.sampled_from([0.0, 0.05, 0.5]),
    rate=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)


@st.composite
def code_sets(draw):
    """Code sets of 1 to 3 queries and 1 to 8 items, few bits apart, and labels."""
    bits, rng = draw(st.sampled_from([1, 5, 64, 70])), np.random.default_rng(draw(st.integers(0, 2**32)))
    n, m, spread = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.sampled_from([0.05, 0.5]))
    sides = []
    for size, most in ((n, draw(st.integers(1, 3))), (m, draw(st.integers(1, 4)))):
        kept = rng.random((size, most)) < 0.6
        kept[:, 0] = True
        sides.append((codes.CodeSets.of(rng.random((size, most, bits)) < spread, kept), rng.random((size, 3)) < 0.4))
    return (*sides, rng.integers(-1, m, n))


def naive_average_precision(neighbours):
    """Tie-aware AP position by position; 0 where nothing is relevant."""
    score, hits, seen = 0.0, 0, 0
    for _, tied in itertools.groupby(sorted(neighbours), key=lambda item: item[0]):
        relevant = [similar for _, similar in tied]
        r, n = sum(relevant), len(relevant)
        for i in range(n):
            score += r / n * (hits + 1 + (i * (r - 1) / (n - 1) if n > 1 else 0)) / (seen + i + 1)
        hits, seen = hits + r, seen + n
    return score / hits if hits else 0.0


def ap_of_order(relevant, topk, denominator):
    shown = relevant[:topk]
    precisions = [sum(shown[: i + 1]) / (i + 1) for i, hit in enumerate(shown) if hit]
    divisor = sum(shown) if denominator == "retrieved" else min(sum(relevant), len(shown))
    return sum(precisions) / divisor if divisor else 0.0


def orders(relevant, total):
    """Every order of relevance that the histograms allow, all equally likely."""
    groups = [
        [[i in chosen for i in range(n)] for chosen in itertools.combinations(range(n), r)]
        for r, n in zip(relevant, total, strict=True)
    ]
    return [list(itertools.chain(*parts)) for parts in itertools.product(*groups)]


rankings = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4).filter(
    lambda groups: any(r for r, _ in groups) and math.prod(math.comb(r + i, r) for r, i in groups) < 2000
)
cuts = st.none() | st.integers(1, 14)
denominators = st.sampled_from(["attainable", "retrieved"])


def histograms_of(groups):
    relevant, irrelevant = np.array(groups).T
    return relevant, relevant + irrelevant


@backends
@given(problem=problems)
def test_histograms_count_every_item_once(backend, problem):
    relevant, total = distance_histograms(*problem.packed, problem.exclude, backend=backend)
    assert relevant.dtype == total.dtype == np.int64
    for i in range(len(problem.queries)):
        neighbours, distances = problem.neighbours(i), range(problem.queries.shape[1] + 1)
        assert total[i].tolist() == [sum(d == at for d, _ in neighbours) for at in distances]
        assert relevant[i].tolist() == [sum(d == at and similar for d, similar in neighbours) for at in distances]


@backends
@given(problem=code_sets())
def test_items_with_several_codes_are_as_far_as_their_closest_pair(backend, problem):
    (queries, query_labels), (database, database_labels), exclude = problem
    expected = np.zeros((2, len(queries), queries.bits + 1), np.int64)
    for i, j in np.ndindex(len(queries), len(database)):
        if j != exclude[i]:
            own, other = queries.words[i][queries.kept[i]], database.words[j][database.kept[j]]
            distance = min(int(np.bitwise_count(a ^ b).sum()) for a in own for b in other)
            expected[:, i, distance] += [(query_labels[i] & database_labels[j]).any(), 1]
    labels = codes.pack(query_labels), codes.pack(database_labels)
    got = distance_histograms(
        queries.filled, labels[0], database.filled, labels[1], queries.bits, exclude, backend=backend
    )
    np.testing.assert_array_equal(got, expected)


@backends
@given(problem=problems)
@settings(max_examples=20)
def test_one_code_in_a_set_or_many_times_the_same_is_one_code(backend, problem):
    queries, query_labels, database, database_labels, bits = problem.packed
    expected = distance_histograms(*problem.packed, problem.exclude, backend=backend)
    for own, others in itertools.product((queries[:, None], np.stack([queries] * 3, 1)), (database, database[:, None])):
        got = distance_histograms(own, query_labels, others, database_labels, bits, problem.exclude, backend=backend)
        np.testing.assert_array_equal(got, expected)


@needs_numba
def test_backends_agree_on_many_code_sets():
    rng = np.random.default_rng(5)
    queries, database = codes.pack(rng.random((30, 2, 70)) < 0.5), codes.pack(rng.random((9_000, 5, 70)) < 0.5)
    labels = codes.pack(rng.random((30, 9)) < 0.2), codes.pack(rng.random((9_000, 9)) < 0.2)
    results = [distance_histograms(queries, labels[0], database, labels[1], 70, backend=b) for b in ("numpy", "numba")]
    np.testing.assert_array_equal(*results)


@given(rankings, cuts, denominators)
def test_average_precision_is_the_mean_over_all_orders_of_ties(groups, topk, denominator):
    relevant, total = histograms_of(groups)
    expected = np.mean([ap_of_order(order, topk, denominator) for order in orders(relevant, total)])
    assert average_precision(relevant, total, topk, denominator=denominator) == pytest.approx(expected, abs=1e-12)


@given(rankings, cuts, denominators)
def test_best_and_worst_put_relevant_items_first_and_last(groups, topk, denominator):
    relevant, total = histograms_of(groups)
    for ties, key in (("best", lambda item: (item[0], not item[1])), ("worst", lambda item: item)):
        items = [(d, i < r) for d, (r, n) in enumerate(zip(relevant, total, strict=True)) for i in range(n)]
        order = [similar for _, similar in sorted(items, key=key)]
        got = average_precision(relevant, total, topk, ties, denominator)
        assert got == pytest.approx(ap_of_order(order, topk, denominator), abs=1e-12)


@given(rankings, cuts)
def test_no_order_lies_outside_the_bounds(groups, topk):
    relevant, total = histograms_of(groups)
    scores = [ap_of_order(order, topk, "attainable") for order in orders(relevant, total)]
    assert average_precision(relevant, total, topk, "worst") == pytest.approx(min(scores), abs=1e-12)
    assert average_precision(relevant, total, topk, "best") == pytest.approx(max(scores), abs=1e-12)


def test_average_precision_worked_by_hand():
    # One relevant of two at distance 0, one relevant at distance 1: orders RIR and IRR.
    relevant, total = np.array([1, 1]), np.array([2, 1])
    assert average_precision(relevant, total) == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    # Cut at 1: the first is a hit half the time; one hit is all that a cut at 1 can show.
    assert average_precision(relevant, total, topk=1) == pytest.approx(1 / 2)
    # One hit at rank 1 of 10 relevant items, cut at 2: half of what was attainable, but all that was retrieved.
    relevant, total = np.array([1, 0, 9]), np.array([1, 1, 9])
    assert average_precision(relevant, total, topk=2) == pytest.approx(1 / 2)
    assert average_precision(relevant, total, topk=2, denominator="retrieved") == pytest.approx(1)


@given(st.lists(rankings.filter(lambda groups: len(groups) == 3), min_size=2, max_size=4), cuts, denominators)
@settings(max_examples=25)
def test_average_precision_works_on_every_leading_axis(rows, topk, denominator):
    relevant, total = map(np.stack, zip(*map(histograms_of, rows), strict=True))
    together = average_precision(relevant[None], total[None], topk, denominator=denominator)
    each = [average_precision(r, t, topk, denominator=denominator) for r, t in zip(relevant, total, strict=True)]
    np.testing.assert_array_equal(together, [each])


@pytest.mark.parametrize("denominator", ["attainable", "retrieved"])
@pytest.mark.parametrize("topk", [None, 2])
def test_average_precision_without_anything_relevant_is_nan(topk, denominator):
    score = average_precision(np.array([[0, 0], [0, 1]]), np.array([[3, 4], [3, 4]]), topk, denominator=denominator)
    assert np.isnan(score).tolist() == [True, False]


def test_a_large_cut_through_ties_stays_exact():
    # 40,000 of 100,000 tied items are relevant and 5,000 are shown: all precisions are 0.4 but for the luck at first.
    relevant, total = np.array([40_000]), np.array([100_000])
    rng = np.random.default_rng(0)
    sampled = []
    for _ in range(200):
        hits = rng.permutation(total[0])[:5000] < relevant[0]
        ranks = np.flatnonzero(hits) + 1
        sampled.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    got = average_precision(relevant, total, 5000, denominator="retrieved")
    assert got == pytest.approx(np.mean(sampled), abs=4 * np.std(sampled) / np.sqrt(len(sampled)))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"topk": 0}, "topk must be at least 1"),
        ({"topk": -1}, "topk must be at least 1"),
        ({"ties": "random"}, "ties must be"),
        ({"denominator": "hits"}, "denominator must be"),
        ({"total": np.array([1, 2])}, "one shape"),
    ],
)
def test_average_precision_rejects(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        average_precision(**{"relevant": np.array([1, 0, 1]), "total": np.array([1, 2, 3])} | arguments)


@backends
@given(problem=problems)
@settings(max_examples=50)
def test_credit_is_the_difference_that_flipping_a_bit_makes(backend, problem):
    ap, credit = average_precision_credit(*problem.packed, problem.exclude, backend=backend)
    bits = problem.queries.shape[1]
    for i, code in enumerate(problem.queries):
        assert ap[i] == pytest.approx(naive_average_precision(problem.neighbours(i)), abs=1e-12)
        for b in sorted({0, bits // 2, bits - 1}):
            on, off = (np.where(np.arange(bits) == b, value, code) for value in (True, False))
            expected = naive_average_precision(problem.neighbours(i, on)) - naive_average_precision(
                problem.neighbours(i, off)
            )
            assert credit[i, b] == pytest.approx(expected, abs=1e-12)


@backends
def test_credit_worked_by_hand(backend):
    # The relevant item 11, the other 00: the code 10 ties them (AP 3/4), 11 ranks them right, 00 wrong.
    code, database = codes.pack([[1, 0]]), codes.pack([[1, 1], [0, 0]])
    ap, credit = average_precision_credit(code, codes.pack([[1]]), database, codes.pack([[1], [0]]), 2, backend=backend)
    assert ap == pytest.approx([3 / 4])
    np.testing.assert_allclose(credit, [[3 / 4 - 1 / 2, 1 - 3 / 4]])


@needs_numba
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.5])
@pytest.mark.parametrize(("bits", "labels"), [(12, 3), (48, 81), (70, 130)])
def test_backends_agree_on_sizes_beyond_every_block(spread, bits, labels):
    # More than 255 items in one bucket (byte counters), than a tile of items, and than one thread takes on.
    problem = make_problem(1, 40, 33_000, bits, labels, spread=spread, rate=0.1)
    for plain, compiled in zip(
        *(distance_histograms(*problem.packed, problem.exclude, backend=b) for b in ("numpy", "numba")), strict=True
    ):
        np.testing.assert_array_equal(plain, compiled)
    small = make_problem(1, 30, 5_000, bits, labels, spread=spread, rate=0.1)
    for plain, compiled in zip(
        *(average_precision_credit(*small.packed, small.exclude, backend=b) for b in ("numpy", "numba")), strict=True
    ):
        np.testing.assert_allclose(plain, compiled, rtol=0, atol=1e-13)


@backends
def test_numbers_do_not_depend_on_the_number_of_threads(backend, monkeypatch):
    problem = make_problem(2, 50, 5_000, 24, 10)
    results = []
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(
            (
                *distance_histograms(*problem.packed, problem.exclude, backend=backend),
                *average_precision_credit(*problem.packed, problem.exclude, backend=backend),
            )
        )
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@backends
def test_arrays_may_be_read_only_strided_or_mapped(backend, tmp_path):
    problem = make_problem(3, 5, 200, 70, 70)
    *tables, bits = problem.packed
    expected = average_precision_credit(*tables, bits, problem.exclude, backend=backend)
    strided = [np.repeat(np.repeat(table, 2, 0), 2, 1)[::2, ::2] for table in tables]
    mapped = []
    for i, table in enumerate(tables):
        np.save(tmp_path / f"{i}.npy", table)
        mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    for variant in (strided, mapped):
        got = average_precision_credit(*variant, bits, problem.exclude, backend=backend)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def count_neighbours(problem, results):
    results.put(distance_histograms(*problem.packed)[1].sum())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forked workers are Linux's default only")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_count_too():
    problem = make_problem(4, 50, 5_000, 24, 10)  # large enough for threads
    distance_histograms(*problem.packed)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    worker = context.Process(target=count_neighbours, args=(problem, results))
    worker.start()
    assert results.get(timeout=60) == 50 * 5_000
    worker.join()


def test_without_numba_numpy_is_used_and_the_error_names_the_command():
    program = """
import sys
sys.modules["numba"] = None
import numpy as np
from hashgym import codes
from hashgym.retrieval import distance_histograms
code, label = codes.pack([[1, 0]]), codes.pack([[1]])
print(distance_histograms(code, label, code, label, 2)[1].tolist())
try:
    distance_histograms(code, label, code, label, 2, backend="numba")
except ImportError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "[[1, 0, 0]]" in output
    assert "hashgym[speed]" in output


WORDS = codes.pack(np.ones((3, 8), bool))


@pytest.mark.parametrize("count", [distance_histograms, average_precision_credit])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"queries": WORDS.astype(np.int64)}, "queries must be packed words.*int64"),
        ({"database": WORDS[0]}, "database must be packed words"),
        ({"database": np.ones((3, 8), bool)}, "database must be packed words.*bool"),
        ({"queries": [[1, 0]]}, "queries must be packed words.*list"),
        ({"queries": WORDS[:0], "query_labels": WORDS[:0]}, "not empty"),
        ({"database": WORDS[:0], "database_labels": WORDS[:0]}, "not empty"),
        ({"bits": 65}, "65 bits take 2 words, queries have 1"),
        ({"bits": 7}, "bits set beyond bit 6"),
        ({"bits": 0}, "bits must be between"),
        ({"query_labels": codes.pack(np.ones((3, 65), bool))}, "differ in length: 2 and 1 words"),
        ({"query_labels": WORDS[:2]}, "3 queries with 2 rows"),
        ({"database_labels": WORDS[:2]}, "3 database codes with 2"),
        ({"exclude": np.array([0, 1])}, r"exclude must be int64 \(3,\)"),
        ({"exclude": np.array([0.0, 1.0, 2.0])}, "exclude must be int64.*float64"),
        ({"exclude": np.array([0, 1, 3])}, "rows of the database, 0 to 2"),
        ({"exclude": np.array([0, 1, -2])}, "rows of the database, 0 to 2"),
        ({"queries": WORDS[None, None]}, "queries must be packed words"),
        ({"query_labels": WORDS[:, None]}, r"query_labels must be packed words, uint64 \(n, words\)"),
        ({"backend": "cuda"}, "backend must be"),
    ],
)
def test_wrong_arguments_are_named(count, arguments, reason):
    right = {"queries": WORDS, "query_labels": WORDS, "database": WORDS, "database_labels": WORDS, "bits": 8}
    with pytest.raises(ValueError, match=reason):
        count(**right | arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"queries": WORDS[:, None, :0]}, r"\(n, codes, words\) and not empty"),
        ({"database": WORDS[:, :0, None]}, r"\(n, codes, words\) and not empty"),
        ({"database": WORDS.reshape(1, 3, 1)}, "1 database codes with 3"),
        ({"database": WORDS[:, None].repeat(2, 2)}, "8 bits take 1 words, database have 2"),
        ({"database": np.stack([WORDS, WORDS << np.uint64(8)], 1)}, "database have bits set beyond bit 7"),
    ],
)
def test_wrong_code_sets_are_named(arguments, reason):
    right = {"queries": WORDS, "query_labels": WORDS, "database": WORDS, "database_labels": WORDS, "bits": 8}
    with pytest.raises(ValueError, match=reason):
        distance_histograms(**right | arguments)


def test_credit_takes_one_code_an_item():
    with pytest.raises(ValueError, match=r"database must be packed words, uint64 \(n, words\)"):
        average_precision_credit(WORDS, WORDS, WORDS[:, None], WORDS, 8)
