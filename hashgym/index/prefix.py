"""Coarse to fine: candidates by the first bits of their codes, ranked by all bits. For nestable codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.checks import check_integer
from hashgym.codes import CodeSets, Words
from hashgym.index.base import Found, Ids, ranked
from hashgym.index.brute_force import BruteForceIndex
from hashgym.retrieval.buckets import BucketTable, ball

__all__ = ["PrefixIndex"]

_COMPARED = 32  # codes that are compared in the time that looking up a bucket takes


class PrefixIndex(BruteForceIndex):
    """Look up the codes whose first ``prefix`` bits are near the query's, and rank them by all their bits.

    A code's distance is at least that of its prefix. So once the k-th image found is no farther than the radius within
    which all prefixes were looked up, the k nearest are certain; results are then those of the other back ends. With
    ``candidates`` the search ends earlier, as soon as that many codes were ranked, and may miss images whose prefixes
    are farther than those of the candidates. :meth:`within` is always exact.

    Args:
        bits: q, the length of the codes.
        prefix: number of first bits that are looked up; by default as many as there are doublings in the number of
            codes, at most half of ``bits``: about as many buckets as codes.
        candidates: number of codes to rank for each query, at least k; None for exact results.

    Raises:
        ValueError: for a prefix longer than the code, or numbers below 1.
    """

    options = ("prefix", "candidates")

    def __init__(self, bits: int, prefix: int | None = None, candidates: int | None = None) -> None:
        self._check_options(prefix=prefix, candidates=candidates)
        if prefix is not None and prefix > bits:
            raise ValueError(f"prefix={prefix} is longer than the code: choose prefix <= bits={bits}")
        self.prefix, self.candidates = prefix, candidates
        super().__init__(bits)

    @classmethod
    def _check_options(cls, **options: Any) -> None:
        for name, value in options.items():
            if value is not None:
                check_integer(name, value)

    def _build(self) -> BucketTable:
        length = self.prefix or min(max(1, self.bits // 2), len(self._words).bit_length())
        prefixes = codes.span(self._words, 0, length)[:, None]
        return BucketTable(CodeSets(prefixes, np.ones(prefixes.shape[:2], np.bool_), length))

    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        found, distances = np.empty((2, len(words), k), np.int64)
        table: BucketTable = self._ready()
        left, radius = np.arange(len(words)), 0
        while len(left) and self._is_faster(table, radius):
            offsets, ids, near, ranks = self._rank(table, words[left], radius)
            has_k = np.diff(offsets) >= k
            last = np.where(has_k, np.append(near, 0)[np.minimum(offsets[:-1] + k - 1, len(near))], self.bits + 1)
            finished = last <= radius
            if self.candidates is not None:
                finished |= has_k & (ranks >= self.candidates)
            first = offsets[:-1][finished, None] + np.arange(k)
            found[left[finished]], distances[left[finished]] = ids[first], near[first]
            left, radius = left[~finished], radius + 1
        if len(left):
            found[left], distances[left] = super()._search(words[left], k)
        return found, distances

    def _within(self, words: Words, radius: int) -> Found:
        table: BucketTable = self._ready()
        if not self._is_faster(table, radius):
            return super()._within(words, radius)
        offsets, ids, distances, _ = self._rank(table, words, radius)
        near = distances <= radius
        counts = np.bincount(np.repeat(np.arange(len(words)), np.diff(offsets))[near], minlength=len(words))
        return np.cumsum([0, *counts]), ids[near], distances[near]

    def _rank(self, table: BucketTable, words: Words, radius: int) -> tuple[Ids, Ids, Ids, NDArray[np.int64]]:
        """Return the images with a prefix within a radius, as :meth:`within`, and the number of codes ranked (m,)."""
        offsets, rows, _ = table.lookup_many(codes.span(words, 0, table.bits), radius)
        ranks = np.diff(offsets)
        query = np.repeat(np.arange(len(words)), ranks)
        distances = codes.hamming(self._words[rows], words[query])
        return *ranked(query, self._ids[self._positions(rows)], distances, len(words), self._most > 1), ranks

    def _is_faster(self, table: BucketTable, radius: int) -> bool:
        """Return whether looking up the prefixes within a radius is quicker than comparing all codes."""
        enough = max(1, int(len(self._words) / _COMPARED))
        return radius <= table.bits and ball(table.bits, radius, enough) <= enough

    def _write(self, folder: Path) -> dict[str, Any]:
        return {**super()._write(folder), "prefix": self.prefix, "candidates": self.candidates}
