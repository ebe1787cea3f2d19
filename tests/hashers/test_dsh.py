"""DSH's loss against a double loop, and trained codes."""

import numpy as np
import pytest
import torch

from hashgym.data.readers import digit_scenes, digits
from hashgym.hashers import make
from hashgym.retrieval import mean_average_precision


def naive(b, labels, margin, alpha):
    """The paper's eq. 4, averaged over ordered pairs of different images."""
    terms = []
    for i in range(len(b)):
        for j in range(len(b)):
            if i != j:
                y = 0 if (labels[i] & labels[j]).any() else 1
                distance = sum((p - q) ** 2 for p, q in zip(b[i], b[j], strict=True))
                pull = sum(abs(abs(p) - 1) for p in [*b[i], *b[j]])
                terms.append((1 - y) * distance / 2 + y * max(margin - distance, 0) / 2 + alpha * pull)
    return np.mean(terms)


@pytest.mark.parametrize("kwargs", [{}, {"margin": 3.0, "alpha": 0.5}])
def test_the_objective_equals_the_double_loop_and_its_gradient_is_right(kwargs):
    rng = np.random.default_rng(0)
    labels = (rng.random((11, 3)) < 0.4).astype(np.uint8)  # some have no label: dissimilar to all
    hasher, rows = make("dsh", bits=5, **kwargs), torch.tensor([3, 10, 0, 7, 8, 2, 5])
    loss = hasher.objective(torch.tensor(labels, dtype=torch.float64))
    u = torch.tensor(rng.normal(0, 1, (7, 5)), requires_grad=True)
    margin = kwargs.get("margin", 10)
    value = naive(u.detach().numpy(), labels[rows.numpy()], margin, hasher.alpha)
    assert loss(u, rows, 0).item() == pytest.approx(value)
    assert torch.autograd.gradcheck(lambda u: loss(u, rows, 0), u)


def test_the_table_of_losses_by_hand():
    hasher = make("dsh", bits=4, hidden=8, updates=2)
    labels = np.eye(2, dtype=np.uint8)[np.arange(20) % 2]
    table = hasher.fit(np.random.default_rng(0).standard_normal((20, 3)), labels).loss_table()
    assert table.tolist() == [[4, 2, 0, 0, 0], [0, 2, 4, 6, 8]]  # half the bits apart is far enough


@pytest.mark.parametrize(("data", "least"), [(digits, 0.65), (digit_scenes, 0)], ids=["digits", "digit-scenes"])
def test_it_learns_one_label_and_many(data, least):
    dataset = data.load().standardized()
    X, y, query, database = dataset.features, dataset.labels, dataset.query, dataset.database

    def score(hasher):
        return mean_average_precision(hasher.encode(X[query]), y[query], hasher.encode(X[database]), y[database])

    hasher = make("dsh", bits=24, hidden=128, updates=300, batch_size=64, learning_rate=5e-3)
    hasher.fit(X[dataset.train], y[dataset.train])
    lsh = make("lsh", bits=24).fit(X[dataset.train])
    assert score(hasher) > max(least, score(lsh) + 0.1)
    share = hasher.encode(X[database]).mean(0)
    assert ((share > 0.05) & (share < 0.95)).mean() > 0.8  # most bits tell images apart


def test_settings_that_cannot_work_are_rejected():
    for bad in ({"margin": 0.0}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            make("dsh", **bad)
    with pytest.raises(ValueError, match="no two training images share a label"):
        make("dsh").fit(np.random.default_rng(0).standard_normal((20, 3)), np.eye(20, dtype=np.uint8))
