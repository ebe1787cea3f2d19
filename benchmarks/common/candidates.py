"""One MCH agent that keeps codes of regions and codes that a multicode agent writes, on RegionKeep-v0 as it is.

A candidate is a region's features, or zeros for a written code, with its code as further columns. :class:`GivenCodes`
returns these columns, so that the environment and :func:`hashgym.keep_probabilities` see written codes as those of one
more region.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import hashgym
from agents import mch, multicode
from hashgym.codes import unpack
from hashgym.data import HashingDataset
from hashgym.envs.bases import drop_features
from hashgym.hashers import Hasher
from hashgym.hashers.pairwise import PairwiseHasher

__all__ = ["GivenCodes", "keep_probabilities", "train", "training_set"]

VERSIONS = 4  # of each training image, as in agents.multicode


@dataclass(kw_only=True, eq=False)
class GivenCodes(Hasher):
    """A hasher that finds an image's code, -1 and +1, in the last columns of its features; it needs no ``fit``."""

    base: PairwiseHasher
    """the fitted hasher of these codes, whose loss is theirs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.n_features_in_ = self.base.n_features_in_ + self.bits

    def loss_table(self) -> NDArray[np.float64]:
        """Return the loss of the base, float64 (2, q + 1)."""
        return self.base.loss_table()

    def _fit(self, X: NDArray[np.float32], y: NDArray[np.uint8] | None) -> None:
        """Learn nothing."""

    def _transform(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        return X[:, -self.bits :]


def train(dataset: HashingDataset, base: PairwiseHasher, writer: multicode.Policy, args: mch.Args) -> mch.Policy:
    """Train an MCH agent to keep codes of regions and the code that ``writer`` writes.

    Args:
        dataset: with ``train_regions``.
        base: the fitted hasher that ``writer`` was trained with.
        writer: writes one further code.
        args: of the agent; ``code_dropout`` is that of :func:`training_set`.
    """
    offered = training_set(dataset, base, writer, args.code_dropout, args.seed)
    given, args = GivenCodes(bits=base.bits, base=base), dataclasses.replace(args, code_dropout=0.0)
    return mch.train(offered, given, args, progress=False)


def training_set(
    dataset: HashingDataset, base: PairwiseHasher, writer: multicode.Policy, dropout: float, seed: int
) -> HashingDataset:
    """Return four versions of each training image, whose ``train_regions`` are its regions and the written code.

    Every version has codes of features of which a share, ``dropout``, is left out at random; the features themselves
    are whole.
    """
    dataset.require("train_regions")
    assert dataset.train_regions is not None
    image, regions = dataset.features[dataset.train], dataset.train_regions[dataset.train]
    rng, versions = np.random.default_rng(seed), []
    for _ in range(VERSIONS):
        seen, seen_regions = (drop_features(features, dropout, rng) for features in (image, regions))
        versions.append(_candidates(image, regions, _codes(base, writer, seen, seen_regions)))
    features, offered = (np.concatenate(part) for part in zip(*versions, strict=True))
    none, rows = np.empty(0, np.int64), np.arange(len(features))
    labels = np.tile(dataset.labels[dataset.train], (VERSIONS, 1))
    return HashingDataset("candidates", features, labels, none, none, rows, train_regions=offered)


def keep_probabilities(
    policy: mch.Policy,
    base: PairwiseHasher,
    writer: multicode.Policy,
    features: NDArray[np.float32],
    regions: NDArray[np.float32],
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Return codes uint64 (n, 2 + R, W) of images, their R regions, and the written one; and P(keep), (n, 2 + R)."""
    image, offered = _candidates(features, regions, _codes(base, writer, features, regions))
    return hashgym.keep_probabilities(policy, GivenCodes(bits=base.bits, base=base), image, offered)


def _codes(
    base: PairwiseHasher, writer: multicode.Policy, features: NDArray[np.float32], regions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the codes of images, their R regions, and the written one, -1 and +1, (n, 2 + R, q)."""
    n, count, dim = regions.shape
    of_regions = base.encode(regions.reshape(-1, dim)).reshape(n, count, base.bits)
    sets = multicode.encode(writer, base, features, threshold=0)
    own, written = np.moveaxis(unpack(sets.words, base.bits), 1, 0)
    bits = np.concatenate([own[:, None], of_regions, written[:, None]], axis=1)
    return np.where(bits, np.float32(1), np.float32(-1))


def _candidates(
    features: NDArray[np.float32], regions: NDArray[np.float32], codes: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return images (n, D + q) and candidates (n, R + 1, D + q) with their codes."""
    seen = np.concatenate([regions, np.zeros_like(features[:, None])], axis=1)
    return np.concatenate([features, codes[:, 0]], axis=1), np.concatenate([seen, codes[:, 1:]], axis=2)
