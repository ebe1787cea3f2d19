"""A run's policy.onnx gives the codes of its policy, to the last bit."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import hashgym
import hashgym.hashers
from agents import checkpoint, drlih, mch, multicode, sb3
from agents.sb3_policies import Greedy, GreedyCodes
from hashgym import codes, data
from hashgym.data import HashingDataset
from hashgym.encoders import Encoder, load_encoder
from hashgym.encoders.heads import CodesHead, GroupsHead, RegionsHead, hasher_head
from hashgym.encoders.write import write
from hashgym.hashers import Hasher
from hashgym.integrations.sb3 import HashVecEnv

ROWS = 10_000
VIEWS = 1_700  # of six codes each


@cache
def digits() -> HashingDataset:
    return data.load("digits").standardized()


@cache
def scenes() -> HashingDataset:
    return data.load("digit-scenes").standardized()


@cache
def base() -> Hasher:
    dch = hashgym.hashers.make("dch", bits=16, hidden=64, updates=100)
    return dch.fit(scenes().features[scenes().train], scenes().labels[scenes().train])


def extracted(dataset: HashingDataset, shape: tuple[int, ...]) -> Any:
    """Random features, about as the dataset's were before they were standardised; and standardised again."""
    drawn = np.random.default_rng(0).standard_normal((*shape, dataset.dim), np.float32)
    assert dataset.center is not None
    assert dataset.scale is not None
    raw = drawn * dataset.scale + dataset.center
    return raw, (raw - dataset.center) / dataset.scale


def randomized(policy: Any, gain: float = 1.5) -> Any:
    """The policy with random weights, large enough for its actions to depend on all that it observes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, part in policy.state_dict().items():
            if part.ndim > 1:
                part.copy_(gain * torch.randn(part.shape, generator=generator) * part.shape[1] ** -0.5)
            elif "bias" in name or "running_mean" in name:
                part.copy_(0.2 * torch.randn(part.shape, generator=generator))
            elif "running_var" in name:
                part.copy_(0.5 + torch.rand(part.shape, generator=generator))
    return policy


def check(encoder: Encoder, policy: Any, bits: int, group_bits: int) -> None:
    raw, moved = extracted(digits(), (ROWS - len(digits().features),))
    raw = np.concatenate([data.load("digits").features, raw])
    moved = np.concatenate([digits().features, moved])
    expected = hashgym.encode(policy, moved, bits=bits, group_bits=group_bits)
    different = (encoder.margins(raw)[:, 0] > 0) != expected
    assert not different.any(), np.abs(encoder.margins(raw)[:, 0][different])
    assert (encoder.encode(raw).words[:, 0] == codes.pack(expected)).all()
    assert len(np.unique(expected, axis=0)) > 10


def check_regions(encoder: Encoder, policy: Any, threshold: float, sequential: bool) -> None:
    raw, moved = extracted(scenes(), (VIEWS, 6))
    expected = hashgym.encode_regions(
        policy, base(), moved[:, 0], moved[:, 1:], threshold=threshold, sequential=sequential
    )
    found = encoder.encode(raw)
    assert (found.words == expected.words).all()
    assert (found.kept == expected.kept).all()
    assert 1.05 < found.anhc < 5.5
    alone = encoder.encode(raw[:, 0])
    assert (alone.words[:, 0] == codes.pack(base().encode(moved[:, 0]))).all()


@pytest.mark.parametrize("variant", drlih.VARIANTS)
def test_drlih(variant: str, tmp_path: Path) -> None:
    args = drlih.Args(variant=variant, bits=17, group_bits=6, hidden=32, rnn_hidden=16)
    policy = randomized(drlih.VARIANTS[variant].network(digits().dim, args)).eval()
    path = tmp_path / "policy.onnx"
    checkpoint.write_encoder(lambda: GroupsHead(policy, 17, 6), digits(), args, path, bits=17, group_bits=6)
    check(load_encoder(path), policy, 17, 6)


def batch(env: str, algo: str) -> dict[str, int | float]:
    """A batch size for few environments, of algorithms that have one."""
    return {"batch_size": 4} if "batch_size" in sb3.PRESETS[env][algo].settings else {}


@pytest.mark.parametrize("algo", sb3.PRESETS["BitGroupHashing-v0"])
def test_stable_baselines3(algo: str, tmp_path: Path) -> None:
    args = sb3.Args(algo=algo, bits=10, group_bits=4, num_envs=4, settings=batch("BitGroupHashing-v0", algo))
    policy = randomized(sb3.make_model(sb3.make_envs(digits(), args, None), args).policy)
    policy.set_training_mode(False)
    path = tmp_path / "policy.onnx"
    checkpoint.write_encoder(lambda: GroupsHead(Greedy(policy), 10, 4), digits(), args, path, bits=10, group_bits=4)
    check(load_encoder(path), policy, 10, 4)


def test_stable_baselines3_with_a_gaussian(tmp_path: Path) -> None:
    envs = HashVecEnv(
        gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=digits(), bits=10, group_bits=4, action="probability")
    )
    policy = randomized(PPO("MultiInputPolicy", envs, n_steps=2, batch_size=4).policy)
    path = tmp_path / "policy.onnx"
    write(
        path,
        GroupsHead(Greedy(policy), 10, 4),
        dim=64,
        bits=10,
        source={},
        center=digits().center,
        scale=digits().scale,
    )
    check(load_encoder(path), policy, 10, 4)


@pytest.mark.parametrize("algo", sb3.PRESETS["RegionKeep-v0"])
def test_stable_baselines3_on_regions(algo: str, tmp_path: Path) -> None:
    args = sb3.Args(algo=algo, env="RegionKeep-v0", bits=16, num_envs=4, settings=batch("RegionKeep-v0", algo))
    policy = randomized(sb3.make_model(sb3.make_envs(scenes(), args, base()), args).policy)
    policy.set_training_mode(False)
    path = tmp_path / "policy.onnx"
    head = RegionsHead(hasher_head(base()), Greedy(policy))
    checkpoint.write_encoder(lambda: head, scenes(), args, path, bits=16, threshold=0.5)
    check_regions(load_encoder(path), policy, 0.5, sequential=False)


@pytest.mark.parametrize(("regions", "xi"), [(1, 0.5), (1, 0.3), (3, 0.3)])
def test_mch(regions: int, xi: float, tmp_path: Path) -> None:
    args = mch.Args(updates=1, num_envs=64, regions_per_episode=regions, holdout=0)
    policy = mch.train(scenes(), base(), args, out=tmp_path, threshold=xi, progress=False)
    encoder = load_encoder(tmp_path / "policy.onnx")
    assert (encoder.regions, encoder.threshold, encoder.sigma) == (5, xi, 0.5)
    rows = np.arange(len(scenes().features))
    expected = mch.encode(policy, base(), scenes(), rows, xi)
    plain = data.load("digit-scenes")
    assert plain.regions is not None
    found = encoder.encode(np.concatenate([plain.features[:, None], plain.regions], axis=1))
    assert (found.words == expected.words).all()
    assert (found.kept == expected.kept).all()
    head = RegionsHead(hasher_head(base()), randomized(policy, 3.0), threshold=xi if regions > 1 else None)
    checkpoint.write_encoder(lambda: head, scenes(), args, tmp_path / "other.onnx", bits=16, threshold=xi)
    check_regions(load_encoder(tmp_path / "other.onnx"), policy, xi, sequential=regions > 1)


def quick(agent: str, out: Path, resume: bool = False) -> Any:
    """The smallest run of an agent on BitGroupHashing-v0."""
    if agent == "drlih":
        drlih_args = drlih.Args(bits=8, group_bits=4, updates=2, num_envs=8, hidden=8, rnn_hidden=4)
        return drlih.train(digits(), drlih_args, out=out, resume=resume, progress=False)
    sb3_args = sb3.Args(bits=8, group_bits=4, steps=256, num_envs=8, settings={"batch_size": 32}, checkpoints=2)
    return sb3.train(digits(), sb3_args, out=out, resume=resume, progress=False)


@pytest.mark.parametrize("agent", ["drlih", "sb3"])
def test_a_run_writes_its_encoder_and_a_finished_one_when_it_is_resumed(agent: str, tmp_path: Path) -> None:
    policy, path = quick(agent, tmp_path), tmp_path / "policy.onnx"
    written = path.read_bytes()
    encoder = load_encoder(path)
    check(encoder, policy, 8, 4)
    source = encoder.metadata["source"]
    assert (source["agent"], source["dataset"], source["settings"]["bits"]) == (agent, "digits", 8)
    path.unlink()
    quick(agent, tmp_path, resume=True)
    assert path.read_bytes() == written


def test_a_policy_that_was_not_evaluated_is_exported_too(tmp_path: Path) -> None:
    """Its last forward pass was one of learning, whose tensors have a graph."""
    settings: dict[str, int | float] = {"batch_size": 32}
    args = sb3.Args(env="RegionKeep-v0", bits=16, steps=256, num_envs=8, holdout=0, settings=settings)
    policy = sb3.train(scenes(), args, base=base(), out=tmp_path, progress=False)
    rows = np.arange(100)
    plain, expected = data.load("digit-scenes"), sb3.encode(policy, args, scenes(), rows, base())
    assert plain.regions is not None
    found = load_encoder(tmp_path / "policy.onnx").encode(
        np.concatenate([plain.features[rows, None], plain.regions[rows]], axis=1)
    )
    assert (found.words == expected.words).all()
    assert (found.kept == expected.kept).all()


def test_without_onnx_a_run_says_how_to_get_its_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    quick("drlih", tmp_path)
    assert (tmp_path / "policy.pt").exists()
    assert not (tmp_path / "policy.onnx").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "pip install 'hashgym[onnx]'" in said
    assert "--resume" in said


def test_exporting_draws_nothing_and_leaves_the_policy_as_it_is(tmp_path: Path) -> None:
    args = drlih.Args(bits=8, group_bits=4, hidden=8, rnn_hidden=4)
    policy = drlih.VARIANTS["hashgym"].network(digits().dim, args).train()
    before, state = torch.get_rng_state(), {name: part.clone() for name, part in policy.state_dict().items()}
    checkpoint.write_encoder(
        lambda: GroupsHead(policy, 8, 4), digits(), args, tmp_path / "x.onnx", bits=8, group_bits=4
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    assert all(torch.equal(part, state[name]) for name, part in policy.state_dict().items())


@pytest.mark.parametrize(("count", "group_bits", "xi"), [(1, 0, 0.5), (2, 6, 0.3), (3, 16, 0.6)])
@pytest.mark.parametrize("agent", ["multicode", "sb3"])
def test_further_codes(agent: str, count: int, group_bits: int, xi: float, tmp_path: Path) -> None:
    """Of random policies that depend on all that they observe, so that a code depends on those before it."""
    if agent == "multicode":
        policy: Any = randomized(multicode.Policy(256, 16, multicode.Args(codes=count, group_bits=group_bits)), 2.0)
        writer: Any = policy
    else:
        xi, length = 0.5, group_bits or 16
        task = {"dataset": scenes(), "base": base(), "codes": count, "group_bits": length}
        policy = randomized(
            PPO("MultiInputPolicy", HashVecEnv(gym.make_vec("MultiCodeHashing-v0", **task))).policy, 2.0
        )
        policy.set_training_mode(False)
        writer = GreedyCodes(policy, 16, length)
    head = CodesHead(hasher_head(base()), writer.eval(), count, xi)
    raw, moved = extracted(scenes(), (3_000,))
    options = {"dim": 256, "bits": 16, "codes": count, "threshold": xi, "source": {}}
    write(tmp_path / "codes.onnx", head, center=scenes().center, scale=scenes().scale, **options)
    found = load_encoder(tmp_path / "codes.onnx").encode(raw)
    expected = hashgym.encode_codes(policy, base(), moved, codes=count, group_bits=group_bits or None, threshold=xi)
    assert (found.kept == expected.kept).all()
    assert (found.words == expected.words).all()
    assert 1.05 < found.anhc < 0.99 + count
