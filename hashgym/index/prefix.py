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
from hashgym.index.buckets import BucketTableIndex
from hashgym.retrieval.buckets import BucketTable

__all__ = ["PrefixIndex"]


class PrefixIndex(BucketTableIndex):
    """Look up the codes whose first ``prefix`` bits are near the query's, and rank them by all their bits.

    A code's distance is at least that of its prefix. So once the k-th image found is no farther than the radius within
    which all prefixes were looked up, the k nearest are certain; results are then those of the other back ends. With
    ``candidates`` the search ends earlier, as soon as that many codes were ranked, and may miss images whose prefixes
    are farther than those of the candidates. :meth:`within` is always exact.

    Args:
        bits: q, the length of the codes.
        prefix: number of first bits that are looked up; by default the bit length of the number of codes, so about as
            many buckets as codes, at most half of ``bits``.
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
        prefixes = codes.span(self._words, 0, self._key_bits)[:, None]
        return BucketTable(CodeSets(prefixes, np.ones(prefixes.shape[:2], np.bool_), self._key_bits))

    @property
    def _key_bits(self) -> int:
        return self.prefix or min(max(1, self.bits // 2), len(self._words).bit_length())

    def _sphere(self, words: Words, radius: int, k: int) -> tuple[Ids, Ids, Ids, NDArray[np.bool_]]:
        offsets, ids, distances, count = self._rank(words, radius)
        has_k = np.diff(offsets) >= k
        last = np.append(distances, 0)[np.minimum(offsets[:-1] + k - 1, len(distances))]
        certain = has_k & (last <= radius)
        if self.candidates is not None:
            certain |= has_k & (count >= self.candidates)
        return offsets, ids, distances, certain

    def _look_up(self, words: Words, radius: int) -> Found:
        offsets, ids, distances, _ = self._rank(words, radius)
        near = distances <= radius
        query = np.repeat(np.arange(len(words)), np.diff(offsets))
        return np.cumsum([0, *np.bincount(query[near], minlength=len(words))]), ids[near], distances[near]

    def _rank(self, words: Words, radius: int) -> tuple[Ids, Ids, Ids, NDArray[np.int64]]:
        """Return the images with a prefix within a radius, nearest first, and the number of codes ranked, (m,)."""
        table: BucketTable = self._ready()
        offsets, rows, _ = table.lookup_many(codes.span(words, 0, table.bits), radius)
        count = np.diff(offsets)
        query = np.repeat(np.arange(len(words)), count)
        distances = codes.hamming(self._words[rows], words[query])
        return *ranked(query, self._ids[self._positions(rows)], distances, len(words), self._most > 1), count

    def _write(self, folder: Path) -> dict[str, Any]:
        return {**super()._write(folder), "prefix": self.prefix, "candidates": self.candidates}
