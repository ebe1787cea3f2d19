"""Pairwise losses as rewards, against loops over the other training images."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hashgym.hashers
from hashgym import codes, rewards
from hashgym.data import HashingDataset
from hashgym.data.readers import digits
from hashgym.envs.base import DatasetIndex
from hashgym.hashers.pairwise import PairwiseHasher, pair_weights
from hashgym.rewards import Codebook, Pairwise, RewardView
from hashgym.rewards.pairwise import LOSSES
from hashgym.rewards.registry import flip_credit

BITS = 6


def make_view(seed: int, bits: int = BITS, relaxed: bool = False) -> RewardView:
    """Five images whose bits are in the codebook of 20 images; some images have no label."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((20, 4)) < 0.3).astype(np.uint8)
    labels[0], labels[1], labels[2] = (1, 0, 0, 0), (1, 0, 0, 1), (0, 1, 0, 0)
    rows = rng.choice(20, 5, replace=False)
    code = rng.random((5, bits)).astype(np.float32)
    code = code if relaxed else (code > 0.5).astype(np.float32)
    book = Codebook(codes.pack(rng.random((20, bits)) < 0.5), codes.pack(labels), bits)
    book.write(rows, code > 0.5)
    positives, negatives = rng.integers(20, size=(5, 3)), rng.integers(20, size=(5, 2))
    return RewardView(code, book, rows, positives, negatives, labels[rows])


def naive(view: RewardView, index: int, code: np.ndarray, table: np.ndarray) -> float:
    book, labels = view.codebook.read(np.arange(20)), codes.unpack(view.codebook.label_words, 4)
    total = 0.0
    for j in range(20):
        if j != view.rows[index]:
            similar = any(a and b for a, b in zip(view.labels[index], labels[j], strict=True))
            total += table[int(similar)][sum((a > 0.5) != b for a, b in zip(code, book[j], strict=True))]
    return -total / 19


def naive_partners(view: RewardView, index: int, code: np.ndarray, table: np.ndarray) -> float:
    labels = codes.unpack(view.codebook.label_words, 4)
    similar = sum(bool((labels[i] & labels[j]).any()) for i in range(20) for j in range(20) if i != j) / (20 * 19)
    value = 0.0
    for kind, share, rows in ((0, 1 - similar, view.negative_rows[index]), (1, similar, view.positive_rows[index])):
        away = [int(((code > 0.5) != bits).sum()) for bits in view.codebook.read(rows)]
        value -= share * float(np.mean([table[kind][d] for d in away]))
    return value


def hasher_table(name: str, view: RewardView, bits: int = BITS) -> np.ndarray:
    """The table of a hasher fitted to the codebook's labels."""
    labels = codes.unpack(view.codebook.label_words, 4).astype(np.uint8)
    few = {"updates": 1} if name != "ksh" else {"iterations": 0}
    hasher = hashgym.hashers.make(name, bits=bits, **few)
    features = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    return hasher.fit(features, labels).loss_table()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize(("against", "loop"), [("codebook", naive), ("partners", naive_partners)])
def test_every_loss_equals_the_loop_with_the_fitted_hashers_table(name, relaxed, against, loop) -> None:
    view = make_view(3, relaxed=relaxed)
    reward, table = rewards.make({"name": f"pairwise:{name}", "against": against}), hasher_table(name, view)
    value, credit = rewards.value_and_credit(reward, view)
    scale = np.abs(table).max()
    np.testing.assert_allclose(rewards.value(reward, view), value, atol=1e-6 * scale)
    for index in range(5):
        assert value[index] == pytest.approx(loop(view, index, view.code[index], table), abs=1e-5 * scale)
        for bit in range(BITS):
            one, zero = view.code[index].copy(), view.code[index].copy()
            one[bit], zero[bit] = 1, 0
            expected = loop(view, index, one, table) - loop(view, index, zero, table)
            assert credit[index, bit] == pytest.approx(expected, abs=1e-5 * scale)


@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([1, 2, 7, 65]),
    relaxed=st.booleans(),
    against=st.sampled_from(["codebook", "partners"]),
)
@settings(max_examples=40, deadline=None)
def test_credit_of_any_table_is_the_value_of_the_flips(seed: int, bits: int, relaxed: bool, against) -> None:
    view = make_view(seed, bits, relaxed)
    table = np.random.default_rng(seed).standard_normal((2, bits + 1))
    reward = Pairwise(table, against)
    value, credit = rewards.value_and_credit(reward, view)
    np.testing.assert_allclose(value, rewards.value(reward, view), atol=1e-5)
    np.testing.assert_allclose(credit, flip_credit(reward, view), atol=1e-5)
    loop = naive if against == "codebook" else naive_partners
    assert value[0] == pytest.approx(loop(view, 0, view.code[0], table), abs=1e-5)


def test_by_hand() -> None:
    """Codes 11, 10, 00 with labels a, a, b: image 0 has a similar image one bit away and another two bits away."""
    book = Codebook(codes.pack(np.array([[1, 1], [1, 0], [0, 0]])), codes.pack(np.array([[1, 0], [1, 0], [0, 1]])), 2)
    rows = np.array([0])
    view = RewardView(np.ones((1, 2), np.float32), book, rows, np.array([[1]]), np.array([[2]]), np.array([[1, 0]]))
    value, credit = rewards.value_and_credit(Pairwise([[5, 3, 0], [0, 1, 7]]), view)
    assert value[0] == -(1 + 0) / 2
    # Bit 0 at 0: distances 2 and 1, losses 7 and 3. Bit 1 at 0: distances 0 and 1, losses 0 and 3.
    np.testing.assert_allclose(credit[0], [-0.5 + 5, -0.5 + 1.5])


def test_all_hashers_with_a_pairwise_loss_have_a_name() -> None:
    having = {n for n in hashgym.hashers.available() if isinstance(hashgym.hashers.make(n, bits=4), PairwiseHasher)}
    assert having == set(LOSSES)
    assert {f"pairwise:{name}" for name in having} <= set(rewards.available())
    assert {rewards.make(f"pairwise:{name}").name for name in having} == {f"pairwise:{name}" for name in having}


def test_settings_hashers_and_fitted_weights_count() -> None:
    view = make_view(1)
    named = rewards.make({"name": "pairwise:dch", "gamma": 3.0})
    given_ = Pairwise(hashgym.hashers.make("dch", bits=32, gamma=3.0))
    assert given_.name == "pairwise:DCH"
    np.testing.assert_array_equal(rewards.value(named, view), rewards.value(given_, view))
    assert (rewards.value(named, view) != rewards.value(Pairwise("dch"), view)).all()
    hasher = hashgym.hashers.make("dch", bits=BITS, updates=1)
    data = digits.load()
    hasher.fit(data.features[data.train], data.labels[data.train])
    fitted, table = rewards.value(Pairwise(hasher), view), rewards.value(Pairwise(hasher.loss_table()), view)
    np.testing.assert_allclose(fitted, table, rtol=1e-6)


@pytest.mark.parametrize("against", ["codebook", "partners"])
@pytest.mark.parametrize(("name", "given"), [("mmhh", {}), ("mmhh", {"dissimilar": 7.0}), ("hashnet", {})])
def test_weights_are_to_the_bit_those_of_a_fitted_hasher(name: str, given: dict[str, float], against: str) -> None:
    view = make_view(2)
    labels = codes.unpack(view.codebook.label_words, 4).astype(np.uint8)
    features = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    hasher = hashgym.hashers.make(name, bits=BITS, updates=1, hidden=4, **given).fit(features, labels)
    factor = given.get("dissimilar", 30.0) if name == "mmhh" else 1.0
    np.testing.assert_array_equal(hasher.pair_weights_, pair_weights(labels) * [factor, 1])
    by_name, fitted = Pairwise(name, against, **given), Pairwise(hasher, against)
    for one, other in zip(by_name.value_and_credit(view), fitted.value_and_credit(view), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tables_follow_the_span_and_the_labels() -> None:
    """One reward object serves spans of several lengths, and environments over other data."""
    reward, view = Pairwise("hashnet"), make_view(5)
    other = dataclasses.replace(make_view(6, 4), rows=view.rows)
    for each in (view, other, view):
        fresh = rewards.value(Pairwise("hashnet"), each)
        np.testing.assert_array_equal(rewards.value(reward, each), fresh)


@pytest.mark.parametrize("against", ["partners", "codebook"])
def test_environments_of_several_kinds_may_share_a_reward(multi_label: HashingDataset, against: str) -> None:
    """Other numbers of partners, and torch beside NumPy, have tables of their own."""

    def rewards_of(reward: Pairwise, kind: dict[str, Any]) -> np.ndarray:
        envs = gym.make_vec("BitGroupHashing-v0", num_envs=3, dataset=multi_label, bits=8, reward=reward, **kind)
        envs.reset(seed=0)
        envs.action_space.seed(0)
        return np.asarray(envs.step(envs.action_space.sample())[1])

    held = DatasetIndex.of(multi_label)  # of all environments, which the reward recognises by it
    shared = Pairwise("dch", against)  # type: ignore[arg-type]
    for kind in ({"partners": 16}, {"partners": 4}, {"partners": 4, "backend": "torch", "device": "cpu"}):
        own = Pairwise("dch", against)  # type: ignore[arg-type]
        np.testing.assert_array_equal(rewards_of(shared, kind), rewards_of(own, kind))
    assert DatasetIndex.of(multi_label) is held


def test_it_is_the_same_in_an_environment_as_on_the_final_codes() -> None:
    task = {"bits": 8, "group_bits": 5, "counterfactual": True, "group_weight": 0.5, "reward": "pairwise:hashnet"}
    env = gym.make_vec("BitGroupHashing-v0", num_envs=4, **task)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2):
        _, reward, _, _, info = env.step(env.action_space.sample())
    parts = info["final_info"]["rewards"]
    assert {name for name in parts if name[0] != "_"} == {"group/pairwise:hashnet", "global/pairwise:hashnet"}
    np.testing.assert_allclose(reward, parts["group/pairwise:hashnet"] + parts["global/pairwise:hashnet"])
    dataset, book = env.unwrapped.dataset, env.unwrapped.codebook
    labels = dataset.labels[dataset.train]
    hasher = hashgym.hashers.make("hashnet", bits=8)
    weights, d = pair_weights(labels), np.arange(9)
    a = 10 / 8 * (8 - 2 * d)
    table = np.stack([weights[0] * np.log1p(np.exp(a)), weights[1] * np.log1p(np.exp(-a))])
    assert hasher.bits == 8
    for index, image in enumerate(info["final_info"]["index"]):
        row = int(np.flatnonzero(dataset.train == image)[0])
        away = codes.hamming(book.words, book.words[row])
        similar = (labels @ labels[row] > 0).astype(int)
        losses = np.delete(table[similar, away], row)
        assert parts["global/pairwise:hashnet"][index] == pytest.approx(-losses.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("dhc", {}, "unknown hasher 'dhc'"),
        ("itq", {}, "'itq' has no pairwise loss; the losses are dch, hashnet, adsh"),
        ("dch", {"gama": 2}, "no setting gama"),
        ("dch", {"against": "all"}, "'codebook' or 'partners'"),
        (np.zeros((3, 5)), {}, r"\(2, s \+ 1\).*got float64 \(3, 5\)"),
        (np.full((2, 5), np.nan), {}, "finite"),
        (np.zeros((2, 5)), {"gamma": 1}, "are only for a hasher given by name"),
    ],
)
def test_wrong_losses_are_rejected_at_once(loss, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Pairwise(loss, **options)


def test_a_table_of_another_length_is_rejected() -> None:
    with pytest.raises(ValueError, match="spans of 9 bits, not of 6"):
        rewards.value(Pairwise(np.zeros((2, 10))), make_view(0))
