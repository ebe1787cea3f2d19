"""Similar items share a label: counting them without comparing every pair, and labels where there are no classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.checks import check_integer
from hashgym.codes import Words
from hashgym.storage.errors import DataError
from hashgym.storage.reading import read_bounded

__all__ = ["count_similar", "label_patterns", "neighbour_labels", "pair_labels", "read_pairs", "shared_labels"]

NEIGHBOURS, ANCHORS = 20, 5_000
_AT_ONCE = 1024  # images whose neighbours are sought at once
_LARGEST = 1 << 32  # bytes of labels

_BLOCK = 1 << 21  # words of item sets in memory at once


def shared_labels(one: Words, other: Words) -> NDArray[np.bool_]:
    """Return whether items share a label, bool (n, m), of packed labels (n, W) and (m, W)."""
    own, all_ = (
        np.ascontiguousarray(words).view(np.uint8).T.copy() for words in (one, other)
    )  # eight labels at a time
    shared = np.zeros((len(one), len(other)), np.uint8)
    for eight, of_all in zip(own, all_, strict=True):
        if eight.any():
            shared |= eight[:, None] & of_all
    return shared != 0


def label_patterns(label_words: Words) -> tuple[Words, NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct rows of packed labels, each row's pattern, and how many rows have each pattern.

    Args:
        label_words: uint64 (n, W), packed labels.

    Returns:
        patterns: uint64 (U, W), in ascending order of their rows.
        pattern_of: int64 (n,).
        counts: int64 (U,).
    """
    patterns, pattern_of, counts = np.unique(label_words, axis=0, return_inverse=True, return_counts=True)
    return patterns, pattern_of.reshape(-1), counts


def count_similar(label_words: Words) -> NDArray[np.int64]:
    """Count for each item the items that share a label with it, itself included unless it has no label.

    The items with a given label form a set of n bits, and the items similar to a label pattern are the union of the
    sets of its labels: U x (labels of a pattern) x n / 64 word operations for U patterns, where comparing all pairs of
    items takes n^2.

    Args:
        label_words: uint64 (n, W), packed labels.

    Returns:
        int64 (n,).
    """
    patterns, pattern_of, _ = label_patterns(label_words)
    bits = label_words.shape[1] * codes.WORD_BITS
    has_label = codes.unpack(patterns, bits)
    used = np.flatnonzero(has_label.any(axis=0))
    has_label = has_label[:, used]
    items = codes.pack(has_label.T[:, pattern_of]) if len(used) else np.zeros((0, 1), np.uint64)  # (labels, n / 64)
    similar = np.zeros(len(patterns), np.int64)
    step = max(1, _BLOCK // items.shape[1])
    for start in range(0, len(patterns), step):
        block = has_label[start : start + step]
        union = np.zeros((len(block), items.shape[1]), np.uint64)
        for label, members in enumerate(items):
            union[block[:, label]] |= members
        similar[start : start + step] = np.bitwise_count(union).sum(axis=1, dtype=np.int64)
    return similar[pattern_of]


def neighbour_labels(
    features: NDArray[np.float32], k: int = NEIGHBOURS, *, anchors: int = ANCHORS, seed: int = 0
) -> NDArray[np.uint8]:
    """Return labels by which neighbours in feature space are similar, for images without classes.

    Each anchor (every image, or ``anchors`` random ones) defines a label, given to itself and its mutual neighbours:
    images among its k nearest by cosine that also have it among theirs. So two images are similar if they are mutual
    neighbours of a common anchor, or of each other and one is an anchor.

    Args:
        features: (n, D), standardised, so that all features weigh the same.
        k: number of neighbours, an image itself included.
        anchors: largest number of labels.
        seed: of the choice of anchors.

    Returns:
        uint8 (n, L), L the lesser of n and ``anchors``.

    Raises:
        ValueError: for a k that is not between 2 and n.
    """
    n, k = len(features), check_integer("k", k)
    if not 2 <= k <= n:
        raise ValueError(f"k={k} neighbours of {n:,} images: choose from 2 to {n:,}")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    nearest = np.empty((n, k), np.int64)
    for start in range(0, n, _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        cosines = unit[block] @ unit.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = np.inf  # an image is its own
        nearest[block] = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:anchors])
    column = np.full(n, -1)
    column[chosen] = np.arange(len(chosen))
    image, neighbour = np.repeat(np.arange(n), k), nearest.ravel()
    mutual = np.isin(neighbour * n + image, image * n + neighbour) & (column[neighbour] >= 0)
    labels = np.zeros((n, len(chosen)), np.uint8)
    labels[image[mutual], column[neighbour[mutual]]] = 1
    return labels


def pair_labels(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> NDArray[np.uint8]:
    """Return labels by which exactly these pairs of images are similar, a label for each pair: uint8 (n, pairs).

    Args:
        names: n names.
        pairs: of different names.

    Raises:
        DataError: for a name that no image has, an image paired with itself, no pairs, or too many for the memory.
    """
    rows = {name: row for row, name in enumerate(names)}
    if unknown := next((name for pair in pairs for name in pair if name not in rows), None):
        raise DataError(f"a pair names {unknown}, and no image has this name: use the names that `hashgym info` counts")
    if own := next((one for one, other in pairs if one == other), None):
        raise DataError(f"{own} is paired with itself: pairs are of two images")
    distinct = sorted({(min(pair), max(pair)) for pair in pairs})
    if not distinct:
        raise DataError("there are no pairs: give lines of `name,name`")
    if len(distinct) * len(names) > _LARGEST:
        raise DataError(f"{len(distinct):,} pairs among {len(names):,} images are too many: give fewer, or classes")
    labels = np.zeros((len(names), len(distinct)), np.uint8)
    for column, pair in enumerate(distinct):
        labels[[rows[name] for name in pair], column] = 1
    return labels


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read a CSV file of similar images, ``name,name`` on each line.

    Raises:
        DataError: if it is missing, or a line has not two names.
    """
    try:
        text = read_bounded(Path(path)).decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"the pairs {path} cannot be read: {error.strerror}") from error
    pairs, reader = [], csv.reader(io.StringIO(text))
    try:
        for row in reader:
            if len(row) != 2 and row:
                raise DataError(f"line {reader.line_num} of {path} has {len(row)} columns; expected: name,name")
            pairs += [(row[0].strip(), row[1].strip())] if row else []
    except csv.Error as error:  # such as a quotation mark that is never closed
        raise DataError(f"line {reader.line_num} of {path} cannot be read: {error}; expected: name,name") from None
    return pairs
