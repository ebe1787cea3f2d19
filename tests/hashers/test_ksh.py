"""KSH: the kernel, the greedy bits, and settings that are rejected."""

import itertools

import numpy as np
import pytest

from hashgym.hashers import make
from hashgym.hashers.ksh import greedy_weights


def random_problem(seed, n=60, dim=5):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, dim)).astype(np.float32)
    labels = np.column_stack([X[:, 0] > 0, X[:, 1] > 0.5, X[:, :2].max(1) <= 0.5]).astype(np.uint8)
    return X, labels


def test_values_are_the_centred_kernel_times_weights_entry_by_entry():
    X, y = random_problem(0)
    ksh = make("ksh", bits=4, anchors=7, labelled=40).fit(X, y)
    assert ksh.anchors_.shape == (7, 5)
    assert {tuple(row) for row in ksh.anchors_} <= {tuple(row) for row in X}
    squares = [[((x - a).astype(float) ** 2).sum() for a in ksh.anchors_] for x in X]
    assert ksh.width_ == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    kernel = np.exp(np.array(squares) / (-2 * ksh.width_**2))
    assert ksh.means_ == pytest.approx(kernel.mean(0), rel=1e-4)
    assert np.allclose(ksh.transform(X), (kernel - kernel.mean(0)) @ ksh.weights_, atol=1e-4)


def test_features_far_from_the_origin_give_the_same_codes():
    X, y = random_problem(0)
    near, far = (make("ksh", bits=8, anchors=20).fit(X + shift, y).transform(X + shift) for shift in (0, 1000))
    assert ((near > 0) == (far > 0)).mean() > 0.97


def unexplained(H, S):
    """||H H^T - q S||^2 by its definition, q the bits H has room for."""
    return ((H @ H.T - S) ** 2).sum()


@pytest.mark.parametrize("seed", range(5))
def test_every_bit_explains_more_of_the_similarities(seed):
    X, y = random_problem(seed)
    kernel = X - X.mean(0)
    S = 8 * np.where(y.astype(int) @ y.T > 0, 1.0, -1.0).astype(np.float32)
    residual = S.copy()
    H = np.where(kernel @ greedy_weights(kernel, residual, 8, 100) > 0, 1.0, -1.0)
    assert np.allclose(residual, S - H @ H.T, atol=1e-3)  # what is left, bit by bit
    left = [unexplained(H[:, :k], S) for k in range(9)]
    assert left[-1] < left[0]
    # Adding h changes the error by n^2 - 2 h'Rh: a bit is worth it exactly when h'Rh exceeds half of n^2.
    R = S.copy()
    for k in range(8):
        assert left[k + 1] - left[k] == pytest.approx(len(X) ** 2 - 2 * H[:, k] @ R @ H[:, k], rel=1e-4, abs=1)
        R -= np.outer(H[:, k], H[:, k])
    assert left[1] < left[0]


def test_smoothing_never_does_worse_than_the_spectral_start_on_the_first_bit():
    better = 0
    for seed in range(8):
        X, y = random_problem(seed)
        kernel, S = X - X.mean(0), np.where(y.astype(int) @ y.T > 0, 1, -1).astype(np.float32)
        spectral, smooth = (np.where(kernel @ greedy_weights(kernel, S.copy(), 1, i) > 0, 1, -1)[:, 0] for i in (0, 50))
        assert smooth @ S @ smooth >= spectral @ S @ spectral
        better += smooth @ S @ smooth > spectral @ S @ spectral
    assert better >= 3


def test_the_first_bit_of_a_plane_is_nearly_the_best_of_all_directions():
    X, y = random_problem(1, n=40, dim=2)
    kernel, S = X - X.mean(0), np.where(y.astype(int) @ y.T > 0, 1, -1).astype(np.float32)
    h = np.where(kernel @ greedy_weights(kernel, S.copy(), 1, 100) > 0, 1, -1)[:, 0]
    angles = np.linspace(0, np.pi, 2000)
    tried = np.where(kernel @ np.stack([np.cos(angles), np.sin(angles)]) > 0, 1, -1).T
    assert h @ S @ h >= 0.9 * max(t @ S @ t for t in tried)


def test_separable_classes_get_codes_of_their_own():
    rng = np.random.default_rng(0)
    classes = np.arange(90) % 3
    X = (8 * np.eye(3)[classes] + rng.standard_normal((90, 3))).astype(np.float32)
    codes = make("ksh", bits=6, anchors=30).fit(X, np.eye(3, dtype=np.uint8)[classes]).encode(X)
    means = np.stack([codes[classes == c].mean(0) for c in range(3)])
    assert (np.abs(means - 0.5) > 0.4).all()  # a class agrees on nearly every bit
    for a, b in itertools.combinations(means > 0.5, 2):
        assert (a != b).sum() >= 2


def test_few_images_equal_images_and_dependent_anchors_do_no_harm():
    X, y = random_problem(2, n=6)
    assert np.isfinite(make("ksh", bits=12, labelled=4).fit(X, y).transform(X)).all()
    same = np.ones((6, 3), np.float32)
    same[5] = 2
    assert np.isfinite(make("ksh", bits=3).fit(same, y).transform(same)).all()
    twice = np.concatenate([X, X])
    assert np.isfinite(make("ksh", bits=12).fit(twice, np.concatenate([y, y])).transform(twice)).all()


def test_settings_that_cannot_work_are_rejected():
    for bad in ({"anchors": 0}, {"labelled": 1}, {"iterations": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            make("ksh", **bad)
