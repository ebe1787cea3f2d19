"""Small datasets the tests share."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

# Tests run side by side, on networks too small to gain from more threads. Set before NumPy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model that is not on the disk is missing at once, without a network

import numpy as np
import pytest
import torch

from hashgym.data import HashingDataset
from hashgym.features import BACKBONES
from hashgym.hashers import HASHERS
from hashgym.rewards.registry import REWARDS


@pytest.fixture(autouse=True)
def _folders_of_their_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave the user's cache and the system's temporary folder alone."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # of all workers: a base that several tests name is fitted once
    monkeypatch.setenv("HASHGYM_CACHE", str(run / "hashgym-cache"))
    # Without a folder for its logs, Stable-Baselines3 leaves one in the system's temporary folder for each `learn`.
    monkeypatch.setenv("SB3_LOGDIR", str(run / "sb3-logs"))


@pytest.fixture(autouse=True)
def _registered_names_are_forgotten() -> Iterator[None]:
    """Forget after each test what it has registered."""
    known = [names for registry in (REWARDS, HASHERS, BACKBONES) for names in (registry.entries, registry.descriptions)]
    before = [dict(names) for names in known]
    yield
    for names, earlier in zip(known, before, strict=True):
        names.clear()
        names.update(earlier)


@pytest.fixture(autouse=True)
def _number_of_threads_is_restored() -> Iterator[None]:
    """What runs here leaves the number as it was: on a busy machine a second thread slows later tests manyfold."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture
def multi_label() -> HashingDataset:
    """60 images with 6 features and up to 3 of 5 labels: 10 queries, 40 training images, 50 in the database."""
    return small_dataset(seed=3)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def small_dataset(seed: int, n: int = 60, dim: int = 6, labels: int = 5) -> HashingDataset:
    """A random multi-label dataset in which every image has a label."""
    rng = np.random.default_rng(seed)
    hot = (rng.random((n, labels)) < 0.25).astype(np.uint8)
    hot[np.arange(n), rng.integers(labels, size=n)] = 1
    order = rng.permutation(n)
    return HashingDataset(
        name="small",
        features=rng.standard_normal((n, dim)).astype(np.float32),
        labels=hot,
        query=np.sort(order[: n // 6]),
        database=np.sort(order[n // 6 :]),
        train=np.sort(order[n // 3 :]),
    )
