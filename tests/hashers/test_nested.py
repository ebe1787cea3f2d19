"""Nestable codes: the loss of a code and of its prefixes, and what training on it gives."""

import dataclasses

import numpy as np
import pytest
import torch

from hashgym.codes import prefix_lengths
from hashgym.data.readers import digits
from hashgym.hashers import make
from hashgym.hashers.deep import DeepHasher
from hashgym.hashers.registry import HASHERS
from hashgym.retrieval import mean_average_precision

DEEP = [name for name in HASHERS.entries if isinstance(make(name), DeepHasher)]


@pytest.mark.parametrize(
    ("bits", "step", "lengths"),
    [(48, 12, (12, 24, 36, 48)), (30, 12, (12, 24, 30)), (12, 12, (12,)), (5, 12, (5,)), (3, 1, (1, 2, 3))],
)
def test_lengths_of_prefixes(bits, step, lengths):
    assert prefix_lengths(bits, step) == lengths


@pytest.mark.parametrize("name", DEEP)
def test_the_loss_is_the_sum_of_those_of_hashers_of_each_length(name):
    hasher = make(name, bits=10, nested=4, seed=3)
    labels = torch.eye(3)[torch.arange(12) % 3]
    logits, rows = torch.randn(12, 10, generator=torch.Generator().manual_seed(0)), torch.arange(12)
    torch.manual_seed(1)
    nested = hasher._nested_objective(labels)
    torch.manual_seed(1)  # some objectives begin with random codes
    parts = [dataclasses.replace(hasher, bits=length, nested=0).objective(labels) for length in (4, 8, 10)]
    torch.manual_seed(2)  # some losses draw the bits of codes
    expected = [part(logits[:, :length], rows, 0).item() for part, length in zip(parts, (4, 8, 10), strict=True)]
    torch.manual_seed(2)
    assert nested(logits, rows, 0).item() == pytest.approx(sum(expected), rel=1e-5)


@pytest.mark.parametrize(("name", "gain"), [("noseq", 0.05), ("orthohash", 0.0)])
def test_a_prefix_of_a_nested_code_is_better_than_one_of_a_plain_code(name, gain):
    dataset = digits.load().standardized()
    features, labels = dataset.features, dataset.labels
    scores = {}
    for nested in (0, 8):
        hasher = make(name, bits=32, nested=nested, updates=300).fit(features[dataset.train], labels[dataset.train])
        codes = hasher.encode(features)[:, :8]
        query, database = dataset.query, dataset.database
        scores[nested] = mean_average_precision(codes[query], labels[query], codes[database], labels[database])
    assert scores[8] > scores[0] + gain


def test_without_prefixes_nothing_changes():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 5), np.float32), np.arange(60) % 3
    plain, nested = (make("dch", bits=8, updates=20, nested=step).fit(X, y) for step in (0, 8))
    np.testing.assert_allclose(plain.transform(X), nested.transform(X), rtol=1e-5)
    assert nested.pair_weights_.shape == plain.pair_weights_.shape


@pytest.mark.parametrize(("value", "message"), [(-1, "nested must be at least 0, got -1"), (True, "an integer")])
def test_wrong_settings(value, message):
    with pytest.raises(ValueError, match=message):
        make("noseq", nested=value)
