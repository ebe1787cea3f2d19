"""Counting similar items, those that share a label, without comparing every pair."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.codes import Words

__all__ = ["count_similar", "label_patterns", "shared_labels"]

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
