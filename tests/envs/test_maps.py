"""BitGroupHashing-v0 on activations, with and without views, and on pixels; RegionKeep-v0 rejects both."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

import hashgym
from agents import mch
from hashgym import hashers
from hashgym.data import DataError, HashingDataset, load
from hashgym.envs.base import DatasetIndex
from hashgym.envs.bit_group_hashing import summaries

KINDS = ("activations", "views", "pixels")
VIEWS = 3


def maps(kind: str, shape: tuple[int, int, int] = (5, 6, 7)) -> HashingDataset:
    """60 images of 4 classes; of the views, those of image i in view v hold the number 100 i + v somewhere."""
    rng = np.random.default_rng(1)
    labels = np.eye(4, dtype=np.uint8)[np.arange(60) % 4]
    order = rng.permutation(60)
    split = {"query": order[:10], "database": order[10:], "train": np.sort(order[20:])}
    if kind == "pixels":
        features: NDArray[Any] = rng.integers(0, 256, (60, 3, *shape[1:]), np.uint8)
        return HashingDataset("small", features, labels, **split)
    features = rng.standard_normal((60, *shape)).astype(np.float16)
    if kind == "activations":
        return HashingDataset("small", features, labels, **split)
    viewed = rng.permutation(order[15:])  # more than the training images, in another order
    views = rng.standard_normal((len(viewed), VIEWS, *shape)).astype(np.float16)
    views[:, :, 0, 0, 0] = viewed[:, None] + np.arange(VIEWS) / 4  # exact in float16
    return HashingDataset("small", features, labels, **split, views=views, viewed=viewed)


@pytest.fixture(params=KINDS)
def dataset(request: pytest.FixtureRequest) -> HashingDataset:
    return maps(request.param)


def make(dataset: HashingDataset, **task: Any) -> Any:
    return gym.make("BitGroupHashing-v0", dataset=dataset, **task).unwrapped


def make_vec(dataset: HashingDataset, num_envs: int, **task: Any) -> Any:
    return gym.make_vec("BitGroupHashing-v0", num_envs=num_envs, dataset=dataset, **task)


def assert_same(a: Any, b: Any) -> None:
    """Equal in structure and every value; tensors count as arrays."""
    a, b = (x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (a, b))
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


@pytest.mark.parametrize("task", [{}, {"flat": True, "action": "multidiscrete"}, {"action": "probability"}])
@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
def test_both_checkers_pass(dataset: HashingDataset, task: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env as check_sb3

    env = make(dataset, **task)
    check_env(env)
    check_sb3(env, warn=False)


def test_the_space_of_an_image(dataset: HashingDataset) -> None:
    image = make(dataset).observation_space["image"]
    if dataset.features.dtype == np.uint8:
        assert image == spaces.Box(0, 255, (3, 6, 7), np.uint8)
    else:
        assert image == spaces.Box(-np.inf, np.inf, (5, 6, 7), np.float32)
    envs = make_vec(dataset, 4)
    assert envs.observation_space.contains(envs.reset(seed=0)[0])


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("flat", [False, True])
def test_one_environment_equals_gymnasiums_vector_of_the_scalar_one(
    dataset: HashingDataset, mode: AutoresetMode, flat: bool
) -> None:
    task: dict[str, Any] = {"bits": 10, "group_bits": 4, "counterfactual": True, "flat": flat}
    native = make_vec(dataset, 1, autoreset_mode=mode, **task)
    scalar = SyncVectorEnv([lambda: make(dataset, **task)], autoreset_mode=mode)
    assert_same(native.reset(seed=3), scalar.reset(seed=3))
    native.action_space.seed(3)
    for _ in range(12):
        action = native.action_space.sample()
        ours, theirs = native.step(action), scalar.step(action)
        assert_same(ours[:4], theirs[:4])
        assert_same(ours[4].get("index"), theirs[4].get("index"))
        if "final_obs" in ours[4]:
            assert_same(list(ours[4]["final_obs"]), list(theirs[4]["final_obs"]))
        if mode is AutoresetMode.DISABLED and ours[2].all():
            assert_same(native.reset(), scalar.reset())


def test_a_view_is_drawn_at_reset_and_shown_for_the_whole_episode() -> None:
    dataset, n = maps("views"), 6
    assert dataset.views is not None
    assert dataset.viewed is not None
    envs = make_vec(dataset, n, bits=8, group_bits=3)
    rng, _ = seeding.np_random(5)
    rng.standard_normal((5 * 16, 8), np.float32)  # the first codes
    rows = rng.permutation(np.arange(40))[:n]
    views = rng.integers(VIEWS, size=n)
    seen, info = envs.reset(seed=5)
    np.testing.assert_array_equal(info["index"], dataset.train[rows])
    np.testing.assert_array_equal(envs.get_state()["views"], views)
    drawn: set[tuple[int, int]] = set()
    for _ in range(40):
        for i, (index, view) in enumerate(zip(info["index"], views, strict=True)):
            place = np.flatnonzero(dataset.viewed == index)[0]
            np.testing.assert_array_equal(seen["image"][i], dataset.views[place, view].astype(np.float32))
            assert seen["image"][i, 0, 0, 0] == index + view / 4
            drawn.add((int(index), int(view)))
        image = seen["image"]
        for group in range(3):
            seen, _, done, _, info = envs.step(envs.action_space.sample())
            if group < 2:
                assert seen["image"] is image  # neither copied nor drawn again within an episode
        assert done.all()
        views = envs.get_state()["views"]
    assert len(drawn) > 0.85 * 40 * VIEWS  # every view of every image is shown


def test_a_chosen_image_is_shown_in_a_view() -> None:
    dataset = maps("views")
    env = make(dataset)
    index = int(dataset.train[7])
    shown = [env.reset(seed=seed, options={"index": index}) for seed in range(20)]
    assert all(info["index"] == index for _, info in shown)
    assert {float(seen["image"][0, 0, 0]) - index for seen, _ in shown} == {0, 0.25, 0.5}
    outside = int(np.setdiff1d(dataset.viewed, dataset.train)[0])  # has views, but is no training image
    with pytest.raises(ValueError, match="must name training images"):
        env.reset(options={"index": outside})


def test_the_view_of_an_image_without_views_is_an_error() -> None:
    dataset = maps("views")
    outside = np.setdiff1d(np.arange(60), dataset.viewed)[:2]
    assert dataset.images(outside).shape == (2, 5, 6, 7)
    with pytest.raises(DataError, match="has views of the images in viewed alone, got other ones: leave out view"):
        dataset.images(outside, np.zeros(2, np.int64))


def test_without_views_the_image_is_that_of_the_dataset() -> None:
    for kind in ("activations", "pixels"):
        dataset = maps(kind)
        envs = make_vec(dataset, 50)  # more than there are images
        seen, info = envs.reset(seed=0)
        np.testing.assert_array_equal(seen["image"], dataset.features[info["index"]])
        assert seen["image"].dtype == (np.uint8 if kind == "pixels" else np.float32)
        assert "views" not in envs.get_state()


def test_next_step_hands_out_copies(dataset: HashingDataset) -> None:
    envs = make_vec(dataset, 3, bits=8, group_bits=4, autoreset_mode="NextStep")
    first, _ = envs.reset(seed=0)
    kept = first["image"].copy()
    first["image"][:] = 0  # as Gymnasium's observation wrappers do
    second, *_ = envs.step(envs.action_space.sample())
    np.testing.assert_array_equal(second["image"], kept)


@pytest.mark.parametrize("num_envs", [None, 4])
def test_states_and_pickles_continue_exactly(dataset: HashingDataset, num_envs: int | None) -> None:
    def build() -> Any:
        task: dict[str, Any] = {"bits": 9, "group_bits": 9, "codebook": "own"}
        return make(dataset, **task) if num_envs is None else make_vec(dataset, num_envs, **task)

    env = build()
    env.reset(seed=2)
    env.action_space.seed(2)
    result = env.reset()
    state, copy = env.get_state(), pickle.loads(pickle.dumps(env))
    again = build()
    assert_same(again.set_state(state), result)
    action = env.action_space.sample()
    ahead = [[each.step(action), each.reset(), each.step(action)] for each in (env, again, copy)]
    assert_same(ahead[0], ahead[1])
    assert_same(ahead[0], ahead[2])
    if dataset.views is not None:
        with pytest.raises(ValueError, match="views missing"):
            env.set_state({key: part for key, part in state.items() if key != "views"})


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    ],
)
def test_the_torch_back_end_is_equal(dataset: HashingDataset, device: str) -> None:
    task: dict[str, Any] = {"bits": 10, "group_bits": 4, "counterfactual": True, "reward": "average_precision"}
    for flat in (False, True):
        arrays = make_vec(dataset, 5, flat=flat, **task)
        tensors = make_vec(dataset, 5, flat=flat, backend="torch", device=device, **task)
        shown = arrays.reset(seed=1)[0], tensors.reset(seed=1)[0]
        assert_same(*shown)
        arrays.action_space.seed(1)
        for _ in range(7):
            action = arrays.action_space.sample()
            ours, theirs = arrays.step(action), tensors.step(torch.from_numpy(action))
            assert_same(ours[0], theirs[0])
            np.testing.assert_allclose(ours[1], theirs[1].cpu().numpy(), rtol=1e-12)
            assert_same(ours[4]["index"], theirs[4]["index"])
        seen, _ = tensors.set_state(arrays.get_state())
        arrays.set_state(tensors.get_state())
        assert_same(arrays.step(action)[0], tensors.step(torch.from_numpy(action))[0])
        if not flat:
            assert seen["image"].dtype == (torch.uint8 if dataset.features.dtype == np.uint8 else torch.float32)


@pytest.mark.parametrize("shape", [(5, 6, 7), (2, 1, 3), (3, 4, 4), (1, 9, 2)])
@pytest.mark.parametrize("kind", ["views", "pixels"])
def test_first_codes_are_signs_of_projected_cell_means(kind: str, shape: tuple[int, int, int]) -> None:
    """Also for maps smaller than the grid, whose cells are one pixel, some of them the same."""
    dataset = maps(kind, shape)
    channels, height, width = dataset.image_shape
    means = np.empty((40, channels, 4, 4))
    for row, index in enumerate(dataset.train):
        for c in range(channels):
            for y in range(4):
                for x in range(4):
                    top, left = height * y // 4, width * x // 4
                    bottom, right = max(top + 1, height * (y + 1) // 4), max(left + 1, width * (x + 1) // 4)
                    pixels = [
                        float(dataset.features[index, c, i, j]) for i in range(top, bottom) for j in range(left, right)
                    ]
                    means[row, c, y, x] = sum(pixels) / len(pixels)
    found = summaries(dataset)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, means.reshape(40, -1), rtol=1e-5, atol=1e-5)
    env = make(dataset, bits=8)
    env.reset(seed=4)
    planes = seeding.np_random(4)[0].standard_normal((channels * 16, 8), np.float32)
    projected = (found - found.mean(0)) @ planes
    np.testing.assert_array_equal(env.codebook.read(np.arange(40)), projected > 0)
    index = DatasetIndex.of(dataset)
    assert index is make(dataset).unwrapped._core.dataset_index  # so that the means are computed once for all


def test_renderings_show_pixels_where_there_are_no_thumbnails() -> None:
    for kind in KINDS:
        dataset = maps(kind)
        env = make(dataset, render_mode="rgb_array", bits=8)
        _, info = env.reset(seed=0)
        picture = env.render()
        assert picture.ndim == 3
        tile = picture[12:76, 12:76]
        if kind == "pixels":  # 6 x 7 pixels on a tile of 64 x 64
            pixels = dataset.features[info["index"]]
            for y, x in ((0, 0), (5, 6), (3, 2)):
                np.testing.assert_array_equal(tile[64 * y // 6 + 5, 64 * x // 7 + 4], pixels[:, y, x])
        else:
            assert (tile == 222).mean() > 0.8
        env.step(env.action_space.sample())
        assert env.render().shape == picture.shape
        text = make(dataset, render_mode="ansi", bits=8)
        text.reset(seed=0)
        assert "image" in text.render()
    digits = load("digits-pixels")  # has thumbnails, which are dark on white
    env = make(digits, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render()[12:76, 12:76].mean() > 127


def test_encode_reads_maps_in_batches(dataset: HashingDataset) -> None:
    sizes: list[int] = []

    def policy(observation: dict[str, Any]) -> NDArray[Any]:
        image = observation["image"]
        sizes.append(len(image))
        assert image.dtype == (np.uint8 if dataset.features.dtype == np.uint8 else np.float32)
        return image.reshape(len(image), -1)[:, :4] > np.float32(0.1)

    bits = hashgym.encode(policy, dataset.features, bits=4)
    np.testing.assert_array_equal(bits, dataset.features.reshape(60, -1)[:, :4].astype(np.float32) > np.float32(0.1))
    many = np.concatenate([dataset.features] * 3)
    np.testing.assert_array_equal(hashgym.encode(policy, many, bits=4), np.concatenate([bits] * 3))
    assert max(sizes) == 64
    if dataset.features.dtype != np.uint8:
        many[150, 1, 2, 3] = np.nan
        with pytest.raises(ValueError, match="first in row 150"):
            hashgym.encode(policy, many, bits=4)


def test_a_policy_trained_on_flat_observations_encodes_maps(dataset: HashingDataset) -> None:
    env = make(dataset, bits=6, group_bits=3, flat=True)

    def policy(observation: NDArray[Any]) -> NDArray[Any]:
        assert observation.dtype == np.float32
        parts = {key: observation[:, part] for key, part in env.slices.items()}
        assert (parts["group"].sum(1) == 1).all()
        return parts["image"][:, :3] + parts["code"][:, :3] > 0.1

    policy.observation_space = env.observation_space  # type: ignore[attr-defined]
    first = dataset.features.reshape(60, -1)[:, :3].astype(np.float32)
    one = first > 0.1
    two = first + np.where(one, np.float32(1), np.float32(-1)) > 0.1
    codes = hashgym.encode(policy, dataset.features, bits=6, group_bits=3)
    np.testing.assert_array_equal(codes, np.concatenate([one, two], axis=1))
    with pytest.raises(ValueError, match="was trained on observations of shape"):
        hashgym.encode(policy, dataset.features[:, :, :5], bits=6, group_bits=3)


def test_regions_need_vectors(dataset: HashingDataset) -> None:
    wanted = r"no regions.*one code an image.*BitGroupHashing-v0.*drlih.*--regions 5"
    for build in (
        lambda: gym.make("RegionKeep-v0", dataset=dataset),
        lambda: gym.make_vec("RegionKeep-v0", num_envs=2, dataset=dataset),
        lambda: mch.train(dataset, hashers.make("dch", bits=8), mch.Args(), progress=False),
    ):
        with pytest.raises(DataError, match=wanted):
            build()
    with pytest.raises(DataError, match="'digits-pixels' are pixels for a network that is trained"):
        mch.main(mch.Main(mch.Args(), dataset="digits-pixels"))
