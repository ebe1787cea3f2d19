"""CNNH: the factorisation against loops, and that the network learns its codes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hashgym.data.readers import digits
from hashgym.hashers import load, make
from hashgym.hashers.cnnh import best_entry, similarity_codes
from hashgym.retrieval import mean_average_precision

GRID = np.linspace(-1, 1, 20_001)


def random_labels(seed, n, count=4):
    return (np.random.default_rng(seed).random((n, count)) < 0.35).astype(np.uint8)


def similarities(labels, dissimilar=1.0):
    return np.where(labels.astype(int) @ labels.T > 0, 1.0, -dissimilar)


def cost(H, S):
    """||S - H H^T / q||^2 by its definition, pair by pair and bit by bit."""
    total = 0.0
    for i in range(len(H)):
        for j in range(len(H)):
            inner = 0.0
            for k in range(H.shape[1]):
                inner += H[i, k] * H[j, k]
            total += (S[i, j] - inner / H.shape[1]) ** 2
    return total


@settings(max_examples=200, deadline=None)
@given(st.floats(-50, 5000), st.floats(-6000, 6000))
def test_an_entry_is_the_best_of_all(a, c):
    x = best_entry(a, c)
    assert -1 <= x <= 1
    least = (GRID**4 + 2 * a * GRID**2 - 4 * c * GRID).min()
    assert x**4 + 2 * a * x**2 - 4 * c * x <= least + 1e-9 * (1 + abs(a) + abs(c))


def test_entries_worked_by_hand():
    assert best_entry(0, 0.125) == pytest.approx(0.5)  # x^3 = 1/8
    assert best_entry(-0.25, 0) == pytest.approx(0.5)  # x^4 - x^2 / 2 is least at 1/2 and -1/2
    assert best_entry(1.75, -1) == pytest.approx(-0.5)  # 1/8 + 1.75 / 2 = 1
    assert best_entry(3, 4) == 1
    assert best_entry(3, -4.5) == -1
    assert best_entry(3, 0) == 0
    assert best_entry(0, 0) == pytest.approx(0, abs=1e-6)  # where the root is triple Newton is slow, not wrong


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 5), st.sampled_from([1.0, 0.3, 0.0]))
def test_passes_are_those_of_a_naive_loop_and_never_lose(seed, n, bits, dissimilar):
    labels = random_labels(seed, n)
    S = similarities(labels, dissimilar)
    found, losses = similarity_codes(labels, bits, dissimilar, 2, np.random.default_rng(seed))
    H = np.random.default_rng(seed).uniform(-1, 1, (n, bits))
    assert losses[0] * n**2 == pytest.approx(cost(H, S), rel=1e-9)
    for sweep in (1, 2):
        for j in range(bits):
            for i in range(n):
                others = [k for k in range(bits) if k != j]
                R = bits * S - H[:, others] @ H[:, others].T
                rest = [k for k in range(n) if k != i]
                before, c = cost(H, S), float(R[i, rest] @ H[rest, j])
                assume(abs(c) > 1e-9)  # else x and -x are equally good, and the order of a sum decides
                H[i, j] = best_entry(float(H[rest, j] @ H[rest, j]) - R[i, i], c)
                assert cost(H, S) <= before + 1e-9
        assert losses[sweep] * n**2 == pytest.approx(cost(H, S), rel=1e-7, abs=1e-9)
    assert np.allclose(found, H, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 16), st.sampled_from([2, 5, 12]))
def test_the_objective_never_increases(seed, bits, count):
    labels = random_labels(seed, 60, count)
    H, losses = similarity_codes(labels, bits, 1.0, 4, np.random.default_rng(seed))
    assert (np.diff(losses) <= 1e-12).all()
    assert np.abs(H).max() <= 1
    assert losses[-1] * 60**2 == pytest.approx(((similarities(labels) - H @ H.T / bits) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize(("classes", "dissimilar"), [(2, 1.0), (10, 1.0), (10, 1 / 9), (40, 1.0), (40, 1 / 39)])
def test_codes_of_classes_are_one_for_each_and_far_apart(classes, dissimilar):
    labels = np.eye(classes, dtype=np.uint8)[np.arange(400) % classes]
    codes = similarity_codes(labels, 24, dissimilar, 4, np.random.default_rng(0))[0] > 0
    same = labels @ labels.T > 0
    distances = (codes[:, None] != codes).sum(2)
    assert distances[same].mean() < 0.5
    assert distances[~same].mean() > 11.5
    assert 0.3 < codes.mean() < 0.7


def test_codes_do_not_collapse_where_most_pairs_are_similar():
    labels = np.concatenate([np.ones((400, 1)), random_labels(0, 400)], 1).astype(np.uint8)
    labels[np.random.default_rng(1).random(400) < 0.3, 0] = 0
    assert similarities(labels).mean() > 0.3
    codes = similarity_codes(labels, 24, 1.0, 4, np.random.default_rng(0))[0] > 0
    distances, same = (codes[:, None] != codes).sum(2), similarities(labels) > 0
    assert distances[~same].mean() > distances[same].mean() + 6
    assert len(np.unique(codes, axis=0)) > 8


def test_the_network_learns_the_codes_and_finds_new_digits(tmp_path):
    data = digits.load().standardized()
    X, y = data.features[data.train], data.labels[data.train]
    queries, labels = data.features[data.query], data.labels[data.query]
    cnnh = make("cnnh", bits=16, hidden=64, dropout=0, input_dropout=0, updates=200, learning_rate=5e-3).fit(X, y)
    assert cnnh.code_losses_.shape == (6,)
    assert (np.diff(cnnh.code_losses_) <= 0).all()
    codes = similarity_codes(y, 16, 1.0, 5, np.random.default_rng(0))[0] > 0
    assert (cnnh.encode(X) == codes).mean() > 0.97
    itq = make("itq", bits=16).fit(X)
    ours, theirs = (mean_average_precision(h.encode(queries), labels, h.encode(X), y) for h in (cnnh, itq))
    assert ours > theirs + 0.2
    cnnh.save(tmp_path / "cnnh.npz")
    assert load(tmp_path / "cnnh.npz").transform(X).tobytes() == cnnh.transform(X).tobytes()


def test_rare_similar_pairs_may_be_weighed_up():
    data = digits.load()
    X, y = data.features[data.train], data.labels[data.train]
    cnnh = make("cnnh", bits=4, hidden=8, updates=1, passes=2, dissimilar=None).fit(X, y)
    pairs = (y.astype(int) @ y.T > 0).sum() - len(y)
    r = pairs / (len(y) * (len(y) - 1) - pairs)
    assert cnnh.code_losses_ == pytest.approx(similarity_codes(y, 4, r, 2, np.random.default_rng(0))[1])


def test_settings_and_labels_that_cannot_work_are_rejected():
    for bad in ({"passes": 0}, {"dissimilar": -0.1}):
        with pytest.raises(ValueError, match="passes must be at least 1"):
            make("cnnh", **bad)
    for same in (np.ones((10, 2), np.uint8), np.eye(10, dtype=np.uint8)):
        with pytest.raises(ValueError, match="share a label"):
            make("cnnh", updates=1).fit(np.eye(10), same)
