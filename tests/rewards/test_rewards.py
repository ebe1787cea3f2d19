"""Every reward and credit against a naive loop over images, pairs and bits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import codes, rewards
from hashgym.rewards import Codebook, RewardView


def make_view(seed: int, num_envs: int = 5, bits: int = 7, partners: int = 3, relaxed: bool = False) -> RewardView:
    """Images whose bits are in the codebook, as after a step of the environment."""
    rng = np.random.default_rng(seed)
    n = 24
    labels = (rng.random((n, 4)) < 0.4).astype(np.uint8)
    rows = rng.choice(n, num_envs, replace=False)
    code = rng.random((num_envs, bits)).astype(np.float32)
    code = code if relaxed else (code > 0.5).astype(np.float32)
    codebook = Codebook(codes.pack(rng.random((n, bits)) < 0.5), codes.pack(labels), bits)
    codebook.write(rows, code > 0.5)
    return RewardView(
        code=code,
        codebook=codebook,
        rows=rows,
        positive_rows=rng.integers(n, size=(num_envs, partners)),
        negative_rows=rng.integers(n, size=(num_envs, partners)),
        labels=labels[rows],
    )


def naive_triplet(view: RewardView, index: int, code: np.ndarray, margin: float) -> float:
    book = codes.unpack(view.codebook.words, view.codebook.bits)
    total = 0.0
    for positive in view.positive_rows[index]:
        for negative in view.negative_rows[index]:
            near = sum((float(a) - float(b)) ** 2 for a, b in zip(code, book[positive], strict=True))
            far = sum((float(a) - float(b)) ** 2 for a, b in zip(code, book[negative], strict=True))
            total += max(0.0, margin + near - far)
    return -total / view.positive_rows[index].size / view.negative_rows[index].size


def naive_ap(distance: list[int], relevant: list[bool]) -> float:
    """Tie-aware AP: the mean, over each relevant item, of its expected precision at its rank in a random tie order."""
    if not any(relevant):
        return 0.0
    total = 0.0
    for d in sorted(set(distance)):
        before = sum(x < d for x in distance)
        before_relevant = sum(x < d and r for x, r in zip(distance, relevant, strict=True))
        tied = sum(x == d for x in distance)
        tied_relevant = sum(x == d and r for x, r in zip(distance, relevant, strict=True))
        for place in range(1, tied + 1):
            others = (place - 1) * (tied_relevant - 1) / (tied - 1) if tied > 1 else 0.0
            total += tied_relevant / tied * (before_relevant + others + 1) / (before + place)
    return total / sum(relevant)


def naive_codebook_ap(view: RewardView, index: int, code: np.ndarray) -> float:
    book = codes.unpack(view.codebook.words, view.codebook.bits)
    labels = codes.unpack(view.codebook.label_words, 4)
    others = [j for j in range(len(book)) if j != view.rows[index]]
    return naive_ap(
        [int(((code > 0.5) != book[j]).sum()) for j in others],
        [bool((labels[j] & (view.labels[index] > 0)).any()) for j in others],
    )


def naive_partner_ap(view: RewardView, index: int, code: np.ndarray) -> float:
    book = codes.unpack(view.codebook.words, view.codebook.bits)
    rows = [*view.positive_rows[index], *view.negative_rows[index]]
    relevant = [True] * view.positive_rows.shape[1] + [False] * view.negative_rows.shape[1]
    return naive_ap([int(((code > 0.5) != book[j]).sum()) for j in rows], relevant)


def naive_nca(view: RewardView, index: int, code: np.ndarray, scale: float) -> float:
    book = codes.unpack(view.codebook.words, view.codebook.bits)
    labels = codes.unpack(view.codebook.label_words, 4)
    similar = total = 0.0
    for j in range(len(book)):
        if j != view.rows[index]:
            cosine = sum((2 * (a > 0.5) - 1) * (2 * int(b) - 1) for a, b in zip(code, book[j], strict=True)) / len(code)
            total += math.exp(scale * cosine)
            similar += math.exp(scale * cosine) * bool((labels[j] & (view.labels[index] > 0)).any())
    return math.log(similar / total) if similar else 0.0


NAIVE = {
    "nca": ("nca", lambda v, i, c: naive_nca(v, i, c, 8.0)),
    "nca-sharp": ({"name": "nca", "scale": 40.0}, lambda v, i, c: naive_nca(v, i, c, 40.0)),
    "triplet": ({"name": "triplet", "margin": 2.0}, lambda v, i, c: naive_triplet(v, i, c, 2.0)),
    "ap-codebook": ("average_precision", naive_codebook_ap),
    "ap-partners": ({"name": "average_precision", "against": "partners"}, naive_partner_ap),
    "weighted": (
        {"name": "weighted", "terms": {"triplet": 0.25, "average_precision": -2.0}},
        lambda v, i, c: 0.25 * naive_triplet(v, i, c, 1.0) - 2.0 * naive_codebook_ap(v, i, c),
    ),
}


def test_a_sum_is_written_as_one() -> None:
    made = rewards.make("0.5*triplet + balance+-2*pairwise:dch")
    assert isinstance(made, rewards.Weighted)
    assert [(weight, getattr(reward, "name", "")) for weight, reward in made.terms] == [
        (0.5, "triplet"),
        (1.0, "balance"),
        (-2.0, "pairwise:dch"),
    ]
    for text, message in {
        "triplet+x*balance": "the weight 'x' in the reward 'triplet.x.balance' is not a number: write 0.5.balance",
        "triplet+balanse": "unknown reward 'balanse'.*balance",
        "triplet+": "unknown reward ''",
    }.items():
        with pytest.raises(ValueError, match=message):
            rewards.make(text)
    with pytest.raises(ValueError, match="margin"):
        rewards.make("triplet+balance", margin=3)


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("name", NAIVE)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
def test_value_and_credit_equal_the_naive_loop(name: str, relaxed: bool, seed: int) -> None:
    spec, naive = NAIVE[name]
    view = make_view(seed, relaxed=relaxed)
    reward = rewards.make(spec)
    value, credit = rewards.value_and_credit(reward, view)
    np.testing.assert_allclose(rewards.value(reward, view), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(credit, rewards.registry.flip_credit(reward, view), rtol=1e-5, atol=1e-5)
    for index in range(len(view.code)):
        assert value[index] == pytest.approx(naive(view, index, view.code[index]), rel=1e-5, abs=1e-6)
        for bit in range(view.code.shape[1]):
            one, zero = view.code[index].copy(), view.code[index].copy()
            one[bit], zero[bit] = 1, 0
            expected = naive(view, index, one) - naive(view, index, zero)
            assert credit[index, bit] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_triplet_is_the_same_function_for_torch_and_has_the_papers_gradient() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, positive, negative = (torch.tensor(rng.random((1, 1, 6)), requires_grad=True) for _ in range(3))
    distances = rewards.squared_distance(x, positive), rewards.squared_distance(x, negative)
    loss = rewards.triplet_loss(*distances, 5.0)
    assert loss.item() == pytest.approx(
        rewards.triplet_loss(*(d.detach().numpy() for d in distances), 5.0).item(), rel=1e-12
    )
    loss.sum().backward()
    # Equation 9 with rows and signs corrected, for an open hinge.
    torch.testing.assert_close(x.grad, 2 * (negative - positive).detach())
    torch.testing.assert_close(positive.grad, 2 * (positive - x).detach())
    torch.testing.assert_close(negative.grad, 2 * (x - negative).detach())


def test_codebook_writes_a_span_and_reads_it_back() -> None:
    rng = np.random.default_rng(0)
    bits = rng.random((9, 100)) < 0.5
    book = Codebook(codes.pack(bits), codes.pack(np.ones((9, 1), bool)), 100)
    new = rng.random((2, 30)) < 0.5
    book.write(np.array([7, 2]), new, start=50)
    bits[[7, 2], 50:80] = new
    np.testing.assert_array_equal(book.read(np.arange(9)), bits)
    np.testing.assert_array_equal(book.span(50, 80).read(np.array([[7, 2]]))[0], new)


def test_a_custom_reward_is_registered_once() -> None:
    def mine(view: RewardView) -> np.ndarray:
        return view.bits.mean(1)

    def factory() -> rewards.Reward:
        return mine

    rewards.register("test-mine", factory)
    rewards.register("test-mine", factory)
    assert "test-mine" in rewards.available()
    assert rewards.make("test-mine") is mine
    with pytest.raises(ValueError, match="registered already"):
        rewards.register("test-mine", lambda: mine)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("tripplet", "there are average_precision, "),
        ({"name": "triplet", "margn": 1}, "margn"),
        ({"name": "triplet", "margin": -1}, "at least 0"),
        ({"name": "triplet", "margin": "1"}, "margin must be a number, got '1'"),
        ({"name": "balance", "decorrelation": [1]}, r"decorrelation must be a number, got \[1\]"),
        ({"name": "weighted", "terms": {"triplet": "1"}}, "the weight of a reward must be a number, got '1'"),
        (
            {"name": "weighted", "terms": ["triplet"]},
            r"\(weight, reward\) pairs, or \{name: weight\}, got \['triplet'\]",
        ),
        ({"name": "weighted", "terms": None}, r"\(weight, reward\) pairs, .* got None"),
        ({"name": "pairwise", "loss": [[1], [1, 2]]}, r"a table of real numbers \(2, s \+ 1\)"),
        ({"name": "average_precision", "against": "all"}, "'codebook' or 'partners'"),
        ({"name": "nca", "scale": 0}, "scale must be above 0 and at most 40, got 0"),
        ({"name": "nca", "scale": 41.0}, "scale must be above 0 and at most 40, got 41"),
        ({"name": "weighted", "terms": {}}, "at least one"),
        ({"margin": 1}, r"a mapping must name the reward, .*; got the keys \['margin'\]"),
        ({"name": lambda view: view.bits, "margin": 1}, r"options \(margin\) are only for a reward given by name"),
        (3, "a name, a mapping"),
    ],
)
def test_wrong_rewards_are_rejected(reward: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.make(reward)  # type: ignore[arg-type]


SHAPE = r"must be an array of real numbers \(float64, float32 or integers\) of shape \(5,\), got "
WRONG = [
    (np.zeros((5, 1)), SHAPE + r"ndarray float64 \(5, 1\)"),
    (np.zeros(4, np.float32), SHAPE + r"ndarray float32 \(4,\)"),
    (np.zeros(5, complex), SHAPE + r"ndarray complex128 \(5,\)"),
    (np.zeros(5, bool), SHAPE + r"ndarray bool \(5,\)"),
    (np.zeros(5, object), SHAPE + r"ndarray object \(5,\)"),
    ([[1.0], [1.0, 2.0]], SHAPE + r"list of 2"),
    (None, SHAPE + r"None: is a return missing\?"),
    (0.5, SHAPE + r"float 0.5"),
    (np.float32(0.5), SHAPE + r"float32 float32 \(\)"),
    ("good", SHAPE + r"str 'good'"),
    (np.array([0, 1, np.nan, 0, 0]), "must be finite, got nan in environment 2"),
    (np.array([0, 1, 2, -np.inf, 0]), "must be finite, got -inf in environment 3"),
]


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize(("returned", "message"), WRONG)
def test_what_a_reward_returns_is_checked(returned: object, message: str, scope: str) -> None:
    def mine(view: RewardView) -> object:
        return returned

    view = dataclasses.replace(make_view(0), scope=scope)
    for call in (rewards.value, rewards.value_and_credit):
        with pytest.raises(rewards.RewardError, match=rf"^reward mine, {scope} scope: its value {message}"):
            call(mine, view)  # type: ignore[operator]


class _Credit:
    """A reward with a given credit."""

    name = "fixed"

    def __init__(self, credit: object) -> None:
        self.credit = credit

    def __call__(self, view: RewardView) -> np.ndarray:
        return np.zeros(len(view.code))

    def value_and_credit(self, view: RewardView) -> tuple[np.ndarray, object]:
        return self(view), self.credit


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        (np.zeros(5), r"must be an array of real numbers .* of shape \(5, 7\), got ndarray float64 \(5,\)"),
        (np.zeros((5, 7), bool), r".* shape \(5, 7\), got ndarray bool \(5, 7\)"),
        (None, r".* shape \(5, 7\), got None"),
        (np.diag([np.nan] * 7)[:5], "must be finite, got nan in environment 0 bit 0"),
    ],
)
def test_credit_is_checked(credit: object, message: str) -> None:
    with pytest.raises(rewards.RewardError, match=f"^reward fixed, global scope: its credit {message}"):
        rewards.value_and_credit(_Credit(credit), make_view(0))  # type: ignore[arg-type]


def test_value_and_credit_that_returns_one_array_is_rejected() -> None:
    class Half(_Credit):
        def value_and_credit(self, view: RewardView) -> np.ndarray:  # type: ignore[override]
            return self(view)

    with pytest.raises(rewards.RewardError, match=r"must return a tuple \(value, credit\), got ndarray float64 \(5,\)"):
        rewards.value_and_credit(Half(None), make_view(0))  # type: ignore[arg-type]


def test_an_exception_names_the_reward_and_keeps_its_cause() -> None:
    def broken(view: RewardView) -> np.ndarray:
        return view.bits @ np.ones(3)

    summed = rewards.weighted([(1.0, "triplet"), (0.5, broken)])
    for reward in (broken, summed):
        with pytest.raises(rewards.RewardError, match=r"^reward broken, global scope: failed .*ValueError: ") as caught:
            rewards.value(reward, make_view(0))  # type: ignore[arg-type]
        assert "5 environments and 7 bits" in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)


def test_an_environment_names_the_reward_and_its_scope() -> None:
    import gymnasium as gym

    def halves(view: RewardView) -> np.ndarray:
        return view.bits[:, 0] if view.scope == "global" else view.bits.mean(1)

    env = gym.make("BitGroupHashing-v0", bits=4, group_bits=2, reward=halves)
    env.reset(seed=0)
    env.step(np.zeros(2, np.int8))
    with pytest.raises(
        rewards.RewardError, match=r"reward halves, global scope: .* shape \(1,\), got ndarray bool \(1,\)"
    ):
        env.step(np.zeros(2, np.int8))


def test_group_and_global_spans_are_distinguished() -> None:
    view = dataclasses.replace(make_view(0), scope="group", last=False, start=12)
    assert (view.scope, view.last, view.start) == ("group", False, 12)
