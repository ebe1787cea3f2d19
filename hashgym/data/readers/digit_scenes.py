"""Scenes of handwritten digits: one to four of scikit-learn's digits on a board of 2 x 2 cells; no download.

A small multi-label dataset with regions. Scenes and regions have the same features, a bag of patch words: the patches
of 5 x 5 pixels with some ink are counted by their nearest word, and the features are the square roots of the share of
each word, a unit vector for a scene and for a part of it. So a hash function trained on scenes applies to regions.

All intermediate numbers are small integers that floating point represents exactly, so the features are identical on
every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashgym.data import splits
from hashgym.data.dataset import HashingDataset
from hashgym.data.readers import Reader
from hashgym.optional import require

SCENES = {"test": 400, "train+database": 1_600, "database": 1_000}
QUERY_DIGITS = 450  # digits that are only in query scenes
DIGIT, SIDE, PATCH = 8, 16, 5
WORDS = 256
TRAIN_REGIONS = 8
# Upper left corners, in pixels, of regions with half the side of a scene: the four corners and the centre.
REGIONS = np.array([(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)])

Integers = NDArray[np.integer]


def load(seed: int = 0) -> HashingDataset:
    """Compose 400 query scenes, 1,600 training scenes, and 1,000 more that form the database together with these.

    Features are 256 patch words; 10 labels are the digits in a scene. ``regions`` are the four corners (each one cell:
    a single digit, or blank, then all zero) and the centre, ``train_regions`` eight random ones of the same size. Query
    scenes are composed of digits that are in no other scene. Takes about two seconds.

    Args:
        seed: for drawing digits, scenes, random regions and the codebook.
    """
    require("sklearn", "the dataset digit-scenes")
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(digits.images))
    pools = {"test": shuffled[:QUERY_DIGITS]}
    drawn = [_draw(rng, count, pools.get(part, shuffled[QUERY_DIGITS:])) for part, count in SCENES.items()]
    cells = np.concatenate(drawn)
    names = [f"{part}/{i:04d}" for part, count in SCENES.items() for i in range(count)]

    images = np.concatenate([np.rint(digits.images), np.zeros((1, DIGIT, DIGIT))]).astype(np.uint8)
    boards = images[cells].reshape(-1, 2, 2, DIGIT, DIGIT).transpose(0, 1, 3, 2, 4).reshape(-1, SIDE, SIDE)
    shown = np.concatenate([np.eye(10, dtype=np.uint8)[digits.target], np.zeros((1, 10), np.uint8)])
    labels = shown[cells].max(axis=1)
    label_names = tuple("0123456789")
    split = splits.make("digit-scenes", labels=labels, label_names=label_names, names=names, seed=seed)

    patches = np.lib.stride_tricks.sliding_window_view(boards, (PATCH, PATCH), axis=(1, 2))
    patches = patches.reshape(*patches.shape[:3], -1)
    words = _words(patches, _codebook(rng, patches[split.train].reshape(-1, PATCH * PATCH)))
    corners = rng.integers(0, SIDE - DIGIT + 1, (len(boards), TRAIN_REGIONS, 2))
    grey = (255 - boards.astype(np.int64) * 255 // 16).astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2)
    return HashingDataset(
        name="digit-scenes",
        features=_histogram(words.reshape(len(words), -1)),
        labels=labels,
        query=split.query,
        database=split.database,
        train=split.train,
        names=names,
        label_names=label_names,
        regions=_regions(words, np.broadcast_to(REGIONS, (len(boards), *REGIONS.shape))),
        train_regions=_regions(words, corners),
        boxes=_boxes(np.broadcast_to(REGIONS, (len(boards), *REGIONS.shape))),
        train_boxes=_boxes(corners),
        thumbnails=np.repeat(grey[..., None], 3, axis=-1),
        provenance={
            "source": "sklearn.datasets.load_digits",
            "features": f"square root of the share of each of {WORDS} words of {PATCH} x {PATCH} pixels",
            "sigma": DIGIT / SIDE,
            "seed": seed,
            **split.provenance,
        },
    )


READER = Reader(load, "composed from scikit-learn's digits; nothing to download", embedded=True)


def _draw(rng: np.random.Generator, count: int, pool: Integers) -> Integers:
    """Draw the digits of ``count`` scenes, (count, 4) by cell; -1 is a blank cell."""
    digits = rng.choice(pool, (count, 4))
    blank = np.arange(4) >= rng.integers(1, 5, count)[:, None]
    return rng.permuted(np.where(blank, -1, digits), axis=1)


def _codebook(rng: np.random.Generator, patches: Integers, rounds: int = 8) -> NDArray[np.float32]:
    """Run k-means on 20,000 patches with ink, with centres rounded to integers, (WORDS, pixels)."""
    inked = patches[patches.any(axis=1)]
    sample = inked[rng.choice(len(inked), 20_000, replace=False)].astype(np.float32)
    centers = sample[:WORDS]
    for _ in range(rounds):
        nearest = _nearest(sample, centers)
        members = np.bincount(nearest, minlength=WORDS)[:, None]
        sums = np.stack([np.bincount(nearest, column, WORDS) for column in sample.T], axis=1)
        centers = np.where(members > 0, np.rint(sums / np.maximum(members, 1)), centers).astype(np.float32)
    return centers


def _nearest(patches: NDArray[np.float32], centers: NDArray[np.float32]) -> Integers:
    return np.argmin((centers**2).sum(axis=1) - 2 * patches @ centers.T, axis=1)


def _words(patches: Integers, centers: NDArray[np.float32]) -> Integers:
    """Return the nearest word of every patch, (n, positions, positions); WORDS for a patch without ink."""
    words = np.full(patches.shape[:3], WORDS)
    for start in range(0, len(patches), 200):
        scenes, found = patches[start : start + 200], words[start : start + 200]
        inked = scenes.any(axis=-1)
        found[inked] = _nearest(scenes[inked].astype(np.float32), centers)
    return words


def _histogram(words: Integers) -> NDArray[np.float32]:
    """Square roots of the share of each word, float32 (n, WORDS), of words (n, m); blank patches do not count."""
    rows = np.arange(len(words))[:, None] * (WORDS + 1)
    counts = np.bincount((rows + words).ravel(), minlength=len(words) * (WORDS + 1)).reshape(len(words), -1)[:, :WORDS]
    return np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def _regions(words: Integers, corners: Integers) -> NDArray[np.float32]:
    """Return histograms (n, R, WORDS) of the patches inside regions given by their upper left ``corners`` (n, R, 2)."""
    scene = np.arange(len(words))[:, None, None, None]
    inside = np.arange(DIGIT - PATCH + 1)
    row = corners[:, :, 0, None, None] + inside[:, None]
    column = corners[:, :, 1, None, None] + inside
    found = words[scene, row, column]
    return _histogram(found.reshape(-1, inside.size**2)).reshape(*corners.shape[:2], WORDS)


def _boxes(corners: Integers) -> NDArray[np.float32]:
    """Return left, top, right and bottom of regions, (n, R, 4), as fractions of the scene."""
    start = corners[..., ::-1]  # corners are (row, column)
    return (np.concatenate([start, start + DIGIT], axis=-1) / SIDE).astype(np.float32)
