"""MultiCodeHashing-v0: contract, hand-worked episodes, reward and credit by naive loops, vector against scalar."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hashgym import hashers
from hashgym.codes import unpack
from hashgym.data import DataError, HashingDataset
from hashgym.envs import bases
from hashgym.envs.multi_code_hashing import MultiCodeHashingEnv, MultiCodeHashingVectorEnv, _BaseCodes
from hashgym.hashers import Hasher
from tests.envs.signs import signs

VARIANTS: list[dict[str, Any]] = [
    {},
    {"codes": 2, "group_bits": 5, "counterfactual": True, "price": 0.01},
    {"codes": 3, "keep": False, "action": "probability", "counterfactual": True},
    {"codes": 2, "group_bits": 4, "action": "index", "flat": True, "info": "flat"},
    {"action": "multidiscrete", "code_dropout": 0.5, "code_copies": 3, "counterfactual": True, "group_bits": 7},
]


@pytest.fixture
def base(multi_label: HashingDataset) -> Hasher:
    """A base hasher of 12 bits after few updates."""
    small = hashers.make("dch", bits=12, hidden=16, updates=5)
    return small.fit(multi_label.features[multi_label.train], multi_label.labels[multi_label.train])


@pytest.fixture
def make(multi_label: HashingDataset, base: Hasher) -> Callable[..., Any]:
    """Makes an environment, a vector one if given ``num_envs``."""

    def build(num_envs: int | None = None, **kwargs: Any) -> Any:
        settings = {"dataset": multi_label, "base": base} | kwargs
        if num_envs is None:
            return gym.make("MultiCodeHashing-v0", **settings).unwrapped
        return gym.make_vec("MultiCodeHashing-v0", num_envs=num_envs, **settings)

    return build


def assert_same(a: Any, b: Any) -> None:
    assert data_equivalence(a, b, exact=True), f"{a}\nis not\n{b}"


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
def test_gymnasium_checker(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    check_env(make(**kwargs))


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_stable_baselines3_checker(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env as check_sb3

    check_sb3(make(**kwargs), warn=False)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_a_seed_determines_everything(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    twins = [make(**kwargs) for _ in range(2)]
    twins[1].reset(seed=99)  # what came before must not matter
    twins[1].step(twins[1].action_space.sample())
    assert_same(twins[0].reset(seed=5), twins[1].reset(seed=5))
    twins[0].action_space.seed(5)
    for _ in range(40):
        action = twins[0].action_space.sample()
        steps = [twin.step(action) for twin in twins]
        assert_same(*steps)
        if steps[0][2]:
            assert_same(twins[0].reset(), twins[1].reset())


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_one_environment_equals_the_scalar_environment(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    native = make(1, **kwargs)
    sync = SyncVectorEnv([lambda: make(**kwargs)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    assert_same(native.reset(seed=7), sync.reset(seed=7))
    native.action_space.seed(7)
    for _ in range(25):
        action = native.action_space.sample()
        assert_same(native.step(action), sync.step(action))


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.parametrize("num_envs", [None, 4])
def test_pickles_and_states_continue_the_episode(
    make: Callable[..., Any], kwargs: dict[str, Any], num_envs: int | None
) -> None:
    env = make(num_envs, **kwargs)
    env.reset(seed=3)
    env.action_space.seed(3)
    moments = []
    for _ in range(9):
        twin, other = pickle.loads(pickle.dumps(env)), make(num_envs, **kwargs)
        other.set_state({key: np.array(part) for key, part in env.get_state().items()})
        moments.append(env.get_state())
        action = env.action_space.sample()
        result = env.step(action)
        for same in (twin, other):
            assert_same(same.step(action), result)
        if num_envs is None and result[2]:
            env.reset()
    assert any(state["number"] > 0 or state["emitted"] > 0 for state in moments) or kwargs == {}
    with pytest.raises(ValueError, match="other arguments"):
        make(num_envs, **kwargs | {"codes": 5}).set_state(env.get_state())
    plain = make(num_envs, **kwargs | {"code_dropout": 0.0})
    with pytest.raises(ValueError, match="more code_copies"):
        plain.set_state({**env.get_state(), "book": 2})


def test_hand_worked_episode() -> None:
    """Images 0 and 1 are similar, 2 and 3 too; codes of 3 bits are the signs of the features."""
    dataset = HashingDataset(
        name="hand",
        features=np.array([[-1, -1, -1], [1, 1, -1], [-1, 1, 1], [-1, -1, 1]], np.float32),  # 000, 110, 011, 001
        labels=np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.uint8),
        query=np.array([], np.int64),
        database=np.arange(4),
        train=np.arange(4),
    )
    loss = [[4, 2, 1, 0], [0, 1, 2, 3]]  # dissimilar pairs should be far, similar ones near
    env = gym.make(
        "MultiCodeHashing-v0",
        dataset=dataset,
        base=signs(3),
        loss=loss,
        codes=2,
        group_bits=2,
        price=0.25,
        counterfactual=True,
    ).unwrapped
    observation, info = env.reset(seed=0, options={"index": 0})
    assert info == {"index": 0}
    np.testing.assert_array_equal(observation["codes"], [[-1, -1, -1], [0, 0, 0], [0, 0, 0]])
    assert (observation["group"], env.observation_space["group"].n) == (0, 4)

    # Emit 11, the keep bit is not read.
    observation, reward, terminated, truncated, info = env.step(np.array([1, 1, 0]))
    assert (reward, terminated, truncated, "keep_reward" in info) == (0.0, False, False, False)
    np.testing.assert_array_equal(observation["code"], [1, 1, 0])
    np.testing.assert_array_equal(env.action_masks().reshape(-1, 2), [[1, 1], [1, 0], [1, 1]])

    # Complete 110 and keep it: distances from 000 are 2 (similar), 2, 1; from 110 they are 0, 2, 3. Only image 1 comes
    # nearer, from 2 to 0: gain 2 of 4 images, minus the price.
    observation, reward, terminated, _, info = env.step(np.array([0, 1, 1]))
    assert (reward, terminated) == (0.25, False)
    assert info["rewards"] == {"similar": 0.5, "dissimilar": 0.0, "price": -0.25}
    assert info["keep_reward"] == 0.25
    np.testing.assert_array_equal(observation["codes"], [[-1, -1, -1], [1, 1, -1], [0, 0, 0]])
    assert observation["group"] == 2
    # 010: image 1 at 1 (gain 1), image 2 (011) at 1 instead of 2 (L 1 -> 2, -1), image 3 at 2: 0 - price.
    # 100: image 1 at 1 (gain 1), the others no nearer: 1/4 - price. 111: image 1 at 1, image 2 at 1: 0 - price.
    np.testing.assert_allclose(info["code_credit"], [0.25 - -0.25, 0.25 - 0.0, -0.25 - 0.25])

    # 000 again, the image's own code: no reward and no price, and it is not kept a second time. Of its neighbours, 100
    # gains nothing (image 1 is at 0 already), 010 brings image 2 nearer (-1) and 001 equals image 3's code (1 -> 0, L 2
    # -> 4) and brings image 2 to 1 (L 1 -> 2).
    env.step(np.array([0, 0, 1]))
    observation, reward, terminated, _, info = env.step(np.array([0, 0, 1]))
    assert (reward, info["keep_reward"], terminated) == (0.0, 0.0, True)
    np.testing.assert_array_equal(observation["codes"][2], [0, 0, 0])
    np.testing.assert_allclose(info["code_credit"], [-0.25, -0.25 - 0.25, -3 / 4 - 0.25])


class Naive:
    """Rewards recomputed by loops over images, codes and bits."""

    def __init__(self, dataset: HashingDataset, book: np.ndarray, table: np.ndarray, price: float) -> None:
        self.dataset, self.table, self.price = dataset, table, price
        self.book = {int(i): code.tolist() for i, code in zip(dataset.train, book, strict=True)}

    def total(self, image: int, kept: list[list[bool]]) -> float:
        loss = 0.0
        for other, code in self.book.items():
            if other != image:
                distance = min(sum(a != b for a, b in zip(own, code, strict=True)) for own in kept)
                pairs = zip(self.dataset.labels[image], self.dataset.labels[other], strict=True)
                loss += self.table[int(any(a and b for a, b in pairs))][distance]
        return loss / len(self.book)

    def keep_reward(self, image: int, kept: list[list[bool]], code: list[bool]) -> float:
        if code in kept:
            return 0.0
        return self.total(image, kept) - self.total(image, [*kept, code]) - self.price

    def credit(self, image: int, kept: list[list[bool]], code: list[bool]) -> list[float]:
        return [
            self.keep_reward(image, kept, [*code[:b], True, *code[b + 1 :]])
            - self.keep_reward(image, kept, [*code[:b], False, *code[b + 1 :]])
            for b in range(len(code))
        ]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"codes": 3, "price": 0.02},
        {"codes": 2, "group_bits": 5},
        {"codes": 2, "code_dropout": 0.4, "keep": False},
        {"codes": 4, "price": 0.1, "loss": np.random.default_rng(0).standard_normal((2, 13)).tolist()},
    ],
)
def test_rewards_and_credit_equal_naive_loops(
    make: Callable[..., Any], multi_label: HashingDataset, kwargs: dict[str, Any]
) -> None:
    env = make(5, counterfactual=True, **kwargs)
    _, info = env.reset(seed=1)
    env.action_space.seed(1)
    rng = np.random.default_rng(1)
    core = env._core
    for _ in range(3):
        images, kept = info["index"].tolist(), [[code] for code in unpack(core.words[:, 0], 12).tolist()]
        book = unpack(core.base_codes.words[core.book], 12)
        naive = Naive(multi_label, book, env.loss_table, env.price)
        emitted = np.zeros((5, 0), np.int8)
        for number in range(env.task.codes):
            for start in range(0, 12, core.group_bits):
                action = env.action_space.sample()
                if number and rng.random() < 0.6:  # near a code that is kept, or equal to it
                    near = np.array([own[-1] for own in kept])[:, start : start + core.group_bits]
                    action[:, : near.shape[1]] = near ^ (rng.random(near.shape) < 0.1)
                emitted = np.concatenate([emitted[:, :start], action[:, : core.group_bits]], axis=1)
                _, reward, _, _, info = env.step(action)
            codes = emitted[:, :12].astype(bool).tolist()
            final = info.get("final_info", info)
            for i, code in enumerate(codes):
                keep = bool(action[i, -1]) if env.task.keep else True
                expected = naive.keep_reward(images[i], kept[i], code)
                assert final["keep_reward"][i] == pytest.approx(expected, abs=1e-9)
                assert reward[i] == pytest.approx(expected if keep else 0.0, abs=1e-9)
                credit = naive.credit(images[i], kept[i], code)
                np.testing.assert_allclose(final["code_credit"][i], credit, rtol=1e-4, atol=1e-6)
                if keep and code not in kept[i]:
                    kept[i].append(code)


def test_observations_depend_on_the_image_and_its_codes_alone(
    make: Callable[..., Any], multi_label: HashingDataset, base: Hasher
) -> None:
    """Other labels and other training images change rewards, not what is observed."""
    rng = np.random.default_rng(5)
    other = dataclasses.replace(multi_label, labels=rng.permutation(multi_label.labels))
    envs = [make(6, codes=2), make(6, codes=2, dataset=other)]
    seen = [env.reset(options={"index": multi_label.train[:6]}, seed=0)[0] for env in envs]
    envs[0].action_space.seed(0)
    rewards_differ = False
    for _ in range(2):
        assert_same(*seen)
        action = envs[0].action_space.sample()
        steps = [env.step(action) for env in envs]
        seen = [step[0] if step[2].sum() == 0 else None for step in steps]
        rewards_differ |= bool((steps[0][1] != steps[1][1]).any())
    assert rewards_differ


def test_training_codes_under_dropout_are_worse_and_the_own_code_is_one_of_them(
    make: Callable[..., Any], multi_label: HashingDataset, base: Hasher
) -> None:
    env = make(20, code_dropout=0.5, code_copies=3)
    versions = env._core.base_codes.words
    assert versions.shape[0] == 3
    assert (versions[0] != versions[1]).any()
    seen = set()
    env.reset(seed=0)
    for _ in range(10):
        own = env._core.words[:, 0]
        match = (versions[:, env._core.rows] == own).all(axis=-1)
        assert match.any(axis=0).all()
        seen.add(env._core.book)
        env.reset()
    assert seen == {0, 1, 2}
    plain = make(2)._core.base_codes.words
    np.testing.assert_array_equal(unpack(plain[0], 12), base.encode(multi_label.features[multi_label.train]))
    assert _BaseCodes.of(multi_label, base, env._core.task) is env._core.base_codes


def test_a_price_set_later_counts_from_the_next_step(make: Callable[..., Any]) -> None:
    env = make(counterfactual=True)
    twin = make(counterfactual=True)
    for each in (env, twin):
        each.reset(seed=2)
    env.price = 0.5
    action = np.append(1 - (env._core.words[0, 0] >> np.arange(12, dtype=np.uint64) & np.uint64(1)), 1).astype(np.int8)
    (_, dear, *_, info), (_, cheap, *_, other) = env.step(action), twin.step(action)
    assert dear == pytest.approx(cheap - 0.5)
    assert info["rewards"]["price"] == -0.5
    np.testing.assert_allclose(info["code_credit"], other["code_credit"], atol=1e-9)
    with pytest.raises(ValueError, match="price must be a finite number"):
        env.price = -1


@pytest.mark.parametrize("keep", [True, False])
def test_action_masks_rule_out_bits_that_are_not_read(make: Callable[..., Any], keep: bool) -> None:
    env = make(2, codes=2, group_bits=8, keep=keep)
    env.reset(seed=0)
    reads = [[*[1] * 8, 0], [*[1] * 4, *[0] * 4, 1]]
    for read in [*reads, *reads]:
        mask = env.action_masks()
        assert mask.shape == (2, 2 * (8 + keep))
        np.testing.assert_array_equal(mask[0].reshape(-1, 2)[:, 1], read[: 8 + keep])
        env.step(env.action_space.sample())
    index = make(group_bits=2, action="index")
    index.reset(seed=0)
    np.testing.assert_array_equal(np.flatnonzero(index.action_masks()), [0, 1, 2, 3])
    for _ in range(5):
        index.step(0)
    np.testing.assert_array_equal(np.flatnonzero(index.action_masks()), range(8))
    probabilities = make(action="probability")
    probabilities.reset()
    with pytest.raises(ValueError, match="no action mask"):
        probabilities.action_masks()


def test_bits_that_are_not_read_change_nothing(make: Callable[..., Any]) -> None:
    envs = [make(3, codes=2, group_bits=8, counterfactual=True) for _ in range(2)]
    for env in envs:
        env.reset(seed=4)
    envs[0].action_space.seed(4)
    for _ in range(4):
        action = envs[0].action_space.sample()
        masked = action * envs[0].action_masks().reshape(3, -1, 2)[..., 1]
        assert_same(envs[0].step(action), envs[1].step(masked.astype(np.int8)))


@pytest.mark.parametrize("kwargs", [{}, {"codes": 3, "group_bits": 5}])
def test_renderings(make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    for mode in ("ansi", "rgb_array"):
        env = make(render_mode=mode, **kwargs)
        env.reset(seed=0)
        env.action_space.seed(0)
        shown = [env.render()]
        for _ in range(3):
            _, _, done, _, _ = env.step(env.action_space.sample())
            shown.append(env.render())
            if done:
                break
        if mode == "ansi":
            assert "0 own" in shown[0]
            assert "1 next" in shown[0]
            assert any("kept" in text or "discarded" in text for text in shown)
            assert "similar" in shown[-1]
        else:
            assert {picture.shape for picture in shown} == {shown[0].shape}
            assert shown[0].dtype == np.uint8


def test_it_is_a_vec_env_of_stable_baselines3_and_learns(make: Callable[..., Any]) -> None:
    from stable_baselines3 import PPO

    from hashgym.integrations.sb3 import HashVecEnv

    envs = HashVecEnv(make(16, codes=2))
    PPO("MultiInputPolicy", envs, n_steps=4, batch_size=32, seed=0, device="cpu").learn(128)


def test_spec_round_trip() -> None:
    env = gym.make("MultiCodeHashing-v0", base="ksh", bits=8, codes=2)
    assert env.spec is not None
    assert gym.make(EnvSpec.from_json(env.spec.to_json())).unwrapped.task == env.unwrapped.task
    assert gym.make("hashgym/MultiCodeHashing-v0", base="ksh", bits=8).unwrapped.base is env.unwrapped.base


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"codes": 0}, "codes must be at least 1"),
        ({"bits": 8, "group_bits": 12}, "group_bits=12 is longer than the code"),
        ({"group_bits": 2.5}, "group_bits must be an integer"),
        ({"keep": 1}, "keep must be True or False, got 1"),
        ({"counterfactual": "no"}, "counterfactual must be True or False"),
        ({"code_dropout": 1.0}, "from 0 to below 1, got 1.0"),
        ({"code_dropout": -0.1}, "code_dropout must be a finite number of at least 0"),
        ({"code_copies": 0}, "code_copies must be at least 1"),
        ({"action": "index", "bits": 16}, "group_bits <= 9, as one more bit keeps the code"),
        ({"action": "index", "bits": 16, "keep": False}, "group_bits <= 10"),
        ({"action": "bit"}, "action must be"),
        ({"base": "lsh"}, "no pairwise loss"),
        ({"base": "dhc"}, "neither a hasher; did you mean 'dch'|neither a hasher"),
        ({"price": -1}, "price must be a finite number of at least 0"),
        ({"loss": [[1, 2]]}, "loss must be a table"),
        ({"regions_per_episode": 2}, "regions_per_episode"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiCodeHashingEnv(**kwargs)
    with pytest.raises(ValueError, match=message):
        MultiCodeHashingVectorEnv(2, **kwargs)


def test_wrong_arguments_are_found_before_the_base_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "fit_once", lambda *_: pytest.fail("the base was fitted"))
    for kwargs, message in (
        ({"bits": 11, "group_bits": 12}, "longer than the code"),
        ({"bits": 11, "group_bits": 2.5}, "must be an integer"),
        ({"bits": 11, "action": "index"}, "one more bit keeps the code"),
        ({"bits": 11, "action": "bit"}, "action must be"),
        ({"bits": 11, "loss": [[1, 2], [3, 4]]}, "loss must be a table"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiCodeHashingEnv(**kwargs)  # type: ignore[arg-type]


def test_wrong_actions_and_data(make: Callable[..., Any]) -> None:
    env = make(2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros((2, 13), np.int8))
    env.reset(seed=0)
    before = env.get_state()
    for action, message in ((np.zeros((2, 12)), "shape"), (np.full((2, 13), 2), "must be 0 or 1")):
        with pytest.raises(ValueError, match=message):
            env.step(action)
    assert_same(env.get_state(), before)
    with pytest.raises(DataError, match="pixels or activations"):
        MultiCodeHashingEnv("digits-pixels")
