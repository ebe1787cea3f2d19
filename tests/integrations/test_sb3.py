"""HashVecEnv: equal to the vector environment step for step and to SB3's own DummyVecEnv; SB3's whole interface."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics, TransformReward
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from hashgym import hashers
from hashgym.data import HashingDataset
from hashgym.integrations.sb3 import HashVecEnv

BITS, REGIONS = "BitGroupHashing-v0", "RegionKeep-v0"
CASES: list[tuple[str, dict[str, Any]]] = [
    (BITS, {"bits": 10, "group_bits": 4}),
    (BITS, {"bits": 10, "group_bits": 4, "action": "index", "reward": "average_precision"}),
    (BITS, {"bits": 8, "group_bits": 4, "action": "probability", "counterfactual": True}),
    (BITS, {"bits": 6, "group_bits": 6}),  # every step ends an episode
    (REGIONS, {}),
    (REGIONS, {"regions_per_episode": 3, "price": 0.02}),
]
TINY: dict[str, Any] = {"net_arch": [8]}  # copied for every model, because SB3 adds to it
Make = Callable[..., Any]


@pytest.fixture
def make(multi_label: HashingDataset) -> Make:
    """Makes either environment on small data, a vector one if given ``num_envs``."""
    rng = np.random.default_rng(8)
    shift = rng.standard_normal((len(multi_label), 4, multi_label.dim)).astype(np.float32)
    regions = dataclasses.replace(multi_label, train_regions=multi_label.features[:, None] + shift)
    base = hashers.make("dch", bits=12, hidden=16, updates=5)
    base.fit(regions.features[regions.train], regions.labels[regions.train])

    def build(name: str, num_envs: int | None = None, **task: Any) -> Any:
        own = {"dataset": multi_label} if name == BITS else {"dataset": regions, "base": base}
        settings = own | task
        return gym.make(name, **settings) if num_envs is None else gym.make_vec(name, num_envs=num_envs, **settings)

    return build


def sample(envs: Any) -> NDArray[Any]:
    """Return an action of every environment."""
    return envs.action_space.sample()


# ---- the numbers


@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_step_equals_the_vector_environments(name: str, task: dict[str, Any], make: Make) -> None:
    native, adapter = make(name, 5, **task), HashVecEnv(make(name, 5, **task))
    adapter.seed(7)
    observation, info = native.reset(seed=7)
    assert data_equivalence(adapter.reset(), observation)
    assert data_equivalence(adapter.last_info, info)
    native.action_space.seed(0)
    returns, steps, episodes = np.zeros(5), 0, 0
    for _ in range(10):
        actions = sample(native)
        observation, reward, terminated, _, info = native.step(actions)
        got, got_reward, ended, infos = adapter.step(actions)
        assert data_equivalence(got, observation)
        assert data_equivalence(got_reward, reward)
        assert data_equivalence(ended, terminated)
        last = info.pop("final_obs", None)
        assert data_equivalence({k: v for k, v in adapter.last_info.items() if k != "final_obs"}, info)
        returns, steps = returns + reward, steps + 1
        if last is None:
            assert infos == [{}] * 5
            continue
        for index in range(5):
            assert set(infos[index]) == {"terminal_observation", "episode", "TimeLimit.truncated"}
            assert data_equivalence(infos[index]["terminal_observation"], last[index])
            assert infos[index]["TimeLimit.truncated"] is False
            episode = infos[index]["episode"]
            assert (episode["r"], episode["l"]) == (returns[index], steps)
            assert [type(episode[key]) for key in "rlt"] == [float, int, float]
        returns, steps, episodes = np.zeros(5), 0, episodes + 1
    assert episodes >= 3


@pytest.mark.parametrize(("name", "task"), CASES)
def test_one_environment_equals_sb3s_own_vector_environment_of_the_scalar_one(
    name: str, task: dict[str, Any], make: Make
) -> None:
    adapter, dummy = HashVecEnv(make(name, 1, **task)), DummyVecEnv([lambda: Monitor(make(name, **task))])
    assert (adapter.observation_space, adapter.action_space) == (dummy.observation_space, dummy.action_space)
    adapter.seed(3)
    dummy.seed(3)
    assert data_equivalence(adapter.reset(), dict(dummy.reset()))
    adapter.action_space.seed(0)
    for _ in range(8):
        action = np.asarray(adapter.action_space.sample())[None]
        (observation, reward, ended, infos), theirs = adapter.step(action), dummy.step(action)
        assert data_equivalence(observation, dict(theirs[0]))
        np.testing.assert_array_equal(reward.astype(np.float32), theirs[1])
        np.testing.assert_array_equal(ended, theirs[2])
        if ended[0]:
            assert data_equivalence(infos[0]["terminal_observation"], theirs[3][0]["terminal_observation"])
            assert infos[0]["TimeLimit.truncated"] is theirs[3][0]["TimeLimit.truncated"]
            assert infos[0]["episode"]["r"] == pytest.approx(theirs[3][0]["episode"]["r"], abs=1e-6)
            assert infos[0]["episode"]["l"] == theirs[3][0]["episode"]["l"]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_vec_monitor_gives_the_same_statistics(name: str, task: dict[str, Any], make: Make) -> None:
    plain = HashVecEnv(make(name, 4, **task))
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):  # its own statistics are as good
        monitored = VecMonitor(HashVecEnv(make(name, 4, **task)))
    for envs in (plain, monitored):
        envs.seed(0)
        envs.reset()
    monitored.action_space.seed(0)
    for _ in range(7):
        actions = np.stack([monitored.action_space.sample() for _ in range(4)])
        *_, ended, own = plain.step(actions)
        *_, theirs = monitored.step(actions)
        for a, b in zip(own, theirs, strict=True) if ended[0] else ():
            assert a["episode"]["r"] == pytest.approx(b["episode"]["r"], rel=1e-6, abs=1e-7)
            assert a["episode"]["l"] == b["episode"]["l"]


def test_rewards_are_normalised_and_final_infos_survive(make: Make) -> None:
    envs = VecNormalize(HashVecEnv(make(BITS, 4, bits=8, group_bits=4)), norm_obs=False)
    envs.seed(0)
    envs.reset()
    actions = np.zeros((4, 4), np.int8)
    for _ in range(6):
        _, reward, ended, infos = envs.step(actions)
        assert np.isfinite(reward).all()
        assert not np.array_equal(reward, envs.get_original_reward())
    assert ended.all()
    np.testing.assert_array_equal(infos[2]["terminal_observation"]["code"], np.full(8, -1, np.float32))


def test_wrappers_around_the_vector_environment_stay(make: Make) -> None:
    plain = HashVecEnv(make(BITS, 3, bits=8, group_bits=4))
    wrapped = HashVecEnv(
        TransformReward(RecordEpisodeStatistics(make(BITS, 3, bits=8, group_bits=4)), lambda r: 10 * r)
    )
    for envs in (plain, wrapped):
        envs.seed(0)
        envs.reset()
    for _ in range(2):
        actions = np.ones((3, 4), np.int8)
        np.testing.assert_array_equal(wrapped.step(actions)[1], 10 * plain.step(actions)[1])
    assert "episode" in wrapped.last_info
    assert wrapped.env_is_wrapped(RecordEpisodeStatistics) == [True] * 3
    assert wrapped.env_is_wrapped(TransformReward, indices=1) == [True]
    assert plain.env_is_wrapped(Monitor) == [True] * 3  # whose statistics are in the infos
    assert plain.env_is_wrapped(RecordEpisodeStatistics) == [False] * 3
    assert wrapped.get_attr("episode_count") == [3] * 3  # of a wrapper
    assert wrapped.get_attr("task", indices=[0])[0].bits == 8  # of the environment inside


# ---- seeds, options, state, attributes


def test_a_seed_is_used_once(make: Make) -> None:
    envs = HashVecEnv(make(BITS, 3))
    assert envs.seed(5) == [5, 5, 5]
    first, second = envs.reset(), envs.reset()
    assert not np.array_equal(first["image"], second["image"])
    envs.seed(5)
    assert data_equivalence(envs.reset(), first)
    assert data_equivalence(envs.reset(), second)
    assert len(set(envs.seed())) == 1


@pytest.mark.parametrize("monitored", [False, True])
def test_options_choose_the_images_of_one_reset(monitored: bool, make: Make, multi_label: HashingDataset) -> None:
    adapter = HashVecEnv(make(BITS, 3))
    envs = VecMonitor(adapter) if monitored else adapter
    images = multi_label.train[[4, 0, 9]]
    for options in ({"index": images}, [{"index": image} for image in images]):
        envs.set_options(options)
        np.testing.assert_array_equal(envs.reset()["image"], multi_label.features[images])
        np.testing.assert_array_equal(adapter.last_info["index"], images)
        assert not np.array_equal(envs.reset()["image"], multi_label.features[images])
    envs.set_options([{"index": image} for image in images])
    envs.set_options()
    assert not np.array_equal(envs.reset()["image"], multi_label.features[images])


def test_options_that_a_reset_rejects_are_not_kept(make: Make) -> None:
    envs = HashVecEnv(make(BITS, 3))
    envs.set_options({"index": 4})
    with pytest.raises(ValueError, match="must name 3 image"):
        envs.reset()
    envs.reset()


def test_options_of_regions(make: Make) -> None:
    envs = HashVecEnv(make(REGIONS, 2, regions_per_episode=2))
    envs.set_options([{"regions": [3, 1]}, {"regions": [0, 2]}])
    envs.reset()
    np.testing.assert_array_equal(envs.last_info["region"], [3, 0])


@pytest.mark.parametrize(
    "options", [[{"index": 0}], [{"index": 0}, {}, {"index": 1}], [{"index": 0}, {"regions": 1}, {"index": 0}]]
)
def test_options_of_some_environments_are_rejected(options: list[dict[str, int]], make: Make) -> None:
    with pytest.raises(ValueError, match="a list of 3 dicts"):
        HashVecEnv(make(BITS, 3)).set_options(options)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_state_restores_everything_and_the_statistics(name: str, task: dict[str, Any], make: Make) -> None:
    envs, other = HashVecEnv(make(name, 3, **task)), HashVecEnv(make(name, 3, **task))
    envs.seed(1)
    observation = envs.reset()
    envs.envs.action_space.seed(0)
    actions = [sample(envs.envs) for _ in range(7)]
    observation, *_ = envs.step(actions[0])
    state = envs.get_state()
    assert data_equivalence(other.set_state(state), observation)
    assert {"index", "_index"} <= set(other.last_info)
    for action in actions[1:]:
        ours, theirs = envs.step(action), other.step(action)
        for index in range(3):
            for infos in (ours[3], theirs[3]):
                infos[index].get("episode", {}).pop("t", None)
        assert all(data_equivalence(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
        assert data_equivalence(ours[3], theirs[3])
    envs.set_state(envs.envs.unwrapped.get_state())  # without statistics: they start from zero
    with pytest.raises(ValueError, match="other arguments"):
        HashVecEnv(make(name, 2, **task)).set_state(state)


def test_a_state_goes_through_one_file_of_arrays(make: Make, tmp_path: Path) -> None:
    for name in (BITS, REGIONS):
        envs, again = (
            HashVecEnv(make(name, 3, **({"bits": 6, "group_bits": 2} if name == BITS else {}))) for _ in "ab"
        )
        envs.seed(1)
        envs.reset()
        action = np.ones_like(sample(envs.envs))
        envs.step(action)
        np.savez(tmp_path / "state.npz", **envs.get_state())
        with np.load(tmp_path / "state.npz") as state:
            again.set_state(state)
        for _ in range(4):
            ahead, taken_up = envs.step(action), again.step(action)
            assert data_equivalence(ahead[:3], taken_up[:3])
            assert [i.get("episode", {}).get("r") for i in ahead[3]] == [
                i.get("episode", {}).get("r") for i in taken_up[3]
            ]


def test_attributes_are_shared_by_all_environments(make: Make) -> None:
    envs = HashVecEnv(make(BITS, 3))
    native = envs.envs.unwrapped
    native.curriculum = 1
    assert envs.get_attr("curriculum") == [1, 1, 1]
    assert envs.get_attr("curriculum", indices=2) == [1]
    VecMonitor(envs).set_attr("curriculum", 2)
    assert native.curriculum == 2
    envs.set_attr("curriculum", 3, indices=range(3))
    assert native.curriculum == 3
    with pytest.raises(ValueError, match="for all"):
        envs.set_attr("curriculum", 4, indices=[0, 2])
    for wrong in (lambda: envs.set_attr("curiculum", 4), lambda: envs.get_attr("curiculum")):
        with pytest.raises(AttributeError, match="BitGroupHashingVectorEnv has no attribute 'curiculum'"):
            wrong()
    assert native.curriculum == 3
    assert envs.has_attr("dataset")
    assert not envs.has_attr("curiculum")
    envs.reset()
    assert len(envs.env_method("get_state")) == 3


def test_a_curriculum_sets_arguments_through_wrappers(make: Make) -> None:
    for name, key in ((BITS, "group_weight"), (BITS, "global_weight"), (REGIONS, "price")):
        native = RecordEpisodeStatistics(make(name, 4))
        envs, wanted = HashVecEnv(native), HashVecEnv(make(name, 4, **{key: 0.75}))
        VecMonitor(envs).set_attr(key, 0.75)
        assert envs.get_attr(key) == [0.75] * 4
        assert getattr(native.unwrapped, key) == 0.75
        for each in (envs, wanted):
            each.seed(2)
            each.reset()
        action = np.ones_like(sample(native))
        for _ in range(4):
            np.testing.assert_array_equal(envs.step(action)[1], wanted.step(action)[1])
        with pytest.raises(ValueError, match=f"{key} must be"):
            envs.set_attr(key, np.inf)
        assert envs.get_attr(key, indices=0) == [0.75]


def test_masks_of_each_environment_where_there_are_masks(make: Make) -> None:
    envs = HashVecEnv(make(BITS, 3, bits=10, group_bits=4))
    envs.reset()
    for _ in range(2):
        envs.step(np.zeros((3, 4), np.int8))
    wanted = [1, 1, 1, 1, 1, 0, 1, 0]  # two bits are left for four places
    np.testing.assert_array_equal(get_action_masks(envs), np.tile(wanted, (3, 1)))
    np.testing.assert_array_equal(envs.env_method("action_masks", indices=[1]), [wanted])
    supported = [(BITS, {}, True), (BITS, {"action": "index", "group_bits": 4}, True)]
    for name, task, wanted_ in [*supported, (BITS, {"action": "probability"}, False), (REGIONS, {}, False)]:
        assert is_masking_supported(HashVecEnv(make(name, 2, **task))) is wanted_
        assert is_masking_supported(VecMonitor(HashVecEnv(make(name, 2, **task)))) is wanted_


def test_rendering(make: Make, multi_label: HashingDataset) -> None:
    pytest.importorskip("PIL")
    envs = HashVecEnv(make(BITS, 3, render_mode="rgb_array"))
    envs.reset()
    images = envs.get_images()
    assert len(images) == 3
    assert images[0].dtype == np.uint8
    height, width, _ = images[0].shape
    assert envs.render().shape == (2 * height, 2 * width, 3)
    texts = HashVecEnv(make(BITS, 2, render_mode="ansi"))
    texts.reset()
    assert [type(text) for text in texts.env_method("render")] == [str, str]
    with pytest.warns(UserWarning, match="rgb_array"):
        assert texts.get_images() == [None, None]
    assert HashVecEnv(make(BITS, 2)).render_mode is None
    envs.close()
    assert envs.envs.closed


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        (lambda make: make(BITS), "or pass the scalar one to SB3 directly"),
        (lambda make: SyncVectorEnv([lambda: make(BITS)]), "without vectorization_mode"),
        (lambda make: gym.make_vec("CartPole-v1", num_envs=2), "native vector environment of hashgym"),
        (lambda make: HashVecEnv(make(BITS, 2)), "got HashVecEnv: make it with gym.make_vec"),
        (lambda make: make(BITS, 2, backend="torch"), "without backend='torch'"),
        (lambda make: BITS, "got str: make it with gym.make_vec"),
        (lambda make: make(BITS, 2, autoreset_mode="NextStep"), "'NextStep': leave autoreset_mode out"),
        (lambda make: make(REGIONS, 2, autoreset_mode="Disabled"), "'Disabled': leave autoreset_mode out"),
    ],
)
def test_anything_else_is_rejected(wrong: Callable[[Make], Any], fix: str, make: Make) -> None:
    with pytest.raises(ValueError, match=re.escape(fix)):
        HashVecEnv(wrong(make))


# ---- SB3 on the environments


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.filterwarnings("ignore:.*WARN.*:UserWarning")
def test_scalar_environments_pass_both_checkers(name: str, task: dict[str, Any], make: Make) -> None:
    env = make(name, **task)
    gymnasium_check(env.unwrapped, skip_render_check=True)
    sb3_check(env)


@pytest.mark.parametrize("name", [BITS, REGIONS])
def test_ppo_takes_the_scalar_environment_directly(name: str, make: Make) -> None:
    model = PPO("MultiInputPolicy", make(name), n_steps=8, batch_size=8, n_epochs=1, policy_kwargs={**TINY})
    assert model.learn(16).num_timesteps == 16


@pytest.mark.parametrize(
    ("algorithm", "name", "task", "settings"),
    [
        (PPO, BITS, {}, {"n_steps": 4, "batch_size": 8}),
        (PPO, BITS, {"action": "probability"}, {"n_steps": 4, "batch_size": 8}),
        (PPO, REGIONS, {"regions_per_episode": 2}, {"n_steps": 4, "batch_size": 8}),
        (DQN, BITS, {"action": "index", "group_bits": 4}, {"learning_starts": 8, "batch_size": 8}),
        (DQN, REGIONS, {}, {"learning_starts": 8, "batch_size": 8}),
        (SAC, BITS, {"action": "probability"}, {"learning_starts": 8, "batch_size": 8}),
    ],
)
def test_algorithms_run_and_log_episode_statistics(
    algorithm: type[BaseAlgorithm], name: str, task: dict[str, Any], settings: dict[str, Any], make: Make
) -> None:
    envs = HashVecEnv(make(name, 4, **task))
    small = {} if algorithm is PPO else {"buffer_size": 100}
    model = algorithm("MultiInputPolicy", envs, seed=0, policy_kwargs={**TINY}, **settings, **small)
    model.learn(32)
    assert model.num_timesteps == 32
    steps = -(-24 // task.get("group_bits", 12)) if name == BITS else task.get("regions_per_episode", 1)
    assert {episode["l"] for episode in model.ep_info_buffer} == {steps}
    assert all(np.isfinite(episode["r"]) for episode in model.ep_info_buffer)
    mean, _ = evaluate_policy(model, envs, n_eval_episodes=4, warn=False)
    assert np.isfinite(mean)
    assert envs._running == [{}] * 4  # the shared dicts are unchanged


@pytest.mark.parametrize("name", [BITS, REGIONS])
def test_an_evaluation_counts_episodes_without_a_monitor_and_a_warning(name: str, make: Make) -> None:
    envs = HashVecEnv(make(name, 3))
    model = PPO("MultiInputPolicy", envs, n_steps=4, batch_size=12, seed=0, policy_kwargs={**TINY})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.seed(0)
        returns, lengths = evaluate_policy(model, envs, n_eval_episodes=6, return_episode_rewards=True)
    assert lengths == [2 if name == BITS else 1] * 6
    assert returns == pytest.approx(returns_by_hand(model, make(name, 3)), abs=1e-5)


def returns_by_hand(model: BaseAlgorithm, envs: Any) -> list[float]:
    """Returns of two episodes in each environment, by hand."""
    observation, _ = envs.reset(seed=0)
    total, returns = np.zeros(envs.num_envs), []
    while len(returns) < 2 * envs.num_envs:
        observation, reward, ended, _, _ = envs.step(model.predict(observation, deterministic=True)[0])
        total += reward
        if ended[0]:
            returns += total.tolist()
            total = np.zeros(envs.num_envs)
    return returns


@pytest.mark.parametrize(("name", "task"), CASES)
def test_flat_observations_are_one_array(name: str, task: dict[str, Any], make: Make) -> None:
    parts, flat = HashVecEnv(make(name, 4, **task)), HashVecEnv(make(name, 4, flat=True, info="flat", **task))
    sizes = flat.get_attr("slices")[0]
    for envs in (parts, flat):
        envs.seed(1)
        envs.action_space.seed(1)
    seen = parts.reset(), flat.reset()
    for _ in range(8):
        for key, where in sizes.items():
            wanted = np.eye(where.stop - where.start)[seen[0][key]] if key == "group" else seen[0][key]
            np.testing.assert_array_equal(seen[1][:, where], wanted)
        assert seen[1].dtype == np.float32
        actions = np.stack([flat.action_space.sample() for _ in range(4)])
        one, other = parts.step(actions), flat.step(actions)
        seen = one[0], other[0]
        np.testing.assert_array_equal(one[1], other[1])
        for ours, theirs in zip(other[3], one[3], strict=True):
            assert ours.keys() == theirs.keys()
            if "terminal_observation" in ours:
                image = ours["terminal_observation"][sizes["image"]]
                np.testing.assert_array_equal(image, theirs["terminal_observation"]["image"])
    if "action" not in task:
        PPO("MlpPolicy", flat, n_steps=4, batch_size=16, n_epochs=1, seed=0, policy_kwargs={**TINY}).learn(16)


@pytest.mark.parametrize("action", ["multidiscrete", "bits"])
def test_actions_of_either_kind_can_be_masked(action: str, make: Make) -> None:
    envs = HashVecEnv(make(BITS, 4, bits=7, group_bits=4, action=action))
    model = MaskablePPO("MultiInputPolicy", envs, n_steps=4, batch_size=8, seed=0, policy_kwargs={**TINY}).learn(32)
    actions, _ = model.predict(envs.reset(), action_masks=np.tile([True, False], 16).reshape(4, 8))
    assert (actions == 0).all()


def test_a_seed_determines_training(make: Make) -> None:
    weights = []
    for _ in range(2):
        envs = HashVecEnv(make(BITS, 4))
        model = PPO("MultiInputPolicy", envs, n_steps=4, batch_size=8, n_epochs=1, seed=0, policy_kwargs={**TINY})
        model.learn(32)
        weights.append(model.policy.state_dict())
    assert all(np.array_equal(weights[0][key].numpy(), weights[1][key].numpy()) for key in weights[0])


@pytest.mark.parametrize("task", [{}, {"action": "index"}])
def test_maskable_ppo_never_emits_a_surplus_bit(task: dict[str, Any], make: Make) -> None:
    surplus: list[bool] = []

    class CheckActions(BaseCallback):
        def _on_step(self) -> bool:
            if self.locals["dones"][0]:  # the action was of the last group, which has two bits of four
                action = self.locals["actions"].astype(int)
                surplus.append(bool((action >= 4).any() if task else action[:, 2:].any()))
            return True

    envs = HashVecEnv(make(BITS, 8, bits=6, group_bits=4, **task))
    model = MaskablePPO("MultiInputPolicy", envs, n_steps=8, batch_size=32, n_epochs=1, seed=0, policy_kwargs={**TINY})
    model.learn(8 * 64, callback=CheckActions())
    assert len(surplus) == 32
    assert not any(surplus)
    model.learn(8 * 8, callback=CheckActions(), use_masking=False)
    assert any(surplus)  # what masks are for


# ---- the documentation


def test_the_docstrings_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", str(HashVecEnv.__doc__), re.DOTALL)
    assert len(blocks) == 2
    shared: dict[str, Any] = {}
    for block in blocks:
        exec("\n".join(line.removeprefix("    ") for line in block.splitlines()), shared)
    recorded: dict[str, float] = {}

    class Keep(Logger):
        def record_mean(self, key: str, value: Any, exclude: Any = None) -> None:
            recorded[key] = value

    model = shared["model"]
    model.set_logger(Keep(None, []))
    model.learn(128, callback=shared["Components"](), reset_num_timesteps=False)
    assert {"rewards/group/triplet", "rewards/global/triplet"} <= set(recorded)
