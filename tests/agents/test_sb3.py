"""Stable-Baselines3's agents learn, are the same after a kill, and are saved without pickle."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hashgym
import hashgym.hashers
from agents import bases, checkpoint, sb3, training
from agents.sb3_callback import TrainingCallback
from agents.sb3_wrappers import flat
from hashgym import data
from hashgym.data import DataError, HashingDataset
from hashgym.hashers import Hasher
from hashgym.retrieval import evaluate

CODES = list(sb3.PRESETS["BitGroupHashing-v0"])
REGIONS = list(sb3.PRESETS["RegionKeep-v0"])
EVERY = [(env, algo) for env, presets in sb3.PRESETS.items() for algo in presets]


@cache
def blobs() -> HashingDataset:
    """Four classes in 16 dimensions, which overlap a little: 100 queries, 500 training images."""
    rng = np.random.default_rng(0)
    classes = rng.integers(4, size=600)
    features = rng.standard_normal((4, 16))[classes] + 0.7 * rng.standard_normal((600, 16))
    order = rng.permutation(600)
    return HashingDataset(
        name="blobs",
        features=features.astype(np.float32),
        labels=np.eye(4, dtype=np.uint8)[classes],
        query=np.sort(order[:100]),
        database=np.sort(order[100:]),
        train=np.sort(order[100:]),
    ).standardized()


@cache
def scenes() -> HashingDataset:
    return data.load("digit-scenes").standardized()


@cache
def base() -> Hasher:
    dch = hashgym.hashers.make("dch", bits=16, hidden=64, updates=100)
    return dch.fit(scenes().features[scenes().train], scenes().labels[scenes().train])


def small(env: str, algo: str, **changes: Any) -> sb3.Args:
    """A run of a second or so."""
    preset = sb3.PRESETS[env][algo].settings
    settings = {"batch_size": 32} if "batch_size" in preset else {}
    if "learning_starts" in preset:
        settings["learning_starts"] = 64
    sizes: dict[str, Any] = {"steps": 512, "num_envs": 16, "evaluations": 4, "checkpoints": 4}
    codes = {
        "BitGroupHashing-v0": {"bits": 7, "group_bits": 4},
        "RegionKeep-v0": {},
        "MultiCodeHashing-v0": {"codes": 2, "group_bits": 6},
    }[env]
    return sb3.Args(env=env, algo=algo, **{"settings": settings} | sizes | codes | changes)  # type: ignore[arg-type]


def fitted(env: str) -> tuple[HashingDataset, Hasher | None]:
    return (blobs(), None) if env == "BitGroupHashing-v0" else (scenes(), base())


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.policy.state_dict())


class Killed(Exception):
    pass


@pytest.mark.parametrize(("env", "algo"), EVERY)
def test_a_killed_run_ends_as_one_that_was_never_stopped(
    env: str, algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, own = fitted(env)
    steps = 256 if "buffer_size" in sb3.PRESETS[env][algo].settings else 512  # with a buffer each step is many updates
    args = small(env, algo, steps=steps, input_dropout=0.2)
    whole = sb3.train(dataset, args, base=own, out=tmp_path / "whole", progress=False)

    save, saved = checkpoint.save, []

    def save_and_die(content: dict[str, Any], path: Path) -> None:
        save(content, path)
        saved.append(content["counters"]["num_timesteps"])
        if algo in ("dqn", "qrdqn"):
            assert content["counters"]["exploration_rate"] > 0  # the next action is drawn by it
        if len(saved) == 2:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        sb3.train(dataset, args, base=own, out=tmp_path / "killed", progress=False)
    monkeypatch.undo()
    assert 0 < saved[0] < saved[1] < args.steps
    np.random.seed(1)  # noqa: NPY002  # whatever the caller's generators are at
    torch.manual_seed(1)
    resumed = sb3.train(dataset, args, base=own, out=tmp_path / "killed", resume=True, progress=False)

    assert resumed.num_timesteps == whole.num_timesteps
    for name, part in weights(whole).items():
        assert torch.equal(part, weights(resumed)[name]), name
    curves = [EventAccumulator(str(tmp_path / name)).Reload() for name in ("whole", "killed")]
    for tag in curves[0].Tags()["scalars"]:
        if not tag.startswith(("time/", "rollout/")):  # seconds, and means over the last 100 episodes of a process
            one, other = ([(point.step, point.value) for point in each.Scalars(tag)] for each in curves)
            np.testing.assert_array_equal(one, other, tag)


@pytest.mark.parametrize(("env", "algo"), EVERY)
def test_a_saved_policy_encodes_as_the_one_that_was_trained(env: str, algo: str, tmp_path: Path) -> None:
    dataset, own = fitted(env)
    args = small(env, algo, steps=256)
    model = sb3.train(dataset, args, base=own, out=tmp_path, progress=False)
    policy = sb3.load(tmp_path / "policy.pt")
    rows = dataset.query[:50]
    before, after = (sb3.encode(acting, args, dataset, rows, own) for acting in (model, policy))
    np.testing.assert_array_equal(before.filled, after.filled)
    if own is None:
        assert before.bits == 7
    else:
        again = hashgym.hashers.load(tmp_path / "base.npz")
        np.testing.assert_array_equal(again.encode(dataset.features[rows]), own.encode(dataset.features[rows]))


# Enough for four classes: steps, environments, and what differs from the presets, which are made for more.
LEARNING: dict[str, tuple[int, int, dict[str, float]]] = {
    "ppo": (12_000, 64, {}),
    "a2c": (16_000, 64, {}),
    "trpo": (6_000, 64, {}),
    "recurrent_ppo": (8_000, 64, {"learning_rate": 3e-3}),
    "maskable_ppo": (8_000, 64, {}),
    "dqn": (5_000, 64, {}),
    "qrdqn": (8_000, 64, {}),
    "sac": (1_200, 16, {"learning_starts": 300}),
    "td3": (1_800, 16, {"learning_starts": 500, "batch_size": 128}),
    "tqc": (1_500, 16, {"learning_starts": 300, "batch_size": 128}),
    "crossq": (1_300, 16, {"learning_starts": 300, "batch_size": 128}),
}


@cache
def unlearnt_map() -> float:
    """Of random projections."""
    dataset = blobs()
    lsh = hashgym.hashers.make("lsh", bits=6).fit(dataset.features[dataset.train], None)
    query, database = (lsh.encode(dataset.features[rows]) for rows in (dataset.query, dataset.database))
    return evaluate(query, dataset.labels[dataset.query], database, dataset.labels[dataset.database]).map


@pytest.mark.parametrize("algo", CODES)
def test_every_algorithm_learns_to_hash(algo: str) -> None:
    steps, num_envs, settings = LEARNING[algo]
    args = sb3.Args(algo=algo, bits=6, group_bits=3, num_envs=num_envs, steps=steps, settings=settings)
    model = sb3.train(blobs(), args, progress=False)
    result, codes = sb3.measure(model, args, blobs())
    assert result.map > unlearnt_map() + 0.1
    assert codes.anhc == 1


@cache
def good_base() -> Hasher:
    dch = hashgym.hashers.make("dch", bits=24, hidden=256, updates=600)
    return dch.fit(scenes().features[scenes().train], scenes().labels[scenes().train])


@pytest.mark.parametrize("algo", REGIONS)
def test_every_algorithm_learns_what_to_keep(algo: str) -> None:
    """Images that were not trained on are found better than by one code, with fewer codes than there are."""
    dataset = scenes()
    dch = good_base()
    steps = {"ppo": 24_000, "a2c": 100_000, "dqn": 16_000}[algo]
    model = sb3.train(dataset, args := sb3.Args(env="RegionKeep-v0", algo=algo, steps=steps), base=dch, progress=False)
    learnt, codes = sb3.measure(model, args, dataset, dch)
    single, _ = sb3.measure(lambda seen: np.zeros(len(seen["image"])), args, dataset, dch)
    assert 1.05 < codes.anhc < 4
    assert learnt.map > single.map + 0.005
    assert learnt.recall_by_radius[0] > 1.2 * single.recall_by_radius[0]


def test_curves_show_the_reward_and_the_held_out_images(tmp_path: Path) -> None:
    sb3.train(blobs(), small("BitGroupHashing-v0", "ppo", reward="triplet"), out=tmp_path, progress=False)
    curves = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    wanted = {"reward/group/triplet", "reward/global/triplet", "retrieval/held_out_map", "rollout/ep_rew_mean"}
    assert wanted <= set(curves)


def test_the_policy_kept_is_the_best_on_held_out_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, policies = iter([0.3, 0.7, 0.5, 0.6]), []

    def score(*_: Any) -> dict[str, float]:
        return {"retrieval/held_out_map": next(scores)}

    evaluate_ = TrainingCallback._evaluate

    def evaluate_and_copy(self: Any) -> None:
        evaluate_(self)
        policies.append({name: part.clone() for name, part in self.model.policy.state_dict().items()})

    monkeypatch.setattr(training, "retrieval_among", score)
    monkeypatch.setattr(TrainingCallback, "_evaluate", evaluate_and_copy)
    args = small("BitGroupHashing-v0", "ppo", steps=512, settings={"n_steps": 8, "batch_size": 64})
    model = sb3.train(blobs(), args, progress=False)
    assert len(policies) == 4
    assert all(torch.equal(part, policies[1][name]) for name, part in weights(model).items())
    assert not all(torch.equal(part, policies[3][name]) for name, part in weights(model).items())


def test_a_dropped_feature_stays_dropped_for_the_episode() -> None:
    envs = sb3.make_envs(blobs(), small("BitGroupHashing-v0", "ppo", input_dropout=0.5), None)
    envs.seed(0)
    first = envs.reset()["image"]
    second, _, done, _ = envs.step(np.zeros((16, 4), np.int8))
    assert not done.any()
    np.testing.assert_array_equal(first, second["image"])
    third, _, done, _ = envs.step(np.zeros((16, 4), np.int8))
    assert done.all()
    masks = np.stack([first == 0, third["image"] == 0])
    assert 0.35 < masks.mean() < 0.65
    assert (masks[0] != masks[1]).any()
    rows = envs.unwrapped.last_info["index"]  # type: ignore[attr-defined]
    shown = third["image"] != 0
    np.testing.assert_allclose(third["image"][shown], 2 * blobs().features[rows][shown], rtol=1e-6)


def test_flat_observations_hold_what_the_dict_holds() -> None:
    image, code = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[1, -1], [0, 0]], np.float32)
    shown = flat({"image": image, "code": code, "group": np.array([1, 0])}, 7)
    np.testing.assert_array_equal(shown, [[0, 1, 2, 1, -1, 0, 1], [3, 4, 5, 0, 0, 1, 0]])


def test_training_leaves_the_callers_generators_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    wanted = np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    sb3.train(blobs(), small("BitGroupHashing-v0", "a2c", steps=64), progress=False)
    assert wanted == (np.random.rand(), torch.rand(1).item())  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algo": "reinforce"}, "algo for BitGroupHashing-v0 must be one of ppo, a2c"),
        ({"algo": "sac", "env": "RegionKeep-v0"}, "algo for RegionKeep-v0 must be one of ppo, a2c, dqn"),
        ({"env": "CartPole-v1"}, "env must be one of"),
        ({"steps": -1}, "steps must be above 0"),
        ({"input_dropout": 1.0}, "input_dropout must be at least 0 and below 1"),
        ({"settings": {"gamma": float("nan")}}, "gamma of settings must be finite, got nan"),
    ],
)
def test_wrong_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sb3.Args(**arguments)


def test_groups_are_checked_before_a_base_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sb3.bases, "base_of_run")
    args = sb3.Args(env="MultiCodeHashing-v0", group_bits=40, bits=32)
    with pytest.raises(ValueError, match="group_bits=40 is longer than the code"):
        sb3.main(sb3.Main(args))


def test_region_keep_is_learnt_without_regions_to_encode() -> None:
    data = dataclasses.replace(scenes(), regions=None, boxes=None)
    model = sb3.train(data, small("RegionKeep-v0", "ppo"), base=base(), progress=False)
    assert model.num_timesteps > 0


def test_what_cannot_be_trained_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ppo has no setting 'n_stepz' .did you mean 'n_steps'"):
        sb3.train(blobs(), small("BitGroupHashing-v0", "ppo", settings={"n_stepz": 4}), progress=False)
    with pytest.raises(ValueError, match=r"ppo: .*batch_size"):
        sb3.train(blobs(), small("BitGroupHashing-v0", "ppo", settings={"batch_size": 1}), progress=False)
    with pytest.raises(ValueError, match="need base="):
        sb3.train(scenes(), small("RegionKeep-v0", "ppo"), progress=False)
    with pytest.raises(ValueError, match="unknown reward"):
        sb3.train(blobs(), small("BitGroupHashing-v0", "ppo", reward="nonesuch"), progress=False)
    with pytest.raises(DataError, match="regions"):
        sb3.main(sb3.Main(small("RegionKeep-v0", "ppo"), dataset="digits"))
    args = small("BitGroupHashing-v0", "a2c", steps=64)
    sb3.train(blobs(), args, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds a run: resume it"):
        sb3.train(blobs(), args, out=tmp_path, progress=False)
    other = tmp_path / "other.pt"
    for content, message in (
        ({}, "holds no policy; a finished run of sb3"),
        ({"agent": "mch"}, "holds a policy of mch; a finished run of sb3"),
        ({"agent": "sb3", "args": '{"algorithm": "ppo"}'}, "written by another version of sb3: train again"),
    ):
        checkpoint.save({"args": "{}", "weights": {}} | content, other)
        with pytest.raises(ValueError, match=message):
            sb3.load(other)


def test_the_command_trains_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sb3.Main(small("BitGroupHashing-v0", "ppo", bits=8), dataset="digits", out=tmp_path / "ppo")
    result = sb3.main(run)
    assert 0.1 < result.map < 1
    assert "ppo, 8 bits on digits: mAP" in capsys.readouterr().out
    keep = sb3.Main(small("RegionKeep-v0", "a2c", bits=8), base="ksh", out=tmp_path / "a2c")
    assert 0.1 < sb3.main(keep).map < 1
    assert (tmp_path / "a2c" / "base.npz").exists()
    assert bases.fitted_base(tmp_path / "a2c" / "base.npz", 8, 0, scenes()).bits == 8


def test_settings_on_the_command_line_keep_their_kind() -> None:
    settings = sb3.command(["--settings", "n_epochs", "2", "learning_rate", "3e-4"]).args.settings
    assert settings == {"n_epochs": 2, "learning_rate": 3e-4}
    assert isinstance(settings["n_epochs"], int)


def test_without_sb3_contrib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    monkeypatch.delitem(sys.modules, "agents.sb3")
    with pytest.raises(ImportError, match=r"agents\.sb3 needs sb3_contrib: pip install 'hashgym\[contrib\]'"):
        importlib.import_module("agents.sb3")
