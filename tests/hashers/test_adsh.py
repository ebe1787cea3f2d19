"""ADSH: coordinate descent against brute force, products without a matrix, and the loss of the network."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.hashers import make
from hashgym.hashers.adsh import discrete_coordinate_descent, similarity_product


def problem(seed, n, m, q):
    """Outputs U (m, q), wanted products S (m, n), codes V (n, q), and the coupling's outputs (n, q)."""
    rng = np.random.default_rng(seed)
    similarity = rng.choice([-0.4, 1.0], (m, n))
    return rng.uniform(-1, 1, (m, q)), similarity, rng.choice([-1.0, 1.0], (n, q)), rng.uniform(-1, 1, (n, q))


def descend(u, similarity, v, near, gamma):
    """One pass for ||U V^T - q S||^2 + gamma ||V - near||^2."""
    target = u.shape[1] * similarity.T @ u + gamma * near
    return discrete_coordinate_descent(*map(torch.tensor, (v, u.T @ u, target))).numpy()


def cost(u, similarity, v, near, gamma):
    return ((u @ v.T - u.shape[1] * similarity) ** 2).sum() + gamma * ((v - near) ** 2).sum()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.floats(0, 10))
def test_no_pass_of_coordinate_descent_raises_its_objective(seed, n, m, q, gamma):
    u, similarity, v, near = problem(seed, n, m, q)
    costs = [cost(u, similarity, v, near, gamma)]
    for _ in range(5):
        before = v.copy()
        v = descend(u, similarity, v, near, gamma)
        assert set(np.unique(v)) <= {-1.0, 1.0}
        costs.append(cost(u, similarity, v, near, gamma))
    assert (np.diff(costs) <= 1e-9 * (1 + costs[0])).all()
    if costs[-1] == costs[-2]:
        assert (v == before).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.floats(0, 3))
def test_every_column_becomes_the_best_of_all_columns(seed, n, q, gamma):
    u, similarity, v, near = problem(seed, n, 6, q)
    ours = descend(u, similarity, v, near, gamma)
    columns = [np.array(column) for column in itertools.product([-1.0, 1.0], repeat=n)]
    for k in range(q):  # by brute force, the columns before k already replaced
        tried = [np.column_stack([v[:, :k], column, v[:, k + 1 :]]) for column in columns]
        v = min(tried, key=lambda candidate: cost(u, similarity, candidate, near, gamma))
        assert (v[:, k] == ours[:, k]).all()


def test_a_bit_without_effect_becomes_minus_one_and_the_input_stays():
    codes = torch.ones(3, 2)
    assert (discrete_coordinate_descent(codes, torch.zeros(2, 2), torch.zeros(3, 2)) == -1).all()
    assert (codes == 1).all()


def naive_similarity(labels, r):
    """S by a double loop."""
    return np.array([[1.0 if (a & b).any() else -r for b in labels] for a in labels])


@pytest.mark.parametrize(("n", "r"), [(3, 0.3), (23, 2.0)])
def test_products_with_similarities_need_no_matrix(n, r, monkeypatch):
    monkeypatch.setattr("hashgym.hashers.adsh._ROWS", 5)  # blocks, the last not full
    rng = np.random.default_rng(n)
    labels, values = (rng.random((n, 4)) < 0.3).astype(np.uint8), rng.standard_normal((n, 3))
    product = similarity_product(torch.tensor(labels, dtype=torch.float64), r, torch.tensor(values))
    assert np.allclose(product.numpy(), naive_similarity(labels, r) @ values)


@pytest.mark.parametrize("number", [lambda update: update, lambda update: 3 * update // 2, lambda update: update // 3])
def test_the_loss_is_the_double_loop_over_images_and_codes_learnt_from_recent_outputs(number):
    """Also where the number of the update skips or repeats some, as while the head is trained alone."""
    rng = np.random.default_rng(0)
    n, q, gamma = 10, 4, 0.7
    labels = (rng.random((n, 3)) < 0.4).astype(np.uint8)
    similar = naive_similarity(labels, 0.0)
    off = ~np.eye(n, dtype=bool)
    r = similar[off].sum() / (1 - similar[off]).sum()
    S = naive_similarity(labels, r)

    torch.manual_seed(5)
    loss = make("adsh", bits=q, gamma=gamma, batch_size=5).objective(torch.tensor(labels, dtype=torch.float32))
    torch.manual_seed(5)
    V = np.where(torch.randn(n, q).numpy() > 0, 1.0, -1.0)

    def naive(u, rows):
        pairs = [(u[a] @ V[j] - q * S[i, j]) ** 2 for a, i in enumerate(rows) for j in range(n)]
        return np.mean(pairs) + gamma * np.mean([((V[i] - u[a]) ** 2).sum() for a, i in enumerate(rows)])

    outputs = np.zeros((n, q))
    for update in range(8):  # two batches are a pass: V is learnt before updates 2, 4 and 6
        if update in (2, 4, 6):
            V = descend(outputs, S, V, outputs, gamma * n)
        rows, logits = rng.permutation(n)[:5], rng.normal(size=(5, q)).astype(np.float32)
        value = loss(torch.tensor(logits), torch.tensor(rows), number(update)).item()
        outputs[rows] = np.tanh(logits)
        assert value == pytest.approx(naive(outputs[rows], rows), rel=1e-4)


def test_the_gradient_of_the_loss():
    labels = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 1]], dtype=torch.float64)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([2, 0, 1, 3])

    def first_loss(x):
        torch.manual_seed(0)
        return make("adsh", bits=3).objective(labels)(x, rows, 0)

    assert torch.autograd.gradcheck(first_loss, logits)


def test_settings_that_cannot_work_are_rejected():
    for bad in ({"gamma": -1.0}, {"dissimilar": -0.1}, {"passes": 0}):
        with pytest.raises(ValueError, match="must be at least 0"):
            make("adsh", **bad)
