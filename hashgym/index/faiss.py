"""The faiss back ends (``pip install 'hashgym[faiss]'``): its flat binary index, its hash tables of parts of codes.

Codes are padded with zeros to 32, 64, 128, 256 or 512 bits, for which faiss is fastest, or beyond that to whole
words. A single query runs on one thread, because a second one costs more than it saves; several queries use as
many as faiss does (``OMP_NUM_THREADS``).

Of codes that tie at the last place, faiss returns arbitrary ones. So more rows are requested than needed; if the last
of them is not farther than the k-th image, all codes within that distance are requested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import Words
from hashgym.index.base import Found, Ids, ranked
from hashgym.index.brute_force import BruteForceIndex
from hashgym.optional import require
from hashgym.retrieval.buckets import ball

__all__ = ["FaissHashIndex", "FaissIndex"]

_SPARE = 64  # rows requested beyond those that are needed
_ROWS = 1 << 14  # rows for a query above which comparing all codes in NumPy is faster than faiss
_ANSWERS = 1 << 22  # rows for several queries that are in memory at once
_COMPARED = 256  # codes that are compared in the time that looking up a bucket takes
_PADDED = (32, 64, 128, 256, 512)


def _faiss() -> Any:
    return require("faiss", "this back end")


class FaissIndex(BruteForceIndex):
    """Compare every code, with ``faiss.IndexBinaryFlat``.

    Raises:
        ImportError: if faiss is not installed.
    """

    def __init__(self, bits: int) -> None:
        self._faiss: Any = _faiss()
        super().__init__(bits)

    @classmethod
    def _check_options(cls, **options: Any) -> None:
        _faiss()

    def _build(self) -> tuple[Any, Any]:
        """Return the faiss index that is searched, and the flat one."""
        flat: Any = self._faiss.IndexBinaryFlat(self._padded)
        flat.use_heap = False  # counting by distance is faster
        flat.add(self._octets(self._words))
        return flat, flat

    @property
    def _padded(self) -> int:
        """Length of a code in faiss, in bits."""
        return next((bits for bits in _PADDED if bits >= self.bits), 64 * self._words.shape[1])

    def _octets(self, words: Words) -> NDArray[np.uint8]:
        """Return codes in faiss's layout, uint8 (n, padded / 8)."""
        octets = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
        wanted, given = self._padded // 8, octets.shape[1]
        return np.ascontiguousarray(np.pad(octets, ((0, 0), (0, max(0, wanted - given))))[:, :wanted])

    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        rows = min(k * self._most + _SPARE, len(self._words))  # at least k images have their codes among them
        if rows > _ROWS:
            return super()._search(words, k)
        block = max(1, _ANSWERS // rows)
        parts = [self._nearest(words[start : start + block], k, rows) for start in range(0, len(words), block)]
        positions, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self._ids[positions], distances

    def _within(self, words: Words, radius: int) -> Found:
        offsets, positions, distances = self._reach(self._ready()[1], words, radius)
        return offsets, self._ids[positions], distances

    def _nearest(self, words: Words, k: int, rows: int) -> tuple[Ids, Ids]:
        """Return positions and distances (m, k) of the nearest images."""
        return self._attempt(self._ready()[1], words, k, rows, self.bits)

    def _attempt(self, index: Any, words: Words, k: int, rows: int, sure: int) -> tuple[Ids, Ids]:
        """Return positions and distances (m, k) from a faiss index, exact if the last distance is at most ``sure``.

        The faiss index must find all codes within that distance. If it finds fewer than k images, the missing distances
        are bits + 1.
        """
        with self._threads(words):
            near, found = index.search(self._octets(words), rows)
        query, place = np.nonzero(found >= 0)
        several = self._most > 1
        hits = ranked(
            query, self._positions(found[query, place]), near[query, place].astype(np.int64), len(words), several
        )
        positions, distances = self._heads(hits, k)
        last = distances[:, -1]
        tied = (found[:, -1] >= 0) & (near[:, -1] <= last) & (last <= sure) & (rows < len(self._words))
        for radius in np.unique(last[tied]).tolist():
            (left,) = np.nonzero(tied & (last == radius))
            positions[left], distances[left] = self._heads(self._reach(index, words[left], radius), k)
        return positions, distances

    def _reach(self, index: Any, words: Words, radius: int) -> Found:
        """Return the images that a faiss index finds within a radius, with positions in place of ids."""
        with self._threads(words):
            ends, distances, rows = index.range_search(self._octets(words), radius + 1)  # faiss excludes the radius
        query = np.repeat(np.arange(len(words)), np.diff(ends.astype(np.int64)))
        return ranked(query, self._positions(rows), distances.astype(np.int64), len(words), self._most > 1)

    def _heads(self, hits: Found, k: int) -> tuple[Ids, Ids]:
        """Return positions and distances (m, k) of the first k hits of each query."""
        offsets, positions, distances = hits
        at = offsets[:-1, None] + np.arange(k)
        at[at >= offsets[1:, None]] = len(positions)
        return np.append(positions, 0)[at], np.append(distances, self.bits + 1)[at]

    @contextmanager
    def _threads(self, words: Words) -> Iterator[None]:
        """Use one thread for a single query. The setting holds for the calling thread alone."""
        before = self._faiss.omp_get_max_threads()
        if len(words) == 1:
            self._faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)


class FaissHashIndex(FaissIndex):
    """Look codes up by their parts, with ``faiss.IndexBinaryMultiHash``, and compare only those that are found.

    Codes at distance d differ by at most ``d // parts`` bits in at least one of their parts, so that looking up all
    neighbours of the query's parts at that distance finds every such code. The search widens until the k-th image is
    certain, and compares all codes if that is faster than looking up the neighbours.
    """

    def _build(self) -> tuple[Any, Any]:
        self._parts = max(1, self.bits // max(4, len(self._words).bit_length()))  # about as many buckets as codes
        self._width = self.bits // self._parts
        table = self._faiss.IndexBinaryMultiHash(self._padded, self._parts, self._width)
        table.add(self._octets(self._words))
        flat = self._faiss.downcast_IndexBinary(table.storage)
        flat.use_heap = False
        return table, flat

    def _within(self, words: Words, radius: int) -> Found:
        with self._lock:  # the number of bits to flip is a setting of the faiss index, not of a search
            table, _ = self._ready()
            flips = radius // self._parts
            if not self._is_faster(flips):
                return super()._within(words, radius)
            table.nflip = flips
            offsets, positions, distances = self._reach(table, words, radius)
            return offsets, self._ids[positions], distances

    def _nearest(self, words: Words, k: int, rows: int) -> tuple[Ids, Ids]:
        positions, distances = np.empty((2, len(words), k), np.int64)
        left, flips = np.arange(len(words)), 0
        with self._lock:
            table, _ = self._ready()
            while len(left) and self._is_faster(flips):
                table.nflip = flips
                sure = self._parts * (flips + 1) - 1
                positions[left], distances[left] = self._attempt(table, words[left], k, rows, sure)
                left = left[distances[left, -1] > sure]
                flips += 1
        if len(left):
            positions[left], distances[left] = super()._nearest(words[left], k, rows)
        return positions, distances

    def _is_faster(self, flips: int) -> bool:
        """Return whether looking up all neighbours of the parts is faster than comparing all codes."""
        enough = max(1, int(len(self._words) / (self._parts * _COMPARED)))
        return flips <= self._width and ball(self._width, flips, enough) <= enough
