"""The triplet ranking loss against its definition, and trained codes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.data.readers import digits
from hashgym.hashers import make
from hashgym.hashers.noseq import NoSeq, triplet_ranking_loss
from hashgym.rewards import squared_distance, triplet_loss


def naive(h, labels, margin):
    """DRLIH eq. 3, triplet by triplet."""
    terms = []
    for i in range(len(h)):
        for j in range(len(h)):
            for k in range(len(h)):
                if i != j and (labels[i] & labels[j]).any() and not (labels[i] & labels[k]).any() and i != k:
                    near, far = ((h[i] - h[j]) ** 2).sum(), ((h[i] - h[k]) ** 2).sum()
                    terms.append(max(0.0, margin + near - far))
    return np.mean(terms) if terms else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 6), st.floats(0.1, 6))
def test_loss_equals_the_triple_loop(seed, n, bits, margin):
    rng = np.random.default_rng(seed)
    h = rng.random((n, bits))
    labels = (rng.random((n, 3)) < 0.6).astype(np.uint8)
    labels[labels.sum(1) == 0, 0] = 1
    loss = triplet_ranking_loss(torch.tensor(h), torch.tensor(labels, dtype=torch.float64), margin)
    assert loss.item() == pytest.approx(naive(h, labels, margin), abs=1e-9)


def test_loss_by_hand():
    h = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # (0; 1, 2): 1.5 + 1 - 2 = 0.5; (1; 0, 2): 1.5 + 1 - 1 = 1.5
    assert triplet_ranking_loss(h, labels, 1.5).item() == 1.0


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    h = torch.rand(7, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 0, 1, 1, 2, 2, 0])]
    labels[3, 0] = 1
    assert torch.autograd.gradcheck(lambda x: triplet_ranking_loss(x, labels, 0.6), h)


@pytest.mark.parametrize("seed", range(3))
def test_the_batch_loss_is_the_triplet_reward_of_all_its_images(seed):
    """Value and gradient, in torch; the value also in NumPy. Images have different numbers of triplets."""
    rng = np.random.default_rng(seed)
    h, label = torch.tensor(rng.random((9, 5)), requires_grad=True), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    labels = torch.tensor(np.eye(3)[label])
    images = [
        (i, np.flatnonzero((label == label[i]) & (np.arange(9) != i)), np.flatnonzero(label != label[i]))
        for i in range(9)
    ]
    triplets = np.array([len(similar) * len(others) for _, similar, others in images])

    def rewarded(codes):
        distances = [[squared_distance(codes[i], codes[rows])[None] for rows in (a, b)] for i, a, b in images]
        losses = [triplet_loss(positive, negative, 0.6)[0] for positive, negative in distances]
        return sum(n * loss for n, loss in zip(triplets, losses, strict=True)) / triplets.sum()

    batch = triplet_ranking_loss(h, labels, 0.6)
    assert batch.item() == pytest.approx(rewarded(h).item(), rel=1e-12)
    assert batch.item() == pytest.approx(rewarded(h.detach().numpy()), rel=1e-12)
    (expected,), (gradient,) = torch.autograd.grad(rewarded(h), h), torch.autograd.grad(batch, h)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    assert (gradient != 0).any()


def test_gradient_of_one_open_triplet_is_equation_9_with_corrected_signs():
    h = torch.tensor([[0.2, 0.7], [0.6, 0.4], [0.5, 0.9]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # 1 is similar to both: only (0; 1, 2) and (2; 1, 0)
    triplet_ranking_loss(h, labels, 9.0).backward()
    x, p, n = h.detach()
    assert torch.allclose(h.grad[0] * 2, 2 * (n - p) + 2 * (n - x))
    assert torch.allclose(h.grad[1] * 2, 2 * (p - x) + 2 * (p - n))


def test_a_batch_without_triplets_has_zero_loss_and_gradient():
    h = torch.rand(5, 4, requires_grad=True)
    loss = triplet_ranking_loss(h, torch.ones(5, 1), 2.0)
    loss.backward()
    assert loss.item() == 0
    assert (h.grad == 0).all()


def tie_aware_map(dataset, hasher):
    """mAP of queries, ties in random order."""
    query, database = (hasher.encode(dataset.features[split]) for split in (dataset.query, dataset.database))
    rng = np.random.default_rng(0)
    distance = (query[:, None] != database).sum(-1) + 0.5 * rng.random((len(query), len(database)))
    relevant = dataset.similar(dataset.query[:, None], dataset.database[None])
    hits = np.take_along_axis(relevant, distance.argsort(1), 1)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return ((precision * hits).sum(1) / hits.sum(1)).mean()


def test_on_digits_noseq_beats_itq_and_itq_beats_lsh():
    dataset = digits.load().standardized()
    score = {
        name: tie_aware_map(
            dataset, make(name, bits=24).fit(dataset.features[dataset.train], dataset.labels[dataset.train])
        )
        for name in ("lsh", "itq")
    }
    noseq = make("noseq", bits=24, hidden=256, updates=200, learning_rate=5e-3)
    noseq.fit(dataset.features[dataset.train], dataset.labels[dataset.train])
    score["noseq"] = tie_aware_map(dataset, noseq)
    assert noseq.losses_[-20:].mean() < 0.5 * noseq.losses_[0]
    assert score["itq"] > score["lsh"] + 0.1
    assert score["noseq"] > score["itq"] + 0.25


def test_training_leaves_the_callers_random_state_alone():
    X = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    y = np.eye(2, dtype=np.uint8)[np.arange(40) % 2]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make("noseq", bits=4, hidden=8, updates=3).fit(X, y)
    assert (torch.rand(3) == expected).all()


def test_raw_and_standardised_features_do_equally_well():
    dataset = digits.load()
    moved = dataset.standardized()
    kwargs = {"bits": 8, "hidden": 32, "updates": 60}
    raw, std = (
        make("noseq", **kwargs).fit(d.features[d.train], d.labels[d.train]).transform(d.features[d.query])
        for d in (dataset, moved)
    )
    assert np.abs(raw - std).max() < 0.05 * np.abs(std).max()


def test_settings_that_cannot_work_are_rejected():
    for bad in ({"margin": 0.0}, {"dropout": 1.0}, {"updates": 0}, {"hidden": -1}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            make("noseq", **bad)
    y = np.eye(2, dtype=np.uint8)[np.arange(40) % 2]
    with pytest.raises(ValueError, match="device must be 'auto' or a device of torch"):
        make("noseq", device="warp").fit(np.random.rand(40, 3), y)  # noqa: NPY002
    with pytest.raises(ValueError, match="diverged"):
        make("noseq", updates=5, learning_rate=1e38, device="cpu").fit(np.random.rand(40, 3), y)  # noqa: NPY002


def test_small_networks_train_on_one_thread_and_restore_the_number():
    before = torch.get_num_threads()
    seen = []

    class Spy(NoSeq):
        def objective(self, labels):
            seen.append(torch.get_num_threads())
            return super().objective(labels)

    X, y = np.random.default_rng(0).standard_normal((40, 5)), np.eye(2, dtype=np.uint8)[np.arange(40) % 2]
    Spy(bits=4, hidden=8, updates=2).fit(X, y)
    assert seen == [1]
    assert torch.get_num_threads() == before
