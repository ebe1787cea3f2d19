"""BitGroupHashing-v0: contract, hand-worked episodes, vector against scalar, and what observations must not contain."""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import itertools
import json
import pickle
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hashgym.data import DataError, HashingDataset
from hashgym.envs.bit_group_hashing import (
    BitGroupHashingEnv,
    BitGroupHashingVectorEnv,
    CodebookWords,
    HashingTask,
    _InterleavedSteps,
)
from hashgym.hashers.pairwise import packed_pair_weights
from hashgym.rewards import RewardError

VARIANTS: list[dict[str, Any]] = [
    {},
    {"bits": 32, "group_bits": 12},
    {"action": "probability", "counterfactual": True},
    {"action": "index", "group_bits": 5, "bits": 12, "reward": "average_precision", "counterfactual": True},
    {"reward": {"name": "weighted", "terms": {"triplet": 1, "average_precision": 2}}, "group_weight": 0.5},
    {"action": "multidiscrete", "bits": 8, "flat": True, "info": "flat", "counterfactual": True},
    {"codebook": "shared", "bits": 10, "group_bits": 4, "flat": True},
    {"group_scope": "prefix", "bits": 10, "group_bits": 4, "counterfactual": True},
    {"codebook_sample": 15, "reward": "nca", "bits": 10, "group_bits": 4, "counterfactual": True},
]


def make(dataset: HashingDataset, **kwargs: Any) -> BitGroupHashingEnv:
    env = gym.make("BitGroupHashing-v0", dataset=dataset, **kwargs).unwrapped
    assert isinstance(env, BitGroupHashingEnv)
    return env


def make_vec(dataset: HashingDataset, num_envs: int, **kwargs: Any) -> BitGroupHashingVectorEnv:
    env = gym.make_vec("BitGroupHashing-v0", num_envs=num_envs, dataset=dataset, **kwargs)
    assert isinstance(env, BitGroupHashingVectorEnv)
    return env


def assert_same(a: Any, b: Any) -> None:
    """Equal in structure, type and every value."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple | list) or (isinstance(a, np.ndarray) and a.dtype == object):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        np.testing.assert_array_equal(a, b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
def test_gymnasium_checker(multi_label: HashingDataset, kwargs: dict[str, Any]) -> None:
    check_env(make(multi_label, **kwargs))


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_stable_baselines3_checker(multi_label: HashingDataset, kwargs: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env as check_sb3

    env = make(multi_label, **kwargs)
    assert not hasattr(env, "compute_reward")  # or it would be taken for a goal environment
    check_sb3(env, warn=False)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_a_seed_determines_everything(multi_label: HashingDataset, kwargs: dict[str, Any]) -> None:
    twins = [make(multi_label, **kwargs) for _ in range(2)]
    twins[1].reset(seed=99)  # what came before must not matter
    twins[1].step(twins[1].action_space.sample())
    assert_same(twins[0].reset(seed=5), twins[1].reset(seed=5))
    twins[0].action_space.seed(5)
    for _ in range(50):
        action = twins[0].action_space.sample()
        steps = [twin.step(action) for twin in twins]
        assert_same(*steps)
        if steps[0][2]:
            assert_same(twins[0].reset(), twins[1].reset())


def test_the_episodes_of_a_seed_are_those_of_earlier_versions() -> None:
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=7, bits=8, group_bits=4)
    envs.reset(seed=3)
    digest = hashlib.sha256()
    for _ in range(400):
        state = envs.unwrapped.get_state()  # type: ignore[attr-defined]
        for key in ("rows", "positive_rows", "negative_rows"):
            digest.update(state[key].astype("<i8").tobytes())
        for _ in range(2):
            envs.step(np.zeros((7, 4), np.int8))
    assert digest.hexdigest()[:16] == "3fe6f51a9f88bf70"


def test_spec_round_trip() -> None:
    env = gym.make("BitGroupHashing-v0", bits=32, reward={"name": "triplet", "margin": 2})
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.task == env.unwrapped.task  # type: ignore[attr-defined]
    assert_same(env.reset(seed=1), again.reset(seed=1))


@pytest.mark.parametrize("reward", ["triplet", "nca+0.5*balance", "pairwise:dch"])
@pytest.mark.parametrize("vector", [False, True])
def test_pickle_round_trip_continues_the_episode(multi_label: HashingDataset, vector: bool, reward: str) -> None:
    env: Any = make_vec(multi_label, 3, reward=reward) if vector else make(multi_label, reward=reward)
    env.reset(seed=1)
    env.action_space.seed(1)
    env.step(env.action_space.sample())
    again = pickle.loads(pickle.dumps(env)) if vector else copy.deepcopy(env)
    action = env.action_space.sample()
    assert_same(env.step(action), again.step(action))
    assert_same(env.reset(), again.reset())


@pytest.mark.parametrize("vector", [False, True])
def test_state_is_restored_exactly(multi_label: HashingDataset, vector: bool) -> None:
    def build() -> Any:
        return make_vec(multi_label, 3, bits=32) if vector else make(multi_label, bits=32)

    env = build()
    env.reset(seed=1)
    env.action_space.seed(1)
    env.step(env.action_space.sample())
    state = env.get_state()
    actions = [env.action_space.sample() for _ in range(2)]
    ahead = [env.step(action) for action in actions], env.reset()
    again = build()
    observation, _ = again.set_state(state)
    assert np.all(observation["group"] == 1)
    assert_same(([again.step(action) for action in actions], again.reset()), ahead)
    env.set_state(state)  # the state was a copy: what came after it left no mark
    assert_same(([env.step(action) for action in actions], env.reset()), ahead)
    with pytest.raises(ValueError, match="codebook missing"):
        env.set_state({key: part for key, part in state.items() if key != "codebook"})
    with pytest.raises(ValueError, match="other arguments"):
        make(multi_label, bits=65).set_state(state)


CONTINUE = """
import json, sys
import gymnasium as gym
import numpy as np
import hashgym

folder, kwargs = sys.argv[1], json.loads(sys.argv[2])
num_envs = kwargs.pop("num_envs")
make = gym.make if num_envs is None else lambda name, **rest: gym.make_vec(name, num_envs=num_envs, **rest)
env = make("BitGroupHashing-v0", **kwargs).unwrapped
with np.load(f"{folder}/arrays.npz") as arrays, open(f"{folder}/rest.json") as rest:
    observation, info = env.set_state(dict(arrays) | json.load(rest))
steps = {"code": observation["code"], "index": info["index"]}
for i, action in enumerate(np.load(f"{folder}/actions.npy")):
    observation, reward, terminated, _, info = env.step(action)
    if num_envs is None and terminated:
        observation, info = env.reset()
    steps |= {f"image{i}": observation["image"], f"code{i}": observation["code"], f"reward{i}": reward}
    steps |= {f"index{i}": info["index"]}
steps["book"] = env.codebook.words
steps["generator"] = json.dumps(env.np_random.bit_generator.state)
np.savez(f"{folder}/steps.npz", **steps)
"""


@pytest.mark.parametrize("num_envs", [None, 5])
@pytest.mark.parametrize("kwargs", [{"bits": 20, "group_bits": 8}, {"action": "probability", "counterfactual": True}])
def test_a_state_saved_in_files_is_restored_in_another_process(
    tmp_path: Path, num_envs: int | None, kwargs: dict[str, Any]
) -> None:
    """Within an episode, and within the pass over the images: generator and codebook are part of the state."""

    def build() -> Any:
        if num_envs is None:
            return gym.make("BitGroupHashing-v0", **kwargs).unwrapped
        return gym.make_vec("BitGroupHashing-v0", num_envs=num_envs, **kwargs)

    env = build()
    env.reset(seed=11)
    env.action_space.seed(11)
    for _ in range(2 * env.task.groups + 1):
        if env.step(env.action_space.sample())[2] is True:
            env.reset()
    state = env.get_state()
    arrays = {key: part for key, part in state.items() if isinstance(part, np.ndarray)}
    np.savez(tmp_path / "arrays.npz", **arrays)
    (tmp_path / "rest.json").write_text(json.dumps({key: state[key] for key in state.keys() - arrays.keys()}))
    actions = np.stack([env.action_space.sample() for _ in range(7)])
    np.save(tmp_path / "actions.npy", actions)
    subprocess.run(
        [sys.executable, "-c", CONTINUE, str(tmp_path), json.dumps(kwargs | {"num_envs": num_envs})], check=True
    )
    steps = np.load(tmp_path / "steps.npz")
    group = env.task.span(0)[1]
    code = steps["code"].reshape(num_envs or 1, -1)
    assert code[:, :group].all()  # one group is emitted
    assert not code[:, group:].any()
    for i, action in enumerate(actions):
        observation, reward, terminated, _, info = env.step(action)
        if num_envs is None and terminated:
            observation, info = env.reset()
        for key, part in (*observation.items(), ("reward", reward), ("index", info["index"])):
            if key != "group":
                np.testing.assert_array_equal(steps[f"{key}{i}"], part)
    np.testing.assert_array_equal(steps["book"], env.codebook.words)
    assert json.loads(str(steps["generator"])) == env.np_random.bit_generator.state


@pytest.mark.parametrize("vector", [False, True])
def test_a_state_can_be_taken_at_any_moment(multi_label: HashingDataset, vector: bool) -> None:
    """Right after the reset, at the end, and with a reset or a seed afterwards: both environments continue equally."""
    kwargs: dict[str, Any] = {"bits": 12, "group_bits": 4, "reward": "average_precision", "counterfactual": True}
    env, again = (make_vec(multi_label, 3, **kwargs) if vector else make(multi_label, **kwargs) for _ in range(2))
    env.action_space.seed(0)
    env.reset(seed=0)
    for moment in range(9):
        again.reset(seed=99)  # whatever it did before
        observation, info = again.set_state(env.get_state())
        assert_same(observation, env._core.observe() if vector else {k: v[0] for k, v in env._core.observe().items()})
        assert_same(info["index"], env._core.info()["index"] if vector else env._core.info()["index"][0])
        assert_same(env.get_state(), again.get_state())
        if env._core.done:
            for one in (env, again):
                with pytest.raises(gym.error.ResetNeeded, match="has ended"):
                    one.step(one.action_space.sample())
            assert_same(env.reset(), again.reset())
        elif moment == 5:
            assert_same(env.reset(seed=moment), again.reset(seed=moment))
        action = env.action_space.sample()
        assert_same(env.step(action), again.step(action))


def test_a_state_of_another_environment_is_rejected_and_changes_nothing(multi_label: HashingDataset) -> None:
    env = make_vec(multi_label, 3)
    env.reset(seed=0)
    before = env.get_state()
    others = [make_vec(multi_label, 4), make_vec(multi_label, 3, bits=23), make_vec(multi_label, 3, partners=7)]
    for other in others:
        other.reset(seed=1)
        with pytest.raises(ValueError, match="other arguments, another dataset or another num_envs"):
            env.set_state(other.get_state())
    for argument, value in {"group_bits": 8, "group_scope": "prefix", "reward": "nca"}.items():
        other = make_vec(multi_label, 3, **{"reward": "average_precision", argument: value})
        other.reset(seed=1)
        ranked = make_vec(multi_label, 3, reward="average_precision")
        ranked.reset(seed=0)
        with pytest.raises(ValueError, match=f"{argument} was '?{value}'? there, but is .* here"):
            ranked.set_state(other.get_state())
        of_an_earlier_version = {key: part for key, part in ranked.get_state().items() if key != "settings"}
        ranked.set_state(of_an_earlier_version)
    with pytest.raises(ValueError, match="not saved by this environment: generator missing"):
        env.set_state({key: part for key, part in before.items() if key != "generator"})
    assert_same(env.get_state(), before)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        make_vec(multi_label, 3).get_state()


def test_hand_worked_episode() -> None:
    """Two classes of two images; the codes are set by hand, so that every number can be checked on paper."""
    dataset = HashingDataset(
        name="hand",
        features=np.array([[0.0], [1], [2], [3]], np.float32),
        labels=np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.uint8),
        query=np.array([], np.int64),
        database=np.arange(4),
        train=np.arange(4),
    )
    env = make(dataset, bits=3, group_bits=2, partners=1, reward={"name": "triplet", "margin": 2}, counterfactual=True)
    env.reset(seed=0)
    env.codebook.write(np.arange(4), np.array([[0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1]], bool))
    observation, info = env.reset(options={"index": 0})
    assert info == {"index": 0}
    np.testing.assert_array_equal(observation["image"], [0.0])
    np.testing.assert_array_equal(observation["code"], [0, 0, 0])
    assert observation["group"] == 0

    # Emit 10. The positive is image 1 (11.), the negative 2 or 3 (01.): d+ = 1, d- = 2, R = -max(0, 2 + 1 - 2) = -1.
    observation, reward, terminated, truncated, info = env.step(np.array([1, 0]))
    np.testing.assert_array_equal(observation["code"], [1, -1, 0])
    assert observation["group"] == 1
    assert (reward, terminated, truncated) == (-1.0, False, False)
    assert info["rewards"] == {"group/triplet": -1.0}
    # Bit 0 = 0 would give 00: d+ = 2, d- = 1, R = -3. Bit 1 = 1 would give 11: d+ = 0, d- = 1, R = -1.
    np.testing.assert_array_equal(info["bit_credit"], [2, 0])
    assert "code_credit" not in info

    # Emit 1; the surplus bit is ignored. Group: d+ = 1, d- = 0, R = -3. Code 101: d+(110) = 2, d-(011) = 2, R = -2.
    observation, reward, terminated, truncated, info = env.step(np.array([1, 1]))
    np.testing.assert_array_equal(observation["code"], [1, -1, 1])
    assert observation["group"] == 1
    assert (reward, terminated, truncated) == (-5.0, True, False)
    assert info["rewards"] == {"group/triplet": -3.0, "global/triplet": -2.0}
    # Group bit = 0: d+ = 0, d- = 1, R = -1. Whole code: 001: (3, 1) -> -4; 111: (1, 1) -> -2; 100: (1, 3) -> 0.
    np.testing.assert_array_equal(info["bit_credit"], [-2, 0])
    np.testing.assert_array_equal(info["code_credit"], [2, 0, -2])
    np.testing.assert_array_equal(env.codebook.read(np.array([0])), [[True, False, True]])


def test_hand_worked_episode_of_prefixes() -> None:
    """The images and codes of the episode above; the second step scores the whole code."""
    dataset = HashingDataset(
        name="hand",
        features=np.array([[0.0], [1], [2], [3]], np.float32),
        labels=np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.uint8),
        query=np.array([], np.int64),
        database=np.arange(4),
        train=np.arange(4),
    )
    task = {"bits": 3, "group_bits": 2, "partners": 1, "group_scope": "prefix", "counterfactual": True}
    env = make(dataset, **task, reward={"name": "triplet", "margin": 2}, group_weight=0.5, global_weight=0)
    env.reset(seed=0)
    env.codebook.write(np.arange(4), np.array([[0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1]], bool))
    env.reset(options={"index": 0})

    # Emit 10: as with groups, d+ = 1, d- = 2, R = -1; weighted by 0.5.
    _, reward, _, _, info = env.step(np.array([1, 0]))
    assert reward == -0.5
    assert info["rewards"] == {"prefix/triplet": -0.5}
    np.testing.assert_array_equal(info["bit_credit"], [1, 0])
    np.testing.assert_array_equal(info["prefix_credit"], [1, 0, 0])

    # Emit 1: 101: d+(110) = 2, d-(011) = 2, R = -2. With one bit flipped: 001 -4, 111 -2, 100 0.
    _, reward, terminated, _, info = env.step(np.array([1, 1]))
    assert (reward, terminated) == (-1.0, True)
    assert info["rewards"] == {"prefix/triplet": -1.0, "global/triplet": 0.0}
    np.testing.assert_array_equal(info["bit_credit"], [-1, 0])
    np.testing.assert_array_equal(info["prefix_credit"], [1, 0, -1])


@pytest.mark.parametrize(
    "reward",
    [
        "triplet",
        "average_precision",
        {"name": "average_precision", "against": "partners"},
        "pairwise:dch",
        {"name": "pairwise:hashnet", "against": "partners"},
        "balance",
        "nca",
        "average_precision+0.5*balance",
        lambda view: view.signs.sum(-1) * view.distances.min(-1),
    ],
)
def test_a_prefix_is_scored_as_a_code_of_its_length(multi_label: HashingDataset, reward: Any) -> None:
    task = {"bits": 10, "group_bits": 4, "reward": reward, "counterfactual": True}
    env = make_vec(multi_label, 6, **task, group_scope="prefix", group_weight=0.5, global_weight=2)
    env.reset(seed=3)
    env.action_space.seed(3)
    for stop in (4, 8, 10):
        short = make_vec(multi_label, 6, **task | {"bits": stop, "group_bits": stop}, group_weight=0.0)
        short.reset(seed=0)
        short.codebook.write(
            np.arange(len(multi_label.train)), env._core.book.read(np.arange(len(env.codebook)))[:, :stop]
        )
        short.reset(options={"index": multi_label.train[env._core.rows]})
        if env._core.reads_partners:
            short._core.positive_rows, short._core.negative_rows = env._core.partner_rows()
        emitted = env._core.code[:, : stop - stop % 4 if stop % 4 else stop - 4] > 0.5
        action = env.action_space.sample()
        _, _, _, _, info = env.step(action)
        _, value, _, _, expected = short.step(np.concatenate([emitted, action], axis=1)[:, :stop].astype(np.int8))
        info, expected = info.get("final_info", info), expected["final_info"]
        prefix = sum(part for name, part in info["rewards"].items() if name.startswith("prefix/"))
        np.testing.assert_allclose(prefix, 0.5 * value, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(
            info["prefix_credit"][:, :stop], 0.5 * expected["code_credit"], rtol=1e-6, atol=1e-12
        )
        assert not info["prefix_credit"][:, stop:].any()
        first = emitted.shape[1]
        np.testing.assert_array_equal(info["bit_credit"][:, : stop - first], info["prefix_credit"][:, first:stop])
        assert not info["bit_credit"][:, stop - first :].any()
    whole = sum(part for name, part in info["rewards"].items() if name.startswith("global/"))
    np.testing.assert_allclose(whole, 4 * prefix, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(info["code_credit"], 4 * info["prefix_credit"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_one_environment_equals_the_scalar_environment(multi_label: HashingDataset, kwargs: dict[str, Any]) -> None:
    """Step for step, against Gymnasium's own vectorisation of the scalar environment: infos and final ones included."""
    native = make_vec(multi_label, 1, **kwargs)
    sync = SyncVectorEnv([lambda: make(multi_label, **kwargs)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    assert native.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert_same(native.reset(seed=7), sync.reset(seed=7))
    native.action_space.seed(7)
    for _ in range(30):
        action = native.action_space.sample()
        assert_same(native.step(action), sync.step(action))
    assert_same(
        native.reset(options={"index": [int(multi_label.train[4])]}),
        sync.reset(options={"index": multi_label.train[4]}),
    )


class Naive:
    """The vector environment's dynamics recomputed, one image and one bit at a time, from its arguments alone."""

    def __init__(self, dataset: HashingDataset, bits: int, group_bits: int, margin: float, prefix: bool) -> None:
        self.dataset, self.bits, self.group_bits, self.margin = dataset, bits, group_bits, margin
        self.prefix = prefix

    def step(
        self,
        book: dict[int, list[int]],
        images: list[int],
        positives: list[list[int]],
        negatives: list[list[int]],
        actions: np.ndarray,
        group: int,
    ) -> tuple[list[float], list[float]]:
        span = range(group * self.group_bits, min((group + 1) * self.group_bits, self.bits))
        for image, action in zip(images, actions, strict=True):
            for place, bit in enumerate(span):
                book[image][bit] = int(action[place])

        def reward(index: int, over: range) -> float:
            terms = []
            for positive in positives[index]:
                for negative in negatives[index]:
                    near = sum(book[images[index]][b] != book[positive][b] for b in over)
                    far = sum(book[images[index]][b] != book[negative][b] for b in over)
                    terms.append(max(0.0, self.margin + near - far))
            return -sum(terms) / len(terms)

        last = span.stop == self.bits
        every, scored = range(len(images)), range(0 if self.prefix else span.start, span.stop)
        return [reward(i, scored) for i in every], [reward(i, range(self.bits)) if last else 0.0 for i in every]


@pytest.mark.parametrize("scope", ["group", "prefix"])
@pytest.mark.parametrize(("bits", "group_bits"), [(32, 12), (8, 4), (5, 5), (3, 1)])
def test_many_environments_equal_a_naive_recomputation(
    multi_label: HashingDataset, bits: int, group_bits: int, scope: str
) -> None:
    num_envs = 16
    reward = {"name": "triplet", "margin": 1.5}
    env = make_vec(multi_label, num_envs, bits=bits, group_bits=group_bits, reward=reward, group_scope=scope)
    naive = Naive(multi_label, bits, group_bits, 1.5, scope == "prefix")
    train = multi_label.train
    _, info = env.reset(seed=2)
    env.action_space.seed(2)
    rows = np.arange(len(train))
    book = {int(i): code.astype(int).tolist() for i, code in zip(train, env.codebook.read(rows), strict=True)}
    seen_batch_partner = False
    for _ in range(4):
        images = info["index"].tolist()
        core = env._core  # partners are hidden from agents; the test looks them up
        positives, negatives = train[core.positive_rows].tolist(), train[core.negative_rows].tolist()
        for index, image in enumerate(images):
            assert all(multi_label.similar(image, p) and p != image for p in positives[index])
            assert not any(multi_label.similar(image, n) for n in negatives[index])
            seen_batch_partner |= bool(set(images) & set(positives[index]))
        for group in range(env.task.groups):
            actions = env.action_space.sample()
            observation, reward, terminated, truncated, info = env.step(actions)
            by_group, by_code = naive.step(book, images, positives, negatives, actions, group)
            np.testing.assert_allclose(reward, np.add(by_group, by_code), rtol=1e-6)
            last = group == env.task.groups - 1
            assert terminated.tolist() == [last] * num_envs
            assert not truncated.any()
            parts = (info["final_info"] if last else info)["rewards"]
            np.testing.assert_allclose(parts[f"{scope}/triplet"], by_group, rtol=1e-6)
            codes = np.array([book[i] for i in images]) * 2 - 1
            stop = min((group + 1) * group_bits, bits)
            codes[:, stop:] = 0
            if last:
                final = np.stack([o["code"] for o in info["final_obs"]])
                np.testing.assert_array_equal(final, codes)
                assert not observation["code"].any()
            else:
                np.testing.assert_array_equal(observation["code"], codes)
            assert observation in env.observation_space
        assert env.codebook.read(rows).astype(int).tolist() == [book[int(i)] for i in train]
    assert seen_batch_partner  # a partner in the same batch was scored by its code of this very step


def test_the_last_group_is_shorter(multi_label: HashingDataset) -> None:
    env = make(multi_label, bits=32, group_bits=12, counterfactual=True)
    assert env.task.groups == 3
    env.reset(seed=0)
    for emitted in (12, 24, 32):
        observation, _, terminated, _, info = env.step(np.ones(12, np.int8))
        np.testing.assert_array_equal(observation["code"], [1] * emitted + [0] * (32 - emitted))
        assert terminated is (emitted == 32)
    np.testing.assert_array_equal(info["bit_credit"][8:], 0)
    assert info["code_credit"].shape == (32,)


def test_same_step_hands_over_the_final_observation_exactly(multi_label: HashingDataset) -> None:
    env = make_vec(multi_label, 4, bits=8, group_bits=4)
    first, first_info = env.reset(seed=0)
    env.action_space.seed(0)
    action = env.action_space.sample(), env.action_space.sample()
    middle = env.step(action[0])[0]
    assert middle["image"] is first["image"]
    observation, _, terminated, _, info = env.step(action[1])
    assert terminated.all()
    assert set(info) == {"final_obs", "_final_obs", "final_info", "_final_info", "index", "_index"}
    for index in range(4):
        final = info["final_obs"][index]
        assert final in env.single_observation_space
        np.testing.assert_array_equal(final["image"], multi_label.features[first_info["index"][index]])
        np.testing.assert_array_equal(final["code"], np.concatenate([action[0][index], action[1][index]]) * 2.0 - 1)
        assert final["group"] == 1
        np.testing.assert_array_equal(observation["image"][index], multi_label.features[info["index"][index]])
    np.testing.assert_array_equal(info["final_info"]["index"], first_info["index"])
    assert not observation["code"].any()
    assert not observation["group"].any()


def test_returned_observations_are_never_changed_later(multi_label: HashingDataset) -> None:
    env = make_vec(multi_label, 6, bits=8, group_bits=4)
    env.action_space.seed(0)
    kept = [env.reset(seed=0)[0]]
    for _ in range(9):
        kept.append(env.step(env.action_space.sample())[0])
        if len(kept) == 2:
            copies = [{key: part.copy() for key, part in one.items()} for one in kept]
    for one, before in zip(kept, copies, strict=False):
        assert_same(one, before)


def test_observations_depend_on_the_image_alone(multi_label: HashingDataset) -> None:
    """Other labels change roles, partners and rewards, but no observation."""
    rng = np.random.default_rng(0)
    classes = np.eye(3, dtype=np.uint8)
    datasets = [
        dataclasses.replace(multi_label, labels=classes[rng.integers(3, size=60)], label_names=()) for _ in range(2)
    ]
    for kwargs in VARIANTS:
        envs = [make_vec(dataset, 8, **kwargs) for dataset in datasets]
        observations = [env.reset(seed=3)[0] for env in envs]
        envs[0].action_space.seed(0)
        rewards_differ = partners_differ = False
        for _ in range(12):
            assert_same(*observations)
            action = envs[0].action_space.sample()
            steps = [env.step(action) for env in envs]
            observations = [step[0] for step in steps]
            rewards_differ |= bool((steps[0][1] != steps[1][1]).any())
            negative_rows = [env._core.partner_rows()[1] for env in envs]
            partners_differ |= bool((negative_rows[0] != negative_rows[1]).any())
        assert rewards_differ
        assert partners_differ == envs[0]._core.reads_partners


@pytest.mark.parametrize(
    "reward",
    [
        "average_precision",
        "balance",
        "pairwise:dch",
        {"name": "weighted", "terms": {"average_precision": 1.0, "balance": 0.5}},
    ],
)
def test_rewards_that_read_no_partners_are_the_same_without_them(multi_label: HashingDataset, reward: Any) -> None:
    without, with_partners = (make_vec(multi_label, 5, bits=8, group_bits=4, reward=reward) for _ in range(2))
    assert not without._core.reads_partners
    with_partners._core.reads_partners = True
    without.action_space.seed(1)
    assert_same(without.reset(seed=4)[0], with_partners.reset(seed=4)[0])
    for _ in range(6):
        action = without.action_space.sample()
        a, b = without.step(action), with_partners.step(action)
        assert_same(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    state = without.get_state()
    assert "positive_rows" not in state
    assert_same(without.set_state(state)[0], b[0])


@pytest.mark.parametrize("reward", ["average_precision", "nca", "pairwise:hashnet", "average_precision+0.5*balance"])
def test_a_sample_of_the_codebook_is_scored_as_a_codebook_of_these_images(
    multi_label: HashingDataset, reward: Any
) -> None:
    """An environment of the sampled images alone gives the same rewards and credit, pair weights aside."""
    task = {"bits": 8, "group_bits": 8, "reward": reward, "counterfactual": True, "group_weight": 0.0}
    env = make_vec(multi_label, 5, **task, codebook_sample=12)
    env.reset(seed=6)
    env.action_space.seed(6)
    train, seen = multi_label.train, set()
    for _ in range(4):
        core = env._core
        rows = core.sampled_rows
        assert len(core.sample) == 12
        assert set(core.rows) <= set(rows)
        seen.add(tuple(rows))
        few = dataclasses.replace(multi_label, train=train[rows])
        other = make_vec(few, 5, **task)
        other.reset(seed=0)
        other._core.rows = np.searchsorted(rows, core.rows)
        other.codebook.write(np.arange(len(rows)), core.book.read(rows))
        if reward == "pairwise:hashnet":  # the weights of pairs stay those of all training images
            other._core.terms[0][1]._hasher.pair_weights_ = packed_pair_weights(core.label_words)
        action = env.action_space.sample()
        info, expected = (e.step(action)[-1]["final_info"] for e in (env, other))
        for name, part in expected["rewards"].items():
            np.testing.assert_allclose(info["rewards"][name], part, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(info["code_credit"], expected["code_credit"], rtol=1e-5, atol=1e-7)
    assert len(seen) > 1


def test_a_sample_as_large_as_the_codebook_changes_nothing(multi_label: HashingDataset) -> None:
    envs = [make_vec(multi_label, 4, bits=8, reward="nca", codebook_sample=size) for size in (None, 40, 1000)]
    observations = [env.reset(seed=1) for env in envs]
    action = envs[0].action_space.sample()
    for one, other in itertools.pairwise([*observations]):
        assert_same(one, other)
    for one, other in itertools.pairwise([env.step(action) for env in envs]):
        assert_same(one, other)


def test_partners_are_drawn_for_any_reward_that_may_read_them(multi_label: HashingDataset) -> None:
    terms = {"average_precision": 1.0, "triplet": 0.5}
    for reward in ("triplet", lambda view: view.positive_distances.mean(-1), {"name": "weighted", "terms": terms}):
        env = make_vec(multi_label, 5, bits=8, group_bits=4, reward=reward)
        env.reset(seed=0)
        assert env._core.partner_rows()[0].shape == (5, 8)


def test_gymnasiums_vector_wrappers_fit(multi_label: HashingDataset) -> None:
    from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

    plain = make_vec(multi_label, 3, bits=8, group_bits=4)
    wrapped = DictInfoToList(RecordEpisodeStatistics(make_vec(multi_label, 3, bits=8, group_bits=4)))
    plain.reset(seed=0)
    _, infos = wrapped.reset(seed=0)
    assert [int(info["index"]) for info in infos] == plain._core.dataset.train[plain._core.rows].tolist()
    plain.action_space.seed(0)
    returns = np.zeros(3)
    for _ in range(2):
        actions = plain.action_space.sample()
        returns += plain.step(actions)[1]
        _, _, terminated, _, infos = wrapped.step(actions)
    assert terminated.all()
    for index, info in enumerate(infos):
        assert info["episode"]["r"] == pytest.approx(returns[index])
        assert info["episode"]["l"] == 2
        assert set(info["final_info"]["rewards"]) == {"group/triplet", "global/triplet"}


def test_the_spec_does_not_copy_the_dataset(multi_label: HashingDataset) -> None:
    env = gym.make("BitGroupHashing-v0", dataset=multi_label)
    assert env.spec is not None
    assert env.spec.kwargs["dataset"] is multi_label
    assert env.unwrapped.dataset is multi_label  # type: ignore[attr-defined]


def test_every_image_comes_once_in_each_pass(multi_label: HashingDataset) -> None:
    env = make_vec(multi_label, 8, bits=4, group_bits=4)
    indices = [env.reset(seed=0)[1]["index"], *(env.step(np.zeros((8, 4), np.int8))[4]["index"] for _ in range(9))]
    for first in (0, 40):
        assert sorted(np.concatenate(indices)[first : first + 40]) == sorted(multi_label.train)


def test_no_batch_holds_an_image_twice(multi_label: HashingDataset) -> None:
    env = make_vec(multi_label, 13, bits=4, group_bits=4)  # 40 images: passes end inside batches
    env.reset(seed=0)
    for _ in range(30):
        assert len(set(env.step(np.zeros((13, 4), np.int8))[4]["index"].tolist())) == 13


def test_more_environments_than_images_repeat_images(multi_label: HashingDataset) -> None:
    env = make_vec(multi_label, 100, bits=4, group_bits=4)
    _, info = env.reset(seed=0)
    assert len(set(info["index"].tolist())) == 40
    action = np.random.default_rng(0).integers(0, 2, (100, 4))
    env.step(action)
    last = {image: action[index] for index, image in enumerate(info["index"])}
    for row, image in enumerate(multi_label.train):
        np.testing.assert_array_equal(env.codebook.read(np.array([row]))[0], last[image])


def test_an_index_is_read_bit_by_bit(multi_label: HashingDataset) -> None:
    env = make(multi_label, bits=6, group_bits=4, action="index")
    env.reset(seed=0)
    observation = env.step(np.int64(0b1010))[0]
    np.testing.assert_array_equal(observation["code"], [-1, 1, -1, 1, 0, 0])


def test_a_probability_is_thresholded_above_one_half(multi_label: HashingDataset) -> None:
    env = make(multi_label, bits=3, group_bits=3, action="probability")
    _, info = env.reset(seed=0)
    observation = env.step(np.array([0.5, 0.51, 0.49], np.float32))[0]
    np.testing.assert_array_equal(observation["code"], [-1, 1, -1])
    row = np.flatnonzero(multi_label.train == info["index"])
    np.testing.assert_array_equal(env.codebook.read(row), [[False, True, False]])


@pytest.mark.parametrize("dataset", ["digits", "small"])
def test_renderings(dataset: str, multi_label: HashingDataset) -> None:
    source: Any = dataset if dataset == "digits" else multi_label  # with thumbnails, and without
    env = gym.make("BitGroupHashing-v0", dataset=source, bits=32, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(3):
        env.step(env.action_space.sample())
        frames.append(env.render())
    for frame in frames:
        assert isinstance(frame, np.ndarray)
        assert frame.dtype == np.uint8
        assert frame.shape == frames[0].shape  # type: ignore[union-attr]
    assert any((a != b).any() for a, b in itertools.pairwise(frames))  # type: ignore[union-attr]

    text = gym.make("BitGroupHashing-v0", dataset=source, bits=32, render_mode="ansi")
    text.reset(seed=0)
    text.step(np.array([1, 0] * 6, np.int8))
    shown = text.render()
    assert isinstance(shown, str)
    assert "101010101010 ············ ········" in shown
    assert "group/triplet" in shown
    vector = make_vec(multi_label, 2, render_mode="ansi")
    vector.reset(seed=0)
    assert len(vector.render() or ()) == 2


@pytest.mark.parametrize(("bits", "group_bits"), [(48, 1), (48, 3), (70, 5), (48, 12), (64, 16), (200, 100)])
def test_every_bit_is_in_the_picture(multi_label: HashingDataset, bits: int, group_bits: int) -> None:
    env = make_vec(multi_label, 1, bits=bits, group_bits=group_bits, render_mode="rgb_array")
    env.reset(seed=0)
    scene = env.unwrapped._core.scene(0)
    pictures = [dataclasses.replace(scene, bits=np.arange(bits) == bit).draw() for bit in range(bits)]
    for before, after in itertools.pairwise(pictures):
        assert (before != after).any()


def test_numbers_of_numpy_are_numbers(multi_label: HashingDataset) -> None:
    plain: dict[str, Any] = {"bits": 24, "group_bits": 9, "partners": 3}
    given = {
        "bits": np.uint8(24),
        "group_bits": np.int64(9),
        "partners": np.int16(3),
        "counterfactual": np.bool_(False),
    }
    env, other = make(multi_label, **plain), make(multi_label, **given)
    assert other.observation_space == env.observation_space
    assert_same(env.reset(seed=0), other.reset(seed=0))
    for _ in range(3):
        action = np.ones(9, np.int8)
        assert_same(env.step(action), other.step(action))


def test_infos_are_the_callers_own(multi_label: HashingDataset) -> None:
    env = make_vec(multi_label, 3)
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    before = env.get_state()
    info["rewards"]["group/triplet"][:] = 99
    assert_same(env.get_state(), before)


def test_the_codebooks_signs_are_those_of_its_codes(multi_label: HashingDataset) -> None:
    env = make(multi_label, bits=8, group_bits=8)
    env.reset(seed=0)
    book = env.codebook
    assert (book.signs > 0).any()
    for bit in (0, 1):
        env.step(np.full(8, bit, np.int8))
        np.testing.assert_array_equal(book.signs > 0, book.read(np.arange(len(book))))
        env.reset()


def test_rendering_names_the_nearest_codes(multi_label: HashingDataset) -> None:
    env = make(multi_label, bits=8, group_bits=8, render_mode="ansi")
    env.reset(seed=0)
    env.step(np.zeros(8, np.int8))
    scene = env._core.scene(0)
    book = env.codebook.read(np.arange(len(multi_label.train)))
    distances = {int(i): int(code.sum()) for i, code in zip(multi_label.train, book, strict=True) if i != scene.index}
    assert [d for _, d, _ in scene.nearest] == sorted(distances.values())[:6]
    for image, distance, similar in scene.nearest:
        assert distance == distances[image]
        assert similar == bool(multi_label.similar(np.array(image), np.array(scene.index)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bits": 0}, "bits must be at least 1, got 0"),
        ({"bits": True}, "bits must be an integer, got True"),
        ({"partners": 2.0}, "partners must be an integer, got 2.0"),
        ({"bits": 8, "group_bits": 12}, "group_bits=12 is longer than the code"),
        ({"bits": 24.0}, "bits must be an integer"),
        ({"partners": 0}, "partners"),
        ({"action": "float"}, "'bits', 'multidiscrete', 'probability' or 'index'"),
        ({"action": "index", "group_bits": 11}, "group_bits <= 10"),
        ({"reward": "nothing"}, "unknown reward"),
        ({"codebook_sample": 0}, "codebook_sample must be at least 1"),
        ({"codebook_sample": 5}, "this one reads partners, which are few already"),
        ({"group_scope": "prefixes"}, "'prefixes'.*did you mean 'prefix'"),
        ({"group_weight": float("nan")}, "group_weight must be finite"),
        ({"group_weight": "1"}, "group_weight must be a number, got '1'"),
        ({"global_weight": [1.0]}, r"global_weight must be a number, got \[1.0\]"),
        ({"global_weight": np.array(1.0), "codebook": "shared"}, "global_weight must be a number, got array"),
        ({"counterfactual": "no"}, "counterfactual must be True or False, got 'no'"),
        ({"render_mode": "human"}, "render_mode"),
        ({"dataset": "no-such-dataset"}, "no-such-dataset"),
        ({"codebook": "share"}, "'own', 'shared' or 'shared:NAME', got 'share'"),
        ({"codebook": True}, "codebook must be"),
        ({"flat": "yes"}, "flat must be True or False"),
        ({"info": "none"}, "info must be 'nested' or 'flat'"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BitGroupHashingEnv(**kwargs)
    with pytest.raises(ValueError, match=message):
        BitGroupHashingVectorEnv(2, **kwargs)


def test_weights_that_cannot_be_are_not_set() -> None:
    env = BitGroupHashingEnv()
    for wrong in ("a", [1], None, np.nan):
        with pytest.raises(ValueError, match="group_weight must be"):
            env.group_weight = wrong
    assert env.group_weight == 1.0


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("part", ["positives", "negatives", "positive_distances", "negative_distances"])
def test_a_reward_that_reads_partners_despite_reads_partners_false(backend: str, part: str) -> None:
    class Untrue:
        reads_partners = False

        def __call__(self, view: Any) -> Any:
            return getattr(view, part).reshape(len(view.rows), -1).sum(-1)  # a sum of nothing is 0

    envs = gym.make_vec("BitGroupHashing-v0", num_envs=2, bits=8, reward=Untrue(), backend=backend)
    envs.reset(seed=0)
    with pytest.raises(RewardError, match=r"reward Untrue, group scope: .* reads partners, but none were drawn"):
        envs.step(envs.action_space.sample())


@pytest.mark.parametrize("num_envs", [0, -1, 2.5])
def test_wrong_number_of_environments(num_envs: Any) -> None:
    with pytest.raises(ValueError, match="num_envs"):
        BitGroupHashingVectorEnv(num_envs)


@pytest.mark.parametrize(
    ("action", "given", "message"),
    [
        ("bits", np.zeros(11), r"shape \(1, 12\)"),
        ("bits", np.full(12, 2), "0 or 1"),
        ("multidiscrete", np.full(12, 2), "0 or 1"),
        ("bits", np.full(12, 0.5), "action='probability'"),
        ("probability", np.full(12, np.nan), "from 0 to 1"),
        ("probability", np.full(12, 1.5), "from 0 to 1"),
        ("index", 2**8, "from 0 to 255"),
        ("index", 1.0, "integer"),
    ],
)
def test_wrong_actions(multi_label: HashingDataset, action: str, given: Any, message: str) -> None:
    env = BitGroupHashingEnv(multi_label, action=action, group_bits=8 if action == "index" else 12)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(given)


def test_steps_outside_an_episode(multi_label: HashingDataset) -> None:
    env = BitGroupHashingEnv(multi_label, bits=4, group_bits=4)
    for call in (env.render, lambda: env.step(np.zeros(4)), lambda: env.codebook):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            call()
    env.reset()
    env.step(np.zeros(4))
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step(np.zeros(4))


def test_wrong_options(multi_label: HashingDataset) -> None:
    env = BitGroupHashingEnv(multi_label)
    for options, message in (
        ({"indx": 1}, "the options are 'index'"),
        ({"index": 60}, "from 0 to 59"),
        ({"index": int(multi_label.query[0])}, "training images"),
        ({"index": [1, 2]}, r"1 image\(s\)"),
        ({"index": 0.5}, "integers"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
    vector = BitGroupHashingVectorEnv(2, multi_label)
    with pytest.raises(ValueError, match="end together"):
        vector.reset(options={"reset_mask": np.array([True, False])})
    vector.reset(options={"reset_mask": np.array([True, True])})


def test_labels_without_a_similar_pair(multi_label: HashingDataset) -> None:
    for labels in (np.ones((60, 1)), np.eye(60)):
        dataset = dataclasses.replace(multi_label, labels=labels.astype(np.uint8), label_names=())
        with pytest.raises(DataError, match="similar"):
            BitGroupHashingEnv(dataset)


def test_an_invalid_reward_is_named(multi_label: HashingDataset) -> None:
    env = BitGroupHashingVectorEnv(3, multi_label, reward=lambda view: view.bits.mean())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        env.step(np.zeros((3, 12)))


def test_a_reward_of_weight_0_is_not_computed(multi_label: HashingDataset) -> None:
    seen: list[str] = []

    def spy(view: Any) -> np.ndarray:
        seen.append(view.scope)
        return np.ones(len(view.code))

    env = BitGroupHashingEnv(multi_label, reward=spy, group_weight=0.0, bits=8, group_bits=4)
    env.reset(seed=0)
    rewards = [env.step(np.zeros(4))[1] for _ in range(2)]
    assert (rewards, seen) == ([0.0, 1.0], ["global"])


def test_action_masks_rule_out_the_surplus_bits_of_a_short_last_group() -> None:
    env = gym.make("BitGroupHashing-v0", bits=8, group_bits=5).unwrapped
    assert env.action_masks().tolist() == [True] * 10
    env.reset(seed=0)
    env.step(np.ones(5, np.int8))
    assert env.action_masks().tolist() == [True] * 6 + [True, False] * 2

    indices = gym.make_vec("BitGroupHashing-v0", num_envs=3, bits=5, group_bits=3, action="index").unwrapped
    indices.reset(seed=0)
    assert indices.action_masks().tolist() == [[True] * 8] * 3
    indices.step(np.array([7, 0, 3]))
    assert indices.action_masks().tolist() == [[True] * 4 + [False] * 4] * 3
    with pytest.raises(ValueError, match="action='bits' or 'index'"):
        gym.make("BitGroupHashing-v0", action="probability").unwrapped.action_masks()


# ---- a group's length by default


@pytest.mark.parametrize(
    ("task", "length"),
    [
        ({"bits": 8}, 8),
        ({"bits": 12}, 12),
        ({"bits": 24}, 12),
        ({"bits": np.int64(5)}, 5),
        ({"bits": 1}, 1),
        ({"action": "index"}, 10),
        ({"action": "index", "bits": 8}, 8),
    ],
)
def test_the_default_group_is_no_longer_than_the_code(task: dict[str, Any], length: int) -> None:
    assert HashingTask(**task).group_bits == length
    for env in (gym.make("BitGroupHashing-v0", **task), gym.make_vec("BitGroupHashing-v0", num_envs=2, **task)):
        env.reset(seed=0)
        env.step(env.action_space.sample())
        assert env.unwrapped.task.group_bits == length  # type: ignore[attr-defined]


# ---- actions for libraries that do not support MultiBinary


@pytest.mark.parametrize("num_envs", [None, 3])
def test_multidiscrete_actions_are_bits(multi_label: HashingDataset, num_envs: int | None) -> None:
    kwargs: dict[str, Any] = {"bits": 7, "group_bits": 4}
    build: Any = make if num_envs is None else lambda data, **rest: make_vec(data, num_envs, **rest)
    bits, discrete = build(multi_label, **kwargs), build(multi_label, action="multidiscrete", **kwargs)
    single = discrete.action_space if num_envs is None else discrete.single_action_space
    assert single == gym.spaces.MultiDiscrete([2] * 4)
    assert_same(bits.reset(seed=2), discrete.reset(seed=2))
    discrete.action_space.seed(2)
    for _ in range(2):
        np.testing.assert_array_equal(bits.action_masks(), discrete.action_masks())
        action = discrete.action_space.sample()
        assert_same(bits.step(action), discrete.step(action))


# ---- codebooks that environments share


def shared(dataset: HashingDataset, count: int, **kwargs: Any) -> list[BitGroupHashingEnv]:
    return [make(dataset, **{"codebook": "shared", "bits": 8, "group_bits": 4} | kwargs) for _ in range(count)]


def test_ordinary_vectorisation_updates_one_codebook(multi_label: HashingDataset) -> None:
    """Against writes by hand: every environment reads the codes that any of them emits."""
    envs = shared(multi_label, 5)
    sync = SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=AutoresetMode.SAME_STEP)  # type: ignore[misc]
    _, info = sync.reset(seed=3)
    book = envs[0].codebook.read(np.arange(40)).copy()
    rng = np.random.default_rng(4)
    for step in range(12):
        actions = rng.integers(0, 2, (5, 4))
        for image, action in zip(info["index"], actions, strict=True):
            book[np.flatnonzero(multi_label.train == image)[0], 4 * (step % 2) : 4 * (step % 2) + 4] = action
        info = sync.step(actions)[4]
        for env in envs:
            np.testing.assert_array_equal(env.codebook.read(np.arange(40)), book)
    assert len({env.unwrapped._core._words for env in envs}) == 1  # type: ignore[attr-defined]


def test_one_environment_with_a_shared_codebook_equals_one_with_its_own(multi_label: HashingDataset) -> None:
    (alone,), own = shared(multi_label, 1), make(multi_label, bits=8, group_bits=4, codebook="own")
    assert_same(alone.reset(seed=9), own.reset(seed=9))
    own.action_space.seed(0)
    for _ in range(30):
        action = own.action_space.sample()
        step = own.step(action)
        assert_same(alone.step(action), step)
        if step[2]:
            assert_same(alone.reset(), own.reset())


def test_who_shares_a_codebook(multi_label: HashingDataset) -> None:
    def words(env: Any) -> CodebookWords:
        return env.unwrapped._core._words

    def reward(view: Any) -> np.ndarray:
        return np.zeros(len(view.code))

    first = shared(multi_label, 1)[0]
    same = [
        shared(multi_label, 1)[0],
        make_vec(multi_label, 3, codebook="shared", bits=8, group_bits=4),
        *shared(multi_label, 1, flat=True, info="flat"),
    ]
    other = [
        make(multi_label, bits=8, group_bits=4),
        make(multi_label, bits=8, group_bits=4, codebook="own"),
        *shared(multi_label, 1, codebook="shared:other"),
        *shared(multi_label, 1, bits=9),
        *shared(multi_label, 1, reward="average_precision"),
        *shared(multi_label, 1, reward=reward),
        *shared(dataclasses.replace(multi_label), 1),
        gym.make_vec(
            "BitGroupHashing-v0",
            num_envs=2,
            dataset=multi_label,
            codebook="shared",
            bits=8,
            group_bits=4,
            backend="torch",
        ),
    ]
    assert all(words(env) is words(first) for env in same)
    assert len({words(env) for env in (first, *other)}) == 1 + len(other)
    for given in ("triplet", reward, {"name": "triplet", "margin": 2.0}):
        one, two = shared(multi_label, 2, reward=given)
        assert words(one) is words(two)
    named = [gym.make("BitGroupHashing-v0", codebook="shared") for _ in range(2)]
    assert words(named[0]) is words(named[1])


def test_a_shared_codebook_starts_anew_with_a_seed_and_with_each_first_reset(multi_label: HashingDataset) -> None:
    """A seed determines a vector environment, and a second training run does not start with the codes of the first."""

    def rollout(envs: list[BitGroupHashingEnv]) -> list[Any]:
        sync = SyncVectorEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
        rng, steps = np.random.default_rng(0), [sync.reset(seed=5)]
        return [*steps, *(sync.step(rng.integers(0, 2, (3, 4))) for _ in range(10))]

    envs = shared(multi_label, 3)
    first = rollout(envs)
    assert_same(first, rollout(envs))
    assert_same(first, rollout(shared(multi_label, 3)))
    trained = envs[0].codebook.words.copy()
    (late,) = shared(multi_label, 1)
    assert late._core._words is envs[0]._core._words
    late.reset()
    assert (late.codebook.words != trained).any()
    started = late.codebook.words.copy()
    envs[1].reset()  # not its first, and without a seed: the codebook stays
    np.testing.assert_array_equal(late.codebook.words, started)


def test_a_shared_codebook_is_freed_with_its_last_environment(multi_label: HashingDataset) -> None:
    envs = shared(multi_label, 2)
    forgotten = weakref.ref(envs[0]._core._words)
    before = len(CodebookWords.shared)
    del envs[0]
    gc.collect()
    assert forgotten() is not None
    envs.clear()
    gc.collect()
    assert forgotten() is None
    assert len(CodebookWords.shared) == before - 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda envs: pickle.loads(pickle.dumps(envs))])
def test_copies_of_environments_that_share_a_codebook_share_a_copy(multi_label: HashingDataset, copied: Any) -> None:
    envs = shared(multi_label, 2)
    for i, env in enumerate(envs):
        env.reset(seed=i)
    twins = copied(envs)
    assert twins[0]._core._words is twins[1]._core._words
    assert twins[0]._core._words is not envs[0]._core._words
    for action in np.random.default_rng(0).integers(0, 2, (2, 4)):
        for env, twin in zip(envs, twins, strict=True):
            assert_same(env.step(action), twin.step(action))
    twins[0].codebook.write(np.arange(40), np.ones((40, 8), bool))
    assert not envs[0].codebook.read(np.arange(40)).all()
    assert twins[1].codebook.read(np.arange(40)).all()


def test_a_state_restores_the_codebook_of_all_that_share_it(multi_label: HashingDataset) -> None:
    envs = shared(multi_label, 2)
    for i, env in enumerate(envs):
        env.reset(seed=i)
    state = envs[0].get_state()
    before = envs[1].codebook.words.copy()
    envs[1].step(np.ones(4))
    envs[1].codebook.write(np.arange(40), np.ones((40, 8), bool))
    envs[0].set_state(state)
    np.testing.assert_array_equal(envs[1].codebook.words, before)
    (again,) = shared(multi_label, 1, codebook="shared:again")
    again.set_state(state)
    envs[0].set_state(state)
    assert_same(again.step(np.zeros(4)), envs[0].step(np.zeros(4)))


@pytest.fixture
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the state of the warning."""
    for key, value in {"words": 0, "kind": (), "switches": 0, "warned": False}.items():
        monkeypatch.setattr(_InterleavedSteps, key, value)


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize("count", [2, 3, 8])
def test_environments_in_turn_with_codebooks_of_their_own_warn_once(multi_label: HashingDataset, count: int) -> None:
    sync = SyncVectorEnv([lambda: make(multi_label, bits=8)] * count)
    sync.reset(seed=0)

    def run() -> None:
        for _ in range(6):
            sync.step(sync.action_space.sample())

    with pytest.warns(UserWarning, match="codebook='shared'.*gym.make_vec.*codebook='own' declares") as caught:
        run()
    assert len(caught) == 1


@pytest.mark.usefixtures("unwarned")
def test_a_codebook_that_is_not_shared_in_spite_of_its_name_warns(multi_label: HashingDataset) -> None:
    sync = SyncVectorEnv([lambda: make(dataclasses.replace(multi_label), bits=8, codebook="shared")] * 4)
    sync.reset(seed=0)
    with pytest.warns(UserWarning, match="one HashingDataset object, the same arguments and one reward object"):
        sync.step(sync.action_space.sample())


@pytest.mark.usefixtures("unwarned")
def test_intended_codebooks_do_not_warn(multi_label: HashingDataset) -> None:
    def run(envs: list[Any], turns: list[int]) -> None:
        for env in envs:
            env.reset(seed=0)
        for turn in turns:
            if envs[turn].step(envs[turn].action_space.sample())[2] is True:
                envs[turn].reset()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run([make(multi_label, bits=8, codebook="own") for _ in range(3)], [0, 1, 2] * 5)
        run(shared(multi_label, 3), [0, 1, 2] * 5)
        run([make(multi_label, bits=8) for _ in range(2)], [0, 0, 1, 1, 1, 0, 0, 0, 1, 1] * 3)  # one of them evaluates
        run([make(multi_label, bits=bits) for bits in (8, 9)], [0, 1] * 8)  # two trainings
        names = [shared(multi_label, 1, codebook=f"shared:{name}")[0] for name in "ab"]
        run(names, [0, 1] * 8)


def test_environments_by_name_share_a_dataset_that_is_in_use() -> None:
    first = gym.make("BitGroupHashing-v0", dataset="digits").unwrapped
    from hashgym.envs import base

    base._standardized.cache_clear()  # as if other datasets had been loaded since
    second = gym.make("BitGroupHashing-v0", dataset="digits").unwrapped
    assert first.dataset is second.dataset  # type: ignore[attr-defined]
