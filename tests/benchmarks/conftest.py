"""Fixtures of several benchmarks: a part of digit-scenes, and MCH with few updates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks import mch
from benchmarks.common import cells
from hashgym.data import cache
from hashgym.data.readers import digit_scenes


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs of a benchmark take place in this process, which saves the start of one for each."""
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: work(cell))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """60 queries, 240 training images and 160 more in the database, in two folders with regions of two sizes."""
    scenes, root = digit_scenes.load(), tmp_path_factory.mktemp("features")
    others = np.setdiff1d(scenes.database, scenes.train)
    rows = np.concatenate([scenes.query[:60], scenes.train[:240], others[:160]])
    paths = []
    for sigma, shown in ((0.5, scenes.regions), (0.25, scenes.train_regions[:, :5])):
        part = dataclasses.replace(
            scenes,
            **{key: getattr(scenes, key)[rows] for key in ("features", "labels", "thumbnails", "boxes")},
            names=tuple(scenes.names[i] for i in rows),
            regions=shown[rows],
            train_regions=scenes.train_regions[rows, 4:],
            train_boxes=None,
            query=np.arange(60),
            train=np.arange(60, 300),
            database=np.arange(60, 460),
            provenance={**scenes.provenance, "sigma": sigma},
        )
        cache.save(part, root / f"sigma{sigma}")
        paths.append(str(root / f"sigma{sigma}"))
    return paths


@pytest.fixture(scope="session")
def quick():
    """The real settings with few updates of both; without dropout the agent still learns to keep some codes."""
    settings = mch.settings
    few = {"updates": 30, "num_envs": 64, "learning_rate": 1e-3, "dropout": 0.0, "input_dropout": 0.0}

    def quick(cell):
        base, args = settings(cell)
        base.updates = 150
        return base, args and dataclasses.replace(args, **few)

    return quick
