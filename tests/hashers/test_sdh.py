"""SDH: each step is a minimiser, and the objective never rises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.data.readers import digits
from hashgym.hashers import load, make
from hashgym.hashers.sdh import codes_step, least_squares
from hashgym.retrieval import mean_average_precision


def random_problem(seed, n=40, dim=5):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, dim)).astype(np.float32)
    return X, np.column_stack([X[:, 0] > 0, X[:, 1] > 0.5, X[:, :2].max(1) <= 0.5]).astype(np.uint8)


def codes_problem(seed, n, bits, labels):
    rng = np.random.default_rng(seed)
    B = rng.choice([-1.0, 1.0], (n, bits))
    return B, rng.standard_normal((bits, labels)), rng.standard_normal((n, labels)), rng.standard_normal((n, bits))


def cost(B, W, Y, F, nu):
    return ((Y - B @ W) ** 2).sum() + nu * ((B - F) ** 2).sum()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(1e-5, 3), st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_the_objective_never_increases_and_is_that_of_the_fitted_hasher(seed, bits, nu, ridge, lambda_w):
    X, y = random_problem(seed)
    sdh = make("sdh", bits=bits, anchors=20, nu=nu, ridge=ridge, lambda_w=lambda_w, seed=seed).fit(X, y)
    assert len(sdh.losses_) == 6
    assert (np.diff(sdh.losses_) <= 1e-9 * sdh.losses_[0]).all()
    assert sdh.losses_[-1] >= 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.floats(1e-5, 3))
def test_a_pass_over_the_bits_is_that_of_a_naive_loop(seed, bits, labels, nu):
    B, W, Y, F = codes_problem(seed, 7, bits, labels)
    naive = B.copy()
    for k in range(bits):
        for i in range(len(B)):
            tried = {}
            for sign in (-1.0, 1.0):
                naive[i, k] = sign
                tried[sign] = cost(naive, W, Y, F, nu)
            naive[i, k] = min(tried, key=tried.__getitem__)
    assert (codes_step(B, W, Y, F, nu, 1) == naive).all()


@pytest.mark.parametrize("seed", range(5))
def test_one_bit_is_the_best_of_all_and_several_are_not_improved_by_one_flip(seed):
    B, W, Y, F = codes_problem(seed, 8, 1, 3)
    found = codes_step(B, W, Y, F, 0.3, 1)
    every = (np.array(signs)[:, None] for signs in itertools.product([-1.0, 1.0], repeat=8))
    assert cost(found, W, Y, F, 0.3) == pytest.approx(min(cost(b, W, Y, F, 0.3) for b in every))

    B, W, Y, F = codes_problem(seed, 8, 5, 3)
    before, found = B.copy(), codes_step(B, W, Y, F, 0.3, 100)
    assert (before == B).all()
    for i, k in np.ndindex(found.shape):
        flipped = found.copy()
        flipped[i, k] *= -1
        assert cost(flipped, W, Y, F, 0.3) >= cost(found, W, Y, F, 0.3) - 1e-9


def test_least_squares_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    A, T = rng.standard_normal((9, 4)), rng.standard_normal((9, 3))
    x = least_squares(A.T @ A, A.T @ T, 0.5)
    assert np.allclose(A.T @ (A @ x - T) + 0.5 * x, 0)


def test_values_are_the_centred_kernel_times_weights_entry_by_entry():
    X, y = random_problem(0)
    sdh = make("sdh", bits=4, anchors=7, width=0.5).fit(X, y)
    assert {tuple(row) for row in sdh.anchors_} <= {tuple(row) for row in X}
    squares = np.array([[((x - a).astype(float) ** 2).sum() for a in sdh.anchors_] for x in X])
    assert sdh.width_ == pytest.approx(0.5 * np.sqrt(squares.mean()), rel=1e-5)
    kernel = np.exp(squares / (-2 * sdh.width_**2))
    expected = (kernel - kernel.mean(0)) @ sdh.weights_ + sdh.intercept_
    assert np.allclose(sdh.transform(X), expected, atol=1e-4)


def test_labels_count_with_rows_of_unit_length():
    X, y = random_problem(1)
    many = np.concatenate([y, y, y, y], 1)  # every row sqrt(4) times as long: the same directions
    # W W^T, all that the codes see of the labels, is the same once rows are at unit length.
    first, second = (make("sdh", bits=6, anchors=20, seed=2).fit(X, labels).encode(X) for labels in (y, many))
    assert (first == second).all()


def test_separable_classes_are_separated_perfectly():
    rng = np.random.default_rng(0)
    classes = np.arange(90) % 3
    X = (8 * np.eye(3)[classes] + rng.standard_normal((90, 3))).astype(np.float32)
    y = np.eye(3, dtype=np.uint8)[classes]
    codes = make("sdh", bits=12, anchors=30).fit(X, y).encode(X)
    assert mean_average_precision(codes, y, codes, y) > 0.99


def test_new_digits_are_found_far_better_than_without_labels(tmp_path):
    data = digits.load().standardized()
    X, y = data.features[data.train], data.labels[data.train]
    queries, labels = data.features[data.query], data.labels[data.query]

    def score(hasher):
        return mean_average_precision(hasher.encode(queries), labels, hasher.encode(X), y)

    sdh = make("sdh", bits=24, anchors=300).fit(X, y)
    assert score(sdh) > score(make("itq", bits=24).fit(X)) + 0.2
    sdh.save(tmp_path / "sdh.npz")
    assert load(tmp_path / "sdh.npz").transform(X).tobytes() == sdh.transform(X).tobytes()


def test_few_images_equal_images_and_images_without_labels_do_no_harm():
    X, y = random_problem(2, n=6)
    assert np.isfinite(make("sdh", bits=12).fit(X, y).transform(X)).all()
    same = np.ones((6, 3), np.float32)
    same[5] = 2
    assert np.isfinite(make("sdh", bits=3).fit(same, y).transform(same)).all()
    y[0] = 0
    assert np.isfinite(make("sdh", bits=12).fit(X, y).losses_).all()


def test_settings_and_labels_that_cannot_work_are_rejected():
    for bad in ({"anchors": 0}, {"iterations": 0}, {"passes": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            make("sdh", **bad)
    for bad in ({"nu": 0}, {"ridge": -1.0}, {"lambda_w": 0}, {"width": 0}):
        with pytest.raises(ValueError, match="must be above 0"):
            make("sdh", **bad)
    X, y = random_problem(0)
    with pytest.raises(ValueError, match="share a label"):
        make("sdh").fit(X, np.ones_like(y))
    with pytest.raises(ValueError, match="learns from labels"):
        make("sdh").fit(X)
