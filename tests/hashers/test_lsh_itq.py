"""Properties of LSH, PCA and ITQ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.hashers import make
from hashgym.hashers.itq import ITQ
from hashgym.hashers.lsh import LSH
from hashgym.hashers.pca import PCA


def test_lsh_bits_differ_in_proportion_to_the_angle():
    directions = np.array([[1, 0], [np.cos(0.7), np.sin(0.7)], [-1, 0]], np.float32)
    data = np.concatenate([directions, -directions]) + 5  # symmetric about 5: the mean is known
    code = LSH(bits=20000).fit(data).encode(data)
    assert abs((code[0] != code[1]).mean() - 0.7 / np.pi) < 0.02
    assert (code[0] != code[2]).all()


def test_lsh_ignores_where_the_features_lie():
    X = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    assert (LSH(bits=64).fit(X).encode(X) == LSH(bits=64).fit(X + 100).encode(X + 100)).mean() > 0.999


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.integers(11, 60))
def test_itq_rotates_and_never_loses_more(seed, bits, n):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((n, 10)) @ rng.standard_normal((10, 10)) + 3).astype(np.float32)
    itq = ITQ(bits=bits, seed=seed % 1000, iterations=15).fit(X)
    eye = np.eye(bits)
    assert np.allclose(itq.rotation_ @ itq.rotation_.T, eye, atol=1e-5)
    assert np.allclose(itq.components_.T @ itq.components_, eye, atol=1e-5)
    assert (np.diff(itq.losses_) <= 1e-9 * itq.losses_[0]).all()
    V = itq.transform(X)
    assert np.isclose(((np.sign(V) - V) ** 2).sum() / n, itq.losses_[-1], rtol=1e-3)


def test_itq_keeps_the_directions_of_largest_variance():
    rng = np.random.default_rng(1)
    scale = np.array([1, 9, 1, 6, 1], np.float32)
    X = rng.standard_normal((2000, 5)).astype(np.float32) * scale
    components = np.abs(ITQ(bits=2).fit(X).components_)
    assert components[[1, 3]].max() > 0.99
    assert components[[0, 2, 4]].max() < 0.1


def test_itq_finds_the_corners_of_a_rotated_cube():
    rng = np.random.default_rng(2)
    corners = rng.choice([-1.0, 1.0], (400, 3))
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    itq = min((ITQ(bits=3, seed=s).fit(corners @ rotation) for s in range(5)), key=lambda h: h.losses_[-1])
    assert itq.losses_[-1] < 0.02
    distinct = {tuple(code) for code in itq.encode(corners @ rotation)}
    assert len(distinct) == 8


@pytest.mark.parametrize(("n", "dim", "rank"), [(50, 4, 4), (5, 40, 4), (50, 1, 1)])
def test_itq_names_the_most_bits_it_can_give(n, dim, rank):
    X = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    make("itq", bits=rank).fit(X)
    with pytest.raises(ValueError, match=f"at most {rank} bits, give more images that differ, or use 'lsh'"):
        make("itq", bits=rank + 1).fit(X)


def test_itq_counts_only_features_that_vary():
    X = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    X[:, 2] = 1
    X[:, 5] = X[:, 0] + X[:, 1]
    with pytest.raises(ValueError, match="have 4:"):
        make("itq", bits=5).fit(X)
    with pytest.raises(ValueError, match="must not be negative"):
        make("itq", iterations=-1)


def test_pca_is_where_itq_starts_and_without_a_rotation_the_components():
    X = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32) * np.arange(6, 0, -1, dtype=np.float32)
    np.testing.assert_allclose(
        PCA(bits=4, seed=3).fit(X).transform(X), ITQ(bits=4, seed=3, iterations=0).fit(X).transform(X), atol=1e-4
    )
    plain = PCA(bits=4, rotate=False).fit(X).transform(X).var(axis=0)
    np.testing.assert_allclose(plain, np.linalg.eigvalsh(np.cov(X.T, bias=True))[:1:-1], rtol=1e-4)
    rotated = PCA(bits=4).fit(X).transform(X).var(axis=0)
    assert rotated.sum() == pytest.approx(plain.sum(), rel=1e-4)  # the variance is shared out
    with pytest.raises(ValueError, match=r"PCA gives a bit for each principal component, .* have 6: ask for at most 6"):
        PCA(bits=7).fit(X)
