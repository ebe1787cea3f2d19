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
from agents import checkpoint, drlih, training
from agents.drlih import Args
from hashgym import hashers
from hashgym.data import HashingDataset, load
from hashgym.envs.bit_group_hashing import observation
from hashgym.retrieval import metrics

VARIANTS = list(drlih.VARIANTS)
FUSED = ("gru", "lstm")
SMALL: dict[str, Any] = {
    "bits": 10,
    "group_bits": 4,
    "hidden": 16,
    "rnn_hidden": 5,
    "num_envs": 12,
    "updates": 20,
    "holdout": 0.2,
}


def fused(args: Args, dim: int = 3) -> drlih.FusedGRU:
    policy = drlih.VARIANTS[args.variant].network(dim, args)
    assert isinstance(policy, drlih.FusedGRU)
    return policy


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
def small_task() -> tuple[torch.Tensor, dict[tuple[int, ...], float]]:
    """Logits of 4 bits, and an arbitrary reward for each of the 16 codes."""
    rng = np.random.default_rng(0)
    codes = itertools.product((0, 1), repeat=4)
    return torch.tensor(rng.standard_normal(4)), {code: float(rng.standard_normal()) for code in codes}


def test_credit_loss_is_the_exact_gradient_in_expectation(small_task: Any) -> None:
    logits, reward = small_task

    def gradient(code: tuple[int, ...]) -> torch.Tensor:
        def flipped(bit: int, value: int) -> float:
            return reward[(*code[:bit], value, *code[bit + 1 :])]

        credit = torch.tensor([flipped(b, 1) - flipped(b, 0) for b in range(4)])
        x = logits.clone().requires_grad_()
        return -torch.autograd.grad(drlih.credit_loss(x[None], credit[None]), x)[0]

    torch.testing.assert_close(
        expectation_over_codes(logits, gradient, reward), gradient_of_expected_reward(logits, reward)
    )


def test_logits_are_normalised_over_the_batch_while_learning_and_by_running_averages_after() -> None:
    policy = drlih.build((6,), Args(variant="norec", **SMALL, logit_scale=3.0))
    images = 5 + torch.rand(64, 6) * torch.arange(1, 7)
    for _ in range(100):
        (logits,) = policy.train().initial_state(images)
        assert logits.mean(0).abs().max() < 1e-4
        torch.testing.assert_close(logits.std(0, correction=0), torch.full((10,), 3.0), rtol=1e-2, atol=0)
    alone = torch.cat([policy.eval().initial_state(image[None])[0] for image in images])
    torch.testing.assert_close(alone.mean(0), torch.zeros(10), rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="logit_scale normalises over a batch: num_envs must be at least 2"):
        Args(logit_scale=3.0, num_envs=1)


def test_the_correction_comes_after_the_normalisation() -> None:
    policy = drlih.build((6,), Args(variant="hashgym", **SMALL | {"dropout": 0.0}, logit_scale=3.0))
    assert isinstance(policy, drlih.Recurrent)
    torch.nn.init.constant_(policy.correction.bias, 2.0)
    state = policy.train().initial_state(torch.rand(64, 6))
    assert state[0].mean(0).abs().max() < 1e-4
    means = [policy.step(state, torch.ones(64, 10), group)[0].mean() for group in range(3)]
    assert torch.stack(means).tolist() == pytest.approx([0, 2, 2], abs=1e-4)


def test_reinforce_loss_is_the_exact_gradient_in_expectation(small_task: Any) -> None:
    logits, reward = small_task

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
    args = Args(**{**SMALL, "variant": variant})
    policy: Any = drlih.VARIANTS[variant].network(3, args).eval()
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
        state, logits = policy.initial_state(image), []
        for g in range(3):
            logit, state = policy.step(state, torch.zeros(2, 10), g)
            logits.append(logit)
    np.testing.assert_allclose(torch.cat(logits, 1).numpy(), expected, atol=1e-5)


def test_the_recurrent_policy_starts_as_the_one_without_recurrence_and_reads_the_bits() -> None:
    torch.manual_seed(0)
    policy = drlih.Recurrent(3, Args(**SMALL)).eval()
    image, code = torch.randn(2, 3), torch.ones(2, 10)
    with torch.no_grad():
        direct = drlih.FeedForward.initial_state(policy, image)[0]
        for last in (False, True):
            state = policy.initial_state(image)
            for g, (start, stop) in enumerate(policy.groups):
                logits, state = policy.step(state, code, g)
                same = torch.equal(logits, direct[:, start:stop])
                assert same is (not last or g == 0)
            torch.nn.init.normal_(policy.correction.weight)
        one, other = (policy.step(policy.initial_state(image), bits, 1)[0] for bits in (code, -code))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("variant", FUSED)
@pytest.mark.parametrize(("bits", "group_bits"), [(10, 4), (8, 4), (4, 4), (5, 1)])
def test_one_call_of_the_cell_equals_step_by_step(variant: Any, bits: int, group_bits: int) -> None:
    torch.manual_seed(0)
    args = Args(**{**SMALL, "variant": variant, "bits": bits, "group_bits": group_bits})
    policy = fused(args).train()  # with dropout: the embedding's is shared, and there is no other
    code = (torch.rand(7, bits) < 0.5) * 2.0 - 1
    initial = state = policy.initial_state(torch.randn(7, 3))
    values, logits, emitted = [], [], torch.zeros(7, bits)
    for g, (start, stop) in enumerate(policy.groups):  # acting sees 0 where nothing is emitted yet
        logit, state = policy.step(state, emitted, g)
        hidden = state[1][0] if variant == "lstm" else state[1]
        values.append(policy.critic(torch.cat([initial[0], hidden[0]], dim=1))[:, 0])
        logits.append(logit)
        emitted[:, start:stop] = code[:, start:stop]
    unrolled, value = policy.unroll(initial, code)
    assert unrolled.shape == (7, bits)
    torch.testing.assert_close(unrolled, torch.cat(logits, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(value, torch.stack(values, 1), rtol=0, atol=1e-6)
    gradients = [
        torch.autograd.grad(each.square().sum(), list(policy.cell.parameters()), retain_graph=True)
        for each in (unrolled, torch.cat(logits, 1))
    ]
    for one, other in zip(*gradients, strict=True):  # both backpropagate through time
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", FUSED)
def test_logits_follow_from_earlier_groups_and_the_image_alone(variant: Any) -> None:
    torch.manual_seed(0)
    policy = fused(Args(**SMALL, variant=variant)).eval()
    image, code = torch.randn(2, 3), torch.ones(2, 10)
    logits, value = policy.unroll(policy.initial_state(image), code)
    code[:, 4:] = -1  # the second group and the last
    others, other_value = policy.unroll(policy.initial_state(image), code)
    assert torch.equal(others[:, :8], logits[:, :8])
    assert torch.equal(other_value[:, :2], value[:, :2])  # V of a group has not seen its bits
    assert (others[:, 8:] != logits[:, 8:]).all()
    assert (other_value[:, 2] != value[:, 2]).all()


def test_reward_to_go_by_hand() -> None:
    reward = torch.tensor([[1.0, 10.0, 100.0], [0.5, 0.0, -1.0]])
    assert drlih.reward_to_go(reward).tolist() == [[111.0, 110.0, 100.0], [-0.5, -1.0, -1.0]]
    assert drlih.reward_to_go(reward[:, :1]).tolist() == [[1.0], [0.5]]


def test_baseline_loss_equals_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    args = Args(bits=10, group_bits=4, value_weight=0.3, entropy_weight=0.2)
    logits, reward, value = rng.standard_normal((6, 10)), rng.standard_normal((6, 3)), rng.standard_normal((6, 3))
    bits = rng.random((6, 10)) < 0.5
    expected = 0.0
    for n in range(6):
        for g, group in enumerate([range(0, 4), range(4, 8), range(8, 10)]):
            to_go = sum(reward[n, later] for later in range(g, 3))
            log_pi = entropy = 0.0
            for b in group:
                p = 1 / (1 + np.exp(-logits[n, b]))
                log_pi += np.log(p if bits[n, b] else 1 - p)
                entropy -= p * np.log(p) + (1 - p) * np.log(1 - p)
            expected -= (to_go - value[n, g]) * log_pi / 6
            expected += (0.3 * (to_go - value[n, g]) ** 2 - 0.2 * entropy) / 6
    tensors = (torch.tensor(x.astype(float)) for x in (logits, bits, reward, value))
    assert drlih.baseline_loss(*tensors, args).item() == pytest.approx(expected, rel=1e-9)


def test_baseline_loss_is_the_exact_gradient_in_expectation(small_task: Any) -> None:
    """Two groups of two bits; the second group's value depends on the first one's bits."""
    logits, reward = small_task
    args = Args(bits=4, group_bits=2, entropy_weight=0.0)

    def gradient(code: tuple[int, ...]) -> torch.Tensor:
        x = logits.clone().requires_grad_()
        earned = torch.tensor([[0.0, reward[code]]], dtype=x.dtype)
        value = torch.tensor([[0.7, 1.0 + code[0] - 2.0 * code[1]]], dtype=x.dtype)
        loss = drlih.baseline_loss(x[None], torch.tensor([code], dtype=x.dtype), earned, value, args)
        return -torch.autograd.grad(loss, x)[0]

    torch.testing.assert_close(
        expectation_over_codes(logits, gradient, reward), gradient_of_expected_reward(logits, reward)
    )


def test_the_baseline_learns_from_its_error_alone() -> None:
    torch.manual_seed(0)
    logits, bits = torch.randn(5, 10, requires_grad=True), (torch.rand(5, 10) < 0.5).float()
    reward, value = torch.rand(5, 3), torch.rand(5, 3, requires_grad=True)
    gradients = []
    for weight in (0.0, 0.25):
        args = Args(**SMALL, value_weight=weight)
        of_logits, of_value = torch.autograd.grad(
            drlih.baseline_loss(logits, bits, reward, value, args), (logits, value)
        )
        expected = 2 * weight * (value - drlih.reward_to_go(reward)) / 5  # without the policy's term
        torch.testing.assert_close(of_value, expected.detach())
        gradients.append(of_logits)
    assert torch.equal(*gradients)  # nor does the error reach the policy's logits


@pytest.mark.parametrize("variant", FUSED)
def test_a_rollout_is_differentiated_under_the_policy_that_sampled(multi_label: HashingDataset, variant: Any) -> None:
    args = Args(**SMALL, variant=variant, reward="triplet", group_weight=0.5)
    torch.manual_seed(0)
    policy = fused(args, multi_label.dim).train()
    run = drlih.Run(policy, multi_label, np.array([], int), args)
    seen: list[torch.Tensor] = []
    policy.actor.register_forward_hook(lambda *call: seen.append(call[2]))
    rollout = run.rollout()
    *acted, unrolled = seen
    assert not any(logits.requires_grad for logits in acted)
    assert unrolled.requires_grad
    torch.testing.assert_close(torch.stack(acted), unrolled, rtol=0, atol=1e-5)
    parts = [rollout.components[f"{scope}/triplet"] for scope in ("group", "global")]
    np.testing.assert_allclose(rollout.reward[:, -1], sum(parts), rtol=1e-5)
    torch.testing.assert_close(rollout.group_reward[:, [0, 4, 8]][:, :2], rollout.reward[:, :2])
    assert (rollout.credit == 0).all()  # only rewards are computed


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
        state = policy.initial_state(torch.from_numpy(multi_label.features))
        for g, (start, stop) in enumerate(policy.groups):
            logits, state = policy.step(state, code, g)
            code[:, start:stop] = torch.where(logits > 0, 1.0, -1.0)
    np.testing.assert_array_equal(codes, code.numpy() > 0)
    for bits in (8, 12):
        with pytest.raises(ValueError, match=f"the policy was trained on codes of 10 bits, got {bits}"):
            hashgym.encode(policy, multi_label.features, bits=bits, group_bits=4)


def test_sampled_actions_follow_the_probabilities() -> None:
    torch.manual_seed(0)
    policy = drlih.FeedForward(3, Args(**SMALL)).eval()
    image = np.repeat(np.random.default_rng(0).standard_normal((1, 3)).astype(np.float32), 4000, axis=0)
    seen = observation(image, np.zeros((4000, 10), bool), 0, 0)
    sampled, _ = policy.predict(seen, deterministic=False)
    with torch.no_grad():
        p = torch.sigmoid(policy.initial_state(torch.from_numpy(image[:1]))[0][0, :4])
    np.testing.assert_allclose(sampled.mean(0), p.numpy(), atol=0.05)
    likelier, _ = policy.predict(seen)
    np.testing.assert_array_equal(likelier[0], p.numpy() > 0.5)


@pytest.mark.parametrize("variant", ["norec", *FUSED])
def test_an_interrupted_run_resumes_to_the_same_bits(
    multi_label: HashingDataset, tmp_path: Path, variant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Args(**SMALL, variant=variant, logit_scale=3.0 * (variant == "norec"), checkpoint_every=6)
    update = drlih.Run.update

    def interrupted(run: drlih.Run) -> dict[str, float]:
        if run.num_updates == 15:
            raise KeyboardInterrupt
        return update(run)

    with monkeypatch.context() as patched:
        patched.setattr(drlih.Run, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            drlih.train(multi_label, args, out=tmp_path, progress=False)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["update"] == 12
    resumed = drlih.train(multi_label, args, out=tmp_path, resume=True, progress=False)
    undisturbed = drlih.train(multi_label, args, progress=False)
    for one, other in zip(resumed.state_dict().values(), undisturbed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """kill -9 in the middle, then resume: weights equal those of a run that was never stopped."""
    updates = 100
    options = {"hidden": "32", "num-envs": "16", "bits": "12", "group-bits": "8", "checkpoint-every": "10"}
    command = [sys.executable, "-m", "agents.drlih", "--updates", str(updates)]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    root = Path(__file__).parents[2]
    killed = subprocess.Popen(
        [*command, "--out", str(tmp_path / "a")], cwd=root, env=environment, stdout=subprocess.DEVNULL
    )
    path = tmp_path / "a" / "checkpoint.pt"
    while not path.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < checkpoint.load(path)["update"] < updates
    resuming = [*command, "--out", str(tmp_path / "a"), "--resume"]
    subprocess.run(resuming, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    resumed = drlih.load(tmp_path / "a" / "policy.pt", "cpu")
    args = Args(updates=updates, hidden=32, num_envs=16, bits=12, group_bits=8)
    undisturbed = drlih.train(digits(), args, progress=False)
    for one, other in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("variant", ["hashgym", "norec", *FUSED])
def test_files_of_a_run(multi_label: HashingDataset, tmp_path: Path, variant: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scale = 3.0 * (variant == "norec")
    args = Args(**SMALL, variant=variant, logit_scale=scale, log_every=5, evaluate_every=8)
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
        "speed/steps_per_second",
        *(["policy/value_error"] if variant in FUSED else []),
    }
    assert [point.step for point in events.Scalars("loss")] == [5, 8, 10, 15, 16, 20]
    assert [point.step for point in events.Scalars("retrieval/held_out_map")] == [8, 16, 20]

    for resume, out, changed, message in (
        (False, "run", args, "holds a run: resume it"),
        (True, "elsewhere", args, "no run to resume"),
        (True, "run", dataclasses.replace(args, bits=11), "started with another bits"),
    ):
        with pytest.raises(ValueError, match=message):
            drlih.train(multi_label.standardized(), changed, out=tmp_path / out, resume=resume, progress=False)
    with pytest.raises(ValueError, match="other data"):
        drlih.train(multi_label, args, out=tmp_path / "run", resume=True, progress=False)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="corrupt"):
        drlih.train(multi_label.standardized(), args, out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match="does not exist"):
        drlih.load(tmp_path / "none.pt")


def test_the_encoder_of_a_nested_policy_names_the_lengths_of_its_codes(
    multi_label: HashingDataset, tmp_path: Path
) -> None:
    for variant, lengths in (("nested-norec", (4, 8, 10)), ("norec", (10,))):
        drlih.train(multi_label, Args(**SMALL, variant=variant), out=tmp_path / variant, progress=False)
        assert hashgym.load_encoder(tmp_path / variant / "policy.onnx").lengths == lengths


def test_held_out_images_and_queries_are_never_learnt_from(multi_label: HashingDataset) -> None:
    learning, held_out = training.split(multi_label, Args(**SMALL))
    assert len(held_out) == 8
    assert not np.intersect1d(learning.train, held_out).size
    assert not np.intersect1d(multi_label.query, np.concatenate([learning.train, held_out])).size
    np.testing.assert_array_equal(np.sort(np.concatenate([learning.train, held_out])), multi_label.train)
    # The mAP of evaluate, against a loop over the held-out images.
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
    measured = drlih.Run(policy, learning, held_out, Args(**SMALL)).evaluate()["retrieval/held_out_map"]
    assert measured == pytest.approx(np.mean(scores), rel=1e-9)


@pytest.mark.parametrize("variant", ["hashgym", "norec", *FUSED])
def test_all_but_the_papers_variants_take_any_reward(multi_label: HashingDataset, variant: Any) -> None:
    for reward in ("triplet", "average_precision"):
        drlih.train(multi_label, Args(**SMALL, variant=variant, reward=reward, group_weight=0.5), progress=False)
    with pytest.raises(ValueError, match="unknown reward"):
        drlih.train(multi_label, Args(**SMALL, variant=variant, reward="none"), progress=False)


def test_every_variant_has_a_preset() -> None:
    assert {name: args.variant for name, args in drlih.PRESETS.items()} == {name: name for name in VARIANTS}
    assert drlih.PRESETS["hashgym"] == Args()
    assert (drlih.PRESETS["gru"].updates, drlih.PRESETS["gru"].num_envs) == (2000, 512)


def test_a_variant_is_one_entry(multi_label: HashingDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network, loss, reward and defaults of a new one are all that training, saving and loading need."""
    loss = lambda rollout, args: drlih.reinforce_loss(rollout.logits, rollout.bits, rollout.group_reward)  # noqa: E731
    variant = drlih.Variant(drlih.FeedForward, loss, drlih.triplet_reward)
    monkeypatch.setitem(drlih.VARIANTS, "mine", variant)
    policy = drlih.train(multi_label, Args(**SMALL, variant="mine"), out=tmp_path, progress=False)
    loaded = drlih.load(tmp_path / "policy.pt", "cpu")
    features = multi_label.features
    np.testing.assert_array_equal(*(hashgym.encode(p, features, bits=10, group_bits=4) for p in (policy, loaded)))


@pytest.mark.parametrize("words", [["gru"], ["--variant", "gru"], ["--variant=gru"]])
def test_the_command_starts_with_the_variants_preset(words: list[str]) -> None:
    run = drlih.command([*words, "--updates", "7", "--dataset", "elsewhere"])
    assert run == drlih.Main(dataclasses.replace(drlih.PRESETS["gru"], updates=7), dataset="elsewhere")
    assert drlih.command([]) == drlih.Main(Args())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "best"}, "variant must be one of"),
        ({"logit_scale": -1.0}, "logit_scale must be finite and at least 0"),
        ({"updates": 0}, "updates must be above 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"holdout": -0.1}, "holdout"),
        ({"value_weight": -1.0}, "value_weight must be finite and at least 0"),
        ({"entropy_weight": float("nan")}, "entropy_weight"),
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
    recurrent = {"num_envs": 128, "updates": 400, "learning_rate": 1e-2, "input_dropout": 0.1, "dropout": 0.2}
    options = {
        "gru": recurrent,
        "lstm": recurrent,
        **{key: {**recurrent, "updates": 150} for key in ("hashgym", "norec", "nested", "nested-norec")},
        # A recurrence over bits trains less easily, and worst where dropout disturbs it.
        "paper": {"num_envs": 128, "updates": 200, "learning_rate": 4e-3, "input_dropout": 0.0, "dropout": 0.0},
        "released": {"num_envs": 64, "updates": 180, "learning_rate": 5e-3, "input_dropout": 0.1, "dropout": 0.2},
    }[variant]
    args = Args(variant=variant, hidden=128, **options)
    policy = drlih.train(digits(), args, progress=False)
    score = digits_map(hashgym.encode(policy, digits().features, bits=24))
    assert score > unsupervised_map() + 0.15


def test_prefixes_of_nested_codes_are_codes() -> None:
    learning = {"num_envs": 128, "updates": 250, "learning_rate": 1e-2, "input_dropout": 0.1, "dropout": 0.2}
    policies = {
        variant: drlih.train(digits(), Args(variant=variant, hidden=128, group_bits=8, **learning), progress=False)
        for variant in ("norec", "nested-norec")
    }
    codes = {name: hashgym.encode(p, digits().features, bits=24, group_bits=8) for name, p in policies.items()}
    for length in (6, 8):  # within a group, and at the end of one
        assert digits_map(codes["nested-norec"][:, :length]) > digits_map(codes["norec"][:, :length]) + 0.01
    assert digits_map(codes["nested-norec"]) > digits_map(codes["norec"]) - 0.03


def test_a_rollout_sums_the_credit_of_all_prefixes(multi_label: HashingDataset) -> None:
    args = Args(variant="nested-norec", **SMALL)
    run = drlih.Run(drlih.build(multi_label.image_shape, args), multi_label, multi_label.train[:0], args)
    seen: list[np.ndarray] = []
    step = run.envs.step

    def spy(action: np.ndarray) -> Any:
        result = step(action)
        seen.append(result[-1].get("final_info", result[-1])["prefix_credit"])
        return result

    run.envs.step = spy
    rollout = run.rollout()
    assert len(seen) > 1
    np.testing.assert_allclose(rollout.credit, np.sum(seen, axis=0), rtol=1e-5, atol=1e-7)
    assert all(name.startswith("prefix/") for name in rollout.components if not name.startswith("global/"))


def test_normalised_logits_and_nca_learn_digits() -> None:
    learning = {"num_envs": 128, "updates": 250, "learning_rate": 1e-2, "input_dropout": 0.1, "dropout": 0.2}
    policy = drlih.train(digits(), Args(hidden=128, reward="nca", logit_scale=3.0, **learning), progress=False)
    bits = hashgym.encode(policy, digits().features, bits=24)
    assert digits_map(bits) > unsupervised_map() + 0.15
    assert np.abs(bits.mean(0) - 0.5).max() < 0.3  # every bit, where test_bits_become_decided_and_balanced has the mean


def test_bits_become_decided_and_balanced() -> None:
    policy = drlih.train(digits(), Args(hidden=128, num_envs=128, updates=250, learning_rate=1e-2), progress=False)
    with torch.no_grad():
        p = torch.sigmoid(policy.initial_state(torch.from_numpy(digits().features[digits().train]))[0])
    assert F.binary_cross_entropy(p, p) < 0.4  # nats a bit; a coin has 0.69
    assert ((p > 0.5).float().mean(0) - 0.5).abs().mean() < 0.3


@pytest.mark.parametrize(("bits", "length"), [(5, 5), (12, 12), (20, 12)])
def test_the_default_group_is_no_longer_than_the_code(multi_label: HashingDataset, bits: int, length: int) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "group_bits"} | {"bits": bits, "updates": 2}
    args = Args(**settings)
    assert args.group_bits == length
    assert Args(**settings | {"group_bits": 4}).group_bits == 4
    policy = drlih.train(multi_label, args, progress=False)
    assert hashgym.encode(policy, multi_label.features, bits=bits).shape == (60, bits)


@pytest.mark.parametrize(
    ("variant", "changes", "needless"),
    [
        ("paper", {"reward": "nca", "margin": 2.0}, ["reward"]),
        ("released", {"group_weight": 0.5}, ["group_weight"]),
        ("gru", {"logit_scale": 3.0, "value_weight": 0.1}, ["logit_scale"]),
        ("nested", {"group_weight": 0.5, "logit_scale": 0.0}, ["group_weight"]),
        ("norec", {"value_weight": 0.1, "margin": 2.0, "reward": "nca"}, ["margin", "value_weight"]),
        ("hashgym", {}, []),
    ],
)
def test_arguments_without_a_use_are_named(variant: str, changes: dict[str, Any], needless: list[str]) -> None:
    assert drlih.unused(dataclasses.replace(drlih.PRESETS[variant], **changes)) == needless
