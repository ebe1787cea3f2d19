"""CIBHash's losses against loops, and codes that it learns without labels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.data.readers import digits
from hashgym.hashers import make
from hashgym.hashers.cibhash import contrastive_loss, divergence
from hashgym.retrieval import mean_average_precision


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 2))
def test_the_contrastive_loss_equals_a_loop(seed, images, bits, temperature):
    rng = np.random.default_rng(seed)
    one, other = (np.where(rng.random((images, bits)) < 0.5, 1.0, -1.0) for _ in range(2))
    views = [*one, *other]

    def likeness(i, j):
        a, b = views[i], views[j]
        return math.exp(sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)) / temperature)

    total = 0.0
    for i in range(2 * images):
        partner = (i + images) % (2 * images)
        others = [j for j in range(2 * images) if j != i]
        total -= math.log(likeness(i, partner) / sum(likeness(i, j) for j in others))
    found = contrastive_loss(torch.from_numpy(one), torch.from_numpy(other), temperature)
    assert float(found) == pytest.approx(total / (2 * images), rel=1e-6, abs=1e-9)


def test_the_divergence_equals_a_loop_and_is_0_for_equal_bits():
    rng = np.random.default_rng(0)
    p, q = rng.random((2, 5, 3))
    total = 0.0
    for a, b in zip(p, q, strict=True):
        for x, y in zip(a, b, strict=True):
            total += x * math.log(x / y) + (1 - x) * math.log((1 - x) / (1 - y))
    assert float(divergence(torch.tensor(p), torch.tensor(q))) == pytest.approx(total / 5)
    assert float(divergence(torch.tensor(p), torch.tensor(p))) == 0
    assert math.isfinite(float(divergence(torch.zeros(2, 2), torch.ones(2, 2))))


def test_the_objective_takes_both_views_of_every_image():
    hasher = make("cibhash", bits=4, bottleneck=0.5)
    loss = hasher.objective(torch.zeros(6, 0))
    u = torch.full((6, 4), 40.0)
    u[[0, 3], :2] = -40  # sure bits, so that nothing is random: the first of three images differs from the others
    u.requires_grad_()
    value = loss(u, torch.tensor([0, 1, 2, 0, 1, 2]), 0)
    bits = torch.where(u.detach() > 0, 1.0, -1.0)
    expected = contrastive_loss(bits[:3], bits[3:], hasher.temperature)
    assert value.item() == pytest.approx(float(expected), abs=1e-4)
    value.backward()
    assert torch.isfinite(u.grad).all()


def test_without_labels_it_beats_itq_on_digits():
    data = digits.load().standardized()
    score = {}
    for name in ("itq", "cibhash"):
        hasher = make(name, bits=16).fit(data.features[data.train])
        codes = hasher.encode(data.features)
        assert codes.mean() == pytest.approx(0.5, abs=0.15)
        score[name] = mean_average_precision(
            codes[data.query], data.labels[data.query], codes[data.database], data.labels[data.database]
        )
    assert score["cibhash"] > score["itq"] + 0.03


def test_bad_settings_are_rejected():
    for bad in ({"temperature": 0.0}, {"bottleneck": -1.0}):
        with pytest.raises(ValueError, match="temperature must be above 0 and bottleneck at least 0"):
            make("cibhash", **bad)
