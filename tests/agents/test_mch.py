"""The MCH agent: its losses against enumeration, the files of a run, and that it learns."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hashgym
from agents import bases, checkpoint, mch, multicode, sb3, training
from agents.mch import Args
from hashgym import codes, hashers
from hashgym.codes import CodeSets
from hashgym.data import DataError, HashingDataset, load
from hashgym.hashers.pairwise import PairwiseHasher
from hashgym.retrieval import evaluate

SMALL: dict[str, Any] = {"num_envs": 16, "updates": 12, "holdout": 0.25, "evaluate_every": 4, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def all_scenes() -> HashingDataset:
    return load("digit-scenes").standardized()


@pytest.fixture(scope="module")
def scenes(all_scenes: HashingDataset) -> HashingDataset:
    """Few training images: enough where nothing is to be learnt."""
    return dataclasses.replace(all_scenes, train=all_scenes.train[:400])


@pytest.fixture(scope="module")
def base(scenes: HashingDataset) -> PairwiseHasher:
    hasher = hashers.make("dch", bits=16, hidden=64, updates=300, dropout=0.2, input_dropout=0.2)
    hasher.fit(scenes.features[scenes.train], scenes.labels[scenes.train])
    assert isinstance(hasher, PairwiseHasher)
    return hasher


@pytest.mark.parametrize("estimator", mch.LOSSES)
def test_every_estimator_has_the_exact_gradient_on_average(estimator: str) -> None:
    """The gradients of both actions, weighted by their probabilities, against d/d logits of sum p(keep) x reward."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    reward = torch.randn(5, generator=rng, dtype=torch.float64)
    p = torch.softmax(logits, dim=1)
    (exact,) = torch.autograd.grad((p[:, 1] * reward).mean(), logits)
    total = torch.zeros_like(exact)
    for action in (0, 1):
        taken = torch.full((5,), action)
        loss = mch.LOSSES[estimator](torch.log_softmax(logits, dim=1), taken, reward)
        (gradient,) = torch.autograd.grad(-loss, logits)  # row i depends on environment i alone
        total += torch.softmax(logits, dim=1).detach()[:, [action]] * gradient
    torch.testing.assert_close(total, exact)


def test_a_worked_example_of_equation_7() -> None:
    log_pi = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    action, keep_reward = torch.tensor([1, 0]), torch.tensor([2.0, 3.0])
    # the first keeps and earns 2; the second discards and earns 0
    assert mch.reinforce_loss(log_pi, action, keep_reward).item() == pytest.approx(-2 * np.log(0.25) / 2)
    assert mch.exact_loss(log_pi, keep_reward).item() == pytest.approx(-(0.25 * 2 + 0.5 * 3) / 2)
    critical = -((1 - 0.25) * 2 * np.log(0.25) + (0 - 0.5) * 3 * np.log(0.5)) / 2
    assert mch.self_critical_loss(log_pi, action, keep_reward).item() == pytest.approx(critical)


def test_the_network_is_the_papers() -> None:
    policy = mch.Policy(7, 4, Args())
    linear = [(layer.in_features, layer.out_features) for layer in policy.layers if isinstance(layer, nn.Linear)]
    assert linear == [(2 * 7 + 2 * 4, 1024), (1024, 512), (512, 256), (256, 64), (64, 2)]
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in policy.layers) == 4
    sequential = mch.Policy(7, 4, Args(regions_per_episode=2))
    assert sequential.keys[-1] == "kept"
    paper = mch.PAPER
    settings = paper.optimizer, paper.learning_rate, paper.weight_decay, paper.num_envs, paper.updates, paper.reduction
    assert settings == ("sgd", 1e-4, 5e-4, 256, 100, "sum")
    assert (paper.estimator, paper.dropout, paper.scale_reward) == ("reinforce", 0.0, False)


def test_predict_and_keep_probability_agree() -> None:
    torch.manual_seed(0)
    policy = mch.Policy(3, 4, Args())
    rng = np.random.default_rng(0)
    shapes = {"image": 3, "region": 3, "image_code": 4, "region_code": 4}
    seen = {key: rng.standard_normal((50, width)).astype(np.float32) for key, width in shapes.items()}
    p = policy.keep_probability(seen)
    assert p.shape == (50,)
    assert ((p > 0) & (p < 1)).all()
    np.testing.assert_array_equal(policy.predict(seen)[0], p > 0.5)
    np.testing.assert_array_equal(p, policy.keep_probability(seen))  # dropout and batch statistics are off
    assert policy.training
    drawn = np.mean([policy.predict(seen, deterministic=False)[0] for _ in range(400)], axis=0)
    np.testing.assert_allclose(drawn, p, atol=0.1)


@pytest.mark.parametrize("preset", [Args(), mch.PAPER], ids=["hashgym", "paper"])
def test_a_seed_determines_a_run(scenes: HashingDataset, base: PairwiseHasher, preset: Args) -> None:
    one, same, other = (
        mch.train(scenes, base, dataclasses.replace(preset, **SMALL, seed=seed), progress=False) for seed in (0, 0, 1)
    )
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_codes_under_dropout_are_those_of_the_environment(scenes: HashingDataset, base: PairwiseHasher) -> None:
    policy, args = mch.Policy(scenes.dim, base.bits, Args()), Args(**SMALL, code_dropout=0.3)
    run = mch.Run(policy, base, scenes, scenes.train[:0], args)
    assert run.envs.task.code_dropout == 0.3
    plain = mch.Run(policy, base, scenes, scenes.train[:0], Args(**SMALL))
    assert plain.envs.task.code_dropout == 0
    assert (run.obs["image"] == plain.obs["image"]).all()
    assert (run.obs["image_code"] != plain.obs["image_code"]).any()


def test_a_run_that_was_killed_ends_as_one_that_was_not(
    scenes: HashingDataset, base: PairwiseHasher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Args(**SMALL, regions_per_episode=3)
    mch.train(scenes, base, args, out=tmp_path / "whole", progress=False)
    save = checkpoint.save

    def killed(content: dict[str, Any], path: Path) -> None:
        save(content, path)
        if content["update"] == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        mch.train(scenes, base, args, out=tmp_path / "killed", progress=False)
    monkeypatch.undo()
    saved = hashers.load(tmp_path / "killed" / "base.npz")
    mch.train(scenes, saved, args, out=tmp_path / "killed", resume=True, progress=False)
    whole, resumed = (mch.load(tmp_path / name / "policy.pt", "cpu").state_dict() for name in ("whole", "killed"))
    for key in whole:
        assert torch.equal(whole[key], resumed[key]), key


def test_files_of_a_run(scenes: HashingDataset, base: PairwiseHasher, tmp_path: Path) -> None:
    policy = mch.train(scenes, base, Args(**SMALL), out=tmp_path / "run", progress=False)
    names = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    assert names == {"base", "checkpoint", "events", "policy"}
    loaded = mch.load(tmp_path / "run" / "policy.pt")
    rows = scenes.query[:50]
    again = mch.encode(loaded, hashers.load(tmp_path / "run" / "base.npz"), scenes, rows, 0.4)
    sets = mch.encode(policy, base, scenes, rows, 0.4)
    np.testing.assert_array_equal(sets.words, again.words)
    np.testing.assert_array_equal(sets.kept, again.kept)
    with pytest.raises(ValueError, match="resume it, remove it"):
        mch.train(scenes, base, Args(**SMALL), out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="another price"):
        mch.train(scenes, base, Args(**SMALL, price=0.1), out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match="no run to resume"):
        mch.train(scenes, base, Args(**SMALL), out=tmp_path / "none", resume=True, progress=False)
    with pytest.raises(ValueError, match="does not exist"):
        mch.load(tmp_path / "none.pt")


def test_evaluation_equals_a_loop(scenes: HashingDataset, base: PairwiseHasher) -> None:
    learning, held_out = training.split(scenes, Args(**SMALL))
    held_out = held_out[:40]
    run = mch.Run(mch.Policy(scenes.dim, 16, Args(**SMALL)), base, learning, held_out, Args(**SMALL))
    measured = run.evaluate()
    sets = mch.encode(run.policy, base, scenes, held_out)
    labels, recalls, precisions = scenes.labels[held_out], [], []
    for q in range(40):
        near = similar = both = 0
        for item in range(40):
            if item == q:
                continue
            its = [tuple(codes.unpack(sets.words[item, k], 16)) for k in range(6) if sets.kept[item, k]]
            at_zero = tuple(codes.unpack(sets.words[q, 0], 16)) in its
            alike = bool((labels[q] & labels[item]).any())
            near, similar, both = near + at_zero, similar + alike, both + (at_zero and alike)
        if similar:
            recalls.append(both / similar)
            precisions.append(both / near if near else 0.0)
    assert measured["retrieval/held_out_recall_radius0"] == pytest.approx(np.mean(recalls))
    assert measured["retrieval/held_out_precision_radius0"] == pytest.approx(np.mean(precisions))
    assert measured["retrieval/anhc"] == pytest.approx(np.mean(sets.kept.sum(1)))
    assert not np.intersect1d(learning.train, held_out).size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "guess"}, "estimator must be one of exact, reinforce, self_critical"),
        ({"optimizer": "lion"}, "adam or sgd"),
        ({"num_envs": 1}, "num_envs of at least 2"),
        ({"updates": 0}, "updates must be above 0"),
        ({"regions_per_episode": 0}, "regions_per_episode must be above 0"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"code_dropout": 1.0}, "code_dropout must be at least 0 and below 1"),
        ({"holdout": -0.1}, "holdout must be"),
    ],
)
def test_wrong_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Args(**change)


def test_data_and_bases_that_cannot_be_used(scenes: HashingDataset, base: PairwiseHasher, tmp_path: Path) -> None:
    bare = dataclasses.replace(scenes, regions=None, train_regions=None, boxes=None, train_boxes=None)
    with pytest.raises(DataError, match=r"hashgym features .*--train-regions 4"):
        mch.train(bare, base, Args(**SMALL), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()  # rejected before anything was written
    with pytest.raises(DataError, match=r"hashgym features .*--regions 5"):
        mch.encode(mch.Policy(scenes.dim, 16, Args()), base, bare, bare.query)
    other = hashers.make("dch", bits=8, hidden=8, updates=5).fit(scenes.features[:300, :20], scenes.labels[:300])
    with pytest.raises(ValueError, match="20"):
        mch.train(scenes, other, Args(**SMALL), progress=False)
    sequential = mch.Policy(scenes.dim, 16, Args(regions_per_episode=2))
    with pytest.raises(ValueError, match="sequential=True"):
        hashgym.encode_regions(sequential, base, scenes.features[:5], scenes.regions[:5])
    with pytest.raises(ValueError, match="codes of 8 bits, got 16"):
        hashgym.encode_regions(mch.Policy(scenes.dim, 8, Args()), base, scenes.features[:5], scenes.regions[:5])
    with pytest.raises(ValueError, match="xi is a probability"):
        mch.main(mch.Main(Args(), xi=1.5))


def test_it_learns_which_regions_to_keep(all_scenes: HashingDataset) -> None:
    """On queries and database images that were not trained on, retrieval improves in each way that MCH claims."""
    scenes = all_scenes
    base = hashers.make("dch", bits=24, hidden=256, updates=600)
    base.fit(scenes.features[scenes.train], scenes.labels[scenes.train])
    policy = mch.train(scenes, base, Args(updates=150, holdout=0.0, num_envs=128), progress=False)
    own = base.encode(scenes.features[scenes.query])
    labels = scenes.labels[scenes.query], scenes.labels[scenes.database]
    several = mch.encode(policy, base, scenes, scenes.database)
    single = CodeSets(several.words[:, :1], several.kept[:, :1], 24)
    one, more = (evaluate(own, labels[0], sets, labels[1]) for sets in (single, several))
    assert 1.2 < several.anhc < 4
    assert more.map > one.map + 0.03
    assert more.recall_by_radius[0] > 1.5 * one.recall_by_radius[0]
    assert more.precision_by_radius[0] > one.precision_by_radius[0]
    # Keeping as many regions at random brings less of each.
    chance = np.random.default_rng(0).random(several.kept.shape) < several.kept[:, 1:].mean()
    chance[:, 0] = True
    blind = evaluate(own, labels[0], CodeSets(several.words, chance, 24), labels[1])
    assert more.map > blind.map
    assert more.recall_by_radius[0] > blind.recall_by_radius[0]
    assert more.precision_by_radius[0] > blind.precision_by_radius[0]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base.npz"
    scenes = load("digit-scenes").standardized()
    small = hashers.make("dch", bits=8, hidden=16, updates=20)
    small.fit(scenes.features[scenes.train], scenes.labels[scenes.train]).save(base)
    results = mch.main(mch.Main(Args(**SMALL), base=str(base), xi=0.0, out=tmp_path / "run"))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"mAP {results['several codes'].map:.4f}" in printed
    assert results["several codes"].recall_by_radius[0] >= results["one code"].recall_by_radius[0]
    assert hashgym.hashers.load(tmp_path / "run" / "base.npz").bits == 8


def test_the_base_of_a_resumed_run_may_be_a_users_own_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: HashingDataset
) -> None:
    """Another process has not imported its module yet."""
    (tmp_path / "mine_alone.py").write_text(
        "from dataclasses import dataclass\nfrom hashgym.hashers.ksh import KSH\n\n"
        "@dataclass(kw_only=True, eq=False)\nclass Mine(KSH):\n    'My own.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    base = bases.base_of_run("mine_alone:Mine", None, 6, 0, scenes)
    base.save(tmp_path / "base.npz")
    del sys.modules["mine_alone"]
    again = bases.base_of_run("mine_alone:Mine", tmp_path, 6, 0, scenes)
    np.testing.assert_array_equal(again.encode(scenes.features), base.encode(scenes.features))


def test_a_hasher_in_the_folder_is_not_replaced(tmp_path: Path, base: PairwiseHasher) -> None:
    file = tmp_path / "base.npz"
    bases.save_base(base, tmp_path)
    before = file.read_bytes()
    bases.save_base(hashers.load(file), tmp_path)  # of a run that was killed before its first checkpoint
    rng = np.random.default_rng(0)
    for other in (
        hashers.make("lsh", bits=16).fit(rng.random((9, 4))),
        hashers.make("lsh", bits=16, seed=1).fit(rng.random((9, 4))),
    ):
        with pytest.raises(ValueError, match=r"base\.npz exists and is not the base hasher of this run"):
            bases.save_base(other, tmp_path)
    assert file.read_bytes() == before
    file.write_bytes(b"mine")
    with pytest.raises(ValueError, match="is not the base hasher"):
        bases.save_base(base, tmp_path)
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize("agent", ["mch", "sb3"])
def test_no_agent_overwrites_another_base(agent: str, tmp_path: Path, scenes: HashingDataset) -> None:
    (tmp_path / "base.npz").write_bytes(b"mine")
    small = hashers.make("ksh", bits=8).fit(scenes.features[scenes.train], scenes.labels[scenes.train])

    def train() -> None:
        if agent == "mch":
            mch.train(scenes, small, Args(**SMALL), out=tmp_path, progress=False)
        else:
            sb3.train(scenes, sb3.Args(env="RegionKeep-v0"), base=small, out=tmp_path, progress=False)

    with pytest.raises(ValueError, match="is not the base hasher"):
        train()
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["base.npz"]


@pytest.mark.parametrize("agent", ["mch", "multicode", "sb3"])
def test_a_run_is_resumed_with_its_own_base(agent: str, tmp_path: Path, scenes: HashingDataset) -> None:
    features, labels = scenes.features[scenes.train], scenes.labels[scenes.train]
    first, other = (hashers.make("ksh", bits=8, seed=seed).fit(features, labels) for seed in (0, 1))
    few: dict[str, Any] = {"updates": 2, "holdout": 0.25}

    def train(base: Any, **options: Any) -> None:
        common: dict[str, Any] = {"out": tmp_path, "progress": False, **options}
        if agent == "mch":
            mch.train(scenes, base, Args(**{**SMALL, "updates": 2}), **common)
        elif agent == "multicode":
            multicode.train(scenes, base, multicode.Args(num_envs=16, **few), **common)
        else:
            sb3.train(scenes, sb3.Args(env="RegionKeep-v0", steps=512, num_envs=16), base=base, **common)

    train(first)
    with pytest.raises(ValueError, match="is not the base hasher of this run"):
        train(other, resume=True)
    train(first, resume=True)


def test_the_base_of_a_resumed_run_is_the_one_that_is_named(tmp_path: Path, scenes: HashingDataset) -> None:
    hashers.make("ksh", bits=8).fit(scenes.features[:60], scenes.labels[:60]).save(tmp_path / "base.npz")
    assert bases.base_of_run("ksh", tmp_path, 8, 0, scenes).bits == 8
    for name, bits in (("hashnet", 8), ("ksh", 16)):
        with pytest.raises(ValueError, match=f"started with the base KSH of 8 bits, got {name} of {bits}"):
            bases.base_of_run(name, tmp_path, bits, 0, scenes)
    with pytest.raises(ValueError, match="no-such-hasher"):
        bases.base_of_run("no-such-hasher", tmp_path, 8, 0, scenes)


@pytest.mark.parametrize("env", ["mch", "sb3"])
def test_a_run_is_resumed_with_its_own_regions(env: str, tmp_path: Path, scenes: HashingDataset) -> None:
    base = hashers.make("ksh", bits=8).fit(scenes.features[scenes.train], scenes.labels[scenes.train])

    def train(dataset: HashingDataset, **options: Any) -> None:
        common: dict[str, Any] = {"out": tmp_path, "progress": False, **options}
        if env == "mch":
            mch.train(dataset, base, Args(**{**SMALL, "updates": 2}), **common)
        else:
            sb3.train(dataset, sb3.Args(env="RegionKeep-v0", steps=512, num_envs=16), base=base, **common)

    train(scenes)
    assert scenes.train_regions is not None
    with pytest.raises(ValueError, match="made on other data"):
        train(dataclasses.replace(scenes, train_regions=scenes.train_regions[:, ::-1].copy()), resume=True)
    train(scenes, resume=True)
    file = tmp_path / "checkpoint.pt"  # of an earlier version, without a digest of regions
    saved = checkpoint.load(file)
    checkpoint.save({**saved, "data": saved["data"].partition("+")[0]}, file)
    train(scenes, resume=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"price": -1.0}, "price must be"),
        ({"price": float("nan")}, "price must be"),
        ({"regions_per_episode": 99}, "is more than the .* regions of an image"),
        ({"device": "no-such-device"}, "device"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite"),
    ],
)
def test_arguments_are_checked_before_the_base_is_fitted(
    change: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mch, "base_of_run", None)
    with pytest.raises(ValueError, match=match):
        mch.main(mch.Main(Args(**SMALL | change)))


def test_without_regions_of_images_there_is_no_encoder(
    tmp_path: Path, scenes: HashingDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    base = hashers.make("ksh", bits=8).fit(scenes.features[scenes.train], scenes.labels[scenes.train])
    mch.train(dataclasses.replace(scenes, regions=None, boxes=None), base, Args(**SMALL), out=tmp_path, progress=False)
    assert "no policy.onnx: the dataset has no regions of images" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "policy.pt").exists()


def test_a_folder_with_a_run_is_rejected_before_the_base_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    monkeypatch.setattr(mch, "base_of_run", None)
    with pytest.raises(ValueError, match="holds a run"):
        mch.main(mch.Main(Args(**SMALL), out=tmp_path))
