"""The compiled kernels of :mod:`hashgym.retrieval.kernels` and ``buckets``; imported only if numba is installed.

All kernels release the GIL, and those that count write only to the rows of their own queries, so kernels.py runs them
on Python threads. Numba's own ``parallel=True`` would start an OpenMP pool, which aborts a process that is forked
later, as Gymnasium's AsyncVectorEnv does.

Database words arrive transposed, (words, m), or (codes, words, m) with several codes for an item: one word of
neighbouring items is contiguous, whatever the code length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_TILE = 2048  # database items whose words, keys and counters stay in the first-level cache
_BYTE = 255  # items a byte counter holds
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # as in buckets._hash


def _compile(function: Any) -> Any:
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to cache compiled code in: compile it in every process
        return njit(nogil=True, error_model="numpy")(function)


def _emit_popcount(context: Any, word: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), emit


def _emit_count_bits(context: Any, address: Any, word: Any) -> Any:
    """Add bit b of a word to the b-th of the 64 byte counters at an address: one vector add where the CPU has it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        octets = ir.VectorType(ir.IntType(8), 64)
        pointer = builder.inttoptr(arguments[0], octets.as_pointer())
        bits = builder.bitcast(arguments[1], ir.VectorType(ir.IntType(1), 64))
        counted = builder.add(builder.load(pointer, align=1), builder.zext(bits, octets))
        builder.store(counted, pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint64), emit


_popcount: Any = intrinsic(_emit_popcount)
_count_bits: Any = intrinsic(_emit_count_bits)


@_compile
def _fill_distances(
    code: NDArray[np.uint64], database: NDArray[np.uint64], start: int, distances: NDArray[np.uint16]
) -> None:
    """Set distances[j] to the distance of item start + j of the database (W, m) to the code (W,)."""
    word, column = code[0], database[0][start : start + len(distances)]
    for j in range(len(distances)):
        distances[j] = _popcount(word ^ column[j])
    for w in range(1, len(code)):
        word, column = code[w], database[w][start : start + len(distances)]
        for j in range(len(distances)):
            distances[j] += _popcount(word ^ column[j])


@_compile
def _add_relevance(
    label: NDArray[np.uint64],
    labels: NDArray[np.uint64],
    start: int,
    keys: NDArray[np.uint16],
    similar: NDArray[np.uint8],
    width: int,
) -> None:
    """Add ``width`` to keys[j] where item start + j shares a label."""
    similar[:] = 0
    for v in range(len(label)):
        word, column = label[v], labels[v][start : start + len(keys)]
        if word:
            for j in range(len(similar)):
                similar[j] |= (word & column[j]) != 0
    step = np.uint16(width)
    for j in range(len(keys)):
        keys[j] += step * similar[j]


@_compile
def histograms(
    codes: NDArray[np.uint64],
    code_labels: NDArray[np.uint64],
    database: NDArray[np.uint64],
    labels: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    """Add to ``counts`` (n, 2, bits + 1) the items at each distance: [:, 0] share no label, [:, 1] share one.

    Codes are (n, K, W) and the database (K', W, m): an item's distance is the least over all pairs of codes.
    """
    width, size = counts.shape[2], database.shape[2]
    keys, others, similar = np.empty(_TILE, np.uint16), np.empty(_TILE, np.uint16), np.empty(_TILE, np.uint8)
    # Neighbouring items often share a key; four histograms in turn keep one increment from waiting for the last.
    partial = np.empty((4, 2 * width), np.int32)
    for start in range(0, size, _TILE):
        length = min(_TILE, size - start)
        for i in range(len(codes)):
            _fill_distances(codes[i, 0], database[0], start, keys[:length])
            for pair in range(1, codes.shape[1] * len(database)):
                a, b = divmod(pair, len(database))
                _fill_distances(codes[i, a], database[b], start, others[:length])
                for j in range(length):
                    keys[j] = min(keys[j], others[j])
            _add_relevance(code_labels[i], labels, start, keys[:length], similar[:length], width)
            partial[:] = 0
            for j in range(0, length - 3, 4):
                partial[0, keys[j]] += 1
                partial[1, keys[j + 1]] += 1
                partial[2, keys[j + 2]] += 1
                partial[3, keys[j + 3]] += 1
            for j in range(length - length % 4, length):
                partial[0, keys[j]] += 1
            for k in range(2 * width):
                counts[i, k // width, k % width] += partial[0, k] + partial[1, k] + partial[2, k] + partial[3, k]


@_compile
def _group(relevant: float, total: float, hits: float, seen: float, harmonic: float) -> float:
    """Return the share of one group of ties in the sum of precisions (see kernels.average_precision)."""
    slope = (relevant - 1.0) / max(total - 1.0, 1.0)
    return relevant * slope + relevant / max(total, 1.0) * (hits + 1.0 - slope * (seen + 1.0)) * harmonic


@_compile
def _precisions(
    items: NDArray[np.int64],
    differing: NDArray[np.int32],
    harmonic: NDArray[np.float64],
    precision: NDArray[np.float64],
    flipped: NDArray[np.float64],
) -> None:
    """Compute AP of one code and of its one-bit neighbours, from the items by key and how many differ in each bit."""
    bits = len(flipped)
    width = bits + 1
    hits, seen, precision[0] = 0.0, 0, 0.0
    for d in range(width):
        relevant, total = items[width + d], items[d] + items[width + d]
        change = harmonic[seen + total] - harmonic[seen]
        precision[0] += _group(float(relevant), float(total), hits, float(seen), change)
        hits, seen = hits + relevant, seen + total
    flipped[:] = 0.0
    if hits == 0:
        return
    precision[0] /= hits
    found, passed = np.zeros(bits), np.zeros(bits, np.int64)
    moved = np.zeros((2, bits), np.int32)
    for d in range(width):
        # Flipping a bit brings the items that differ in it from d + 1, and pushes those that agree from d - 1.
        for side in range(2):
            key = side * width + d
            moved[side] = 0
            if d < bits:
                for b in range(bits):
                    moved[side, b] += differing[key + 1, b]
            if d:
                for b in range(bits):
                    moved[side, b] += items[key - 1] - differing[key - 1, b]
        for b in range(bits):
            relevant, total = moved[1, b], moved[0, b] + moved[1, b]
            change = harmonic[passed[b] + total] - harmonic[passed[b]]
            flipped[b] += _group(float(relevant), float(total), found[b], float(passed[b]), change)
            found[b] += relevant
            passed[b] += total
    for b in range(bits):
        flipped[b] /= hits


@_compile
def credit(
    codes: NDArray[np.uint64],
    code_labels: NDArray[np.uint64],
    database: NDArray[np.uint64],
    labels: NDArray[np.uint64],
    exclude: NDArray[np.int64],
    harmonic: NDArray[np.float64],
    precision: NDArray[np.float64],
    flipped: NDArray[np.float64],
) -> None:
    """Write AP of every code to ``precision`` (n,), with bit b flipped to ``flipped`` (n, bits); 0 if undefined."""
    (words, size), bits = database.shape, flipped.shape[1]
    width = bits + 1
    trash = 2 * width
    keys, similar = np.empty(_BYTE, np.uint16), np.empty(_BYTE, np.uint8)
    # Items by key: how many there are, and how many of them differ from the code in each bit.
    items = np.empty(trash + 1, np.int64)
    differing = np.empty((trash, 64 * words), np.int32)
    octets = np.empty((trash + 1) * 64 * words, np.uint8)
    base, row = octets.ctypes.data, np.uint64(64 * words)
    for i in range(len(codes)):
        items[:] = 0
        differing[:] = 0
        for start in range(0, size, _BYTE):
            length = min(_BYTE, size - start)
            _fill_distances(codes[i], database, start, keys[:length])
            _add_relevance(code_labels[i], labels, start, keys[:length], similar[:length], width)
            if start <= exclude[i] < start + length:
                keys[exclude[i] - start] = trash
            octets[:] = 0
            for w in range(words):
                word, column = codes[i, w], database[w][start : start + length]
                for j in range(length):
                    _count_bits(base + row * np.uint64(keys[j]) + np.uint64(64 * w), word ^ column[j])
            for j in range(length):
                items[keys[j]] += 1
            flat = differing.ravel()
            for k in range(flat.size):
                flat[k] += octets[k]
        _precisions(items, differing, harmonic, precision[i : i + 1], flipped[i])


@_compile
def _grown(array: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return the array, or a longer copy if it has no room for ``size`` numbers."""
    if size <= len(array):
        return array
    longer = np.empty(2 * size, np.int64)
    longer[: len(array)] = array
    return longer


@_compile
def probe(
    queries: NDArray[np.uint64],
    masks: NDArray[np.uint64],
    table: NDArray[np.uint64],
    directory: NDArray[np.int32],
    starts: NDArray[np.int32],
    ids: NDArray[np.int32],
    shift: int,
    several: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Look up the buckets that each mask leads to from each query (see buckets.BucketTable for the table).

    Returns offsets (n + 1,) of the queries' images, and for each image its row and the number of the first mask by
    which it is found. ``several`` is true if images may be in several buckets.
    """
    offsets = np.zeros(len(queries) + 1, np.int64)
    images, flips = np.empty(64, np.int64), np.empty(64, np.int64)
    # Masks that may still lead to a code, the next row of the table to compare for each, and where to stop.
    tried, at, stop = np.empty(len(masks), np.int64), np.empty(len(masks), np.int64), np.empty(len(masks), np.int64)
    buckets, hits = np.empty(len(masks), np.int64), np.empty(len(masks), np.int64)
    seen, bits = np.empty(0, np.int64), 0  # a hash set of the images of one query
    found = 0
    for i in range(len(queries)):
        left, hit, total = 0, 0, 0
        # All masks go through each step together, without branches, so that reads from memory overlap.
        for f in range(len(masks)):
            value = np.uint64(0)  # buckets._hash
            for w in range(queries.shape[1]):
                value = ((value >> np.uint64(32)) ^ value ^ queries[i, w] ^ masks[f, w]) * _MULTIPLIER
            prefix = value >> shift
            tried[left], at[left], stop[left] = f, directory[prefix], directory[prefix + np.uint64(1)]
            left += at[left] < stop[left]
            buckets[f] = -1
        while left:
            length, left = left, 0
            for t in range(length):
                f, b, end, same = tried[t], at[t], stop[t], True
                for w in range(queries.shape[1]):
                    same &= table[b, w] == queries[i, w] ^ masks[f, w]
                buckets[f] = b if same else -1
                tried[left], at[left], stop[left] = f, b + 1, end
                left += (not same) & (b + 1 < end)
        for f in range(len(masks)):
            if buckets[f] >= 0:
                hits[hit] = f
                hit, total = hit + 1, total + starts[buckets[f] + 1] - starts[buckets[f]]
        images, flips = _grown(images, found + total), _grown(flips, found + total)
        distinct = not several or hit < 2
        if not distinct:
            bits = 1
            while 1 << bits < 2 * total:
                bits += 1
            if len(seen) < 1 << bits:
                seen = np.empty(1 << bits, np.int64)
            seen[: 1 << bits] = -1
        for h in range(hit):
            for e in range(starts[buckets[hits[h]]], starts[buckets[hits[h]] + 1]):
                image, new = np.int64(ids[e]), True
                if not distinct:
                    slot = np.int64((np.uint64(image) * _MULTIPLIER) >> np.uint64(64 - bits))
                    while seen[slot] != -1 and seen[slot] != image:
                        slot = (slot + 1) & ((1 << bits) - 1)
                    new = seen[slot] == -1
                    seen[slot] = image
                if new:
                    images[found], flips[found] = image, hits[h]
                    found += 1
        offsets[i + 1] = found
    return offsets, images[:found], flips[:found]
