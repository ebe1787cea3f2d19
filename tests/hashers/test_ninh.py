"""NINH's slices, threshold and loss, and trained codes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.data.readers import digits
from hashgym.hashers import make
from hashgym.hashers.ninh import DivideAndEncode, piecewise_threshold
from hashgym.retrieval import mean_average_precision


def threshold(s, epsilon):
    if s < 0.5 - epsilon:
        return 0.0
    return s if s <= 0.5 + epsilon else 1.0


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.5, 2.0])
def test_the_threshold_is_piecewise_and_flat_outside_the_middle(epsilon):
    s = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    h = piecewise_threshold(s, epsilon)
    assert h.tolist() == pytest.approx([threshold(x, epsilon) for x in s.tolist()])
    h.sum().backward()
    assert s.grad.tolist() == [float(0.5 - epsilon <= x <= 0.5 + epsilon) for x in s.tolist()]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 60))
def test_every_unit_speaks_to_one_bit_and_slices_are_equal_up_to_one_unit(bits, more):
    layer = DivideAndEncode(bits + more, bits)
    own = layer.own.numpy()
    assert (own.sum(0) == 1).all()
    assert np.ptp(own.sum(1)) <= 1
    assert (np.diff(own.argmax(0)) >= 0).all()  # slices, not scattered units
    x, weight, bias = (
        np.random.default_rng(0).normal(size=(3, bits + more)),
        *(p.detach().numpy() for p in layer.parameters()),
    )
    expected = [[x[i, own[k]] @ weight[k, own[k]] + bias[k] for k in range(bits)] for i in range(3)]
    assert np.allclose(layer(torch.tensor(x, dtype=torch.float32)).detach(), expected, atol=1e-5)


def naive(logits, labels, margin, epsilon):
    """The mean of max(0, m + ||h - h+||^2 - ||h - h-||^2), triplet by triplet."""
    h = [[threshold(1 / (1 + np.exp(-u)), epsilon) for u in row] for row in logits]
    n, terms = len(h), []
    for i in range(n):
        for j in range(n):
            for k in range(n):
                if i not in (j, k) and (labels[i] & labels[j]).any() and not (labels[i] & labels[k]).any():
                    near, far = (sum((a - b) ** 2 for a, b in zip(h[i], h[o], strict=True)) for o in (j, k))
                    terms.append(max(0.0, margin + near - far))
    return np.mean(terms)


@pytest.mark.parametrize("kwargs", [{}, {"margin": 2.5, "epsilon": 0.2}])
def test_the_objective_equals_the_triple_loop(kwargs):
    rng = np.random.default_rng(0)
    labels = (rng.random((12, 3)) < 0.4).astype(np.uint8)  # some have no label: they are only ever dissimilar
    hasher, rows = make("ninh", bits=5, **kwargs), torch.tensor([3, 11, 0, 7, 8, 2, 5])
    u = rng.normal(0, 2, (7, 5))
    value = hasher.objective(torch.tensor(labels, dtype=torch.float64))(torch.tensor(u), rows, 0).item()
    assert value == pytest.approx(naive(u, labels[rows.numpy()], hasher.margin, hasher.epsilon))


@pytest.fixture(scope="module")
def dataset():
    return digits.load().standardized()


def blocks(width, bits):
    return np.arange(width)[:, None] * bits // width == np.arange(bits)


@pytest.mark.parametrize(("hidden", "width"), [(50, 50), (0, 64)])
def test_a_bit_depends_on_its_slice_only(hidden, width, dataset):
    X, y = dataset.features[dataset.train], dataset.labels[dataset.train]
    hasher = make("ninh", bits=8, hidden=hidden, updates=30, batch_size=32).fit(X, y)
    assert ((hasher.code_weight_ != 0) == blocks(width, 8)).all()
    part = X if hidden == 0 else np.maximum(X @ hasher.hidden_weight_ + hasher.hidden_bias_, 0)
    for k in range(8):
        own = blocks(width, 8)[:, k]
        bit = part[:, own] @ hasher.code_weight_[own, k] + hasher.code_bias_[k]
        assert np.allclose(bit, hasher.transform(X)[:, k], atol=1e-4)
    if hidden == 0:
        moved = X.copy()
        moved[:, blocks(64, 8)[:, 2]] += 1
        assert ((hasher.transform(moved) != hasher.transform(X)).any(0) == (np.arange(8) == 2)).all()


def test_it_learns_digits(dataset):
    hasher = make("ninh", bits=24, hidden=192, updates=300, batch_size=32, learning_rate=5e-3)
    hasher.fit(dataset.features[dataset.train], dataset.labels[dataset.train])
    query, database = dataset.query, dataset.database
    found = hasher.encode(dataset.features[query]), hasher.encode(dataset.features[database])
    assert mean_average_precision(found[0], dataset.labels[query], found[1], dataset.labels[database]) > 0.7


def test_settings_that_cannot_work_are_rejected(dataset):
    for bad in ({"margin": 0.0}, {"epsilon": 0.0}, {"hidden": -1}):
        with pytest.raises(ValueError, match="must be"):
            make("ninh", **bad)
    X, y = dataset.features[dataset.train], dataset.labels[dataset.train]
    for hidden, bits in ((7, 8), (0, 65)):
        with pytest.raises(ValueError, match=f"cannot be cut into slices for {bits} bits"):
            make("ninh", bits=bits, hidden=hidden, updates=1).fit(X, y)
    with pytest.raises(ValueError, match="no dissimilar pair"):
        make("ninh").fit(X, np.ones_like(y))
