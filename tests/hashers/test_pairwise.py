"""The base hashers of MCH against its Table 1, number by number and pair by pair, and trained codes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes
from hashgym.data.readers import digit_scenes, digits
from hashgym.hashers import NotFittedError, load, make
from hashgym.hashers.pairwise import cosine_distance, inner_distance, pair_weights, signs
from hashgym.retrieval import mean_average_precision

DEEP = ["ksh-relaxed", "hashnet", "adsh", "dch", "mmhh"]
NAMES = ["ksh", *DEEP]
WEIGHTED = {"hashnet", "dch", "mmhh"}
QUICK = {"hidden": 16, "updates": 3, "batch_size": 16}


def table_1(name, d, s, q):
    """L(d, s) of MCH's Table 1 without w, as errata read it, in Python's own numbers."""
    if name in ("ksh", "ksh-relaxed"):
        return ((q - 2 * d) / q - (2 * s - 1)) ** 2
    if name == "hashnet":
        a = 10 / q * (q - 2 * d)
        return math.log(1 + math.exp(a)) - s * a
    if name == "adsh":
        return ((q - 2 * d) - q * (2 * s - 1)) ** 2
    if name == "dch":
        gamma = make("dch").gamma
        if s:  # log(d / gamma) + log(1 + gamma / d), finite at 0
            return math.log(1 + d / gamma)
        return math.log(1 + gamma / max(d, 0.5))
    if name == "mmhh":
        return s * math.log(1 + max(0, d - 2)) + (1 - s) * math.log(1 + 1 / max(2, d))
    raise AssertionError(name)


def random_labels(seed, n, classes=3, share=0.4):
    labels = (np.random.default_rng(seed).random((n, classes)) < share).astype(np.uint8)
    labels[:3] = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]  # a similar pair and a dissimilar one, at least
    return labels


def naive_weights(labels):
    pairs = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    same = sum(any(a and b for a, b in zip(labels[i], labels[j], strict=True)) for i, j in pairs)
    return [len(pairs) / (len(pairs) - same), len(pairs) / same]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.floats(0, 0.6))
def test_pair_weights_equal_a_count_of_all_pairs(seed, n, share):
    labels = random_labels(seed, n, share=share)
    assert pair_weights(labels).tolist() == pytest.approx(naive_weights(labels))


def test_pair_weights_of_more_images_than_are_counted_at_once():
    labels = np.eye(2, dtype=np.uint8)[(np.arange(5000) < 1000).astype(int)]
    same = 1000 * 999 + 4000 * 3999
    assert pair_weights(labels).tolist() == pytest.approx([5000 * 4999 / (5000 * 4999 - same), 5000 * 4999 / same])


@pytest.mark.parametrize("name", NAMES)
def test_labels_without_similar_or_dissimilar_pairs_are_rejected(name):
    X, kwargs = np.random.default_rng(0).standard_normal((20, 4)), {} if name == "ksh" else QUICK
    for labels, problem in [
        (np.eye(20, dtype=np.uint8), "no two training images share a label"),
        (np.zeros((20, 2), np.uint8), "no two training images share a label"),
        (np.ones((20, 2), np.uint8), "all training images share a label"),
    ]:
        with pytest.raises(ValueError, match=problem):
            make(name, bits=4, **kwargs).fit(X, labels)
    with pytest.raises(NotFittedError):
        make(name).loss_table()


@pytest.mark.parametrize("bits", [5, 16])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_table_is_table_1_with_its_weights(name, bits, tmp_path):
    labels = random_labels(1, 40)
    hasher = make(name, bits=bits, **({} if name == "ksh" else QUICK))
    hasher.fit(np.random.default_rng(0).standard_normal((40, 6)), labels)
    weights = naive_weights(labels) if name in WEIGHTED else [1, 1]
    if name == "mmhh":
        weights[0] *= hasher.dissimilar
    expected = [[weights[s] * table_1(name, d, s, bits) for d in range(bits + 1)] for s in (0, 1)]
    table = hasher.loss_table()
    assert table.dtype == np.float64
    assert table.shape == (2, bits + 1)
    assert table == pytest.approx(np.array(expected), rel=1e-9, abs=1e-9)
    hasher.save(tmp_path / "hasher.npz")
    assert (load(tmp_path / "hasher.npz").loss_table() == table).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("same", [False, True])
def test_losses_of_real_distances_and_their_gradients(name, same):
    hasher, similar = make(name, bits=12), torch.tensor(same)
    distance = torch.linspace(0.55, 11.9, 23, dtype=torch.float64, requires_grad=True)  # smooth there: not 0.5, not 2
    expected = [table_1(name, d, same, 12) for d in distance.tolist()]
    assert hasher.pair_loss(distance, similar).tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(lambda d: hasher.pair_loss(d, similar), distance)
    edges = torch.tensor([0.0, -1e-6, 0.5, 2.0, 12.0, 12.00001], requires_grad=True)  # rounding leaves [0, q]
    loss = hasher.pair_loss(edges, similar)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(edges.grad).all()


def naive_objective(name, hasher, u, labels, weights):
    """Mean of w L over ordered pairs i != j, plus the mean regularisation, from the outputs of a batch."""
    n, q = u.shape
    h = np.tanh(u / 2) if name == "ksh-relaxed" else np.tanh(u)
    pairs = []
    for i in range(n):
        for j in range(n):
            if i != j:
                s = int((labels[i] & labels[j]).any())
                inner = h[i] @ h[j]
                if name in ("dch", "mmhh"):
                    inner = q * (u[i] @ u[j]) / np.linalg.norm(u[i]) / np.linalg.norm(u[j])
                pairs.append(weights[s] * table_1(name, (q - inner) / 2, s, q))
    regular = 0.0
    for row in u:
        b = np.where(row > 0, 1.0, -1.0)
        if name == "dch":
            cosine = b @ row / np.linalg.norm(b) / np.linalg.norm(row)
            regular += hasher.quantization * math.log(1 + q / (2 * hasher.gamma) * (1 - cosine)) / n
        if name == "mmhh":
            regular += hasher.quantization * ((b - row) ** 2).sum() / n
    return np.mean(pairs) + regular


@pytest.mark.parametrize("name", ["ksh-relaxed", "hashnet", "dch", "mmhh"])
def test_what_is_minimised_is_the_mean_over_all_pairs_and_its_gradient_is_right(name):
    rng = np.random.default_rng(3)
    labels, hasher = random_labels(2, 11), make(name, bits=6, updates=100)
    loss = hasher.objective(torch.tensor(labels, dtype=torch.float64))
    rows = torch.tensor([7, 0, 3, 10, 1, 2])
    u = torch.tensor(rng.uniform(0.1, 2, (6, 6)) * rng.choice([-1, 1], (6, 6)), requires_grad=True)
    value = naive_objective(name, hasher, u.detach().numpy(), labels[rows.numpy()], hasher.pair_weights_)
    assert loss(u, rows, 0).item() == pytest.approx(value, rel=1e-6)
    assert torch.autograd.gradcheck(lambda u: loss(u, rows, 0), u)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e4])
def test_losses_and_gradients_stay_finite_whatever_the_outputs(name, size):
    labels = torch.eye(2)[torch.arange(8) % 2]
    loss = make(name, bits=6, updates=10).objective(labels)
    u = (size * torch.ones(8, 6)).requires_grad_()  # all images on one code
    for update in (0, 9):
        value = loss(u, torch.arange(8), update)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("name", ["ksh-relaxed", "hashnet", "dch", "mmhh"])
def test_a_batch_of_one_has_no_pairs(name):
    hasher = make(name, bits=3)
    hasher._weigh(pair_weights(random_labels(0, 5)))
    distance = torch.zeros(1, 1, requires_grad=True)
    loss = hasher.batch_loss(distance, torch.ones(1, 2))
    loss.backward()
    assert loss.item() == 0
    assert distance.grad.item() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_relaxed_distances_of_codes_are_hamming_distances(seed, bits):
    rng = np.random.default_rng(seed)
    a, b = rng.random((5, bits)) < 0.5, rng.random((4, bits)) < 0.5
    hamming = codes.hamming(codes.pack(a)[:, None], codes.pack(b)[None])
    x, y = (signs(torch.tensor(c, dtype=torch.float64) - 0.5) for c in (a, b))
    assert (inner_distance(x, y).numpy() == hamming).all()
    assert np.allclose(cosine_distance(3 * x, 0.2 * y).numpy(), hamming)


def test_the_sign_of_zero_is_minus_one_as_in_encode():
    assert signs(torch.tensor([-2.0, -0.0, 0.0, 1e-30])).tolist() == [-1, -1, -1, 1]


@pytest.fixture(scope="module", params=[digits, digit_scenes], ids=["digits", "digit-scenes"])
def dataset(request):
    return request.param.load().standardized()


def score(hasher, dataset):
    query, database = dataset.query, dataset.database
    return mean_average_precision(
        hasher.encode(dataset.features[query]),
        dataset.labels[query],
        hasher.encode(dataset.features[database]),
        dataset.labels[database],
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_base_learns_one_label_and_many(name, dataset):
    kwargs = {} if name == "ksh" else {"hidden": 256, "updates": 250, "learning_rate": 5e-3}
    hasher = make(name, bits=24, **kwargs).fit(dataset.features[dataset.train], dataset.labels[dataset.train])
    lsh = make("lsh", bits=24).fit(dataset.features[dataset.train])
    assert score(hasher, dataset) > score(lsh, dataset) + (0.3 if dataset.name == "digits" else 0.1)
