"""Properties of hash centres, CSQ's loss against a loop, and trained codes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.data.readers import digit_scenes, digits
from hashgym.hashers import make
from hashgym.hashers.csq import majority, targets
from hashgym.retrieval import mean_average_precision


def distances(codes):
    """Hamming distances of all pairs of different rows."""
    return np.array([(a != b).sum() for i, a in enumerate(codes) for b in codes[:i]])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 16, 32, 64])
def test_targets_of_a_power_of_two_are_orthogonal_or_opposite_and_balanced(bits, seed):
    codes = targets(2 * bits, bits, seed)
    assert set(np.unique(codes)) == {-1, 1}
    few = codes[:bits].astype(int)
    assert (few @ few.T == bits * np.eye(bits)).all()
    assert (codes[bits:] == -codes[:bits]).all()
    assert (codes[: bits - 1].sum(1) == 0).all()
    assert abs(codes[bits - 1].sum()) == bits  # the constant row comes last
    if bits >= 16:  # no bit is the same for ten classes
        assert (np.abs(codes[:10].sum(0)) < 10).mean() > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([6, 7, 12, 24, 31, 48]))
def test_other_targets_are_balanced_and_far_apart(seed, classes, bits):
    codes = targets(classes, bits, seed)
    assert codes.shape == (classes, bits)
    assert codes.dtype == np.float32
    assert (np.abs(codes.sum(1)) == bits % 2).all()
    apart = distances(codes)
    assert apart.mean() >= bits / 2 - 0.5
    if bits >= 12:
        assert apart.min() >= {12: 2, 24: 8, 31: 11, 48: 18}[bits]
    assert (targets(classes, bits, seed) == codes).all()


def test_targets_of_another_seed_are_others_and_more_than_there_are_codes_still_come():
    for bits, classes in ((16, 10), (24, 10), (16, 38)):
        assert (targets(classes, bits, 0) != targets(classes, bits, 1)).any()
    assert targets(9, 1, 0).shape == (9, 1)
    assert len(np.unique(targets(9, 1, 0))) == 2
    assert len(np.unique(targets(20, 6, 0), axis=0)) == 20  # all there are that hold three ones


def test_the_majority_by_hand_and_its_ties_at_random():
    codes = torch.tensor([[1.0, 1, -1, 1], [1, -1, -1, -1], [1, 1, 1, -1]])
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 1], [1, 1, 0]]).repeat(200, 1)
    torch.manual_seed(0)
    centres = majority(labels, codes).reshape(200, 3, 4)
    assert (centres[:, 0] == codes[0]).all()
    assert (centres[:, 1] == torch.tensor([1, 1, -1, -1])).all()
    assert (centres[:, 2, [0, 2]] == torch.tensor([1, -1])).all()
    ties = centres[:, 2, [1, 3]]
    assert set(ties.unique().tolist()) == {-1, 1}
    assert (ties.mean(0).abs() < 0.3).all()


def naive(u, centres, labels, weight):
    """The mean over labelled images of the cross-entropy and of the quantisation loss, number by number."""
    terms = []
    for row, centre, hot in zip(u, centres, labels, strict=True):
        if hot.any():
            for x, c in zip(row, centre, strict=True):
                h = (math.tanh(x) + 1) / 2
                terms.append(-math.log(h) if c > 0 else -math.log(1 - h))
                terms[-1] += weight * math.log(math.cosh(abs(2 * h - 1) - 1))
    return np.mean(terms)


@pytest.mark.parametrize("weight", [1e-4, 0.7])
def test_the_objective_equals_the_loop_and_leaves_images_without_a_label_out(weight):
    rng = np.random.default_rng(0)
    labels = np.eye(5, dtype=np.uint8)[rng.integers(0, 4, 12)]
    labels[[2, 7]] = 0
    hasher, rows = make("csq", bits=6, seed=4, quantization=weight), torch.tensor([3, 11, 0, 7, 8, 2, 5])
    loss = hasher.objective(torch.tensor(labels, dtype=torch.float64))
    u = torch.tensor(rng.normal(0, 1, (7, 6)), requires_grad=True)
    batch = labels[rows.numpy()]
    value = naive(u.detach().numpy(), targets(5, 6, 4)[batch.argmax(1)], batch, weight)
    assert loss(u, rows, 0).item() == pytest.approx(value)
    assert torch.autograd.gradcheck(lambda u: loss(u, rows, 0), u)
    (gradient,) = torch.autograd.grad(loss(u, rows, 0), u)
    assert (gradient[[3, 5]] == 0).all()
    assert loss(u[:2], torch.tensor([2, 7]), 0).item() == 0


@pytest.mark.parametrize("name", ["csq", "orthohash"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4])
def test_losses_and_gradients_stay_finite_whatever_the_outputs(name, size):
    loss = make(name, bits=6).objective(torch.eye(2)[torch.arange(8) % 2])
    u = (size * torch.randn(8, 6, generator=torch.manual_seed(0))).requires_grad_()
    value = loss(u, torch.arange(8), 0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("name", ["csq", "orthohash"])
@pytest.mark.parametrize("data", [digits, digit_scenes], ids=["digits", "digit-scenes"])
def test_it_learns_one_label_and_many(name, data):
    dataset = data.load().standardized()
    X, y, query, database = dataset.features, dataset.labels, dataset.query, dataset.database

    def score(hasher):
        return mean_average_precision(hasher.encode(X[query]), y[query], hasher.encode(X[database]), y[database])

    hasher = make(name, bits=24, hidden=128, updates=300, batch_size=64, learning_rate=5e-3)
    hasher.fit(X[dataset.train], y[dataset.train])
    lsh = make("lsh", bits=24).fit(X[dataset.train])
    assert score(hasher) > (0.85 if data is digits else score(lsh) + 0.1)


@pytest.mark.parametrize("name", ["ninh", "dsh", "csq", "orthohash"])
def test_labels_that_few_or_no_images_have_and_images_without_any_do_no_harm(name):
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 38)) < np.geomspace(0.3, 0.001, 38)).astype(np.uint8)
    labels[:30], labels[:, 37] = 0, 0
    hasher = make(name, bits=16, hidden=32, updates=30, batch_size=16).fit(rng.standard_normal((300, 8)), labels)
    assert np.isfinite(hasher.losses_).all()
    assert np.isfinite(hasher.transform(rng.standard_normal((9, 8)))).all()


def test_settings_that_cannot_work_are_rejected():
    with pytest.raises(ValueError, match="must be"):
        make("csq", quantization=-1.0)
    for same in (np.zeros((20, 2), np.uint8), np.ones((20, 1), np.uint8)):
        with pytest.raises(ValueError, match="training images share a label"):
            make("csq").fit(np.random.default_rng(0).standard_normal((20, 3)), same)
