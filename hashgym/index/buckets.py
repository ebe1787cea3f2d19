"""An index that looks codes up in a table of buckets (:mod:`hashgym.retrieval.buckets`), built at the first search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, Words
from hashgym.index.base import Found, Ids, ranked
from hashgym.index.brute_force import BruteForceIndex
from hashgym.retrieval.buckets import BucketTable, ball

__all__ = ["BucketTableIndex"]

_COMPARED = 32  # codes that are compared in the time that looking up a bucket, or ranking an image in it, takes
_AT_ONCE = 128  # queries that are looked up together: bounds the memory that images in crowded buckets take


class BucketTableIndex(BruteForceIndex):
    """Look up the buckets around a query; compare with all codes if there are too many buckets, or images in them."""

    def _build(self) -> BucketTable:
        kept = np.arange(self._most) < self._counts[:, None]
        words = np.zeros((*kept.shape, self._words.shape[1]), np.uint64)
        words[kept] = self._words
        return BucketTable(CodeSets(words, kept, self.bits))

    def _within(self, words: Words, radius: int) -> Found:
        if not self._is_faster(radius):
            return super()._within(words, radius)
        parts = [self._look_up(words[start : start + _AT_ONCE], radius) for start in range(0, len(words), _AT_ONCE)]
        counts = np.concatenate([np.diff(offsets) for offsets, _, _ in parts])
        ids, distances = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        return np.cumsum([0, *counts]), ids, distances

    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        parts = [self._widen(words[start : start + _AT_ONCE], k) for start in range(0, len(words), _AT_ONCE)]
        ids, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
        return ids, distances

    def _widen(self, words: Words, k: int) -> tuple[Ids, Ids]:
        """Look up wider and wider spheres until the ``k`` nearest are found, or comparing all codes is quicker."""
        found, distances = np.empty((2, len(words), k), np.int64)
        left, radius, slow = np.arange(len(words)), 0, np.zeros(len(words), np.bool_)
        while len(left) and self._is_faster(radius):
            offsets, ids, near, finished = self._sphere(words[left], radius, k)
            first = offsets[:-1][finished, None] + np.arange(k)
            found[left[finished]], distances[left[finished]] = ids[first], near[first]
            slow[left] = ~finished & (np.diff(offsets) * _COMPARED > len(self._words))
            left, radius = left[~finished & ~slow[left]], radius + 1
        slow[left] = True
        if slow.any():
            found[slow], distances[slow] = super()._search(words[slow], k)
        return found, distances

    def _sphere(self, words: Words, radius: int, k: int) -> tuple[Ids, Ids, Ids, NDArray[np.bool_]]:
        """Return what :meth:`_look_up` does, and bool (m,), for which queries the first ``k`` images are the answer."""
        offsets, ids, distances = self._look_up(words, radius)
        return offsets, ids, distances, np.diff(offsets) >= k

    def _look_up(self, words: Words, radius: int) -> Found:
        """Return the images within a radius of each query, nearest first."""
        offsets, positions, distances = self._ready().lookup_many(words, radius)
        query = np.repeat(np.arange(len(words)), np.diff(offsets))
        return ranked(query, self._ids[positions], distances, len(words), several=False)

    def _is_faster(self, radius: int) -> bool:
        """Return whether looking up the sphere's buckets is quicker than comparing all codes."""
        bits, enough = self._key_bits, max(1, int(len(self._words) / _COMPARED))
        return radius <= bits and ball(bits, radius, enough) <= enough

    @property
    def _key_bits(self) -> int:
        """Number of bits by which codes are looked up."""
        return self.bits
