"""Encoding with a policy: equal to episodes in its environment."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import hashgym
from hashgym import hashers
from hashgym.codes import CodeSets, unpack
from hashgym.data import DataError, HashingDataset
from hashgym.envs.bit_group_hashing import BitGroupHashingEnv
from hashgym.envs.region_keep import RegionKeepEnv
from hashgym.hashers import Hasher
from hashgym.integrations.sb3 import HashVecEnv

BITS, GROUP = 10, 4


def rule(observation: dict[str, Any]) -> np.ndarray:
    """A policy that depends on all of its observation."""
    mixed = observation["image"].sum(1) + observation["code"] @ np.linspace(1, 2, BITS) + observation["group"]
    return np.sin(mixed[:, None] * np.arange(1, GROUP + 1)) > 0


class Stateful:
    """A recurrent policy: Stable-Baselines3's predict, which returns and takes a state."""

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        assert deterministic
        assert episode_start.all() == (state is None)
        count = 0 if state is None else state
        assert (observation["group"] == count).all()
        return rule(observation).astype(np.float32), count + 1


@pytest.mark.parametrize("policy", [rule, Stateful()])
@pytest.mark.parametrize("batch_size", [7, 4096])
def test_encode_equals_episodes_in_the_environment(multi_label: HashingDataset, policy: Any, batch_size: int) -> None:
    encoded = hashgym.encode(policy, multi_label.features, bits=BITS, group_bits=GROUP, batch_size=batch_size)
    env = BitGroupHashingEnv(multi_label, bits=BITS, group_bits=GROUP)
    env.reset(seed=0)
    for image in multi_label.train[:10]:
        observation, _ = env.reset(options={"index": image})
        done = False
        while not done:
            batch = {key: np.asarray(part)[None] for key, part in observation.items()}
            observation, _, done, _, _ = env.step(rule(batch)[0])
        np.testing.assert_array_equal(encoded[image], observation["code"] > 0)


def test_no_images_have_no_codes() -> None:
    assert hashgym.encode(lambda seen: seen["code"], np.zeros((0, 5), np.float32), bits=8).shape == (0, 8)


def test_index_actions(multi_label: HashingDataset) -> None:
    encoded = hashgym.encode(lambda o: o["group"] + 5, multi_label.features, bits=6, group_bits=4)
    np.testing.assert_array_equal(encoded, np.tile([True, False, True, False, False, True], (60, 1)))


def test_probabilities_are_thresholded_above_one_half(multi_label: HashingDataset) -> None:
    encoded = hashgym.encode(lambda o: np.full((60, 2), [0.5, 0.6]), multi_label.features, bits=2, group_bits=2)
    np.testing.assert_array_equal(encoded, np.tile([False, True], (60, 1)))


def test_a_stable_baselines3_model_encodes(multi_label: HashingDataset) -> None:
    from stable_baselines3 import PPO

    model = PPO(
        "MultiInputPolicy", BitGroupHashingEnv(multi_label, bits=BITS, group_bits=GROUP), n_steps=8, batch_size=8
    )
    assert hashgym.encode(model, multi_label.features, bits=BITS, group_bits=GROUP).shape == (60, BITS)


@pytest.mark.parametrize("action", ["bits", "multidiscrete", "index", "probability"])
def test_a_model_trained_on_flat_observations_encodes(multi_label: HashingDataset, action: str) -> None:
    """Codes are the actions of episodes in the environment."""
    from stable_baselines3 import PPO

    env = BitGroupHashingEnv(multi_label, bits=BITS, group_bits=GROUP, flat=True, action=action)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0)
    encoded = hashgym.encode(model, multi_label.features, bits=BITS, group_bits=GROUP)
    for image in multi_label.train[:5]:
        observation, _ = env.reset(options={"index": image})
        done = False
        while not done:
            observation, _, done, _, _ = env.step(model.predict(observation, deterministic=True)[0])
        np.testing.assert_array_equal(encoded[image], observation[env.slices["code"]] > 0)


@pytest.mark.parametrize("bits", [5, 12, 20])
def test_groups_are_as_long_as_the_environments_by_default(multi_label: HashingDataset, bits: int) -> None:
    k = BitGroupHashingEnv(multi_label, bits=bits).task.group_bits
    seen: list[Any] = []
    encoded = hashgym.encode(lambda o: seen.append(o) or np.ones((60, k)), multi_label.features, bits=bits)
    assert encoded.all()
    assert len(seen) == -(-bits // 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros(6, np.float32)}, "shape"),
        ({"features": np.full((2, 6), np.nan, np.float32)}, "NaN"),
        ({"bits": 0}, "bits must be"),
        ({"group_bits": 11}, "longer than the code"),
        ({"batch_size": 0}, "batch_size"),
        (
            {"policy": lambda o: np.zeros((2, 3))},
            "the policy emits 3 bits at a time, but group_bits is 4: give the bits",
        ),
        ({"policy": lambda o: np.zeros((3, 4))}, r"shape \(2, 4\)"),
        ({"bits": "10"}, "bits must be an integer, got '10'"),
        ({"features": np.zeros((2, 6), object)}, r"real numbers \(n, D\), got ndarray object \(2, 6\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments = {"policy": rule, "features": np.zeros((2, 6), np.float32), "bits": BITS, "group_bits": GROUP}
    with pytest.raises(ValueError, match=message):
        hashgym.encode(**{**arguments, **change})


M, WIDTH, Q = 5, 6, 12


@pytest.fixture
def regional(multi_label: HashingDataset) -> HashingDataset:
    """The small dataset, whose fixed regions are also the random ones, so that the environment offers both."""
    rng = np.random.default_rng(8)
    regions = multi_label.features[:, None] + rng.standard_normal((60, M, WIDTH)).astype(np.float32) / 2
    return dataclasses.replace(multi_label, regions=regions, train_regions=regions)


@pytest.fixture
def base(regional: HashingDataset) -> Hasher:
    """A base hasher of 12 bits after few updates."""
    small = hashers.make("dch", bits=Q, hidden=16, updates=5)
    return small.fit(regional.features[regional.train], regional.labels[regional.train])


def chance(observation: dict[str, Any]) -> np.ndarray:
    """A probability that depends on all of the observation, row by row."""
    mixed = observation["image"].sum(1) - 2 * observation["region"] @ np.linspace(1, 2, WIDTH)
    for weight, key in enumerate(("image_code", "region_code", "kept"), start=1):
        if key in observation:
            mixed = mixed + weight * observation[key] @ np.linspace(1, 2, Q)
    return np.round(0.5 + 0.5 * np.sin(mixed.astype(np.float64)), 3)


class Predicts:
    """Stable-Baselines3's predict, whose actions are 0 and 1."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        assert deterministic
        return (chance(observation) >= 0.4).astype(np.int64), None


class Believes:
    """An agent with keep_probability."""

    def keep_probability(self, observation: Any) -> np.ndarray:
        return chance(observation)

    def predict(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("actions say less than probabilities")


@pytest.mark.parametrize("policy", [chance, Predicts(), Believes()])
@pytest.mark.parametrize("turns", [1, 3, M])
@pytest.mark.parametrize("batch_size", [7, 1024])
def test_code_sets_equal_episodes_in_the_environment(
    regional: HashingDataset, base: Hasher, policy: Any, turns: int, batch_size: int
) -> None:
    """Every observation is one of the environment, and the same regions are kept."""
    shown: list[dict[str, np.ndarray]] = []

    def recording_policy(observation: dict[str, Any]) -> np.ndarray:
        shown.append({key: np.array(part) for key, part in observation.items()})
        return decide(observation)

    def decide(observation: dict[str, Any]) -> np.ndarray:
        if hasattr(policy, "keep_probability"):
            return policy.keep_probability(observation)
        if hasattr(policy, "predict"):
            return policy.predict(observation, deterministic=True)[0]
        return policy(observation)

    assert regional.regions is not None
    regions = regional.regions[:, :turns]
    arguments: dict[str, Any] = {"threshold": 0.4, "sequential": turns > 1, "batch_size": batch_size}
    sets = hashgym.encode_regions(policy, base, regional.features, regions, **arguments)
    recorded = hashgym.encode_regions(recording_policy, base, regional.features, regions, **arguments)
    np.testing.assert_array_equal(sets.words, recorded.words)
    np.testing.assert_array_equal(sets.kept, recorded.kept)
    batches = -(-60 // batch_size)
    assert len(shown) == batches * turns
    seen = {
        key: np.concatenate(
            [np.stack([one[key] for one in shown[b * turns : (b + 1) * turns]]) for b in range(batches)], 1
        )
        for key in shown[0]
    }  # (turns, n, ...)

    env = RegionKeepEnv(regional, base=base, regions_per_episode=turns)
    assert set(seen) == set(env.observation_space.keys())  # type: ignore[attr-defined]
    for image in regional.train[:20]:
        observation, _ = env.reset(options={"index": int(image), "regions": list(range(turns))})
        for turn in range(turns):
            for key, part in observation.items():
                assert part.dtype == seen[key].dtype
                np.testing.assert_array_equal(seen[key][turn, image], part)
            action = decide({key: np.asarray(part)[None] for key, part in observation.items()})[0] >= 0.4
            observation, *_ = env.step(int(action))
        kept = env.get_state()["kept"].reshape(1, 1 + turns, -1)  # a place that is not kept repeats the first
        np.testing.assert_array_equal(sets.filled[image], kept[0])


def test_the_policy_decides(regional: HashingDataset, base: Hasher) -> None:
    """The policies above keep some and discard some, also if called for one region at a time."""
    counts = [
        hashgym.encode_regions(chance, base, regional.features, regional.regions, threshold=0.4, sequential=sequential)
        .kept[:, 1:]
        .mean()
        for sequential in (False, True)
    ]
    assert all(0.2 < count < 0.8 for count in counts)
    assert counts[0] != counts[1]  # what was kept before is seen


@pytest.mark.parametrize("sequential", [False, True])
def test_thresholds(regional: HashingDataset, base: Hasher, sequential: bool) -> None:
    def at(threshold: float, policy: Any = chance) -> CodeSets:
        arguments: dict[str, Any] = {"threshold": threshold, "sequential": sequential}
        return hashgym.encode_regions(policy, base, regional.features, regional.regions, **arguments)

    assert regional.regions is not None
    own, offered = base.encode(regional.features), base.encode(regional.regions.reshape(-1, WIDTH)).reshape(60, M, Q)
    for image, (words, kept) in enumerate(zip(at(0).words, at(0).kept, strict=True)):
        bits = unpack(words, Q)
        np.testing.assert_array_equal(bits, np.concatenate([own[image][None], offered[image]]))
        assert kept.sum() == len({tuple(code) for code in bits.tolist()})
        assert len({tuple(code) for code in bits[kept].tolist()}) == kept.sum()  # equal codes once
    np.testing.assert_array_equal(at(0, lambda o: np.zeros(60)).kept, at(0).kept)
    np.testing.assert_array_equal(at(1, lambda o: np.ones(60)).kept, at(0).kept)  # >=, not >
    np.testing.assert_array_equal(at(0.5, lambda o: np.full(60, 0.5)).kept, at(0).kept)
    none = at(np.nextafter(0.5, 1), lambda o: np.full(60, 0.5))
    assert none.anhc == 1  # its own always
    np.testing.assert_array_equal(unpack(none.words[:, 0], Q), own)
    if not sequential:
        anhc = [at(threshold).anhc for threshold in np.linspace(0, 1, 9)]
        assert anhc == sorted(anhc, reverse=True)


def test_equal_codes_are_kept_once(regional: HashingDataset, base: Hasher) -> None:
    """Regions that are the image itself, or one another, add nothing."""
    x = regional.features
    regions = np.stack([x, x[::-1], x, x[::-1]], axis=1)
    sets = hashgym.encode_regions(lambda o: np.ones(60), base, x, regions)
    own = base.encode(x)
    different = (own != own[::-1]).any(axis=1)
    never = np.zeros(60, bool)
    np.testing.assert_array_equal(sets.kept.T, [~never, never, different, never, never])
    assert different.any()


def test_a_stable_baselines3_model_keeps_codes(regional: HashingDataset, base: Hasher) -> None:
    from stable_baselines3 import PPO

    for turns in (1, 3):
        env = RegionKeepEnv(regional, base=base, regions_per_episode=turns)
        model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0).learn(16)
        sets = hashgym.encode_regions(model, base, regional.features, regional.regions, sequential=turns > 1)
        assert (len(sets), sets.bits) == (60, Q)
        if turns == 1:
            assert regional.regions is not None
            kept = np.ones((60, 1 + M), bool)
            for r in range(M):
                code = base.encode(regional.regions[:, r])
                seen = {"image": regional.features, "region": regional.regions[:, r]} | {
                    key: np.where(bits, 1, -1).astype(np.float32)
                    for key, bits in (("image_code", base.encode(regional.features)), ("region_code", code))
                }
                kept[:, 1 + r] = model.predict(seen, deterministic=True)[0] == 1
            np.testing.assert_array_equal(sets.kept, CodeSets(sets.words, kept, Q).kept)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_model_trained_on_flat_observations_keeps_codes(regional: HashingDataset, base: Hasher, turns: int) -> None:
    from stable_baselines3 import PPO

    env = RegionKeepEnv(regional, base=base, regions_per_episode=turns, flat=True)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0)
    assert regional.regions is not None
    sets = hashgym.encode_regions(model, base, regional.features, regional.regions[:, :turns], sequential=turns > 1)
    decided = []
    for image in regional.train[:20]:
        observation, _ = env.reset(options={"index": int(image), "regions": list(range(turns))})
        for _ in range(turns):
            action, _ = model.predict(observation, deterministic=True)
            decided.append(int(action))
            observation, *_ = env.step(action)
        np.testing.assert_array_equal(sets.filled[image], env.get_state()["kept"].reshape(1 + turns, -1))
    assert 0 < np.mean(decided) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.01}, r"threshold is a probability, from 0 to 1, got 1\.01"),
        ({"threshold": -0.01}, "threshold is a probability"),
        ({"threshold": np.nan}, "threshold is a probability"),
        ({"regions": None}, r"images have no regions .*`hashgym features .*--regions 5 .*--train-regions 4"),
        ({"regions": np.zeros((3, 2, 5), np.float32)}, r"\(3, 6\) and \(3, 2, 5\)"),
        ({"regions": np.zeros((2, 2, 6), np.float32)}, r"\(3, 6\) and \(2, 2, 6\)"),
        ({"regions": np.zeros((3, 6), np.float32)}, r"regions \(n, R, D\), got"),
        ({"features": np.zeros(6, np.float32)}, r"\(n, D\)"),
        (
            {"features": np.zeros((3, 5), np.float32), "regions": np.zeros((3, 2, 5), np.float32)},
            "X has 5 features, but DCH is expecting 6 features",
        ),
        ({"features": np.full((3, 6), np.nan, np.float32)}, "NaN"),
        ({"regions": np.full((3, 2, 6), np.inf, np.float32)}, "infinity"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"base": hashers.make("dch", bits=Q)}, "not fitted"),
        ({"policy": lambda o: np.zeros(2)}, r"3 probabilities .* got shape \(2,\)"),
        ({"policy": lambda o: np.zeros((3, 1))}, r"got shape \(3, 1\)"),
        ({"policy": lambda o: np.full(3, np.nan)}, "from 0 to 1"),
        ({"policy": lambda o: np.full(3, 1.5)}, "from 0 to 1"),
        ({"policy": lambda o: np.full(3, -1)}, "from 0 to 1"),
    ],
)
def test_wrong_arguments_of_code_sets(base: Hasher, change: dict[str, Any], message: str) -> None:
    features, regions = np.zeros((3, 6), np.float32), np.zeros((3, 2, 6), np.float32)
    arguments = {"policy": chance, "base": base, "features": features, "regions": regions, **change}
    with pytest.raises(ValueError, match=message):
        hashgym.encode_regions(**arguments)
    if change.get("regions", 0) is None:
        with pytest.raises(DataError):
            hashgym.encode_regions(**arguments)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_keep_probabilities_serve_all_thresholds(regional: HashingDataset, base: Hasher, threshold: float) -> None:
    words, p = hashgym.keep_probabilities(chance, base, regional.features, regional.regions, batch_size=7)
    assert p.shape == words.shape[:2]
    assert (p[:, 0] == 1).all()
    sets = hashgym.encode_regions(chance, base, regional.features, regional.regions, threshold=threshold)
    same = CodeSets(words, p >= threshold, base.bits)
    np.testing.assert_array_equal(sets.words, same.words)
    np.testing.assert_array_equal(sets.kept, same.kept)


def trained(envs: VecEnv) -> PPO:
    """A model trained for a few episodes, and the statistics of its environment."""
    return PPO("MultiInputPolicy", envs, n_steps=8, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64)


def test_a_model_under_vec_normalize_sees_normalised_observations(multi_label: HashingDataset, tmp_path: Path) -> None:
    far = dataclasses.replace(multi_label, features=multi_label.features * 100 + 500)
    make = partial(gym.make_vec, "BitGroupHashing-v0", 4, dataset=far, bits=BITS, group_bits=GROUP)
    envs = VecNormalize(HashVecEnv(make()), norm_obs_keys=["image", "code"])
    model = trained(envs)
    mean, variance = envs.obs_rms["image"].mean, envs.obs_rms["image"].var
    assert abs(mean.mean()) > 100

    def by_hand(observation: dict[str, Any]) -> np.ndarray:
        seen = dict(observation)
        for key, rms in envs.obs_rms.items():
            seen[key] = np.clip((seen[key] - rms.mean) / np.sqrt(rms.var + envs.epsilon), -10, 10).astype(np.float32)
        return model.predict(seen, deterministic=True)[0]

    encoded = hashgym.encode(model, far.features, bits=BITS, group_bits=GROUP)
    np.testing.assert_array_equal(encoded, hashgym.encode(by_hand, far.features, bits=BITS, group_bits=GROUP))
    plain = hashgym.encode(lambda seen: model.predict(seen)[0], far.features, bits=BITS, group_bits=GROUP)
    assert (encoded != plain).mean() > 0.1
    np.testing.assert_array_equal(envs.obs_rms["image"].mean, mean)  # encoding is no training
    np.testing.assert_array_equal(envs.obs_rms["image"].var, variance)

    model.save(tmp_path / "model.zip")
    envs.save(str(tmp_path / "statistics.pkl"))
    loaded = PPO.load(tmp_path / "model.zip", VecNormalize.load(str(tmp_path / "statistics.pkl"), HashVecEnv(make())))
    np.testing.assert_array_equal(hashgym.encode(loaded, far.features, bits=BITS, group_bits=GROUP), encoded)


def test_vec_normalize_counts_for_regions_too() -> None:
    envs = VecNormalize(
        HashVecEnv(gym.make_vec("RegionKeep-v0", 4, base="lsh", bits=8, loss=np.zeros((2, 9)))),
        norm_obs_keys=["image", "region"],
    )
    model, base = trained(envs), envs.unwrapped.get_attr("base")[0]
    scenes = envs.unwrapped.get_attr("dataset")[0]

    def by_hand(observation: dict[str, Any]) -> np.ndarray:
        return model.predict(envs.normalize_obs(observation), deterministic=True)[0]

    images = scenes.features[:50], scenes.regions[:50]
    ours, wanted = (hashgym.encode_regions(policy, base, *images) for policy in (model, by_hand))
    np.testing.assert_array_equal(ours.filled, wanted.filled)


def test_other_wrappers_of_observations_are_rejected(multi_label: HashingDataset) -> None:
    def scaled(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return gym.wrappers.TransformObservation(env, lambda seen: seen, env.observation_space)

    env = gym.make("BitGroupHashing-v0", dataset=multi_label, bits=BITS, group_bits=GROUP)
    model = PPO("MultiInputPolicy", scaled(env), device="cpu")
    with pytest.raises(ValueError, match=r"TransformObservation, which encoding does not apply: give a function"):
        hashgym.encode(model, multi_label.features, bits=BITS, group_bits=GROUP)
    model = PPO("MultiInputPolicy", env, device="cpu")
    assert hashgym.encode(model, multi_label.features, bits=BITS, group_bits=GROUP).shape == (60, BITS)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "change", [{"bits": 16, "group_bits": 4}, {"group_bits": 5}, {"features": np.zeros((3, 5), np.float32)}]
)
def test_observations_a_policy_was_not_trained_on_are_rejected(flat: bool, change: dict[str, Any]) -> None:
    def policy(seen: Any) -> np.ndarray:
        n = len(seen if flat else seen["image"])
        return np.zeros((n, change.get("group_bits", GROUP)))

    env = gym.make("BitGroupHashing-v0", bits=BITS, group_bits=GROUP, flat=flat)
    features = env.unwrapped.dataset.features[:3]
    policy.observation_space = env.observation_space
    right = {"features": features, "bits": BITS, "group_bits": GROUP}
    if change.keys() != {"group_bits"}:
        assert hashgym.encode(policy, **right).shape == (3, BITS)
    with pytest.raises(ValueError, match=r"the policy was trained on observations .*: give the features, bits and"):
        hashgym.encode(policy, **right | change)


class Masked:
    """A policy of indices that prefers one which only a whole group has, as MaskablePPO of sb3-contrib."""

    action_space = gym.spaces.Discrete(2**3)

    def predict(
        self, observation: Any, state: Any, episode_start: Any, deterministic: bool, action_masks: Any = None
    ) -> tuple[Any, Any]:
        logits = np.tile([0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 3.0, 0.0], (len(observation["code"]), 1))
        return np.where(action_masks, logits, -np.inf).argmax(1), None


def test_the_last_group_has_only_the_indices_of_its_bits(multi_label: HashingDataset) -> None:
    encoded = hashgym.encode(Masked(), multi_label.features, bits=5, group_bits=3)
    assert (encoded == encoded[0]).all()
    env = BitGroupHashingEnv(multi_label, bits=5, group_bits=3, action="index")
    env.reset(seed=0)
    for best in (6, 1):
        observation, *_ = env.step(np.int64(best))
    np.testing.assert_array_equal(encoded[0], observation["code"] > 0)


def test_masks_of_indices_reach_a_model_under_vec_normalize(multi_label: HashingDataset) -> None:
    envs = HashVecEnv(gym.make_vec("BitGroupHashing-v0", 8, dataset=multi_label, bits=5, group_bits=3, action="index"))
    model = MaskablePPO(
        "MultiInputPolicy",
        VecNormalize(envs, norm_obs_keys=["image"]),
        n_steps=4,
        batch_size=32,
        n_epochs=1,
        device="cpu",
    )
    model.learn(32)
    largest = []

    def predict(observation: Any, *args: Any, action_masks: Any = None, **rest: Any) -> Any:
        action, state = MaskablePPO.predict(model, observation, *args, action_masks=action_masks, **rest)
        largest.append((action_masks is not None, int(action.max())))
        return action, state

    model.predict = predict
    hashgym.encode(model, multi_label.features, bits=5, group_bits=3)
    assert [masked for masked, _ in largest] == [True, True]
    assert largest[1][1] < 4


def test_further_codes_by_index_are_those_of_the_environment(multi_label: HashingDataset) -> None:
    base = hashers.make("ksh", bits=8).fit(multi_label.features, multi_label.labels)
    task: dict[str, Any] = {"dataset": multi_label, "base": base, "codes": 1, "group_bits": 4, "action": "index"}
    n = len(multi_label.train)
    envs = HashVecEnv(gym.make_vec("MultiCodeHashing-v0", n, **task))
    model = MaskablePPO("MultiInputPolicy", envs, n_steps=2, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(100)
    env = gym.make_vec("MultiCodeHashing-v0", n, **task)
    observation, info = env.reset(seed=0)
    for _ in range(2):
        masks = env.unwrapped.action_masks()
        action, _ = model.predict(observation, deterministic=True, action_masks=masks)
        observation, _, _, _, info = env.step(action)
    images = info["final_info"]["index"]
    sets = hashgym.encode_codes(model, base, multi_label.features[images], codes=1, group_bits=4)
    emitted = np.stack([shown["codes"][1] for shown in info["final_obs"]])
    kept = (emitted != 0).all(axis=1)
    np.testing.assert_array_equal(sets.kept[:, 1], kept)
    assert kept.any()
    np.testing.assert_array_equal(unpack(sets.words[kept, 1], 8), emitted[kept] > 0)


def test_a_code_whose_probability_is_the_threshold_is_kept(multi_label: HashingDataset) -> None:
    """Also where float32 would round it down."""
    base = hashers.make("itq", bits=4).fit(multi_label.features)
    flipped = lambda seen: np.hstack([seen["codes"][:, 0] < 0, np.full((len(seen["code"]), 1), 0.7)])  # noqa: E731
    sets = hashgym.encode_codes(flipped, base, multi_label.features, threshold=0.7)
    assert sets.kept.all()


def test_mapped_features_are_checked_a_part_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, (400_000, 64))  # a sparse file
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    tracemalloc.start()
    hashgym.policies._check_finite(features, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes / 4
