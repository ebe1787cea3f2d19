"""The reward for balanced, uncorrelated bits, against loops and against what it is derived from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes, rewards
from hashgym.rewards import Balance, Codebook, RewardView
from hashgym.rewards.registry import flip_credit


def make_view(seed: int, bits: int = 5, images: int = 11, num_envs: int = 4, relaxed: bool = False) -> RewardView:
    rng = np.random.default_rng(seed)
    rows = rng.choice(images, num_envs, replace=False)
    code = rng.random((num_envs, bits)).astype(np.float32)
    code = code if relaxed else (code > 0.5).astype(np.float32)
    labels = np.ones((images, 1), np.uint8)
    book = Codebook(codes.pack(rng.random((images, bits)) < 0.7), codes.pack(labels), bits)
    book.write(rows, code > 0.5)
    partners = np.zeros((num_envs, 1), np.int64)
    return RewardView(code, book, rows, partners, partners, labels[rows])


def naive(view: RewardView, index: int, code: np.ndarray, decorrelation: float) -> float:
    bits = view.codebook.bits
    others = [
        2.0 * c - 1 for j, c in enumerate(view.codebook.read(np.arange(len(view.codebook)))) if j != view.rows[index]
    ]
    x = 2.0 * code - 1
    balance = sum(x[b] * np.mean([y[b] for y in others]) for b in range(bits)) / bits
    pairs = [(b, c) for b in range(bits) for c in range(bits) if b != c]
    related = sum(x[b] * x[c] * np.mean([y[b] * y[c] for y in others]) for b, c in pairs) / max(1, len(pairs))
    return -balance - decorrelation * related


@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([1, 2, 5, 66]),
    relaxed=st.booleans(),
    decorrelation=st.sampled_from([0.0, 1.0, 3.5]),
)
@settings(max_examples=30, deadline=None)
def test_value_and_credit_equal_the_loop(seed: int, bits: int, relaxed: bool, decorrelation: float) -> None:
    view, reward = make_view(seed, bits, relaxed=relaxed), Balance(decorrelation)
    value, credit = rewards.value_and_credit(reward, view)
    np.testing.assert_allclose(rewards.value(reward, view), value, atol=1e-6)
    np.testing.assert_allclose(credit, flip_credit(reward, view), atol=1e-5)
    for index in range(2):
        assert value[index] == pytest.approx(naive(view, index, view.code[index], decorrelation), abs=1e-5)
    one, zero = view.code[0].copy(), view.code[0].copy()
    one[0], zero[0] = 1, 0
    expected = naive(view, 0, one, decorrelation) - naive(view, 0, zero, decorrelation)
    assert credit[0, 0] == pytest.approx(expected, abs=1e-5)


def imbalance(book: Codebook, decorrelation: float) -> float:
    """Return the quantity whose change, negated, is R up to a constant and a factor."""
    y = book.signs.astype(float)
    products = y.T @ y / len(y)
    pairs = ~np.eye(book.bits, dtype=bool)
    return float((y.mean(0) ** 2).mean() + decorrelation * (products[pairs] ** 2).mean())


def test_it_is_the_change_of_the_codebooks_imbalance() -> None:
    view, reward = make_view(0), Balance(2.0)
    n = len(view.codebook)
    for index in range(4):
        one = np.array([index])
        seen = []
        for bits in np.random.default_rng(1).random((6, 1, 5)) < 0.5:
            book = Codebook(view.codebook.words.copy(), view.codebook.label_words, 5)
            book.write(view.rows[one], bits)
            seen_alone = dataclasses.replace(
                view, code=bits.astype(np.float32), codebook=book, rows=view.rows[one], labels=view.labels[one]
            )
            seen.append((float(rewards.value(reward, seen_alone)[0]), imbalance(book, 2.0)))
        value, change = np.array(seen).T
        np.testing.assert_allclose(value - value[0], -(n**2) / (2 * (n - 1)) * (change - change[0]), atol=1e-5)


def test_greedy_bits_make_a_skewed_codebook_balanced_and_decorrelated() -> None:
    rng = np.random.default_rng(0)
    common = rng.random((200, 1)) < 0.8
    bits = np.where(rng.random((200, 8)) < 0.7, common, rng.random((200, 8)) < 0.5)
    book = Codebook(codes.pack(bits), codes.pack(np.ones((200, 1), int)), 8)
    before, reward, one = imbalance(book, 1.0), Balance(), np.zeros((1, 1), np.int64)
    for _ in range(2):
        for row in rng.permutation(200):
            rows = np.array([row])
            code = book.read(rows).astype(np.float32)
            _, credit = rewards.value_and_credit(
                reward, RewardView(code, book, rows, one, one, np.ones((1, 1), np.uint8))
            )
            bit = np.argmax(np.where(code > 0.5, -credit, credit))  # the bit whose flip gains most
            code[0, bit] = credit[0, bit] > 0
            book.write(rows, code > 0.5)
    y = book.signs
    off_diagonal = (y.T @ y / 200)[~np.eye(8, dtype=bool)]
    assert before > 0.3
    assert imbalance(book, 1.0) < before / 50
    assert np.abs(y.mean(0)).max() < 0.15
    assert np.abs(off_diagonal).max() < 0.15


def test_one_bit_has_no_pairs() -> None:
    view = make_view(2, bits=1)
    np.testing.assert_array_equal(rewards.value(Balance(1.0), view), rewards.value(Balance(0.0), view))


@pytest.mark.parametrize("decorrelation", [-1.0, np.nan, np.inf])
def test_wrong_weights_are_rejected(decorrelation: float) -> None:
    with pytest.raises(ValueError, match="decorrelation"):
        rewards.make({"name": "balance", "decorrelation": decorrelation})
