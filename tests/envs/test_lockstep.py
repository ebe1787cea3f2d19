"""What environments of one dataset share, and final observations lane by lane."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from hashgym import codes
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
