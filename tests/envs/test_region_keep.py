"""RegionKeep-v0: contract, a hand-worked episode, equation 6 by naive loops, vector against scalar, exact gradients."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hashgym import codes, hashers
from hashgym.codes import CodeSets
from hashgym.data import DataError, HashingDataset
from hashgym.envs.region_keep import RegionKeepEnv, RegionKeepVectorEnv, observation
from hashgym.hashers import Hasher
from hashgym.hashers.pairwise import PairwiseHasher
from tests.envs.signs import Signs, signs

VARIANTS: list[dict[str, Any]] = [
    {},
    {"regions_per_episode": 3, "price": 0.02},
    {"regions_per_episode": 5, "reduction": "sum"},
    {"regions_per_episode": 3, "code_dropout": 0.5, "code_copies": 3},
]


def with_regions(dataset: HashingDataset, dim: int = 6, regions: int = 5) -> HashingDataset:
    """Features of ``dim`` numbers, and regions that resemble their image; half of the first bits are copied."""
    rng = np.random.default_rng(8)
    features = rng.standard_normal((len(dataset), dim)).astype(np.float32)
    shift = rng.standard_normal((len(dataset), regions, dim)).astype(np.float32)
    return dataclasses.replace(dataset, features=features, train_regions=features[:, None] + shift)


@pytest.fixture
def dataset(multi_label: HashingDataset) -> HashingDataset:
    """40 training images with 5 regions each."""
    return with_regions(multi_label)


@pytest.fixture
def base(dataset: HashingDataset) -> Hasher:
    """A base hasher of 12 bits after few updates."""
    small = hashers.make("dch", bits=12, hidden=16, updates=5)
    return small.fit(dataset.features[dataset.train], dataset.labels[dataset.train])


@pytest.fixture
def make(dataset: HashingDataset, base: Hasher) -> Callable[..., Any]:
    """Makes an environment, a vector one if given ``num_envs``."""

    def build(num_envs: int | None = None, **kwargs: Any) -> Any:
        settings = {"dataset": dataset, "base": base} | kwargs
        if num_envs is None:
            return gym.make("RegionKeep-v0", **settings).unwrapped
        return gym.make_vec("RegionKeep-v0", num_envs=num_envs, **settings)

    return build


def assert_same(a: Any, b: Any) -> None:
    assert data_equivalence(a, b, exact=True), f"{a}\nis not\n{b}"


def table(bits: int, seed: int = 0) -> list[list[float]]:
    """An arbitrary loss table."""
    return np.random.default_rng(seed).standard_normal((2, bits + 1)).tolist()


class Naive:
    """Equations 5 and 6 recomputed by loops over images, codes and bits."""

    def __init__(self, dataset: HashingDataset, base: Hasher, loss: Callable[[int, bool], float]) -> None:
        self.dataset, self.loss = dataset, loss
        self.images = {int(i): base.encode(dataset.features[i][None])[0].tolist() for i in dataset.train}
        assert dataset.train_regions is not None
        self.regions = {int(i): base.encode(dataset.train_regions[i]).tolist() for i in dataset.train}
        self.own, self.bits = self.images, base.bits

    def begin(self, env: Any) -> None:
        """Take the versions of codes that the episode of a scalar environment has drawn."""
        if env.task.code_dropout:
            stored, (version,), book = env._core.training_codes, env._core.version, env._core.book
            for row, image in enumerate(self.dataset.train.tolist()):
                self.images[image] = codes.unpack(stored.images[book, row], self.bits).tolist()
                self.regions[image] = codes.unpack(stored.regions[version, row], self.bits).tolist()
            own = codes.unpack(stored.images[version], self.bits).tolist()
            self.own = dict(zip(self.dataset.train.tolist(), own, strict=True))

    def distance(self, kept: list[list[bool]], other: int) -> int:
        return min(sum(a != b for a, b in zip(code, self.images[other], strict=True)) for code in kept)

    def similar(self, image: int, other: int) -> bool:
        return any(a and b for a, b in zip(self.dataset.labels[image], self.dataset.labels[other], strict=True))

    def total(self, image: int, kept: list[list[bool]]) -> float:
        """Sum of the loss over all training images."""
        return sum(self.loss(self.distance(kept, j), self.similar(image, j)) for j in self.images)

    def nearer(self, image: int, kept: list[list[bool]], code: list[bool], similar: bool) -> int:
        others = [j for j in self.images if self.similar(image, j) == similar]
        return sum(self.distance([code], j) < self.distance(kept, j) for j in others)


def check_episodes(env: Any, naive: Naive, episodes: int, seed: int = 0) -> None:
    """Step through episodes of a scalar environment and recompute rewards and infos."""
    rng = np.random.default_rng(seed)
    task = env.task
    scale = len(naive.images) if task.reduction == "mean" else 1
    observation, info = env.reset(seed=seed)
    for _ in range(episodes):
        image = int(info["index"])
        naive.begin(env)
        kept, total = [naive.own[image]], 0.0
        before_all = naive.total(image, kept)
        for turn in range(task.regions_per_episode):
            code = naive.regions[image][int(info["region"])]
            np.testing.assert_array_equal(observation["image"], naive.dataset.features[image])
            np.testing.assert_array_equal(observation["region"], naive.dataset.train_regions[image, info["region"]])
            np.testing.assert_array_equal(observation["image_code"] > 0, naive.own[image])
            np.testing.assert_array_equal(observation["region_code"] > 0, code)
            if task.regions_per_episode > 1:
                far = [sum(a != b for a, b in zip(one, code, strict=True)) for one in kept]
                np.testing.assert_array_equal(observation["kept"] > 0, kept[far.index(min(far))])
            gain = 0.0
            if code not in kept:
                gain = (naive.total(image, kept) - naive.total(image, [*kept, code])) / scale - task.price
            assert info["keep_reward"] == pytest.approx(gain, rel=1e-9, abs=1e-12)
            for kind in ("similar", "dissimilar"):
                assert info["nearer"][kind] == naive.nearer(image, kept, code, kind == "similar")
            if code in kept:
                assert info["keep_reward"] == 0
            action = int(rng.random() < 0.7)
            worth = info["keep_reward"]
            observation, reward, terminated, truncated, info = env.step(action)
            assert reward == (worth if action else 0)
            assert sum(info["rewards"].values()) == reward
            assert (terminated, truncated) == (turn == task.regions_per_episode - 1, False)
            total += reward
            if action and code not in kept:
                kept.append(code)
        whole = (before_all - naive.total(image, kept)) / scale - task.price * (len(kept) - 1)
        assert total == pytest.approx(whole, rel=1e-9, abs=1e-12)  # marginal rewards add up to that of the set
        observation, info = env.reset()


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.parametrize("name", ["ksh", "hashnet", "adsh", "dch", "mmhh"])
def test_reward_is_equation_6(dataset: HashingDataset, name: str, kwargs: dict[str, Any]) -> None:
    settings = {} if name == "ksh" else {"updates": 3}
    base = hashers.make(name, bits=7, **settings).fit(dataset.features[dataset.train], dataset.labels[dataset.train])
    assert isinstance(base, PairwiseHasher)

    def loss(distance: int, similar: bool) -> float:
        return float(base.weighted_pair_loss(torch.tensor(float(distance), dtype=torch.float64), torch.tensor(similar)))

    env = gym.make("RegionKeep-v0", dataset=dataset, base=base, **kwargs).unwrapped
    check_episodes(env, Naive(dataset, base, loss), 6)


@pytest.mark.parametrize("bits", [6, 63, 64, 65])
def test_reward_by_any_table_and_code_length(multi_label: HashingDataset, bits: int) -> None:
    dataset, base, loss = with_regions(multi_label, bits), signs(bits), table(bits)
    env = RegionKeepEnv(dataset, base=base, loss=loss, regions_per_episode=4, price=0.5, reduction="sum")
    check_episodes(env, Naive(dataset, base, lambda distance, similar: loss[similar][distance]), 5)


def hand() -> tuple[HashingDataset, Signs, list[list[float]]]:
    """Four images of 3 bits: 000, 011 and 110 share a label, 111 has another. Regions of the first: 011, 110, 000."""
    bits = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 1], [1, 1, 0]])
    regions = np.repeat(bits[:, None], 3, axis=1)
    regions[0] = [[0, 1, 1], [1, 1, 0], [0, 0, 0]]
    dataset = HashingDataset(
        name="hand",
        features=(2 * bits - 1).astype(np.float32),
        labels=np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.uint8),
        query=np.array([], np.int64),
        database=np.arange(4),
        train=np.arange(4),
        train_regions=(2 * regions - 1).astype(np.float32),
    )
    return dataset, signs(3), [[1.5, 1, 0.5, 0], [0, 1, 2, 3]]


def test_hand_worked_episode() -> None:
    dataset, base, loss = hand()
    env = RegionKeepEnv(dataset, base=base, loss=loss, regions_per_episode=3, price=0.1)
    observation, info = env.reset(options={"index": 0, "regions": [0, 1, 2]})
    # 011 is 0 from the second image (2 before): +2. It is 1 from the third (3 before), which is dissimilar: -1.
    assert (info["index"], info["region"]) == (0, 0)
    assert info["keep_reward"] == pytest.approx(1 / 4 - 0.1)
    assert info["nearer"] == {"similar": 1, "dissimilar": 1}
    np.testing.assert_array_equal(observation["region_code"], [-1, 1, 1])
    np.testing.assert_array_equal(observation["kept"], [-1, -1, -1])

    observation, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (pytest.approx(0.15), False, False)
    assert info["rewards"] == {"similar": 0.5, "dissimilar": -0.25, "price": -0.1}
    # 110 is 0 from the fourth (2 before): +2. It is no nearer to the third than 011 already is.
    assert (info["region"], info["keep_reward"]) == (1, pytest.approx(0.5 - 0.1))
    assert info["nearer"] == {"similar": 1, "dissimilar": 0}
    np.testing.assert_array_equal(observation["kept"], [-1, -1, -1])  # 000 and 011 are both 2 from 110: the first

    _, reward, _, _, info = env.step(1)
    assert reward == pytest.approx(0.4)
    # 000 is the image's own code.
    assert (info["region"], info["keep_reward"], info["nearer"]) == (2, 0, {"similar": 0, "dissimilar": 0})
    _, reward, terminated, _, info = env.step(1)
    assert (reward, terminated) == (0.0, True)
    assert set(info) == {"index", "region", "rewards"}

    env.reset(options={"index": 0, "regions": [0, 1, 2]})
    _, reward, _, _, info = env.step(0)
    assert reward == 0
    assert info["rewards"] == {"similar": 0, "dissimilar": 0, "price": 0}
    assert info["keep_reward"] == pytest.approx(0.25 - 0.1)  # without 011 the third image comes nearer by 110: 2 - 1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_exact_gradient_is_the_mean_of_reinforce(make: Callable[..., Any], reduction: str) -> None:
    """grad p x keep_reward, against every action weighed by its probability, and against 40,000 sampled ones."""
    num_envs, rng = 400, np.random.default_rng(0)
    env = make(num_envs, reduction=reduction)
    observation, info = env.reset(seed=0)
    state = np.concatenate([observation[key] for key in ("image", "region", "image_code", "region_code")], axis=1)
    assert state.shape == (num_envs, 2 * 6 + 2 * 12)
    keep_reward = info["keep_reward"]
    p = 1 / (1 + np.exp(-state @ rng.normal(size=state.shape[1]) / 5))
    exact = (p * (1 - p) * keep_reward) @ state  # of a logistic policy: grad p = p (1 - p) state
    saved = env.get_state()

    def score_times_reward(action: np.ndarray) -> np.ndarray:
        """grad log pi(a | state) R(state, a) of every environment."""
        env.set_state(saved)
        return ((action - p) * env.step(action)[1])[:, None] * state

    keep, discard = np.ones(num_envs, np.int64), np.zeros(num_envs, np.int64)
    enumerated = p @ score_times_reward(keep) + (1 - p) @ score_times_reward(discard)
    np.testing.assert_allclose(enumerated, exact, rtol=1e-9)
    samples = np.stack([score_times_reward(rng.random(num_envs) < p).sum(axis=0) for _ in range(100)])
    error = samples.std(axis=0) / 10
    assert (abs(samples.mean(axis=0) - exact) < 4.5 * error).all()
    assert np.linalg.norm(exact) > 3 * np.linalg.norm(error)  # or there was nothing to see


def test_regions_equal_to_the_image_give_no_second_code(dataset: HashingDataset, base: Hasher) -> None:
    whole = dataclasses.replace(dataset, train_regions=dataset.features[:, None].repeat(4, axis=1))  # sigma = 1
    env = RegionKeepVectorEnv(40, whole, base=base, regions_per_episode=4, price=1.0)
    _, info = env.reset(seed=0)
    for turn in range(4):
        assert not info["keep_reward"].any()
        assert not np.signbit(info["keep_reward"]).any()
        if turn == 3:
            kept = env.get_state()["kept"]
            assert CodeSets(kept, np.ones(kept.shape[:2], bool), 12).anhc == 1
        _, reward, _, _, info = env.step(np.ones(40, np.int64))
        assert not reward.any()


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
def test_checkers(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env as check_sb3

    check_env(make(**kwargs))
    check_sb3(make(**kwargs), warn=False)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_a_seed_determines_everything(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    twins = [make(**kwargs) for _ in range(2)]
    twins[1].reset(seed=99)  # what came before must not matter
    twins[1].step(1)
    assert_same(twins[0].reset(seed=5), twins[1].reset(seed=5))
    for action in np.random.default_rng(0).integers(0, 2, 50):
        steps = [twin.step(action) for twin in twins]
        assert_same(*steps)
        if steps[0][2]:
            assert_same(twins[0].reset(), twins[1].reset())


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_one_environment_equals_the_scalar_environment(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Step for step, against Gymnasium's own vectorisation of the scalar environment: infos and final ones included."""
    native = make(1, **kwargs)
    sync = SyncVectorEnv([lambda: make(**kwargs)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    assert native.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert_same(native.reset(seed=7), sync.reset(seed=7))
    native.action_space.seed(7)
    for _ in range(30):
        action = native.action_space.sample()
        assert_same(native.step(action), sync.step(action))


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_many_environments_equal_many_scalar_environments(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """To the last bit: rewards come from integer counts, for any number of environments."""
    num_envs, turns = 100, kwargs.get("regions_per_episode", 1)  # more environments than the 40 training images
    native, scalar = make(num_envs, **kwargs), make(**kwargs)
    observation, info = native.reset(seed=1)
    drawn = native.get_state()
    actions = np.random.default_rng(1).integers(0, 2, (turns, num_envs))
    steps = [native.step(action) for action in actions]
    assert len(set(info["index"].tolist())) == 40
    for index in range(num_envs):
        seen = scalar.reset(options={"index": info["index"][index], "regions": drawn["regions"][index]})
        if "code_dropout" in kwargs:
            versions = {key: drawn[key][index : index + 1] for key in ("version", "kept")}
            seen = scalar.set_state(scalar.get_state() | versions | {"book": drawn["book"]})
        assert_same(seen, (part_of(observation, index), part_of(info, index)))
        for turn, (shown, reward, terminated, _, after) in enumerate(steps):
            last = turn == turns - 1
            one = scalar.step(actions[turn, index])
            assert (one[1], one[2]) == (reward[index], terminated[index]) == (reward[index], last)
            assert_same(one[0], after["final_obs"][index] if last else part_of(shown, index))
            assert_same(one[4], part_of(after["final_info"] if last else after, index))


def part_of(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """Return one environment's part of observations or infos, without the masks."""
    return {
        key: part_of(part, index) if isinstance(part, dict) else part[index]
        for key, part in batch.items()
        if not key.startswith("_")
    }


@pytest.mark.parametrize("num_envs", [None, 3])
@pytest.mark.parametrize("dropout", [{}, {"code_dropout": 0.5}])
def test_state_is_restored_exactly(make: Callable[..., Any], dropout: dict[str, Any], num_envs: int | None) -> None:
    env = make(num_envs, regions_per_episode=3, render_mode="ansi", **dropout)
    env.reset(seed=1)
    env.action_space.seed(1)
    env.step(env.action_space.sample())
    state, shown = env.get_state(), env.render()
    actions = [env.action_space.sample() for _ in range(2)]
    ahead = [env.step(action) for action in actions]
    ended = env.get_state(), env.render(), env.reset()
    again = make(num_envs, regions_per_episode=3, render_mode="ansi", **dropout)
    again.set_state(state)
    assert again.render() == shown
    for one in (again, env):  # the state was a copy: what came after it left no mark
        one.set_state(state)
        assert_same([one.step(action) for action in actions], ahead)
        one.set_state(ended[0])  # at the end of an episode too, where the scalar environment waits for a reset
        assert_same((one.render(), one.reset()), ended[1:])
    with pytest.raises(ValueError, match="kept missing"):
        env.set_state({key: part for key, part in state.items() if key != "kept"})
    with pytest.raises(ValueError, match="other arguments"):
        make(num_envs, regions_per_episode=2, **dropout).set_state(state)
    if dropout:
        for key in ("book", "version"):
            with pytest.raises(ValueError, match="it has more code_copies"):
                env.set_state(state | {key: np.full_like(state[key], 4)})


@pytest.mark.parametrize("num_envs", [None, 3])
def test_pickle_round_trip_continues_the_episode(make: Callable[..., Any], num_envs: int | None) -> None:
    env = make(num_envs, regions_per_episode=3)
    env.reset(seed=1)
    action = env.action_space.sample()
    env.step(action)
    again = pickle.loads(pickle.dumps(env))
    assert_same(
        [env.step(action), env.step(action), env.reset()], [again.step(action), again.step(action), again.reset()]
    )


def test_spec_round_trip(dataset: HashingDataset, tmp_path: Path) -> None:
    path = tmp_path / "base.npz"
    scenes = gym.make("RegionKeep-v0", base="lsh", bits=16, loss=table(16))
    scenes.unwrapped.base.save(path)  # type: ignore[attr-defined]
    env = gym.make("hashgym/RegionKeep-v0", base=str(path), loss=table(16), price=0.1)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.task == env.unwrapped.task  # type: ignore[attr-defined]
    assert_same(env.reset(seed=1), again.reset(seed=1))
    np.testing.assert_array_equal(env.unwrapped.loss_table, table(16))  # type: ignore[attr-defined]


def test_bases_and_codes_are_shared(make: Callable[..., Any], dataset: HashingDataset, base: Hasher) -> None:
    named = [RegionKeepEnv(base="lsh", bits=16, loss=table(16)) for _ in range(2)]
    assert named[0].base is named[1].base
    assert named[0]._core.training_codes is named[1]._core.training_codes
    before = make()
    assert before._core.training_codes is make(5)._core.training_codes
    base.fit(dataset.features[dataset.query], dataset.labels[dataset.query])
    after = make()
    np.testing.assert_array_equal(
        after._core.training_codes.images, codes.pack(base.encode(dataset.features[dataset.train]))[None]
    )  # a base that was fitted again is not taken for what it was


def test_codes_under_dropout_are_worse_and_every_version_is_met(
    make: Callable[..., Any], dataset: HashingDataset, base: Hasher
) -> None:
    env = make(20, code_dropout=0.5, code_copies=3)
    stored = env._core.training_codes
    assert stored.images.shape[:2] == (3, 40)
    assert stored.regions.shape[:3] == (3, 40, 5)
    for versions, seen in ((stored.images, dataset.features), (stored.regions, dataset.train_regions)):
        assert seen is not None
        plain = base.encode(seen[dataset.train].reshape(-1, dataset.dim))
        wrong = [(codes.unpack(one, 12).reshape(plain.shape) != plain).mean() for one in versions]
        assert len({one.tobytes() for one in versions}) == 3
        assert min(wrong) > 0.1
    met = set()
    env.reset(seed=0)
    for _ in range(12):
        core = env._core
        met |= {(version, core.book) for version in core.version.tolist()}
        np.testing.assert_array_equal(core.kept[:, 0], stored.images[core.version, core.rows])
        env.reset()
    assert met == set(itertools.product(range(3), range(3)))
    assert stored is make(2, code_dropout=0.5, code_copies=3)._core.training_codes
    assert stored is not make(2, code_dropout=0.5, code_copies=2)._core.training_codes


def test_a_named_base_is_fitted_on_the_training_images(dataset: HashingDataset) -> None:
    env = RegionKeepEnv(dataset, base="ksh", bits=5)
    same = hashers.make("ksh", bits=5, seed=0).fit(dataset.features[dataset.train], dataset.labels[dataset.train])
    np.testing.assert_array_equal(env.base.encode(dataset.features), same.encode(dataset.features))
    np.testing.assert_array_equal(env.loss_table, same.loss_table())
    assert env.observation_space["image_code"].shape == (5,)


def test_observation_shows_the_closest_kept_code() -> None:
    bits = np.array([[[0, 0, 0], [1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1], [1, 1, 1]]])
    code = np.array([[1, 0, 0], [1, 1, 0]])
    blank = np.zeros((2, 4), np.float32)
    shown = observation(blank, blank, codes.pack(bits), codes.pack(code), 3, sequential=True)
    np.testing.assert_array_equal(shown["kept"], [[-1, -1, -1], [1, 1, 1]])
    np.testing.assert_array_equal(shown["image_code"], -np.ones((2, 3)))
    np.testing.assert_array_equal(shown["region_code"], [[1, -1, -1], [1, 1, -1]])
    assert "kept" not in observation(blank, blank, codes.pack(bits), codes.pack(code), 3)


def test_flattened_observation_is_the_papers_state_vector(make: Callable[..., Any]) -> None:
    env = make()
    seen, _ = env.reset(seed=0)
    order = ("image", "region", "image_code", "region_code")  # equation 3
    flat = gym.spaces.flatten(env.observation_space, seen)
    np.testing.assert_array_equal(flat, np.concatenate([seen[key] for key in order]))
    assert flat.shape == (2 * 6 + 2 * 12,)


def test_returned_observations_are_never_changed_later(make: Callable[..., Any]) -> None:
    env = make(6, regions_per_episode=3)
    kept = [env.reset(seed=0)[0]]
    for step in range(9):
        kept.append(env.step(np.ones(6, np.int64))[0])
        if step == 1:
            copies = [{key: part.copy() for key, part in one.items()} for one in kept]
    assert kept[1]["image"] is kept[0]["image"]
    for one, copy in zip(kept, copies, strict=False):
        assert_same(one, copy)


def test_images_come_in_passes_and_regions_are_distinct(make: Callable[..., Any], dataset: HashingDataset) -> None:
    env = make(8, regions_per_episode=3)
    _, info = env.reset(seed=0)
    indices, regions = [], []
    for _ in range(40):
        indices.append(info["index"])
        regions.append(env.get_state()["regions"])
        for _ in range(3):
            info = env.step(np.zeros(8, np.int64))[4]
    for first in range(0, 320, 40):
        assert sorted(np.concatenate(indices)[first : first + 40]) == sorted(dataset.train)
    drawn = np.concatenate(regions)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    share = np.bincount(drawn[:, 0], minlength=5) / len(drawn)
    np.testing.assert_allclose(share, 0.2, atol=0.08)  # 320 draws: the deviation is 0.022


@pytest.mark.parametrize("source", ["digit-scenes", "small"])
def test_renderings(source: str, dataset: HashingDataset, base: Hasher) -> None:
    """With thumbnails and boxes, and without."""
    small = {"dataset": dataset, "base": base, "bits": 12}
    chosen: dict[str, Any] = small if source == "small" else {"base": "lsh", "bits": 70, "loss": table(70)}
    env = gym.make("RegionKeep-v0", render_mode="rgb_array", regions_per_episode=3, **chosen)
    env.reset(seed=0)
    frames: list[Any] = [env.render()]
    for action in (1, 0, 1):
        env.step(action)
        frames.append(env.render())
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.shape == frames[0].shape
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    vector = gym.make_vec("RegionKeep-v0", num_envs=2, render_mode="rgb_array", **chosen)
    vector.reset(seed=0)
    assert len(vector.render() or ()) == 2


def test_rendering_as_text() -> None:
    dataset, base, loss = hand()
    env = RegionKeepEnv(dataset, base=base, loss=loss, regions_per_episode=2, render_mode="ansi")
    env.reset(options={"index": 0, "regions": [0, 1]})
    env.step(1)
    text = env.render()
    for part in ("image      0 (0)", "000", "region 1   110", "^^  2 of 3 bits differ", "decisions  keep ?"):
        assert part in text
    assert "keeping    +0.5000, brings 1 similar and 0 dissimilar nearer" in text
    assert "similar +0.5000 dissimilar -0.2500 price +0.0000" in text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bits": 0}, "bits must be at least 1, got 0"),
        ({"bits": 12.0}, "bits must be an integer"),
        ({"bits": 16}, "codes have 12 bits: leave bits out"),
        ({"regions_per_episode": 0}, "regions_per_episode must be"),
        ({"regions_per_episode": 6}, "more than the 5 regions"),
        ({"price": -1.0}, "price"),
        ({"price": float("nan")}, "price"),
        ({"code_dropout": 1}, "from 0 to below 1, got 1"),
        ({"code_copies": 0}, "code_copies must be at least 1"),
        ({"reduction": "max"}, "'mean' or 'sum'"),
        ({"loss": np.zeros((2, 12))}, r"table \(2, 13\)"),
        ({"loss": np.zeros(13)}, r"table \(2, bits \+ 1\).*got ndarray float64 \(13,\)"),
        ({"loss": np.full((2, 13), np.inf)}, "finite"),
        ({"base": "no-such-base"}, "'no-such-base' is neither a hasher nor the file of a saved one; hashers are .*dch"),
        ({"base": "hashnett"}, r"neither a hasher \(did you mean 'hashnet'\?\)"),
        ({"price": "1"}, "price must be a number, got '1'"),
        ({"price": [1.0]}, r"price must be a number, got \[1.0\]"),
        ({"loss": "dch"}, r"loss must be a table \(2, bits \+ 1\) of finite numbers, .* got str 'dch'"),
        ({"loss": [[1], [1, 2]]}, r"loss must be a table \(2, bits \+ 1\) .* got list of 2"),
        ({"base": "lsh", "bits": 8}, r"give loss=, a table \(2, 9\)"),
        ({"base": "dch", "bits": 8, "loss": np.zeros((2, 8))}, r"table \(2, 9\)"),
        ({"base": signs(5)}, "fitted on 5 features, images of 'small' have 6"),
        ({"base": signs(6)}, "Signs has no pairwise loss"),
        ({"base": Signs(bits=6)}, "a fitted hasher"),
        ({"base": 3}, "base must be"),
        ({"render_mode": "human"}, "render_mode"),
        ({"dataset": "no-such-dataset"}, "no-such-dataset"),
    ],
)
def test_wrong_arguments(dataset: HashingDataset, base: Hasher, kwargs: dict[str, Any], message: str) -> None:
    settings = {"dataset": dataset, "base": base} | kwargs
    with pytest.raises(ValueError, match=message):
        RegionKeepEnv(**settings)
    with pytest.raises(ValueError, match=message):
        RegionKeepVectorEnv(2, **settings)


def test_wrong_data(dataset: HashingDataset, base: Hasher) -> None:
    for num_envs in (0, 2.5):
        with pytest.raises(ValueError, match="num_envs"):
            RegionKeepVectorEnv(num_envs, dataset, base=base)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"hashgym features --dataset NAME .*--train-regions 4 --out DIR"):
        RegionKeepEnv(dataclasses.replace(dataset, train_regions=None), base=base)
    for labels in (np.ones((60, 1)), np.eye(60)):
        useless = dataclasses.replace(dataset, labels=labels.astype(np.uint8), label_names=())
        with pytest.raises(DataError, match="similar"):
            RegionKeepEnv(useless, base=base)


def test_wrong_actions_and_options(make: Callable[..., Any], dataset: HashingDataset) -> None:
    env, vector = make(regions_per_episode=2), make(2, regions_per_episode=2)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(1)
    env.reset(seed=0)
    vector.reset(seed=0)
    for action in (2, -1, 0.5, 1.0, [1], "1", None):
        with pytest.raises(ValueError, match="1 to keep or 0 to discard"):
            env.step(action)
    for action in (1, [1], [0, 2], [[0], [1]]):
        with pytest.raises(ValueError, match=r"shape \(2,\)"):
            vector.step(action)
    query = int(dataset.query[0])
    for options, message in (
        ({"region": 1}, "the options are 'index' and 'regions'"),
        ({"index": query}, r"training images.* use hashgym\.encode_regions"),
        ({"regions": 1}, r"2 region\(s\)"),
        ({"regions": [1, 2, 3]}, r"2 region\(s\)"),
        ({"regions": [0.0, 1.0]}, "integers"),
        ({"regions": [0, 5]}, "from 0 to 4"),
        ({"regions": [3, 3]}, "different regions"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
    with pytest.raises(ValueError, match=r"2 region\(s\)"):
        vector.reset(options={"regions": [0, 1]})
    _, info = vector.reset(options={"regions": [[0, 1], [3, 2]]})
    np.testing.assert_array_equal(info["region"], [0, 3])
    _, info = env.reset(options={"index": int(dataset.train[3]), "regions": [4, 1]})
    assert (info["index"], info["region"]) == (dataset.train[3], 4)
    env.step(1)
    env.step(True)
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step(1)
