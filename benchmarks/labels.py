"""Cost of labels on large datasets, as ratios within one run: ``python -m benchmarks.labels``.

First the counting of similar pairs, needed for pair weights and for drawing partners: over label patterns, as
:func:`hashgym.data.similarity.count_similar` does, against one matrix product of all images with all. Then steps of
BitGroupHashing-v0 with the reward ``average_precision``, which reads no partners, against the same steps with partners
drawn. Times are CPU time of this process, which other load on the machine changes little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.arguments import MeasureArgs
from benchmarks.common.results import publish
from hashgym import codes
from hashgym.console import Table
from hashgym.data import HashingDataset
from hashgym.data.similarity import count_similar, label_patterns
from hashgym.terminal import command_line, parse

KEY = ("measure", "images", "labels")
_ROWS = 2048  # images that the alternative compares with all others at once


@dataclass(frozen=True, kw_only=True)
class Args(MeasureArgs):
    """Seconds of counting similar pairs and of environment steps, each against its alternative."""

    images: tuple[int, ...] = (20_000, 50_000, 100_000)
    """numbers of training images"""
    labels: int = 38
    """number of labels of the multi-label dataset; a second dataset has one of ten classes an image"""
    num_envs: int = 128
    """number of environments"""
    steps: int = 8
    """steps to measure"""


def hot_labels(images: int, labels: int) -> NDArray[np.bool_]:
    """Return random labels, some frequent and some rare, about 12% of them for an image; of ten labels exactly one."""
    rng = np.random.default_rng(0)
    if labels == 10:
        return np.eye(10, dtype=np.bool_)[rng.integers(10, size=images)]
    hot = rng.random((images, labels)) < 0.24 * rng.random(labels)
    hot[np.arange(images), rng.integers(labels, size=images)] = True
    return hot


def random_dataset(hot: NDArray[np.bool_], dim: int = 32) -> HashingDataset:
    """Return random features of training images with these labels, and one query."""
    images = len(hot)
    return HashingDataset(
        name="random",
        features=np.random.default_rng(1).standard_normal((images + 1, dim)).astype(np.float32),
        labels=np.concatenate([hot, hot[:1]]).astype(np.uint8),
        query=np.array([images]),
        database=np.arange(images),
        train=np.arange(images),
    )


def count_by_product(hot: NDArray[np.bool_]) -> int:
    """Count similar pairs, each image with itself included, by a matrix product of all images with all."""
    numbers = hot.astype(np.float32)
    return sum(int((numbers[i : i + _ROWS] @ numbers.T > 0).sum()) for i in range(0, len(hot), _ROWS))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, all threads together, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def step_seconds(dataset: HashingDataset, args: Args, *, partners: bool) -> float:
    """Seconds of ``args.steps`` steps with the reward ``average_precision``."""
    envs: Any = gym.make_vec(
        "BitGroupHashing-v0", num_envs=args.num_envs, dataset=dataset, reward="average_precision", group_weight=0.0
    ).unwrapped
    envs._core.reads_partners = partners
    envs.action_space.seed(0)
    envs.reset(seed=0)
    action = envs.action_space.sample()
    for _ in range(envs.task.groups):  # a whole episode compiles all kernels
        envs.step(action)
    return timed(lambda: [envs.step(action) for _ in range(args.steps)])[0]


def measure(args: Args) -> list[dict[str, Any]]:
    """Measure; return a row for each measure, number of images and kind of labels."""
    rows = []
    for images in args.images:
        for labels in (10, args.labels):
            hot = hot_labels(images, labels)
            words = codes.pack(hot)
            ours, counted = timed(lambda words=words: int(count_similar(words).sum()))  # type: ignore[misc]
            theirs, wanted = timed(lambda hot=hot: count_by_product(hot))  # type: ignore[misc]
            assert counted == wanted
            dataset = random_dataset(hot)
            without, with_partners = (step_seconds(dataset, args, partners=partners) for partners in (False, True))
            patterns = len(label_patterns(words)[0])
            rows += [
                dict(zip(KEY, (name, images, labels), strict=True))
                | {"patterns": patterns, "seconds": a, "alternative_seconds": b, "ratio": b / a}
                for name, a, b in (
                    ("similar pairs: patterns, product", ours, theirs),
                    (f"{args.steps} steps: without, with partners", without, with_partners),
                )
            ]
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table."""
    shown = Table(title="CPU seconds")
    for heading in ("measure", "images", "labels", "patterns", "seconds", "alternative", "ratio"):
        shown.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in rows:
        numbers = (f"{row[key]:,}" for key in ("images", "labels", "patterns"))
        seconds = (f"{row[key]:.2f}" for key in ("seconds", "alternative_seconds"))
        shown.add_row(row["measure"], *numbers, *seconds, f"{row['ratio']:.1f} x")
    return shown


def main(args: Args) -> list[dict[str, Any]]:
    """Measure, print the table, and add the rows to labels.csv."""
    rows = measure(args)
    publish(rows, table(rows), args.out, "labels.csv", KEY, {"num_envs": args.num_envs, "steps": args.steps})
    return rows


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.labels"))
