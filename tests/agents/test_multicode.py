"""The multicode agent: its gradient, encoding against the environment, files of a run, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hashgym
from agents import multicode
from agents.multicode import Args
from hashgym import hashers
from hashgym.codes import CodeSets, unpack
from hashgym.data import HashingDataset
from hashgym.data.readers import digit_scenes
from hashgym.hashers import Hasher
from hashgym.retrieval import evaluate

SMALL: dict[str, Any] = {"updates": 12, "num_envs": 16, "hidden": 16, "evaluate_every": 6, "checkpoint_every": 4}
KINDS: list[dict[str, Any]] = [{}, {"codes": 3}, {"codes": 2, "group_bits": 5}]


@pytest.fixture
def base(multi_label: HashingDataset) -> Hasher:
    small = hashers.make("dch", bits=12, hidden=16, updates=20)
    return small.fit(multi_label.features[multi_label.train], multi_label.labels[multi_label.train])


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_equals_the_environment(multi_label: HashingDataset, base: Hasher, kind: dict[str, Any]) -> None:
    """With codes of whole features, images get the codes that the environment keeps of the policy's actions."""
    args = Args(**SMALL, **kind, start=0.5)
    policy = multicode.train(multi_label, base, args, progress=False)
    for layer in (policy.keep, policy.code):  # so that codes differ and some are kept
        torch.nn.init.normal_(layer.weight)
    envs: Any = hashgym.envs.multi_code_hashing.MultiCodeHashingVectorEnv(
        40, multi_label, base=base, codes=args.codes, group_bits=policy.group_bits
    )
    observation, info = envs.reset(seed=0)
    rows, done = info["index"], False
    while not done:
        action, _ = policy.predict(observation)
        observation, _, terminated, _, info = envs.step(action)
        done = terminated[0]
    codes = np.stack([last["codes"] for last in info["final_obs"]])
    sets = multicode.encode(policy, base, multi_label.features[rows])
    np.testing.assert_array_equal(sets.kept, (codes != 0).any(axis=2))
    np.testing.assert_array_equal(unpack(sets.words, 12)[sets.kept], codes[sets.kept] > 0)
    assert 1 < sets.anhc < 1 + args.codes or args.codes == 1
    everything = multicode.encode(policy, base, multi_label.features, threshold=0.0)
    nothing = multicode.encode(policy, base, multi_label.features, threshold=1.0)
    assert everything.anhc > 1.5
    assert nothing.anhc == 1.0


def test_the_probability_of_keeping_is_above_a_half_where_the_expected_reward_is_positive() -> None:
    for rewards, expected in (([3.0, -1.0], 0.75), ([0.5, -1.5], 0.25), ([2.0, 0.0], 1.0)):
        logit = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.LBFGS([logit], max_iter=200)

        def closure(logit: Any = logit, optimizer: Any = optimizer, rewards: Any = rewards) -> torch.Tensor:
            optimizer.zero_grad()
            loss = multicode.keep_loss(logit.expand(len(rewards)), torch.tensor(rewards))
            loss.backward()
            return loss

        optimizer.step(closure)
        assert logit.sigmoid().item() == pytest.approx(expected, abs=1e-3)


def test_the_gradient_is_that_of_the_credit_of_each_bit_and_of_keeping(
    multi_label: HashingDataset, base: Hasher
) -> None:
    args = Args(**SMALL, dropout=0, input_dropout=0, code_dropout=0)
    policy = multicode.Policy(multi_label.dim, 12, args)
    run = multicode.Run(policy, base, multi_label, multi_label.train[:0], args)
    torch.manual_seed(0)
    image, code, codes = (run.tensor(run.obs[key]) for key in ("image", "code", "codes"))
    logits, keep = policy.act(policy.embed(image), code, codes, 0)
    seen: list[Any] = []
    step = run.envs.step

    def spy(action: np.ndarray) -> Any:
        seen.append(step(action))
        return seen[-1]

    run.envs.step = spy
    run.update()
    final = seen[0][-1]["final_info"]
    reward, credit = run.tensor(final["keep_reward"]), run.tensor(final["code_credit"])
    p, q = logits.sigmoid(), keep.sigmoid()
    scale, good = reward.abs().mean(), reward > 0
    keeping = -(reward.abs() * torch.where(good, q, 1 - q).log()).mean()
    wanted = torch.autograd.grad(
        (keeping - (p.detach() * (1 - p.detach()) * credit * logits).sum(1).mean()) / scale,
        [policy.code.bias, policy.keep.bias],
    )
    for parameter, gradient in zip((policy.code.bias, policy.keep.bias), wanted, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_a_run(multi_label: HashingDataset, base: Hasher, tmp_path: Path, kind: dict[str, Any]) -> None:
    """The loaded policy, and the encoder, give the codes of the trained one; a run resumes to the same bits."""
    args, dataset = Args(**SMALL, **kind), multi_label.standardized()
    base.fit(dataset.features[dataset.train], dataset.labels[dataset.train])
    policy = multicode.train(dataset, base, args, out=tmp_path / "a", threshold=0.4, progress=False)
    wanted = multicode.encode(policy, base, dataset.features, threshold=0.4)
    loaded = multicode.load(tmp_path / "a" / "policy.pt")
    assert loaded.args == args
    encoder = hashgym.load_encoder(tmp_path / "a" / "policy.onnx")
    assert (encoder.codes, encoder.most_codes, encoder.threshold) == (args.codes, 1 + args.codes, 0.4)
    stored = hashers.load(tmp_path / "a" / "base.npz")
    for sets in (
        multicode.encode(loaded, stored, dataset.features, threshold=0.4),
        encoder.encode(multi_label.features),
    ):
        np.testing.assert_array_equal(sets.kept, wanted.kept)
        np.testing.assert_array_equal(sets.words[sets.kept], wanted.words[wanted.kept])

    half = multicode.Run.update
    calls = 0

    def stopping(self: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return half(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multicode.Run, "update", stopping)
        with pytest.raises(KeyboardInterrupt):
            multicode.train(dataset, base, args, out=tmp_path / "b", threshold=0.4, progress=False)
    resumed = multicode.train(dataset, base, args, out=tmp_path / "b", threshold=0.4, resume=True, progress=False)
    for one, other in zip(resumed.parameters(), policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_learns_codes_that_raise_map_and_recall_on_scenes() -> None:
    dataset = digit_scenes.load().standardized()
    features, labels = dataset.features, dataset.labels
    base = hashers.make("dch", bits=32, updates=500).fit(features[dataset.train], labels[dataset.train])
    policy = multicode.train(dataset, base, Args(updates=400, hidden=256, holdout=0.0), progress=False)
    query = base.encode(features[dataset.query])
    several = multicode.encode(policy, base, features[dataset.database])
    own = CodeSets(several.words[:, :1], several.kept[:, :1], 32)
    one, more = (evaluate(query, labels[dataset.query], sets, labels[dataset.database]) for sets in (own, several))
    assert 1.05 < several.anhc <= 2
    assert more.map > one.map + 0.004
    assert more.recall_by_radius[0] > 1.1 * one.recall_by_radius[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": 0}, "codes must be above 0"),
        ({"group_bits": -1}, "group_bits must be a finite number of at least 0"),
        ({"code_dropout": 1.0}, "code_dropout must be at least 0 and below 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
    ],
)
def test_wrong_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Args(**change)


def test_a_group_longer_than_the_code_stops_before_training(multi_label: HashingDataset, base: Hasher) -> None:
    with pytest.raises(ValueError, match="group_bits=20 is longer than the code"):
        multicode.train(multi_label, base, Args(**SMALL, group_bits=20), progress=False)


def test_the_command_prints_both_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bits", "8", "--updates", "6", "--num-envs", "16", "--hidden", "16", "--base", "ksh"]
    words += ["--out", str(tmp_path / "run")]
    results = multicode.main(multicode.command(words))
    printed = capsys.readouterr().out
    assert "one code" in printed
    assert f"mAP {results['several codes'].map:.4f}" in printed
    with pytest.raises(ValueError, match="xi is a probability"):
        multicode.main(multicode.command([*words, "--xi", "2"]))


def test_policies_of_other_kinds_are_encoded(multi_label: HashingDataset, base: Hasher) -> None:
    """Callables on bits, without the bit that keeps, and on indices."""
    features = multi_label.features
    opposite = lambda seen: (seen["codes"][:, 0] < 0).astype(np.int8)  # noqa: E731
    sets = hashgym.encode_codes(opposite, base, features)
    np.testing.assert_array_equal(unpack(sets.words[:, 1], 12), ~unpack(sets.words[:, 0], 12))
    assert sets.anhc == 2
    same = hashgym.encode_codes(lambda seen: (seen["codes"][:, 0] > 0).astype(np.int8), base, features, codes=2)
    assert same.anhc == 1  # equal codes are kept once
    kept = np.arange(len(features)) % 2
    indices = lambda seen: np.full(len(seen["image"]), 5) + (8 * kept if seen["group"][0] == 3 else 0)  # noqa: E731
    sets = hashgym.encode_codes(indices, base, features, group_bits=3)
    np.testing.assert_array_equal(unpack(sets.words[:, 1], 12), np.tile([True, False, True], (len(features), 4)))
    np.testing.assert_array_equal(sets.kept[:, 1], kept == 1)
    for policy, message in (
        (lambda seen: np.zeros((len(seen["image"]), 5)), "must return actions of 12 bits, or 13"),
        (lambda seen: np.full((len(seen["image"]), 13), 2.0), "numbers from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            hashgym.encode_codes(policy, base, features)
    with pytest.raises(ValueError, match="threshold is a probability"):
        hashgym.encode_codes(opposite, base, features, threshold=1.5)
    with pytest.raises(ValueError, match="features must be"):
        hashgym.encode_codes(opposite, base, features[0])


def test_an_index_without_the_bit_that_keeps(multi_label: HashingDataset, base: Hasher) -> None:
    policy = lambda seen: np.full(len(seen["image"]), 6)  # noqa: E731
    sets = hashgym.encode_codes(policy, base, multi_label.features, group_bits=3, keep=False)
    np.testing.assert_array_equal(unpack(sets.words[:, 1], 12)[0], np.tile([False, True, True], 4))
    assert sets.kept.all()
    with pytest.raises(ValueError, match="an index action must be an integer from 0 to 7"):
        hashgym.encode_codes(lambda seen: policy(seen) + 2, base, multi_label.features, group_bits=3, keep=False)


def test_a_code_is_kept_from_its_threshold_on(multi_label: HashingDataset, base: Hasher) -> None:
    """As in an encoder: a probability in float32 is compared as the number that it is."""
    p = np.float32(0.7)
    policy = lambda seen: np.append(np.zeros(12, np.float32), p)[None].repeat(len(seen["image"]), 0)  # noqa: E731
    for threshold, kept in ((float(p), True), (np.nextafter(float(p), 1), False)):
        sets = hashgym.encode_codes(policy, base, multi_label.features[:3], threshold=threshold)
        assert (sets.words[:, 1] == 0).all()
        assert sets.kept[:, 1].any() == (kept and bool(sets.words[:, 0].any()))


def test_wrong_arguments_stop_before_the_base_is_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.bases.fitted_base", lambda *_: pytest.fail("fitted"))
    for words, message in (
        (["--bits", "8", "--group-bits", "12"], "group_bits=12 is longer than the code"),
        (["--dataset", "digits-pixels"], "pixels or activations"),
    ):
        with pytest.raises(ValueError, match=message):
            multicode.main(multicode.command([*words, "--out", str(tmp_path / "run")]))
