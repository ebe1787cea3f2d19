from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes, hashers
from hashgym.data import DataError, load, similarity
from hashgym.data.similarity import count_similar, label_patterns, neighbour_labels, pair_labels, read_pairs
from hashgym.retrieval import evaluate


@given(seed=st.integers(0, 10_000), n=st.integers(1, 90), labels=st.integers(1, 130), density=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_counts_are_those_of_a_double_loop(seed: int, n: int, labels: int, density: float) -> None:
    hot = np.random.default_rng(seed).random((n, labels)) < density
    naive = [sum(bool((a & b).any()) for b in hot) for a in hot]
    np.testing.assert_array_equal(count_similar(codes.pack(hot)), naive)


def test_counts_do_not_depend_on_the_block_size(monkeypatch) -> None:
    hot = np.random.default_rng(0).random((300, 12)) < 0.2
    whole = count_similar(codes.pack(hot))
    monkeypatch.setattr(similarity, "_BLOCK", 7)
    np.testing.assert_array_equal(count_similar(codes.pack(hot)), whole)


def test_patterns_put_the_rows_together_again() -> None:
    words = codes.pack(np.random.default_rng(0).random((200, 70)) < 0.02)
    patterns, pattern_of, counts = label_patterns(words)
    np.testing.assert_array_equal(patterns[pattern_of], words)
    np.testing.assert_array_equal(np.bincount(pattern_of), counts)
    assert len(np.unique(patterns, axis=0)) == len(patterns)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(1, 6), st.integers(2, 8), st.integers(1, 50))
def test_neighbour_labels_equal_a_loop(seed, n, dim, k, anchors):
    k = min(k, n)
    X = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    near = []
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        near.append({i, *others[: k - 1]})
    found = neighbour_labels(X, k, anchors=anchors, seed=1)
    chosen = sorted(np.random.default_rng(1).permutation(n)[:anchors].tolist())
    assert found.shape == (n, min(n, anchors))
    if dim > 1:  # in one dimension all cosines are 1 or -1, and any neighbours are the nearest
        expected = [[j in near[i] and i in near[j] for j in chosen] for i in range(n)]
        np.testing.assert_array_equal(found, np.array(expected, np.uint8))


def test_neighbours_of_images_that_are_alike_and_bad_arguments():
    alike = np.ones((6, 2), np.float32)
    assert (neighbour_labels(alike, 6) == 1).all()
    assert neighbour_labels(np.zeros((3, 2), np.float32), 2)[np.arange(3), np.arange(3)].all()  # its own neighbour
    for k in (1, 7):
        with pytest.raises(ValueError, match="choose from 2 to 6"):
            neighbour_labels(alike, k)


def test_pairs_make_exactly_these_images_similar(tmp_path):
    (tmp_path / "pairs.csv").write_text('a,b\n"c, d",a\n\nb,a\n')
    names = ["a", "b", "c, d", "e"]
    pairs = read_pairs(tmp_path / "pairs.csv")
    assert pairs == [("a", "b"), ("c, d", "a"), ("b", "a")]
    labels = pair_labels(names, pairs)
    assert labels.shape == (4, 2)
    similar = labels.astype(int) @ labels.T > 0
    assert {(names[i], names[j]) for i, j in zip(*np.nonzero(np.triu(similar, 1)), strict=True)} == {
        ("a", "b"),
        ("a", "c, d"),
    }
    for text, message in (("a\n", "line 1 .* has 1 columns"), ("a,b\na,b,c\n", "line 2 .* has 3 columns")):
        (tmp_path / "pairs.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_pairs(tmp_path / "pairs.csv")
    for bad, message in (([("a", "x")], "names x"), ([("a", "a")], "a is paired with itself"), ([], "no pairs")):
        with pytest.raises(DataError, match=message):
            pair_labels(names, bad)
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(tmp_path / "nowhere.csv")


def test_a_dataset_learns_from_neighbours_or_pairs(tmp_path):
    digits = load("digits").standardized()
    made = digits.with_similarity("neighbours", k=10)
    np.testing.assert_array_equal(made.labels[made.train], neighbour_labels(digits.features[digits.train], 10))
    assert not made.labels[made.query].any()
    assert made.provenance["similarity"] == "10 neighbours"
    names = [digits.names[row] for row in digits.train[:3]]
    (tmp_path / "pairs.csv").write_text(f"{names[0]},{names[1]}\n")
    made = digits.with_similarity(tmp_path / "pairs.csv")
    first, second, third = digits.train[:3, None]
    assert made.similar(first, second).all()
    assert not made.similar(first, third).any()
    assert not made.labels[third].any()
    with pytest.raises(DataError, match="whose nearness says little"):
        load("digits-pixels").with_similarity("neighbours")


def test_hashers_and_environments_take_neighbours():
    digits = load("digits").standardized()
    made = digits.with_similarity("neighbours", k=10)
    score = {}
    for name in ("itq", "noseq"):
        found = hashers.make(name, bits=16, **({"updates": 200} if name == "noseq" else {}))
        code = found.fit(made.features[made.train], made.labels[made.train]).encode(digits.features)
        query, database = digits.query, digits.database
        score[name] = evaluate(code[query], digits.labels[query], code[database], digits.labels[database]).map
    assert score["noseq"] > score["itq"] + 0.03, score
    env = gym.make("BitGroupHashing-v0", dataset=made, bits=8, group_bits=8)
    env.reset(seed=0)
    assert np.isfinite(env.step(env.action_space.sample())[1])


def test_a_quotation_mark_that_is_never_closed_is_named_by_its_line(tmp_path):
    (tmp_path / "pairs.csv").write_text('a,b\n"c,d\n' + "e,f\n" * 50_000)
    with pytest.raises(DataError, match=r"line \d+ of .*pairs.csv cannot be read: .*; expected: name,name"):
        read_pairs(tmp_path / "pairs.csv")
