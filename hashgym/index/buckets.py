"""An index that looks codes up in a table of buckets (:mod:`hashgym.retrieval.buckets`), built at the first search."""

from __future__ import annotations

import numpy as np

from hashgym.codes import CodeSets, Words
from hashgym.index.base import Found, Ids, ranked
from hashgym.index.brute_force import BruteForceIndex
from hashgym.retrieval.buckets import BucketTable, ball

__all__ = ["BucketTableIndex"]

_COMPARED = 32  # codes that are compared in the time that looking up a bucket takes


class BucketTableIndex(BruteForceIndex):
    """Look up the buckets around a query; compare with all codes if there are too many buckets."""

    def _build(self) -> BucketTable:
        kept = np.arange(self._most) < self._counts[:, None]
        words = np.zeros((*kept.shape, self._words.shape[1]), np.uint64)
        words[kept] = self._words
        return BucketTable(CodeSets(words, kept, self.bits))

    def _within(self, words: Words, radius: int) -> Found:
        if not self._is_faster(radius):
            return super()._within(words, radius)
        return self._look_up(words, radius)

    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        found, distances = np.empty((2, len(words), k), np.int64)
        left, radius = np.arange(len(words)), 0
        while len(left) and self._is_faster(radius):
            offsets, ids, near = self._look_up(words[left], radius)
            enough = np.diff(offsets) >= k
            first = offsets[:-1][enough, None] + np.arange(k)
            found[left[enough]], distances[left[enough]] = ids[first], near[first]
            left, radius = left[~enough], radius + 1
        if len(left):
            found[left], distances[left] = super()._search(words[left], k)
        return found, distances

    def _look_up(self, words: Words, radius: int) -> Found:
        offsets, positions, distances = self._ready().lookup_many(words, radius)
        query = np.repeat(np.arange(len(words)), np.diff(offsets))
        return ranked(query, self._ids[positions], distances, len(words), several=False)

    def _is_faster(self, radius: int) -> bool:
        """Return whether looking up the sphere's buckets is quicker than comparing all codes."""
        enough = max(1, int(len(self._words) / _COMPARED))
        return radius <= self.bits and ball(self.bits, radius, enough) <= enough
