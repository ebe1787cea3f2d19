"""OrthoHash's loss against a loop, its normalisation, and images with several labels."""

import math

import numpy as np
import pytest
import torch

from hashgym.data.readers import digits
from hashgym.hashers import make
from hashgym.hashers.csq import targets
from hashgym.hashers.orthohash import cosine_softmax_loss


def naive(z, codes, hot, s, m):
    """The loss of one image: mean over its labels of -log of the softmax with the margin, from the definition."""
    logits = []
    for k, code in enumerate(codes):
        cosine = sum(a * b for a, b in zip(z, code, strict=True)) / math.hypot(*z) / math.hypot(*code)
        logits.append(s * (cosine - m * hot[k]))
    total = sum(math.exp(x) for x in logits)
    present = [-math.log(math.exp(logits[k]) / total) for k in range(len(codes)) if hot[k]]
    return sum(present) / len(present) if present else 0.0


def test_the_loss_equals_the_loop_for_one_label_many_and_none():
    rng = np.random.default_rng(0)
    z, codes = torch.tensor(rng.normal(0, 1, (5, 6)), requires_grad=True), targets(4, 6, 0).astype(float)
    labels = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], float)
    arguments = torch.tensor(codes), torch.tensor(labels), 8.0, 0.2
    expected = [naive(row, codes, hot, 8.0, 0.2) for row, hot in zip(z.detach().numpy(), labels, strict=True)]
    assert cosine_softmax_loss(z, *arguments).tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda z: cosine_softmax_loss(z, *arguments), z)


def test_the_objective_is_its_mean_over_the_labelled_images_of_a_normalised_batch():
    rng = np.random.default_rng(1)
    labels = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, 10)]
    labels[4] = 0
    hasher, rows = make("orthohash", bits=6, seed=2, scale=5.0, margin=0.4), torch.tensor([0, 9, 4, 3, 7])
    u = rng.normal(3, 2, (5, 6))
    z = (u - u.mean(0)) / np.sqrt(u.var(0) + 1e-5)
    codes, batch = targets(4, 6, 2).astype(float), labels[rows.numpy()]
    expected = sum(naive(a, codes, b, 5.0, 0.4) for a, b in zip(z, batch, strict=True)) / 4
    loss = hasher.objective(torch.tensor(labels, dtype=torch.float64))
    assert loss(torch.tensor(u), rows, 0).item() == pytest.approx(expected)
    assert loss(torch.tensor(7 * u - 2), rows, 0).item() == pytest.approx(expected, rel=1e-4)  # scale does not matter
    assert loss(torch.tensor(u), torch.tensor([4, 4, 4, 4, 4]), 0).item() == 0


@pytest.mark.parametrize("hidden", [0, 64])
def test_codes_of_the_training_images_have_mean_0_and_deviation_1(hidden):
    dataset = digits.load()  # raw: the features' own mean and deviation are part of the layer too
    X, y = dataset.features[dataset.train], dataset.labels[dataset.train]
    hasher = make("orthohash", bits=24, hidden=hidden, updates=150, batch_size=64, learning_rate=5e-3).fit(X, y)
    values = hasher.transform(X)
    assert np.abs(values.mean(0)).max() < 1e-3
    assert np.abs(values.std(0) - 1).max() < 1e-2
    codes = targets(10, 24, 0)
    nearest = (values / np.linalg.norm(values, axis=1, keepdims=True) @ codes.T).argmax(1)
    assert (nearest == y.argmax(1)).mean() > 0.9  # images lie next to their own class's target


def test_settings_that_cannot_work_are_rejected():
    for bad in ({"scale": 0.0}, {"margin": -0.1}, {"batch_size": 1}):
        with pytest.raises(ValueError, match="must be"):
            make("orthohash", **bad)
