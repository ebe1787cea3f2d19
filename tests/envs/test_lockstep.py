"""What environments of one dataset share, final observations lane by lane, arguments that change, states in files."""

from __future__ import annotations

import dataclasses
import gc
import io
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from hashgym import codes, hashers
from hashgym.data import HashingDataset
from hashgym.envs.lockstep import Tables


def test_environments_of_one_dataset_share_its_tables(multi_label: HashingDataset) -> None:
    first, second = (gym.make("BitGroupHashing-v0", dataset=multi_label).unwrapped for _ in range(2))
    vector = gym.make_vec("BitGroupHashing-v0", num_envs=3, dataset=multi_label)
    other = gym.make("BitGroupHashing-v0", dataset=dataclasses.replace(multi_label)).unwrapped
    tables = first._lanes.tables
    assert second._lanes.tables is vector._lanes.tables is tables
    assert other._lanes.tables is not tables
    assert Tables.of(multi_label) is tables
    forgotten = weakref.ref(tables)
    del first, second, vector, tables
    gc.collect()
    assert forgotten() is None  # and the dataset with it


def test_tables_are_those_of_the_training_images(multi_label: HashingDataset) -> None:
    tables = Tables.of(multi_label)
    for image in range(len(multi_label)):
        rows = np.flatnonzero(multi_label.train == image)
        assert tables.row_of[image] == (rows[0] if rows.size else -1)
    np.testing.assert_array_equal(codes.unpack(tables.label_words, 5), multi_label.labels[multi_label.train])
    assert tables.sampler is tables.sampler


def test_final_observations_are_the_last_ones_lane_by_lane(multi_label: HashingDataset) -> None:
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=4, dataset=multi_label, bits=4, group_bits=2)
    observation, _ = envs.reset(seed=0)
    actions = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int8)
    envs.step(actions)
    *_, info = envs.step(1 - actions)
    assert info["final_obs"].shape == (4,)
    for lane, last in enumerate(info["final_obs"]):
        code = np.concatenate([2.0 * actions[lane] - 1, 1 - 2.0 * actions[lane]]).astype(np.float32)
        wanted = {"image": observation["image"][lane], "code": code, "group": np.int64(1)}
        assert data_equivalence(last, wanted, exact=True)


BITS = ("BitGroupHashing-v0", {"bits": 6, "group_bits": 2})
REGIONS = ("RegionKeep-v0", {"regions_per_episode": 3})
MAKERS = ("scalar", "vector", "torch")


def make(data: HashingDataset, name: str, kind: str, **task: Any) -> Any:
    """An environment of one lane."""
    if name == "RegionKeep-v0":
        if data.train_regions is None:
            shift = np.random.default_rng(3).standard_normal((len(data), 4, data.dim)).astype(np.float32)
            data = dataclasses.replace(data, train_regions=data.features[:, None] + shift)
        base = hashers.make("dch", bits=12, hidden=16, updates=5)
        task["base"] = base.fit(data.features[data.train], data.labels[data.train])
    if kind == "scalar":
        return gym.make(name, dataset=data, **task).unwrapped
    backend = {"backend": "torch", "device": "cpu"} if kind == "torch" else {}
    return gym.make_vec(name, num_envs=1, dataset=data, **backend, **task)


@pytest.mark.parametrize(
    ("case", "kind", "changes"),
    [
        *((BITS, kind, {"group_weight": 0.5, "global_weight": 3.0}) for kind in MAKERS),
        *((BITS, kind, {"group_weight": 0, "global_weight": -1}) for kind in MAKERS),
        *((REGIONS, kind, {"price": 0.25}) for kind in MAKERS[:2]),
    ],
)
def test_arguments_that_change_count_from_the_next_step(
    case: tuple[str, dict[str, Any]], kind: str, changes: dict[str, float], multi_label: HashingDataset
) -> None:
    name, task = case
    env, old, new = (make(multi_label, name, kind, **task, **given) for given in ({}, {}, changes))
    for each in (env, old, new):
        each.reset(seed=4)
    wanted, differ = old, 0
    rng = np.random.default_rng(0)
    for step in range(12):
        if step in (1, 5):  # within an episode, and after its second step
            for key, value in changes.items():
                setattr(env, key, value)
            wanted = new
        elif step == 8:
            for key in changes:
                setattr(env, key, getattr(old, key))
            wanted = old
        action = rng.integers(0, 2, 2) if name == BITS[0] else np.int64(1)
        results = {each: each.step(action if kind == "scalar" else action[None]) for each in (env, old, new)}
        rewards = {each: float(np.asarray(result[1]).sum()) for each, result in results.items()}
        assert rewards[env] == rewards[wanted]
        differ += rewards[old] != rewards[new]
        assert results[env][4].get("keep_reward") == results[wanted][4].get("keep_reward")
        if kind == "scalar" and results[env][2]:
            for each in (env, old, new):
                each.reset()
    assert differ > 6
    for key in changes:
        assert getattr(env, key) == getattr(env.task, key) == getattr(old, key)


@pytest.mark.parametrize(
    ("case", "kind", "key", "value"),
    [
        *((BITS, kind, "group_weight", np.nan) for kind in MAKERS),
        *((BITS, kind, "global_weight", -np.inf) for kind in MAKERS),
        *((REGIONS, kind, "price", price) for kind in MAKERS[:2] for price in (-0.5, np.inf)),
    ],
)
def test_wrong_changes_are_refused_as_at_construction(
    case: tuple[str, dict[str, Any]], kind: str, key: str, value: float, multi_label: HashingDataset
) -> None:
    env = make(multi_label, case[0], kind, **case[1])
    before = env.task
    with pytest.raises(ValueError, match=key) as at_construction:
        make(multi_label, case[0], kind, **case[1] | {key: value})
    with pytest.raises(ValueError, match=key) as later:
        setattr(env, key, value)
    assert str(later.value) == str(at_construction.value)
    assert env.task is before
    env.reset(seed=0)  # also before the first reset: nothing was half changed


def test_a_change_is_this_environments_alone(multi_label: HashingDataset) -> None:
    first = make(multi_label, *BITS[:1], "vector", **BITS[1])
    second = make(multi_label, *BITS[:1], "vector", **BITS[1])
    task = first.task
    first.group_weight = 0.25
    assert (first.task.group_weight, second.task.group_weight, task.group_weight) == (0.25, 1.0, 1.0)
    assert dataclasses.replace(first.task, group_weight=1.0) == task  # and nothing else of it changed


@pytest.mark.parametrize(
    ("case", "kind"), [*((BITS, kind) for kind in MAKERS), *((REGIONS, kind) for kind in MAKERS[:2])]
)
def test_a_state_goes_through_one_file_of_arrays(
    case: tuple[str, dict[str, Any]], kind: str, multi_label: HashingDataset
) -> None:
    name, task = case
    env, again = (make(multi_label, name, kind, **task) for _ in range(2))
    env.reset(seed=6)
    rng = np.random.default_rng(1)
    for _ in range(7):  # before the first step, within episodes, and at the end of one of a scalar environment
        file = io.BytesIO()
        np.savez(file, **env.get_state())
        file.seek(0)
        with np.load(file, allow_pickle=False) as state:
            observation, info = again.set_state(state)
        before, after = env.get_state(), again.get_state()
        assert before.keys() == after.keys()
        for key, part in before.items():
            assert type(part) is type(after[key])  # numbers and text again, not arrays
            np.testing.assert_array_equal(part, after[key])
        assert info["index"] == multi_label.train[before["rows"]]
        np.testing.assert_array_equal(
            np.asarray(observation["image"]).reshape(1, -1), multi_label.features[info["index"]].reshape(1, -1)
        )
        if env._lanes.done:
            assert data_equivalence(env.reset(), again.reset(), exact=True)
        action = rng.integers(0, 2, 2) if name == BITS[0] else np.int64(1)
        action = action if kind == "scalar" else action[None]
        ahead, taken_up = env.step(action), again.step(action)
        for one, other in zip((*ahead[0].values(), ahead[1]), (*taken_up[0].values(), taken_up[1]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_state_with_a_broken_generator_changes_nothing(multi_label: HashingDataset) -> None:
    env = make(multi_label, *BITS[:1], "vector", **BITS[1])
    env.reset(seed=0)
    before = env.get_state()
    env.step(np.ones((1, 2)))
    middle = env.get_state()
    with pytest.raises(ValueError, match="Expecting value"):
        env.set_state(before | {"generator": "no state"})
    assert data_equivalence(env.get_state(), middle)
