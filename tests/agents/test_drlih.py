"""The DRLIH agent: losses against enumeration and naive loops, exact resumption, and that it learns."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import hashgym
from agents import drlih, runs
from agents.drlih import Args
from hashgym import hashers
from hashgym.data import HashingDataset, load
from hashgym.envs.bit_group_hashing import observation
from hashgym.retrieval import metrics

VARIANTS = ("hashgym", "norec", "paper", "released")
SMALL: dict[str, Any] = {
    "bits": 10,
    "group_bits": 4,
    "hidden": 16,
    "history": 5,
    "lanes": 12,
    "updates": 20,
    "holdout": 0.2,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Small networks gain nothing from more, and tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gradient_of_expected_reward(logits: torch.Tensor, reward: dict[tuple[int, ...], float]) -> torch.Tensor:
    """d/d logits of the sum over all codes of P(code) R(code), by enumeration."""
    logits = logits.clone().requires_grad_()
    p = torch.sigmoid(logits)
    expected = sum(
        reward[code] * torch.stack([p[b] if code[b] else 1 - p[b] for b in range(len(p))]).prod() for code in reward
    )
    assert isinstance(expected, torch.Tensor)
    return torch.autograd.grad(expected, logits)[0]


def expectation_over_codes(logits: torch.Tensor, gradient: Any, reward: dict[tuple[int, ...], float]) -> torch.Tensor:
    """The mean, over codes drawn from the policy, of the gradient that a loss gives for a drawn code."""
    p = torch.sigmoid(logits)
    return sum(  # type: ignore[return-value]
        torch.stack([p[b] if code[b] else 1 - p[b] for b in range(len(p))]).prod() * gradient(code) for code in reward
    )


@pytest.fixture
def small_game() -> tuple[torch.Tensor, dict[tuple[int, ...], float]]:
    """Logits of 4 bits, and an arbitrary reward for each of the 16 codes."""
    rng = np.random.default_rng(0)
    codes = itertools.product((0, 1), repeat=4)
    return torch.tensor(rng.standard_normal(4)), {code: float(rng.standard_normal()) for code in codes}


def test_credit_loss_is_the_exact_gradient_in_expectation(small_game: Any) -> None:
    logits, reward = small_game

    def gradient(code: tuple[int, ...]) -> torch.Tensor:
        def flipped(bit: int, value: int) -> float:
            return reward[(*code[:bit], value, *code[bit + 1 :])]

        credit = torch.tensor([flipped(b, 1) - flipped(b, 0) for b in range(4)])
        x = logits.clone().requires_grad_()
        return -torch.autograd.grad(drlih.credit_loss(x[None], credit[None]), x)[0]

    torch.testing.assert_close(
        expectation_over_codes(logits, gradient, reward), gradient_of_expected_reward(logits, reward)
    )


def test_reinforce_loss_is_the_exact_gradient_in_expectation(small_game: Any) -> None:
    logits, reward = small_game

    def gradient(code: tuple[int, ...]) -> torch.Tensor:
        x = logits.clone().requires_grad_()
        bits = torch.tensor(code, dtype=x.dtype)
        loss = drlih.reinforce_loss(x[None], bits[None], torch.full((1, 4), reward[code], dtype=x.dtype))
        return -torch.autograd.grad(loss, x)[0]

    torch.testing.assert_close(
        expectation_over_codes(logits, gradient, reward), gradient_of_expected_reward(logits, reward)
    )


def test_released_loss_equals_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.standard_normal((7, 5)))
    labels = torch.tensor((rng.random((7, 4)) < 0.4).astype(float))
    code = torch.sigmoid(logits)
    hinges = [
        max(0.0, 1.0 + float((code[i] - code[j]).norm() - (code[i] - code[k]).norm()))
        for i, j, k in itertools.permutations(range(7), 3)
        if (labels[i] * labels[j]).sum() > 0 and (labels[i] * labels[k]).sum() == 0
    ]
    likelihood = [
        -np.log(float(p) if p > 0.5 else 1 - float(p)) for p in code.flatten()
    ]  # of the thresholded bits, which the released code takes for actions
    j = float(np.mean(hinges))
    loss = drlih.released_loss(logits.requires_grad_(), labels, 1.0)
    assert float(loss.detach()) == pytest.approx(0.001 * np.mean(likelihood) * j + 0.999 * j, rel=1e-9)
    loss.backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]  # the root has no slope at distance 0


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_papers_cell_follows_equations_5_and_6(variant: Any) -> None:
    policy = drlih.PaperCell(3, Args(**{**SMALL, "variant": variant})).eval()
    image = torch.randn(2, 3)
    w = {name: part.detach().numpy().astype(float) for name, part in policy.named_parameters()}
    expected = np.zeros((2, 10))
    for n in range(2):
        i = np.maximum(w["embedding.weight"] @ image[n].numpy() + w["embedding.bias"], 0)
        h = i if variant == "released" else np.zeros(16)
        groups = [range(10)] if variant == "released" else [range(0, 4), range(4, 8), range(8, 10)]
        for group in groups:
            x, c = i, h  # x_0 = i, c_0 = h
            for t in group:
                c = np.tanh(w["w_x.weight"] @ x + w["w_x.bias"] + w["w_h.weight"] @ c + w["w_h.bias"])
                expected[n, t] = (w["policy_layer.weight"] @ c + w["policy_layer.bias"])[0]
                x = c  # x_t = c_(t-1)
            h = c  # the last hidden state is the history of the next group
    with torch.no_grad():
        state, logits = policy.begin(image), []
        for g in range(3):
            logit, state = policy.step(state, torch.zeros(2, 10), g)
            logits.append(logit)
    np.testing.assert_allclose(torch.cat(logits, 1).numpy(), expected, atol=1e-5)


def test_the_recurrent_policy_begins_as_the_one_without_recurrence_and_reads_the_bits() -> None:
    torch.manual_seed(0)
    policy = drlih.Recurrent(3, Args(**SMALL)).eval()
    image, code = torch.randn(2, 3), torch.ones(2, 10)
    with torch.no_grad():
        direct = drlih.FeedForward.begin(policy, image)[0]
        for last in (False, True):
            state = policy.begin(image)
            for g, (start, stop) in enumerate(policy.groups):
                logits, state = policy.step(state, code, g)
                same = torch.equal(logits, direct[:, start:stop])
                assert same is (not last or g == 0)
            torch.nn.init.normal_(policy.correction.weight)
        one, other = (policy.step(policy.begin(image), bits, 1)[0] for bits in (code, -code))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_is_reproduced_to_the_bit(multi_label: HashingDataset, variant: Any) -> None:
    torch.manual_seed(123)
    caller = torch.get_rng_state()
    first, again, other = (
        drlih.train(multi_label, Args(**SMALL, variant=variant, seed=seed), progress=False) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), caller)  # the caller's generator is left alone
    weights = [torch.cat([p.flatten() for p in policy.parameters()]) for policy in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoding_equals_the_policys_own_logits(multi_label: HashingDataset, variant: Any) -> None:
    policy = drlih.train(multi_label, Args(**SMALL, variant=variant), progress=False)
    codes = hashgym.encode(policy, multi_label.features, bits=10, group_bits=4)
    code = torch.zeros(60, 10)
    with torch.no_grad():
        state = policy.begin(torch.from_numpy(multi_label.features))
        for g, (start, stop) in enumerate(policy.groups):
            logits, state = policy.step(state, code, g)
            code[:, start:stop] = torch.where(logits > 0, 1.0, -1.0)
    np.testing.assert_array_equal(codes, code.numpy() > 0)


def test_sampled_actions_follow_the_probabilities() -> None:
    torch.manual_seed(0)
    policy = drlih.FeedForward(3, Args(**SMALL)).eval()
    image = np.repeat(np.random.default_rng(0).standard_normal((1, 3)).astype(np.float32), 4000, axis=0)
    seen = observation(image, np.zeros((4000, 10), bool), 0, 0)
    sampled, _ = policy.predict(seen, deterministic=False)
    with torch.no_grad():
        p = torch.sigmoid(policy.begin(torch.from_numpy(image[:1]))[0][0, :4])
    np.testing.assert_allclose(sampled.mean(0), p.numpy(), atol=0.05)
    likelier, _ = policy.predict(seen)
    np.testing.assert_array_equal(likelier[0], p.numpy() > 0.5)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """kill -9 in the middle, then resume: weights equal those of a run that was never stopped."""
    updates, options = 200, {"hidden": "32", "lanes": "16", "bits": "12", "group-bits": "8", "checkpoint-every": "10"}
    command = [sys.executable, "-m", "agents.drlih", "--updates", str(updates)]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    root = Path(__file__).parents[2]
    killed = subprocess.Popen(
        [*command, "--out", str(tmp_path / "a")], cwd=root, env=environment, stdout=subprocess.DEVNULL
    )
    checkpoint = tmp_path / "a" / "checkpoint.pt"
    while not checkpoint.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < runs.load(checkpoint)["update"] < updates
    for arguments in ([*command, "--out", str(tmp_path / "a"), "--resume"], [*command, "--out", str(tmp_path / "b")]):
        subprocess.run(arguments, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    resumed, undisturbed = (drlih.load(tmp_path / name / "policy.pt", "cpu") for name in "ab")
    for one, other in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_a_run_leaves(multi_label: HashingDataset, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = Args(**SMALL, log_every=5, evaluate_every=8)
    policy = drlih.train(multi_label.standardized(), args, out=tmp_path / "run", progress=False)
    loaded = drlih.load(tmp_path / "run" / "policy.pt")
    assert loaded.args == args
    features = multi_label.standardized().features
    np.testing.assert_array_equal(*(hashgym.encode(p, features, bits=10, group_bits=4) for p in (policy, loaded)))

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "loss",
        "reward/group/average_precision",
        "reward/global/average_precision",
        "policy/entropy_nats_per_bit",
        "policy/bit_imbalance",
        "retrieval/held_out_map",
        "speed/lane_steps_per_second",
    }
    assert [point.step for point in events.Scalars("loss")] == [5, 8, 10, 15, 16, 20]
    assert [point.step for point in events.Scalars("retrieval/held_out_map")] == [8, 16, 20]

    for resume, out, changed, message in (
        (False, "run", args, "holds a run: resume it"),
        (True, "elsewhere", args, "no run to resume"),
        (True, "run", dataclasses.replace(args, bits=11), "begun with another bits"),
    ):
        with pytest.raises(ValueError, match=message):
            drlih.train(multi_label.standardized(), changed, out=tmp_path / out, resume=resume, progress=False)
    with pytest.raises(ValueError, match="other data"):
        drlih.train(multi_label, args, out=tmp_path / "run", resume=True, progress=False)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        drlih.train(multi_label.standardized(), args, out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match="does not exist"):
        drlih.load(tmp_path / "none.pt")


def test_held_out_images_and_queries_are_never_learnt_from(multi_label: HashingDataset) -> None:
    learning, held_out = runs.split(multi_label, Args(**SMALL))
    assert len(held_out) == 8
    assert not np.intersect1d(learning.train, held_out).size
    assert not np.intersect1d(multi_label.query, np.concatenate([learning.train, held_out])).size
    np.testing.assert_array_equal(np.sort(np.concatenate([learning.train, held_out])), multi_label.train)
    # The mAP that is watched, against a loop over the held-out images.
    policy = drlih.FeedForward(multi_label.dim, Args(**SMALL))
    codes = hashgym.encode(policy, multi_label.features[held_out], bits=10, group_bits=4)
    labels = multi_label.labels[held_out]
    scores = []
    for i in range(len(held_out)):
        others = np.arange(len(held_out)) != i
        if (labels[others] @ labels[i] > 0).any():
            scores.append(
                metrics.mean_average_precision(codes[i : i + 1], labels[i : i + 1], codes[others], labels[others])
            )
    watched = drlih._Run(policy, learning, held_out, Args(**SMALL)).watch()["retrieval/held_out_map"]
    assert watched == pytest.approx(np.mean(scores), rel=1e-9)


def test_the_credit_variants_take_any_reward(multi_label: HashingDataset) -> None:
    for reward in ("triplet", "average_precision"):
        drlih.train(multi_label, Args(**SMALL, reward=reward, group_weight=0.5), progress=False)
    with pytest.raises(ValueError, match="unknown reward"):
        drlih.train(multi_label, Args(**SMALL, reward="none"), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "best"}, "variant must be one of"),
        ({"updates": 0}, "updates must be above 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"holdout": -0.1}, "holdout"),
    ],
)
def test_wrong_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Args(**change)


@cache
def digits() -> HashingDataset:
    return load("digits").standardized()


def digits_map(codes: np.ndarray) -> float:
    labels = digits().labels
    return metrics.mean_average_precision(
        codes[digits().query], labels[digits().query], codes[digits().database], labels[digits().database]
    )


@cache
def unsupervised_map() -> float:
    """The better of LSH and ITQ at 24 bits."""
    features, train = digits().features, digits().train
    return max(
        digits_map(hashers.make(name, bits=24).fit(features[train], None).encode(features)) for name in ("lsh", "itq")
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_digits(variant: Any) -> None:
    options = {
        "hashgym": {"lanes": 128, "updates": 250, "learning_rate": 1e-2, "input_dropout": 0.1, "dropout": 0.2},
        "norec": {"lanes": 128, "updates": 250, "learning_rate": 1e-2, "input_dropout": 0.1, "dropout": 0.2},
        # A recurrence over bits trains less easily, and worst where dropout disturbs it.
        "paper": {"lanes": 128, "updates": 400, "learning_rate": 2e-3, "input_dropout": 0.0, "dropout": 0.0},
        "released": {"lanes": 64, "updates": 300, "learning_rate": 3e-3, "input_dropout": 0.1, "dropout": 0.2},
    }[variant]
    args = Args(variant=variant, hidden=128, **options)
    policy = drlih.train(digits(), args, progress=False)
    score = digits_map(hashgym.encode(policy, digits().features, bits=24))
    assert score > unsupervised_map() + 0.15


def test_bits_become_decided_and_balanced() -> None:
    policy = drlih.train(digits(), Args(hidden=128, lanes=128, updates=250, learning_rate=1e-2), progress=False)
    with torch.no_grad():
        p = torch.sigmoid(policy.begin(torch.from_numpy(digits().features[digits().train]))[0])
    assert F.binary_cross_entropy(p, p) < 0.4  # nats a bit; a coin has 0.69
    assert ((p > 0.5).float().mean(0) - 0.5).abs().mean() < 0.3
