"""Tables shared per dataset, final observations, arguments that change, autoreset modes, flat forms, saved states."""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import itertools
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import vector as wrappers
from stable_baselines3.common.env_checker import check_env as check_sb3

from hashgym import codes, hashers
from hashgym.data import HashingDataset, cache
from hashgym.envs.base import DatasetIndex


def test_environments_of_one_dataset_share_its_tables(multi_label: HashingDataset) -> None:
    first, second = (gym.make("BitGroupHashing-v0", dataset=multi_label).unwrapped for _ in range(2))
    vector = gym.make_vec("BitGroupHashing-v0", num_envs=3, dataset=multi_label)
    other = gym.make("BitGroupHashing-v0", dataset=dataclasses.replace(multi_label)).unwrapped
    dataset_index = first._core.dataset_index
    assert second._core.dataset_index is vector._core.dataset_index is dataset_index
    assert other._core.dataset_index is not dataset_index
    assert DatasetIndex.of(multi_label) is dataset_index
    forgotten = weakref.ref(dataset_index)
    del first, second, vector, dataset_index
    gc.collect()
    assert forgotten() is None  # and the dataset with it


def test_tables_are_those_of_the_training_images(multi_label: HashingDataset) -> None:
    dataset_index = DatasetIndex.of(multi_label)
    for image in range(len(multi_label)):
        rows = np.flatnonzero(multi_label.train == image)
        assert dataset_index.row_of[image] == (rows[0] if rows.size else -1)
    np.testing.assert_array_equal(codes.unpack(dataset_index.label_words, 5), multi_label.labels[multi_label.train])
    assert dataset_index.sampler is dataset_index.sampler


def test_final_observations_are_the_last_ones_of_each_environment(multi_label: HashingDataset) -> None:
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=4, dataset=multi_label, bits=4, group_bits=2)
    observation, _ = envs.reset(seed=0)
    actions = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int8)
    envs.step(actions)
    *_, info = envs.step(1 - actions)
    assert info["final_obs"].shape == (4,)
    for index, last in enumerate(info["final_obs"]):
        code = np.concatenate([2.0 * actions[index] - 1, 1 - 2.0 * actions[index]]).astype(np.float32)
        wanted = {"image": observation["image"][index], "code": code, "group": np.int64(1)}
        assert data_equivalence(last, wanted, exact=True)


BITS = ("BitGroupHashing-v0", {"bits": 6, "group_bits": 2})
REGIONS = ("RegionKeep-v0", {"regions_per_episode": 3})
MAKERS = ("scalar", "vector", "torch")


def make(data: HashingDataset, name: str, kind: str, **task: Any) -> Any:
    """A scalar environment."""
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
def test_wrong_changes_are_rejected_as_at_construction(
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
        if env._core.done:
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


# ---- autoreset, flat observations and infos: against Gymnasium's own vectorisation of the scalar environment

MODES = list(AutoresetMode)
LOOKS: list[dict[str, Any]] = [{}, {"flat": True, "info": "flat"}]


@pytest.fixture(scope="module")
def pair_of_data() -> tuple[HashingDataset, hashers.Hasher]:
    """A small dataset with regions, and a base hasher after few updates."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((60, 6)).astype(np.float32)
    data = HashingDataset(
        name="small",
        features=features,
        labels=(rng.random((60, 5)) < 0.4).astype(np.uint8),
        query=np.arange(10),
        database=np.arange(10, 60),
        train=np.arange(20, 60),
        train_regions=features[:, None] + rng.standard_normal((60, 4, 6)).astype(np.float32),
    )
    return data, hashers.make("dch", bits=12, hidden=16, updates=5).fit(features, data.labels)


@pytest.fixture
def build(pair_of_data: tuple[HashingDataset, hashers.Hasher]) -> Callable[..., Any]:
    """Makes either environment, scalar or of ``num_envs``."""
    data, base = pair_of_data

    def make(name: str, num_envs: int | None = None, **task: Any) -> Any:
        task = {"dataset": data, **({"base": base} if name == REGIONS[0] else {}), **task}
        return gym.make(name, **task).unwrapped if num_envs is None else gym.make_vec(name, num_envs=num_envs, **task)

    return make


def assert_same(a: Any, b: Any) -> None:
    assert data_equivalence(a, b, exact=True), f"{a}\nis not\n{b}"


def run(envs: VectorEnv[Any, Any, Any], steps: int) -> list[Any]:
    """Observations, rewards, ends and infos of episodes with the same actions, resets between them where needed."""
    disabled = envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    rng, seen = np.random.default_rng(0), [copy.deepcopy(envs.reset(seed=7))]
    for _ in range(steps):
        envs.action_space.seed(int(rng.integers(1000)))
        step = copy.deepcopy(envs.step(envs.action_space.sample()))
        seen.append(step)
        if disabled and step[2].any():
            seen.append(copy.deepcopy(envs.reset(options={"reset_mask": np.asarray(step[2])})))
    return seen


@pytest.mark.parametrize("case", [BITS, REGIONS, (BITS[0], {"bits": 4}), (REGIONS[0], {})])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("look", LOOKS)
def test_every_autoreset_mode_is_gymnasiums(
    case: tuple[str, dict[str, Any]], mode: AutoresetMode, look: dict[str, Any], build: Callable[..., Any]
) -> None:
    name, task = case
    native = build(name, 1, autoreset_mode=mode, **look, **task)
    sync = SyncVectorEnv([lambda: build(name, **look, **task)], autoreset_mode=mode)
    assert native.metadata["autoreset_mode"] is native.autoreset_mode is mode
    assert native.single_observation_space == sync.single_observation_space
    assert native.observation_space == sync.observation_space
    assert_same(run(native, 14), run(sync, 14))


@pytest.mark.parametrize("case", [BITS, REGIONS])
@pytest.mark.parametrize("kind", ["vector", "torch"])
def test_the_step_after_the_end_is_the_reset(
    case: tuple[str, dict[str, Any]], kind: str, build: Callable[..., Any]
) -> None:
    """NEXT_STEP and DISABLED return the observations of SAME_STEP, with its final ones in their place."""
    (name, task), num_envs = case, 5
    if kind == "torch":
        if name == REGIONS[0]:
            return
        task = task | {"backend": "torch", "device": "cpu"}
    same, following, disabled = (build(name, num_envs, autoreset_mode=mode.value, **task) for mode in MODES_IN_ORDER)
    first = same.reset(seed=1)
    for other in (following, disabled):
        for key, part in other.reset(seed=1)[0].items():
            np.testing.assert_array_equal(part, first[0][key])
    rng = np.random.default_rng(0)
    for _ in range(3):
        for step in range(3):
            shape = (num_envs, 2) if name == BITS[0] else num_envs
            actions = rng.integers(0, 2, shape)
            observation, reward, ended, truncated, info = same.step(actions)
            others = [env.step(actions) for env in (following, disabled)]
            for other in others:
                np.testing.assert_array_equal(other[1], reward)
                np.testing.assert_array_equal(other[2], ended)
                assert bool(ended.all()) is (step == 2)
                assert not truncated.any()
                assert not other[3].any()
                assert "final_obs" not in other[4]
            said = info["final_info"] if step == 2 else info
            for other in others:
                for key in said["rewards"]:
                    np.testing.assert_array_equal(other[4]["rewards"][key], said["rewards"][key])
        final = info["final_obs"]
        for key in observation:
            last = final[key] if kind == "torch" else np.stack([one[key] for one in final])
            for other in others:
                np.testing.assert_array_equal(other[0][key], last)
        with pytest.raises(gym.error.ResetNeeded, match="has ended: call reset"):
            disabled.step(actions)
        restarted = following.step(np.full(7, np.nan)), disabled.reset(options={"reset_mask": np.ones(num_envs, bool)})
        assert not restarted[0][1].any()
        assert not restarted[0][2].any()
        assert not restarted[0][3].any()
        assert restarted[0][1].dtype == reward.dtype
        assert restarted[0][2].dtype == ended.dtype
        assert restarted[0][4].keys() == restarted[1][1].keys() == first[1].keys()
        for key in observation:
            np.testing.assert_array_equal(restarted[0][0][key], observation[key])
            np.testing.assert_array_equal(restarted[1][0][key], observation[key])
        np.testing.assert_array_equal(restarted[0][4]["index"], info["index"])


MODES_IN_ORDER = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("next_step", AutoresetMode.NEXT_STEP),
        ("NextStep", AutoresetMode.NEXT_STEP),
        ("SAME_STEP", AutoresetMode.SAME_STEP),
        ("disabled", AutoresetMode.DISABLED),
        *((mode, mode) for mode in MODES),
    ],
)
def test_autoreset_modes_by_name(given: Any, mode: AutoresetMode, build: Callable[..., Any]) -> None:
    envs = build(BITS[0], 2, autoreset_mode=given)
    assert envs.metadata["autoreset_mode"] is mode
    assert type(envs).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_wrong_autoreset_modes_and_masks(build: Callable[..., Any]) -> None:
    for case in (BITS[0], REGIONS[0]):
        for wrong in ("same", None, 3):
            with pytest.raises(ValueError, match="autoreset_mode must be one of 'NextStep', 'SameStep', 'Disabled'"):
                build(case, 2, autoreset_mode=wrong)
        envs = build(case, 2, autoreset_mode="Disabled")
        envs.reset(seed=0)
        state = envs.get_state()
        for mask in (np.array([True, False]), np.array([False, False])):
            with pytest.raises(ValueError, match=r"end together.*True for all 2 of them"):
                envs.reset(seed=1, options={"reset_mask": mask})
        for mask in ([True, True], np.ones(2), np.ones(3, bool)):
            with pytest.raises(ValueError, match=r"bool array of shape \(2,\)"):
                envs.reset(seed=1, options={"reset_mask": mask})
        assert_same(envs.get_state(), state)  # and nothing was reset or seeded


@pytest.mark.parametrize("mode", MODES)
def test_a_state_at_the_end_continues_by_the_mode(mode: AutoresetMode, build: Callable[..., Any]) -> None:
    envs, again = (build(BITS[0], 3, bits=4, group_bits=2, autoreset_mode=mode) for _ in range(2))
    envs.reset(seed=2)
    for _ in range(2):
        envs.step(np.ones((3, 2)))
    again.set_state(envs.get_state())
    if mode is AutoresetMode.DISABLED:
        assert_same(again.reset(), envs.reset())
    for _ in range(4):
        if mode is not AutoresetMode.DISABLED:
            assert_same(again.step(np.zeros((3, 2))), envs.step(np.zeros((3, 2))))
    assert_same(pickle.loads(pickle.dumps(envs)).step(np.zeros((3, 2))), envs.step(np.zeros((3, 2))))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "flatten": wrappers.FlattenObservation,
    "normalize": wrappers.NormalizeObservation,
    "rescale": lambda envs: wrappers.RescaleObservation(envs, *halved(envs.single_observation_space)),
    "dtype": lambda envs: wrappers.DtypeObservation(envs, np.float64),
    "transform": lambda envs: wrappers.TransformObservation(envs, lambda batch: 2 * batch),
    "transform one by one": lambda envs: wrappers.VectorizeTransformObservation(  # writes into what it is given
        envs,
        gym.wrappers.TransformObservation,
        func=lambda one: one | {"image": 2 * one["image"]},
        observation_space=envs.single_observation_space,
    ),
    "normalize rewards": wrappers.NormalizeReward,
    "statistics": wrappers.RecordEpisodeStatistics,
    "list": wrappers.DictInfoToList,
}
ANY_MODE = ("normalize rewards", "statistics", "list")  # the others are Gymnasium's observation wrappers


def halved(space: spaces.Box) -> tuple[Any, Any]:
    """Bounds half as wide, where there are any."""
    return tuple(np.where(np.isinf(bound), bound, bound / 2).astype(np.float32) for bound in (space.low, space.high))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [BITS, REGIONS])
def test_gymnasiums_vector_wrappers_act_as_on_its_own_environments(
    case: tuple[str, dict[str, Any]], mode: AutoresetMode, wrapper: str, build: Callable[..., Any]
) -> None:
    (name, task), wrap = case, WRAPPERS[wrapper]
    look = LOOKS[wrapper not in (*ANY_MODE, "flatten", "transform one by one")]
    if (wrapper == "normalize" and mode is AutoresetMode.DISABLED) or (
        wrapper not in ANY_MODE and mode is AutoresetMode.SAME_STEP
    ):
        with pytest.raises((ValueError, AssertionError)):  # Gymnasium's own limit; the assertion is of 1.2
            wrap(build(name, 1, autoreset_mode=mode, **look, **task))
        return
    native = wrap(build(name, 1, autoreset_mode=mode, **look, **task))
    sync = wrap(SyncVectorEnv([lambda: build(name, **look, **task)], autoreset_mode=mode))
    assert native.observation_space == sync.observation_space
    ours, theirs = run(native, 11), run(sync, 11)
    if wrapper == "statistics":
        for step in (step for seen in (ours, theirs) for step in seen):
            step[-1].get("episode", {}).pop("t", None)
    assert_same(ours, theirs)


@pytest.mark.parametrize("case", [BITS, REGIONS, (REGIONS[0], {})])
def test_flat_observations_are_gymnasiums_in_float32(
    case: tuple[str, dict[str, Any]], build: Callable[..., Any]
) -> None:
    name, task = case
    plain, flat = (build(name, flat=flat, **task) for flat in (False, True))
    space = flat.observation_space
    assert isinstance(space, spaces.Box)
    assert (space.dtype, space.shape) == (np.float32, (spaces.flatdim(plain.observation_space),))
    np.testing.assert_array_equal(space.low, spaces.flatten_space(plain.observation_space).low)
    np.testing.assert_array_equal(space.high, spaces.flatten_space(plain.observation_space).high)
    assert plain.slices == flat.slices
    plain.action_space.seed(0)
    observation, seen = plain.reset(seed=3)[0], flat.reset(seed=3)[0]
    for _ in range(3):
        assert seen in space
        np.testing.assert_array_equal(seen, spaces.flatten(plain.observation_space, observation))
        for key, part in observation.items():
            wanted = np.eye(3)[part] if key == "group" else part
            np.testing.assert_array_equal(seen[flat.slices[key]], wanted)
        action = plain.action_space.sample()
        observation, _, ended, _, _ = plain.step(action)
        seen = flat.step(action)[0]
        if ended:
            observation, seen = plain.reset()[0], flat.reset()[0]
    envs, batch = build(name, 4, flat=True, **task), build(name, 4, **task)
    assert envs.reset(seed=0)[0].shape == envs.observation_space.shape == (4, *space.shape)
    parts = batch.reset(seed=0)[0]
    np.testing.assert_array_equal(envs.reset(seed=0)[0][:, envs.slices["image"]], parts["image"])


def test_flat_infos_have_no_dicts(build: Callable[..., Any]) -> None:
    for (name, task), keys in (
        (BITS, {"index", "rewards/group/triplet"}),
        (REGIONS, {f"rewards/{part}" for part in ("similar", "dissimilar", "price")}),
    ):
        for num_envs in (None, 3):
            env, plain = (build(name, num_envs, info=info, **task) for info in ("flat", "nested"))
            env.reset(seed=1)
            plain.reset(seed=1)
            action = env.action_space.sample()
            info, nested = env.step(action)[4], plain.step(action)[4]
            assert keys <= info.keys()
            assert not any(isinstance(part, dict) for part in info.values())
            for key, part in info.items():
                if not key.startswith("_"):
                    wanted = nested
                    for step in key.split("/", 1):
                        wanted = wanted[step] if step in wanted else wanted[step.split("/")[0]][step.split("/", 1)[1]]
                    np.testing.assert_array_equal(part, wanted)
                    if num_envs:
                        np.testing.assert_array_equal(info[f"_{key}"], [True] * 3)


@pytest.mark.parametrize("case", [BITS, REGIONS])
@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
def test_checkers_pass_flat_environments(case: tuple[str, dict[str, Any]], build: Callable[..., Any]) -> None:
    env = build(case[0], **LOOKS[1], **case[1])
    check_env(env)
    check_sb3(env, warn=False)


@pytest.mark.parametrize("action", ["bits", "multidiscrete", "probability", "index"])
def test_flat_tensors_are_the_arrays(action: str, build: Callable[..., Any]) -> None:
    for mode, info in itertools.product(MODES, ("nested", "flat")):
        task = {"bits": 6, "group_bits": 4, "action": action, "flat": True, "info": info, "autoreset_mode": mode}
        native, tensors = (build(BITS[0], 3, **task, **more) for more in ({}, {"backend": "torch", "device": "cpu"}))
        assert tensors.observation_space == native.observation_space
        for ours, theirs in zip(run(tensors, 6), run(native, 6), strict=True):
            np.testing.assert_array_equal(ours[0].numpy(), theirs[0])
            assert ours[0].dtype.itemsize == 4
            assert ours[-1].keys() == theirs[-1].keys()
            if "final_obs" in ours[-1]:
                np.testing.assert_array_equal(ours[-1]["final_obs"], np.stack(theirs[-1]["final_obs"]))
            for one, other in zip(ours[1:-1], theirs[1:-1], strict=True):
                np.testing.assert_allclose(one.numpy(), other, rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "kind"), [*((BITS, kind) for kind in MAKERS), (REGIONS, "scalar"), (REGIONS, "vector")]
)
def test_arguments_that_were_changed_are_a_part_of_the_state(
    case: tuple[str, dict[str, Any]], kind: str, multi_label: HashingDataset
) -> None:
    name, task = case
    changes = {"group_weight": 0.25, "global_weight": 3.0} if name == BITS[0] else {"price": 0.5}
    env, other = (make(multi_label, name, kind, **task) for _ in range(2))
    env.reset(seed=0)
    for argument, value in changes.items():
        setattr(env, argument, value)
    state = io.BytesIO()
    np.savez(state, **env.get_state())
    state.seek(0)
    other.set_state(np.load(state))
    assert {argument: getattr(other, argument) for argument in changes} == changes
    env.action_space.seed(0)
    action = env.action_space.sample()
    np.testing.assert_array_equal(env.step(action)[1], other.step(action)[1])
    earlier = {key: part for key, part in env.get_state().items() if not key.startswith("task/")}
    other.set_state(earlier)  # of a version that did not save them


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (BITS, {"index": [10**6]}),
        (BITS, {"index": "first"}),
        (BITS, {"indices": [0]}),
        (REGIONS, {"index": [10**6]}),
        (REGIONS, {"regions": [[0, 1, 99]]}),
    ],
)
@pytest.mark.parametrize("kind", MAKERS[:2])
def test_a_reset_with_bad_options_changes_nothing(
    case: tuple[str, dict[str, Any]], options: dict[str, Any], kind: str, multi_label: HashingDataset
) -> None:
    name, task = case
    env = make(multi_label, name, kind, **task)
    with pytest.raises(ValueError, match="option"):
        env.reset(seed=3, options=options)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    env.reset(seed=4)
    env.step(env.action_space.sample())
    before = env.get_state()
    with pytest.raises(ValueError, match="option"):
        env.reset(seed=3, options=options)
    assert data_equivalence(env.get_state(), before, exact=True)


def test_a_folder_that_was_written_again_is_read_again(
    multi_label: HashingDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_image(source: str) -> np.ndarray:
        return gym.make("BitGroupHashing-v0", dataset=source).unwrapped.dataset.features[0]

    reversed_ = dataclasses.replace(multi_label, features=multi_label.features[::-1].copy())
    for place, dataset in (("a", multi_label), ("b", reversed_)):
        (tmp_path / place).mkdir()
        cache.save(dataset, tmp_path / place / "photos")
    monkeypatch.chdir(tmp_path / "a")
    env = gym.make("BitGroupHashing-v0", dataset="photos").unwrapped
    np.testing.assert_array_equal(env.dataset.features[0], multi_label.standardized().features[0])
    assert gym.make("BitGroupHashing-v0", dataset="photos").unwrapped.dataset is env.dataset
    monkeypatch.chdir(tmp_path / "b")
    np.testing.assert_array_equal(first_image("photos"), reversed_.standardized().features[0])
    monkeypatch.chdir(tmp_path / "a")
    cache.save(reversed_, "photos", overwrite=True)
    np.testing.assert_array_equal(first_image("photos"), reversed_.standardized().features[0])
