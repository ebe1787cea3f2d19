"""Brute force: all codes in memory, every one compared with every query.

The back ends for buckets and faiss are subclasses: they are built from the same table of codes, and fall back to this
search where their own would be slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, Words, longer_than, word_count
from hashgym.index.base import REMEDY, Found, Ids, Index, ranked
from hashgym.storage.errors import DataError
from hashgym.storage.reading import map_array

__all__ = ["BruteForceIndex"]

_BLOCK = 1 << 16  # codes compared at once: their distances stay in the cache


class BruteForceIndex(Index):
    """Images in ascending order of their ids, each with its codes in neighbouring rows.

    Subclasses build their own structure from the codes with :meth:`_build`, at the first search after a change. An
    image's position is its rank among the ids, so results in order of position are in order of id.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self._lock = RLock()
        self._set(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, word_count(bits)), np.uint64))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Ids:
        """The images' ids, int64, ascending."""
        return self._ids.copy()

    def _set(self, ids: Ids, counts: Ids, words: Words) -> None:
        self._ids, self._counts, self._words = ids, counts, words
        self._starts = np.cumsum(counts) - counts
        self._most = int(counts.max(initial=1))
        self._built: Any = None

    def _known(self, ids: Ids) -> NDArray[np.bool_]:
        places = np.searchsorted(self._ids, ids)
        return np.append(self._ids, -1)[places] == ids

    def _add(self, ids: Ids, sets: CodeSets) -> None:
        counts = np.concatenate([self._counts, sets.kept.sum(axis=1)])
        words = np.concatenate([self._words, sets.words[sets.kept]])
        both = np.concatenate([self._ids, ids])
        if len(self) and ids[0] < self._ids[-1]:
            order = np.argsort(both, kind="stable")
            starts = (np.cumsum(counts) - counts)[order]
            both, counts = both[order], counts[order]
            words = words[_ranges(starts, counts)]
        self._set(both, counts, words)

    def _remove(self, ids: Ids) -> None:
        kept = np.isin(self._ids, ids, assume_unique=True, invert=True)
        self._set(self._ids[kept], self._counts[kept], self._words[np.repeat(kept, self._counts)])

    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        ids, distances = np.empty((2, len(words), k), np.int64)
        enough = min(k * self._most, len(self._words))  # number of codes that includes those of k images
        for i, query in enumerate(words):
            rows = self._distances(query)
            radius = int(np.searchsorted(np.cumsum(np.bincount(rows)), enough))
            near, least = self._near(rows, radius)
            ids[i], distances[i] = near[:k], least[:k]
        return ids, distances

    def _within(self, words: Words, radius: int) -> Found:
        found = [self._near(self._distances(query), radius) for query in words]
        ids, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return np.cumsum([0, *(len(near) for near, _ in found)]), ids, distances

    def _distances(self, query: Words) -> NDArray[np.unsignedinteger]:
        """Return the codes' distances (N,) from a query (W,)."""
        distances = np.empty(len(self._words), np.min_scalar_type(self.bits))
        for start in range(0, len(distances), _BLOCK):
            rows = slice(start, start + _BLOCK)
            distances[rows] = np.bitwise_count(self._words[rows, 0] ^ query[0])
            for w in range(1, len(query)):
                distances[rows] += np.bitwise_count(self._words[rows, w] ^ query[w])
        return distances

    def _near(self, rows: NDArray[np.unsignedinteger], radius: int) -> tuple[Ids, Ids]:
        """Return the images within a radius in order, and their distances, from the distances of all codes."""
        (near,) = np.nonzero(rows <= radius)
        _, positions, distances = ranked(
            np.zeros(len(near), np.int64), self._positions(near), rows[near].astype(np.int64), 1, self._most > 1
        )
        return self._ids[positions], distances

    def _positions(self, rows: Ids) -> Ids:
        """Return the images whose codes are in these rows of the table."""
        return rows if self._most == 1 else np.searchsorted(self._starts, rows, side="right") - 1

    def _ready(self) -> Any:
        """Return the result of :meth:`_build` for the current codes."""
        with self._lock:
            if self._built is None:
                self._built = self._build()
            return self._built

    def _build(self) -> Any:
        raise NotImplementedError

    def _write(self, folder: Path) -> dict[str, Any]:
        for name, array in (("ids", self._ids), ("counts", self._counts), ("words", self._words)):
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        return {}

    @classmethod
    def _read(cls, meta: Mapping[str, Any], files: Mapping[str, Path], options: Mapping[str, Any]) -> Index:
        index = cls(meta["bits"], **options)
        try:
            ids, counts, words = (np.array(map_array(files[f"{name}.npy"])) for name in ("ids", "counts", "words"))
        except (KeyError, DataError) as error:
            raise ValueError(f"the index does not hold ids, counts and words of codes ({error}); {REMEDY}") from error
        shapes = (ids.shape, counts.shape, words.shape)
        is_valid = shapes == ((n := len(ids),), (n,), (int(counts.sum()), word_count(index.bits)))
        is_valid &= (ids.dtype, counts.dtype, words.dtype) == (np.int64, np.int64, np.uint64)
        if not is_valid or (np.diff(ids) <= 0).any() or (counts < 1).any() or (n and longer_than(words, index.bits)):
            raise ValueError(f"the index does not hold codes of {index.bits} bits by ascending ids; {REMEDY}")
        index._set(ids, counts, words)
        return index


def _ranges(starts: Ids, counts: Ids) -> Ids:
    """Return the numbers starts[i], ..., starts[i] + counts[i] - 1 for every i, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)
