"""HashNet's continuation, and settings of HashNet, DCH and MMHH."""

import math

import numpy as np
import pytest
import torch

from hashgym.data.readers import digits
from hashgym.hashers import make
from hashgym.hashers.hashnet import likelihood_loss


def test_outputs_sharpen_by_equal_stages_from_1_to_beta():
    hasher = make("hashnet", updates=100, stages=5, beta=4.0)
    scales = [hasher.scale(update) for update in range(100)]
    assert scales[0] == 1
    assert scales[-1] == pytest.approx(4)
    assert (np.diff(scales) >= 0).all()
    assert [scales.count(scale) for scale in dict.fromkeys(scales)] == [20] * 5
    squares = np.array(list(dict.fromkeys(scales))) ** 2
    assert np.allclose(np.diff(squares), 15 / 4)  # the square root of the time spent
    assert {make("hashnet", stages=1, updates=7).scale(update) for update in range(7)} == {1.0}


def test_the_objective_uses_the_stage_s_scale():
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    hasher = make("hashnet", bits=4, updates=10, stages=2, beta=3.0)
    loss, u = hasher.objective(labels), torch.randn(3, 4, dtype=torch.float64)
    rows = torch.arange(3)
    assert loss(3 * u, rows, 4).item() == pytest.approx(loss(u, rows, 5).item())
    assert loss(u, rows, 4).item() != pytest.approx(loss(u, rows, 5).item())


def test_the_likelihood_neither_overflows_nor_vanishes():
    distance = torch.tensor([0.0, 5000.0, 10000.0], requires_grad=True)
    for same, expected in ((True, [0, math.log(2), 1e5]), (False, [1e5, math.log(2), 0])):
        loss = likelihood_loss(distance, torch.tensor(same), 10000, 10.0)
        assert loss.tolist() == pytest.approx(expected)
        (gradient,) = torch.autograd.grad(loss.sum(), distance)
        assert torch.isfinite(gradient).all()


def test_sharper_outputs_are_nearer_to_codes():
    dataset = digits.load().standardized()
    X, y = dataset.features[dataset.train], dataset.labels[dataset.train]
    fits = [make("hashnet", bits=16, hidden=64, updates=150, beta=beta).fit(X, y) for beta in (1.0, 10.0)]
    lost = [1 - np.abs(np.tanh(hasher.beta * hasher.transform(X))).mean() for hasher in fits]
    assert lost[1] < 0.5 * lost[0]


def test_dissimilar_pairs_of_mmhh_can_weigh_more_and_then_codes_lie_farther_apart():
    dataset = digits.load().standardized()
    X, y = dataset.features[dataset.train], dataset.labels[dataset.train]
    fits = [make("mmhh", bits=16, hidden=64, updates=150, dissimilar=w).fit(X, y) for w in (1.0, 20.0)]
    assert fits[1].pair_weights_ / fits[0].pair_weights_ == pytest.approx([20, 1])
    apart = y.astype(int) @ y.T == 0
    near, far = ((h.encode(X)[:, None] != h.encode(X)[None]).sum(-1)[apart].mean() for h in fits)
    assert far > near + 1


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("hashnet", {"alpha": 0.0}),
        ("hashnet", {"beta": 0.5}),
        ("hashnet", {"stages": 0}),
        ("dch", {"gamma": 0.0}),
        ("dch", {"nearest": 0.0}),
        ("dch", {"quantization": -1.0}),
        ("mmhh", {"radius": 0.0}),
        ("mmhh", {"quantization": -1.0}),
        ("mmhh", {"dissimilar": 0.0}),
    ],
)
def test_settings_that_cannot_work_are_rejected(name, bad):
    with pytest.raises(ValueError, match="must be"):
        make(name, **bad)
