from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hashgym import hashers
from hashgym.hashers.fit_once import fit_once
from hashgym.hashers.ksh import KSH


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((60, 5)).astype(np.float32), np.eye(3, dtype=np.uint8)[np.arange(60) % 3]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASHGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_read_is_what_was_fitted(cache: Path) -> None:
    X, y = data()
    first, again = (fit_once(hashers.make("ksh", bits=6), X, y) for _ in range(2))
    alone = hashers.make("ksh", bits=6).fit(X, y)
    for hasher in (first, again):
        np.testing.assert_array_equal(hasher.transform(X), alone.transform(X))
        np.testing.assert_array_equal(hasher.loss_table(), alone.loss_table())
    assert len(list(cache.glob("base-*.npz"))) == 1


def test_other_data_settings_and_seeds_are_fitted_again(cache: Path) -> None:
    (X, y), (other, _) = data(), data(1)
    for hasher, features, labels in (
        (hashers.make("ksh", bits=6), X, y),
        (hashers.make("ksh", bits=7), X, y),
        (hashers.make("ksh", bits=6, seed=1), X, y),
        (hashers.make("ksh", bits=6), other, y),
        (hashers.make("ksh", bits=6), X, y[::-1].copy()),
        (hashers.make("ksh", bits=6), X[:30], y[:30]),
    ):
        np.testing.assert_array_equal(
            fit_once(hasher, features, labels).transform(X),
            hashers.make("ksh", **hasher.get_params()).fit(features, labels).transform(X),
        )
    assert len(list(cache.glob("base-*.npz"))) == 6


def test_a_damaged_file_is_fitted_and_written_again(cache: Path) -> None:
    X, y = data()
    codes = fit_once(hashers.make("ksh", bits=6), X, y).encode(X)
    (file,) = cache.glob("base-*.npz")
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(fit_once(hashers.make("ksh", bits=6), X, y).encode(X), codes)
    np.testing.assert_array_equal(hashers.load(file).encode(X), codes)


@pytest.mark.parametrize("place", ["", "/dev/null/nowhere"])
def test_a_missing_cache_is_not_an_error(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("HASHGYM_CACHE", place)
    X, y = data()
    assert fit_once(hashers.make("ksh", bits=6), X, y).encode(X).shape == (60, 6)


def test_labels_without_a_pair_of_a_kind_are_reported(cache: Path) -> None:
    X, _ = data()
    with pytest.raises(ValueError, match="share a label"):
        fit_once(hashers.make("ksh", bits=6), X, np.ones((60, 1), np.uint8))


def _fits(_: int) -> tuple[int, bytes]:
    """In a process of its own: how often it fitted, and the codes."""
    X, y = data()
    calls, fit = [], KSH.fit
    KSH.fit = lambda self, X, y=None: calls.append(1) or fit(self, X, y)
    codes = fit_once(KSH(bits=6), X, y).encode(X).tobytes()
    return len(calls), codes


def test_processes_fit_once_together(cache: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(_fits, range(3)))
    assert sum(fits for fits, _ in results) == 1
    assert len({codes for _, codes in results}) == 1


@pytest.mark.parametrize(("bits", "seed", "dim"), [(7, 0, 5), (6, 1, 5), (6, 0, 4)])
def test_an_intact_file_of_another_hasher_is_fitted_and_written_again(
    cache: Path, bits: int, seed: int, dim: int
) -> None:
    X, y = data()
    codes = fit_once(hashers.make("ksh", bits=6), X, y).encode(X)
    (file,) = cache.glob("base-*.npz")
    hashers.make("ksh", bits=bits, seed=seed).fit(X[:, :dim], y).save(file)
    np.testing.assert_array_equal(fit_once(hashers.make("ksh", bits=6), X, y).encode(X), codes)
    assert hashers.load(file).get_params() == hashers.make("ksh", bits=6).get_params()
