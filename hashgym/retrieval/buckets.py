"""Search by hash buckets: a table from codes to the images that have them, with one or several codes an image.

The search is Algorithm 1 of MCH: visit the buckets at Hamming distance 0 from the query, then those at distance 1,
and so on, until enough images are found. An image with several codes is found once, in the first of its buckets.
Inside a distance, buckets are visited in the order of their flip mask, query XOR code, read as an integer (bit b of
the code counts 2^b); inside a bucket, images by their row. Empty buckets count as visited but are never looked up:
masks of one popcount in ascending order are combinations in colexicographic order, so the bucket whose mask has the
bits p_0 < p_1 < ... < p_(r-1) is number sum_(i<r) C(q, i) + sum_i C(p_i, i + 1), counted from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym import codes
from hashgym.checks import check_integer, is_integer
from hashgym.codes import CodeSets, Words
from hashgym.moved import keep_old_names
from hashgym.retrieval.kernels import Backend, choose_kernel
from hashgym.retrieval.metrics import NOTHING_RELEVANT, pack_labels

__all__ = ["BucketSearch", "BucketTable", "ball", "f1_bucket_curve", "pack_queries"]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: the top bits of a product are well mixed
_HALF = np.uint64(32)
_KEYS = 1 << 16  # buckets that NumPy looks up at once


@dataclass(frozen=True)
class BucketSearch:
    """Result of :meth:`BucketTable.search`.

    Attributes:
        ids: int64 (k,), rows of the images in the order in which they were found.
        distances: int64 (k,), the distances at which they were found, ascending.
        buckets: number of buckets visited, empty ones included, the last image's bucket being the last.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.int64]
    buckets: int


class BucketTable:
    """A hash table of images by code, which has an image under each of its codes.

    A static table in arrays: the distinct codes are sorted by the top bits of a hash, and a directory holds the start
    of each prefix, so that a bucket is found by looking at one or two codes.

    Args:
        database: the code sets of n images, or bool (n, q), one code for each. Rows are the images' ids.
        backend: of :meth:`lookup`, see :mod:`hashgym.retrieval.kernels`; results are identical.

    Raises:
        ValueError: for codes that are not a 0/1 table or are empty.
        ImportError: for ``backend="numba"`` if numba is not installed.

    Queries are bool or 0/1 integers (..., q), or packed words, uint64 (..., ceil(q / 64)), which is a little faster.
    """

    def __init__(self, database: ArrayLike | CodeSets, backend: Backend = "auto") -> None:
        self._kernel = choose_kernel(_probe, backend)
        sets = database if isinstance(database, CodeSets) else _code_sets(database)
        self.bits = sets.bits
        images, _ = np.nonzero(sets.kept)
        words = sets.words[sets.kept]
        self._shift = np.uint64(63 - len(words).bit_length())  # two to four prefixes for a code: most are empty
        prefixes = _hash(words) >> self._shift
        order = np.lexsort((*words.T, prefixes))
        words = words[order]
        first = np.append(True, (words[1:] != words[:-1]).any(axis=1))
        small = np.int32 if len(words) < 1 << 31 else np.int64
        self._codes = words[first]
        self._starts = np.append(np.flatnonzero(first), len(words)).astype(small)
        self._ids = images[order].astype(small)
        counts = np.bincount(prefixes[order][first].astype(np.intp), minlength=1 << (64 - int(self._shift)))
        self._directory = np.append(0, np.cumsum(counts)).astype(small)
        # From an image to its buckets.
        self._buckets = np.empty(len(words), np.intp)
        self._buckets[order] = np.cumsum(first) - 1
        self._images = np.searchsorted(images, np.arange(len(sets)))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def lookup(self, query: ArrayLike, radius: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the images within a Hamming radius of one query, in the order of the search.

        Args:
            query: (q,), or packed.
            radius: the largest distance, >= 0.

        Returns:
            ids, distances: int64 (k,), each image once, at its least distance.

        Raises:
            ValueError: for a query of another length, or a radius below 0.
        """
        _, ids, distances = self._lookup(pack_queries(query, self.bits, 1)[None], radius)
        return ids, distances

    def lookup_many(
        self, queries: ArrayLike, radius: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """:meth:`lookup` of many queries (n, q), or packed.

        Returns:
            offsets: int64 (n + 1,); query i has found ``ids[offsets[i] : offsets[i + 1]]``.
            ids, distances: int64 (offsets[-1],).
        """
        return self._lookup(pack_queries(queries, self.bits, 2), radius)

    def search(self, query: ArrayLike, k: int) -> BucketSearch:
        """Visit buckets until ``k`` images are found (MCH, Algorithm 1).

        Args:
            query: (q,), or packed.
            k: number of images to find, 1 <= k <= n.

        Raises:
            ValueError: for a query of another length or ``k`` out of range.
        """
        words = pack_queries(query, self.bits, 1)
        self._check_wanted(k)
        radius = 0
        while self._worth_flipping(radius):
            masks, distances = _flips(self.bits, radius)
            _, ids, flips = self._probe(words[None], masks)
            if len(ids) >= k:
                return BucketSearch(ids[:k], distances[flips[:k]], int(flips[k - 1]) + 1)
            radius += 1
        masks, first = self._scan(words, k)
        ids = np.argsort(first, kind="stable")[:k]
        found = masks[first[ids]]
        return BucketSearch(ids, _weights(found), self._visited(found[-1]))

    def _lookup(self, queries: Words, radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        radius = check_integer("radius", radius, 0)
        if self._worth_flipping(radius):
            masks, distances = _flips(self.bits, radius)
            offsets, ids, flips = self._probe(queries, masks)
            return offsets, ids, distances.take(flips)
        parts = []
        for words in queries:
            masks, first = self._scan(words, radius=radius)
            (ids,) = np.nonzero(first < len(masks))
            ids = ids[np.argsort(first[ids], kind="stable")]
            parts.append((ids, _weights(masks)[first[ids]]))
        offsets = np.cumsum([0, *(len(ids) for ids, _ in parts)])
        return offsets, np.concatenate([ids for ids, _ in parts]), np.concatenate([d for _, d in parts])

    def _worth_flipping(self, radius: int) -> bool:
        """Return whether the ball has no more buckets than there are distinct codes to scan."""
        return ball(self.bits, radius, len(self._codes)) <= len(self._codes)

    def _probe(self, queries: Words, masks: Words) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return offsets (n + 1,) of the queries' images, and for each image its row and the mask that found it."""
        several = len(self._ids) > len(self)
        return self._kernel(queries, masks, self._codes, self._directory, self._starts, self._ids, self._shift, several)

    def _scan(self, query: Words, k: int = 1, radius: int | None = None) -> tuple[Words, NDArray[np.intp]]:
        """Return flip masks (b, W) of the buckets within the radius, or the least radius that has k images, in order.

        The second array (n,) has for each image the place of the first of its buckets among them, b if it is in none.
        """
        masks = self._codes ^ query
        distances = _weights(masks)
        if radius is None:
            least = np.minimum.reduceat(distances[self._buckets], self._images)
            radius = int(np.partition(least, k - 1)[k - 1])
        (within,) = np.nonzero(distances <= radius)
        within = within[np.lexsort((*masks[within].T, distances[within]))]
        places = np.full(len(masks), len(within))
        places[within] = np.arange(len(within))
        return masks[within], np.minimum.reduceat(places[self._buckets], self._images)

    def _visited(self, mask: Words) -> int:
        """Return the number of buckets visited, up to and including the one of this mask (W,)."""
        positions = np.flatnonzero(codes.unpack(mask, self.bits)).tolist()
        rank = sum(comb(position, i + 1) for i, position in enumerate(positions))
        return _inside(self.bits, len(positions)) + rank + 1

    def _check_wanted(self, k: int) -> None:
        if not is_integer(k) or not 1 <= k <= len(self):
            raise ValueError(f"the number of images to find must be between 1 and the {len(self)} indexed, got {k!r}")


def f1_bucket_curve(
    queries: ArrayLike,
    query_labels: ArrayLike,
    database: ArrayLike | CodeSets | BucketTable,
    database_labels: ArrayLike,
    ks: Sequence[int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return F1 and the number of buckets visited by the bucket search, for each number of images to find.

    F1 of the first k images is 2 hits / (k + relevant). Where the search ends inside a bucket, hits are the mean over
    all orders of the images first found there, so that the order of the database does not matter.

    Args:
        queries: bool (n, q), or packed.
        query_labels: multi-hot (n, L).
        database: the code sets of m images, bool (m, q), or a table of them.
        database_labels: multi-hot (m, L).
        ks: numbers of images, each from 1 to m.

    Returns:
        f1, buckets: float64 (len(ks),), means over the queries with something relevant in the database.

    Raises:
        ValueError: for codes, labels or lengths that disagree, invalid or no ``ks``, or if no query has anything
            relevant.
    """
    table = database if isinstance(database, BucketTable) else BucketTable(database)
    words, wanted = pack_queries(queries, table.bits, 2), np.asarray(ks)
    if wanted.ndim != 1 or not wanted.size or wanted.dtype.kind not in "iu":
        raise ValueError(f"ks must be a list of integers, got {ks!r}")
    for k in (wanted.min(), wanted.max()):
        table._check_wanted(int(k))
    labels, image_labels = pack_labels(query_labels, database_labels, len(words), len(table))
    f1, buckets, measured = np.zeros(len(wanted)), [0] * len(wanted), 0
    for code, label in zip(words, labels, strict=True):
        relevant = ((image_labels & label) != 0).any(axis=1)
        if not relevant.any():
            continue
        masks, first = table._scan(code, int(wanted.max()))
        total = np.bincount(first, minlength=len(masks) + 1)[:-1]
        hits = np.bincount(first[relevant], minlength=len(masks) + 1)[:-1]
        seen, found = np.cumsum(total), np.cumsum(hits)
        last = np.searchsorted(seen, wanted)  # the bucket in which the k-th image is
        share = (wanted - seen[last] + total[last]) / total[last]
        f1 += 2 * (found[last] - (1 - share) * hits[last]) / (wanted + relevant.sum())
        for i, bucket in enumerate(last):
            buckets[i] += table._visited(masks[bucket])
        measured += 1
    if not measured:
        raise ValueError(NOTHING_RELEVANT)
    return f1 / measured, np.array([total / measured for total in buckets])


def pack_queries(queries: Any, bits: int, axes: int) -> Words:
    """Pack one query (W,), or with two axes n of them (n, W), from bits or packed words.

    Raises:
        ValueError: for codes of another length, or none.
    """
    queries = np.asarray(queries)
    packed = queries.dtype == np.uint64
    length = codes.word_count(bits) if packed else bits
    if queries.ndim != axes or queries.shape[-1] != length or not queries.size:
        shape = f"{'n, ' * (axes - 1)}{length}{',' * (2 - axes)}"
        kind = "packed words, uint64" if packed else "bits of shape"
        raise ValueError(f"the index has codes of {bits} bits: queries are {kind} ({shape}), got {queries.shape}")
    if not packed:
        return codes.pack(queries)
    if codes.longer_than(queries, bits):
        raise ValueError(f"the packed query has bits set beyond bit {bits - 1}: it is a longer code")
    return np.require(queries, requirements=["C", "W", "E"])


def _code_sets(table: Any) -> CodeSets:
    table = np.asarray(table)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"codes must be code sets, or a 0/1 table (n, q) that is not empty, got shape {table.shape}")
    return CodeSets.of(table)


def _hash(words: Words) -> Words:
    """Return hash values (...,) of codes (..., W), well mixed in their top bits, as in numba_kernels.probe."""
    value = np.zeros(words.shape[:-1], np.uint64)
    for w in range(words.shape[-1]):
        value = ((value >> _HALF) ^ value ^ words[..., w]) * _MULTIPLIER
    return value


def _weights(masks: Words) -> NDArray[np.int64]:
    """Return the number of bits set in each mask (..., W)."""
    return np.bitwise_count(masks).sum(axis=-1, dtype=np.int64)


@lru_cache(maxsize=1024)
def _inside(bits: int, radius: int) -> int:
    """Return the number of codes at a distance less than the radius."""
    return sum(comb(bits, r) for r in range(radius))


@lru_cache(maxsize=64)
def ball(bits: int, radius: int, limit: int) -> int:
    """Return the number of codes of ``bits`` bits within a radius of one, or some number above the limit."""
    total = 0
    for r in range(min(radius, bits) + 1):
        if (total := total + comb(bits, r)) > limit:
            break
    return total


@lru_cache(maxsize=8)
def _flips(bits: int, radius: int) -> tuple[Words, NDArray[np.int64]]:
    """Return the flip masks (f, W) of all buckets within a radius, in the order of the search, and distances (f,)."""
    spheres = [np.zeros((1, codes.word_count(bits)), np.uint64)]
    for r in range(1, min(radius, bits) + 1):
        # With p as the highest of r bits, the others are any r - 1 of the p lower ones: the first C(p, r - 1) masks.
        single = codes.pack(np.eye(bits, dtype=np.bool_))
        spheres.append(np.concatenate([spheres[-1][: comb(p, r - 1)] | single[p] for p in range(r - 1, bits)]))
    masks = np.concatenate(spheres)
    return masks, _weights(masks)


def _probe(
    queries: Words,
    masks: Words,
    table: Words,
    directory: NDArray[np.signedinteger],
    starts: NDArray[np.signedinteger],
    ids: NDArray[np.signedinteger],
    shift: np.uint64,
    several: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Look up buckets as numba_kernels.probe does, in NumPy."""
    block = max(1, _KEYS // len(masks))
    counts, images, flips = [np.zeros(1, np.intp)], [], []
    for begin in range(0, len(queries), block):
        keys = (queries[begin : begin + block, None] ^ masks).reshape(-1, masks.shape[1])
        prefixes = (_hash(keys) >> shift).astype(np.intp)
        at, stop = directory[prefixes], directory[prefixes + 1]
        bucket = np.full(len(keys), -1)
        (open_keys,) = np.nonzero(at < stop)
        while len(open_keys):
            equal = (table[at[open_keys]] == keys[open_keys]).all(axis=1)
            bucket[open_keys[equal]] = at[open_keys[equal]]
            open_keys = open_keys[~equal]
            at[open_keys] += 1
            open_keys = open_keys[at[open_keys] < stop[open_keys]]
        (hit,) = np.nonzero(bucket >= 0)
        start = starts[bucket[hit]].astype(np.intp)
        sizes = starts[bucket[hit] + 1] - start
        rows = np.arange(sizes.sum()) + np.repeat(start - np.cumsum(sizes) + sizes, sizes)
        query, flip = np.divmod(np.repeat(hit, sizes), len(masks))
        image = ids[rows].astype(np.int64)
        if several:
            _, once = np.unique(query * (int(ids.max()) + 1) + image, return_index=True)
            once.sort()
            query, flip, image = query[once], flip[once], image[once]
        counts.append(np.bincount(query, minlength=len(keys) // len(masks)))
        images.append(image)
        flips.append(flip)
    return np.cumsum(np.concatenate(counts)), np.concatenate(images), np.concatenate(flips)


keep_old_names(__name__)
