"""The torch back end equals the NumPy one, step by step, and keeps everything on its device."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hashgym import rewards
from hashgym.data import HashingDataset
from hashgym.envs import bit_group_hashing, torch_backend
from hashgym.envs.bit_group_hashing import BitGroupHashingVectorEnv
from hashgym.envs.torch_backend import BitGroupHashingTorchVectorEnv
from hashgym.envs.vector import make_vector_env
from hashgym.retrieval import torch_kernels
from hashgym.rewards import RewardError, RewardView, torch_view
from hashgym.rewards.torch_view import TensorView

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def spread(view: Any) -> Any:
    """A custom reward for both arrays and tensors; without a credit, so that bits are flipped one by one."""
    return view.code.sum(-1) * view.positives.sum(-1).sum(-1) - (view.others & view.similar & (view.distances < 3)).sum(
        -1
    )


# The arguments, and how far numbers may differ: float32 sums of probabilities and of tables come in another order.
VARIANTS: list[tuple[dict[str, Any], float]] = [
    ({}, 0),
    ({"bits": 32, "group_bits": 12, "counterfactual": True, "partners": 3}, 1e-6),
    ({"action": "probability", "counterfactual": True}, 1e-5),
    ({"action": "index", "group_bits": 5, "bits": 12, "reward": "average_precision", "counterfactual": True}, 1e-9),
    ({"action": "probability", "reward": "average_precision"}, 1e-9),
    (
        {
            "reward": {"name": "average_precision", "against": "partners"},
            "counterfactual": True,
            "bits": 7,
            "group_bits": 4,
        },
        1e-9,
    ),
    ({"reward": {"name": "weighted", "terms": {"triplet": 1, "average_precision": 2}}, "group_weight": 0.5}, 1e-9),
    ({"reward": "pairwise:dch", "counterfactual": True}, 1e-5),
    ({"reward": {"name": "pairwise:hashnet", "against": "partners"}, "counterfactual": True}, 1e-5),
    ({"reward": "balance", "counterfactual": True, "action": "probability"}, 1e-5),
    ({"reward": spread, "counterfactual": True, "global_weight": 0.0}, 1e-5),
    ({"group_scope": "prefix", "counterfactual": True, "bits": 10, "group_bits": 4}, 1e-6),
    ({"group_scope": "prefix", "counterfactual": True, "reward": "average_precision+0.5*balance"}, 1e-5),
    ({"group_scope": "prefix", "counterfactual": True, "reward": "pairwise:dch", "global_weight": 0.0}, 1e-5),
    ({"group_scope": "prefix", "action": "probability"}, 1e-5),
    ({"codebook_sample": 15, "reward": "average_precision+0.5*balance", "counterfactual": True}, 1e-5),
    ({"codebook_sample": 15, "reward": "pairwise:hashnet", "counterfactual": True}, 1e-5),
]


def twins(dataset: HashingDataset, num_envs: int, device: str = "cpu", **kwargs: Any) -> tuple[Any, Any]:
    """The same environment in NumPy and in torch."""
    native = gym.make_vec("BitGroupHashing-v0", num_envs=num_envs, dataset=dataset, **kwargs)
    torched = gym.make_vec(
        "BitGroupHashing-v0", num_envs=num_envs, dataset=dataset, backend="torch", device=device, **kwargs
    )
    assert isinstance(native, BitGroupHashingVectorEnv)
    assert isinstance(torched, BitGroupHashingTorchVectorEnv)
    return native, torched


def assert_equal(array: Any, tensor: Any, device: str, tolerance: float) -> None:
    """Equal structure and keys, dtypes and shapes, and values up to the tolerance; leaves are on the device."""
    if isinstance(array, dict):
        assert list(array) == list(tensor)
        for key in array:
            assert_equal(array[key], tensor[key], device, tolerance)
    elif isinstance(array, tuple):
        for one, other in zip(array, tensor, strict=True):
            assert_equal(one, other, device, tolerance)
    elif array.dtype == object:  # final_obs: one dict per environment there, one dict here
        stacked = {key: np.stack([one[key] for one in array]) for key in array[0]}
        assert_equal(stacked, tensor, device, tolerance)
    else:
        assert isinstance(tensor, torch.Tensor)
        assert tensor.device.type == device
        assert str(tensor.dtype).removeprefix("torch.") == str(array.dtype)
        np.testing.assert_allclose(tensor.cpu().numpy(), array, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kwargs", "tolerance"), VARIANTS)
def test_equal_to_numpy_step_by_step(
    multi_label: HashingDataset, kwargs: dict[str, Any], tolerance: float, device: str
) -> None:
    for seed, num_envs in ((0, 1), (1, 13), (2, 100)):  # 40 training images: many passes, and images twice in a batch
        native, torched = twins(multi_label, num_envs, device, **kwargs)
        assert torched.single_observation_space == native.single_observation_space
        assert torched.action_space == native.action_space
        assert torched.metadata == native.metadata
        assert_equal(native.reset(seed=seed), torched.reset(seed=seed), device, tolerance)
        native.action_space.seed(seed)
        for step in range(20):
            action = native.action_space.sample()
            given = action if step % 2 else torch.tensor(action, device=device)
            assert_equal(native.step(action), torched.step(given), device, tolerance)
            rows = np.arange(40)
            np.testing.assert_array_equal(torched.codebook.read(rows).cpu(), native.codebook.read(rows))
        index = multi_label.train[np.arange(num_envs) % 40]
        assert_equal(native.reset(options={"index": index}), torched.reset(options={"index": index}), device, 0)
        assert_equal(native.reset(), torched.reset(), device, 0)


def test_equal_to_numpy_where_torch_itself_counts(multi_label: HashingDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("distance_histograms", "average_precision_credit"):
        monkeypatch.setattr(torch_kernels, name, partial(getattr(torch_kernels, name), backend="torch"))
    for counterfactual in (True, False):
        test_equal_to_numpy_step_by_step(
            multi_label, {"reward": "average_precision", "counterfactual": counterfactual}, 1e-9, "cpu"
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", [0, 1])
def test_a_state_of_either_back_end_is_restored_in_the_other(
    multi_label: HashingDataset, device: str, source: int
) -> None:
    kwargs: dict[str, Any] = {"bits": 32, "reward": "average_precision", "counterfactual": True}
    for steps in (0, 1, 2, 4):  # right after the reset, within an episode, and in a later one
        envs, fresh = twins(multi_label, 6, device, **kwargs), twins(multi_label, 6, device, **kwargs)
        envs[0].action_space.seed(steps)
        actions = [envs[0].action_space.sample() for _ in range(steps + 5)]
        for env in envs:
            env.reset(seed=steps)
            for action in actions[:steps]:
                env.step(action)
        states = [env.get_state() for env in envs]
        assert states[0].keys() == states[1].keys()
        for key, part in states[0].items():
            assert type(part) is type(states[1][key])
            assert getattr(part, "dtype", None) == getattr(states[1][key], "dtype", None)
            np.testing.assert_array_equal(part, states[1][key])
        restored = [env.set_state(states[source]) for env in fresh]
        assert_equal(restored[0], restored[1], device, 0)
        went_on, taken_up = envs[source], fresh[1 - source]
        for action in actions[steps:]:
            results = [env.step(action) for env in (went_on, taken_up)]
            assert_equal(results[source], results[1 - source], device, 1e-9)
        results = [env.reset() for env in (went_on, taken_up)]
        assert_equal(results[source], results[1 - source], device, 0)


def test_a_state_is_a_copy(multi_label: HashingDataset) -> None:
    _, env = twins(multi_label, 4)
    env.reset(seed=0)
    env.step(torch.ones(4, 12))
    state = env.get_state()
    ahead = [env.step(torch.zeros(4, 12)) for _ in range(3)]
    env.set_state(state)
    again = [env.step(torch.zeros(4, 12)) for _ in range(3)]
    for (_, reward, *_), (_, other, *_) in zip(ahead, again, strict=True):
        assert torch.equal(reward, other)
    with pytest.raises(ValueError, match="codebook missing"):
        env.set_state({key: part for key, part in state.items() if key != "codebook"})


def test_pickle_round_trip_continues_the_episode(multi_label: HashingDataset) -> None:
    native, torched = twins(multi_label, 3)
    native.reset(seed=1)
    torched.reset(seed=1)
    again = pickle.loads(pickle.dumps(torched))
    for _ in range(3):
        action = native.action_space.sample()
        assert_equal(native.step(action), again.step(action), "cpu", 0)


def test_returned_tensors_are_never_changed_later(multi_label: HashingDataset) -> None:
    _, env = twins(multi_label, 6, bits=8, group_bits=4, counterfactual=True)
    env.action_space.seed(0)
    kept = [env.reset(seed=0)]
    copies = [pickle.loads(pickle.dumps(kept[0]))]
    for _ in range(5):
        kept.append(env.step(env.action_space.sample()))
        copies.append(pickle.loads(pickle.dumps(kept[-1])))
    for one, copy in zip(kept, copies, strict=True):
        torch.testing.assert_close(one, copy, rtol=0, atol=0)


class Flags(TorchDispatchMode):
    """Counts the numbers that Python reads from tensors: on a GPU each is a copy to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.read.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("action", ["bits", "probability", "index"])
@pytest.mark.parametrize("counterfactual", [False, True])
def test_a_step_reads_only_flags(
    multi_label: HashingDataset, action: str, counterfactual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("distance_histograms", "average_precision_credit"):
        monkeypatch.setattr(torch_kernels, name, partial(getattr(torch_kernels, name), backend="torch"))
    for reward in ("triplet", "average_precision", "balance"):
        _, env = twins(
            multi_label, 5, action=action, bits=8, group_bits=4, reward=reward, counterfactual=counterfactual
        )
        env.reset(seed=0)
        given = torch.zeros(5, dtype=torch.int64) if action == "index" else torch.zeros(5, 4)
        for _ in range(4):
            with Flags() as flags:
                env.step(given)
            assert len(flags.read) <= 1 + 2 * (1 + counterfactual)  # actions; value and credit of group and whole code
            assert set(flags.read) == {torch.bool}


def test_actions_with_a_gradient_leave_none_behind(multi_label: HashingDataset) -> None:
    _, env = twins(multi_label, 5, action="probability")
    env.reset(seed=0)
    observation, reward, *_ = env.step(torch.full((5, 12), 0.3, requires_grad=True))
    assert not reward.requires_grad
    assert not observation["code"].requires_grad


def test_the_callers_context_changes_nothing(multi_label: HashingDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast would round counts, inference mode makes tensors read-only, and the default dtype would spread."""
    monkeypatch.setattr(
        torch_kernels, "average_precision_credit", partial(torch_kernels.average_precision_credit, backend="torch")
    )
    native, torched = twins(multi_label, 9, reward="average_precision", counterfactual=True)
    native.action_space.seed(0)
    with torch.inference_mode():
        assert_equal(native.reset(seed=0), torched.reset(seed=0), "cpu", 0)
    contexts = [
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(),
        torch.enable_grad(),
        torch.no_grad(),
    ]
    torch.set_default_dtype(torch.float64)
    try:
        for context in contexts * 2:
            action = native.action_space.sample()
            with context:
                assert_equal(native.step(action), torched.step(torch.tensor(action)), "cpu", 1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


def test_autocast_does_not_round_counts() -> None:
    rng = np.random.default_rng(0)
    hot = [torch.tensor(rng.random(shape) < 0.5) for shape in ((3, 4), (3, 2), (999, 4), (999, 2))]
    with torch.autocast("cpu", torch.bfloat16):
        given = torch_kernels.distance_histograms(*hot, backend="torch")  # type: ignore[arg-type]
    for one, other in zip(given, torch_kernels.distance_histograms(*hot), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("action", "given"),
    [
        ("bits", np.zeros((3, 11))),
        ("bits", np.full((3, 12), 2)),
        ("bits", np.full((3, 12), 0.5)),
        ("probability", np.full((3, 12), np.nan)),
        ("probability", np.full((3, 12), 1.5)),
        ("index", np.full(3, 2**8)),
        ("index", np.full(3, -1)),
        ("index", np.ones(3)),
        ("index", np.ones(3, bool)),
        ("index", np.ones((3, 1), int)),
    ],
)
def test_wrong_actions_are_rejected_as_by_numpy(multi_label: HashingDataset, action: str, given: Any) -> None:
    native, torched = twins(multi_label, 3, action=action, group_bits=8 if action == "index" else 12)
    messages = []
    for env, tried in ((native, given), (torched, torch.tensor(given)), (torched, given)):
        env.reset(seed=0)
        before = env.get_state()
        with pytest.raises(ValueError, match="action") as caught:
            env.step(tried)
        messages.append(str(caught.value))
        np.testing.assert_array_equal(env.get_state()["codebook"], before["codebook"])
    assert len(set(messages)) == 1


def test_steps_outside_an_episode(multi_label: HashingDataset) -> None:
    _, env = twins(multi_label, 2)
    for call in (env.get_state, lambda: env.step(np.zeros((2, 12))), lambda: env.codebook):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            call()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda view: np.zeros(3),
            r"tensor of real numbers of shape \(3,\) on cpu, got ndarray float64 \(3,\)$",
        ),
        (lambda view: view.code.mean(), r"shape \(3,\) on cpu, got Tensor torch.float32 \(\) on cpu"),
        (lambda view: view.code, r"shape \(3,\) on cpu, got Tensor torch.float32 \(3, 12\)"),
        (lambda view: view.bits[:, 0], "real numbers .* got Tensor torch.bool"),
        (lambda view: None, "is a return missing"),
        (lambda view: view.code[:, 0] / 0, "must be finite, got nan in environment 0"),
        (lambda view: view.words, "no attribute 'words'"),
    ],
)
@pytest.mark.parametrize("counterfactual", [False, True])
def test_an_invalid_reward_is_named(
    multi_label: HashingDataset, reward: Any, message: str, counterfactual: bool
) -> None:
    _, env = twins(multi_label, 3, reward=reward, counterfactual=counterfactual)
    env.reset(seed=0)
    with pytest.raises(RewardError, match=message):
        env.step(torch.zeros(3, 12))


def test_an_invalid_credit_is_named(multi_label: HashingDataset) -> None:
    class Buggy:
        name = "buggy"
        result: Any

        def __call__(self, view: Any) -> Any:
            return view.code[:, 0]

        def value_and_credit(self, view: Any) -> Any:
            return self.result(view)

    for result, message in (
        (lambda view: (view.code[:, 0], view.code[:, 0]), r"its credit must be .* shape \(3, 12\)"),
        (lambda view: (view.code[:, 0], view.code / (view.code - 1)), "finite, got -?inf in environment 1 bit 2"),
        (lambda view: view.code, "a tuple"),
    ):
        Buggy.result = staticmethod(result)
        _, env = twins(multi_label, 3, reward=Buggy(), counterfactual=True)
        env.reset(seed=0)
        action = torch.zeros(3, 12)
        action[1, 2] = 1
        with pytest.raises(RewardError, match=message):
            env.step(action)


def test_the_view_has_the_names_and_numbers_of_the_numpy_view(multi_label: HashingDataset) -> None:
    seen: list[Any] = []
    envs = twins(multi_label, 9, reward=lambda view: seen.append(view) or view.code[:, 0], action="probability")
    for env in envs:
        env.reset(seed=0)
    action = envs[0].action_space.sample()
    for env in envs:
        env.step(action)
    one, other = seen
    assert isinstance(one, RewardView)
    assert isinstance(other, TensorView)
    packed, other_kinds = {"words", "label_words"}, {"with_code", "with_bit", "asarray", "numbers", "xp"}
    names = {name for name in dir(one) if not name.startswith("_")} - packed
    assert names == {name for name in dir(other) if not name.startswith("_")}
    for name in names - {*other_kinds, "codebook", "distances", "start", "scope", "last"}:
        assert_equal(getattr(one, name), getattr(other, name), "cpu", 1e-6)
    np.testing.assert_array_equal(one.distances, other.distances)  # integers of any type
    for field in ("start", "scope", "last"):
        assert getattr(one, field) == getattr(other, field)
    assert_equal(one.codebook.signs, other.codebook.signs, "cpu", 0)
    np.testing.assert_array_equal(one.codebook.label_words, other.codebook.label_words)
    assert (len(one.codebook), one.codebook.bits) == (len(other.codebook), other.codebook.bits)
    assert torch.equal(other.asarray(np.arange(3)), torch.arange(3))
    assert_equal(one.with_bit(3, 1).code, other.with_bit(3, 1).code, "cpu", 1e-6)
    assert_equal(one.numbers([1, 2], (2,)), other.numbers(torch.tensor([1, 2]), (2,)), "cpu", 0)
    flipped = other.with_code(1 - other.code)
    assert_equal(one.with_code(1 - one.code).positive_distances, flipped.positive_distances, "cpu", 1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_of_equal_rows_the_codebook_keeps_the_last(multi_label: HashingDataset, device: str) -> None:
    native, torched = twins(multi_label, 2, device, bits=9, group_bits=3)
    rng = np.random.default_rng(0)
    for env in (native, torched):
        env.reset(seed=0)
    for start in (0, 3, 5):
        rows, bits = rng.integers(0, 5, size=200), rng.random((200, 3)) < 0.5
        for env in (native, torched):
            env.codebook.write(rows, bits, start)
    every = np.arange(40)
    np.testing.assert_array_equal(torched.codebook.read(every).cpu(), native.codebook.read(every))
    np.testing.assert_array_equal(torched.codebook.span(2, 7).read(every).cpu(), native.codebook.span(2, 7).read(every))


def test_many_label_patterns_and_images_without_partners(multi_label: HashingDataset) -> None:
    """Partners drawn in torch are equal, also if images have labels of their own, or none, or all."""
    rng = np.random.default_rng(1)
    labels = (rng.random((60, 70)) < 0.04).astype(np.uint8)
    labels[multi_label.train[:3]] = 0
    labels[multi_label.train[3], :] = 1
    dataset = dataclasses.replace(multi_label, labels=labels, label_names=())
    native, torched = twins(dataset, 50, partners=5)
    native.reset(seed=0)
    torched.reset(seed=0)
    for _ in range(10):
        for key in ("rows", "positive_rows", "negative_rows"):
            np.testing.assert_array_equal(getattr(native._core, key), getattr(torched._core, key))
        native.reset()
        torched.reset()


def test_action_masks_and_renderings(multi_label: HashingDataset) -> None:
    envs = twins(multi_label, 3, bits=8, group_bits=5, render_mode="ansi")
    for env in envs:
        env.reset(seed=0)
    for _ in range(3):
        masks = [env.action_masks() for env in envs]
        assert masks[1].dtype == torch.bool
        np.testing.assert_array_equal(masks[0], masks[1])
        assert envs[0].render() == envs[1].render()
        for env in envs:
            env.step(np.zeros((3, 5), np.int8))
    picture = gym.make_vec("BitGroupHashing-v0", num_envs=1, backend="torch", device="cpu", render_mode="rgb_array")
    picture.reset(seed=0)
    picture.step(torch.ones(1, 12))
    assert picture.render()[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backend": "jax"}, "backend must be 'numpy' or 'torch', got 'jax'"),
        ({"device": "cpu"}, "is for backend='torch': add it, or leave device out"),
        ({"backend": "torch", "device": "gpu"}, "device must be 'auto' or cpu or cuda, got"),
        ({"backend": "torch", "device": "meta"}, "device must be 'auto' or cpu or cuda, got"),
        ({"backend": "torch", "device": "cuda:99"}, "use 'auto' or 'cpu'"),
        ({"backend": "torch", "bits": 0}, "bits must be at least 1, got 0"),
        ({"backend": "torch", "render_mode": "human"}, "render_mode"),
    ],
)
def test_wrong_arguments(multi_label: HashingDataset, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=multi_label, **kwargs)


def test_old_import_paths_warn() -> None:
    for name in ("TensorView", "TensorCodebook"):
        with pytest.warns(DeprecationWarning, match=f"hashgym.rewards.torch_view.{name}"):
            assert getattr(torch_backend, name) is getattr(torch_view, name)
    with pytest.warns(DeprecationWarning, match="hashgym.envs.vector.make_vector_env"):
        assert bit_group_hashing.make_vector_env is make_vector_env


def test_auto_takes_cuda_where_there_is_one(multi_label: HashingDataset) -> None:
    env = gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=multi_label, backend="torch")
    assert env.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert env.reset()[0]["image"].device.type == env.device.type


def test_the_numpy_back_end_does_not_import_torch() -> None:
    code = """
import sys
import gymnasium as gym
import hashgym
from hashgym.rewards import available
env = gym.make_vec("BitGroupHashing-v0", num_envs=2, bits=4, group_bits=4, reward="average_precision")
env.reset(seed=0)
env.step(env.action_space.sample())
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rewards_in_sums_within_sums(multi_label: HashingDataset) -> None:
    inner = rewards.weighted([(2.0, "triplet"), (-1.0, "balance")])
    reward = rewards.weighted([(0.5, inner), (1.0, "average_precision")])
    for counterfactual in (False, True):
        native, torched = twins(multi_label, 7, reward=reward, counterfactual=counterfactual)
        native.reset(seed=0)
        torched.reset(seed=0)
        for _ in range(4):
            action = native.action_space.sample()
            assert_equal(native.step(action), torched.step(action), "cpu", 1e-5)
