"""Counts of neighbours at every Hamming distance, and average precision from the counts.

A ranking by Hamming distance is known up to the order inside each distance, so its quality follows exactly from two
histograms for each query: the items at every distance, and the relevant ones among them. No ranking is ever sorted,
and no queries x database matrix exists. Two items are relevant to each other when they share a label.

Codes and labels come packed, uint64, see :mod:`hashgym.codes`. Every function that counts takes ``backend``:
"numba" (the compiled kernels; numba must be installed), "numpy", or "auto", numba if it is installed. Counts are
identical in both, averages equal up to rounding. Both use the cores this process may run on, at most
``OMP_NUM_THREADS`` if that is set; results do not depend on the number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, reduce
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hashgym import codes
from hashgym.checks import check_integer
from hashgym.codes import Words

__all__ = [
    "Backend",
    "Denominator",
    "Ties",
    "average_precision",
    "average_precision_credit",
    "distance_histograms",
]

Backend = Literal["auto", "numba", "numpy"]
Ties = Literal["average", "best", "worst"]
Denominator = Literal["attainable", "retrieved"]
Kernel = Callable[..., Any]

_BLOCK = 1 << 15  # database items that NumPy compares at once: their words and keys stay in the cache
_SMALL = 1 << 21  # comparisons below which one thread is quicker: starting another takes as long as about 10^5 of them


def distance_histograms(
    queries: Words,
    query_labels: Words,
    database: Words,
    database_labels: Words,
    bits: int,
    exclude: NDArray[np.int64] | None = None,
    backend: Backend = "auto",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the database items at every Hamming distance from every query.

    Args:
        queries: packed codes, uint64 (n, W), or (n, K, W) with K codes for each query: the distance is then the least
            over all pairs of codes. One with fewer codes repeats one of them, as :attr:`CodeSets.filled` does.
        query_labels: packed labels, uint64 (n, V).
        database: packed codes, uint64 (m, W), or (m, K', W).
        database_labels: packed labels, uint64 (m, V).
        bits: q, the length of the codes.
        exclude: int64 (n,), the row of the database that is left out for each query, -1 for none.
        backend: see the module.

    Returns:
        relevant, total: int64 (n, q + 1); ``total[i, d]`` items are at distance d from query i, ``relevant[i, d]`` of
        them share a label with it.

    Raises:
        ValueError: for arrays of another type or shape, lengths that disagree, or bits set beyond ``bits``.
        ImportError: for ``backend="numba"`` if numba is not installed.
    """
    kernel = choose_kernel(_histograms, backend)
    _check(queries, query_labels, database, database_labels, bits, exclude, axes=(2, 3))
    queries, database = (words.reshape(len(words), -1, words.shape[-1]) for words in (queries, database))
    counts = np.zeros((len(queries), 2, bits + 1), np.int64)
    items, labels = _columns(database), _columns(database_labels)
    queries, query_labels = _plain(queries), _plain(query_labels)

    def run(start: int, stop: int) -> None:
        own = slice(start, stop)
        kernel(queries[own], query_labels[own], items, labels, counts[own])

    _on_threads(run, len(queries), len(database) * len(items) * queries.shape[1])
    if exclude is not None:
        (rows,) = np.nonzero(exclude >= 0)
        left_out = exclude[rows]
        distance = codes.hamming(queries[rows][:, :, None], database[left_out][:, None]).min(axis=(1, 2))
        similar = ((query_labels[rows] & database_labels[left_out]) != 0).any(axis=-1)
        counts[rows, similar.astype(np.intp), distance] -= 1
    return counts[:, 1], counts.sum(axis=1)


def average_precision(
    relevant: NDArray[np.int64],
    total: NDArray[np.int64],
    topk: int | None = None,
    ties: Ties = "average",
    denominator: Denominator = "attainable",
) -> NDArray[np.float64]:
    """Average precision of rankings that are known up to the order inside each distance.

    "average" is the exact mean over all orders of the tied items (McSherry and Najork, "Computing information
    retrieval performance measures efficiently in the presence of tied scores", ECIR 2008). Among n tied items, r of
    them relevant, behind N items with R relevant ones, the i-th is relevant with probability r / n and then has
    R + 1 + (i - 1) a hits up to it on average, a = (r - 1) / (n - 1). Summed over the first m of them that is
    r / n [m a + (R + 1 - a (N + 1)) (H(N + m) - H(N))] with the harmonic numbers H. "best" and "worst" put the
    relevant items first and last inside every distance.

    Args:
        relevant: int64 (..., D), relevant items at each distance.
        total: int64 (..., D), all items at each distance.
        topk: rank after which a ranking is cut, None for the whole ranking.
        ties: how tied items are ordered.
        denominator: the divisor of the sum of precisions at the hits. "attainable" divides by
            min(relevant items, topk), so that a perfect ranking scores 1 and more hits never score less; "retrieved"
            divides by the hits in the first ``topk``, as published hashing code does for mAP@5000 on NUS-WIDE, and
            scores 0 without a hit. Equal without ``topk``. With "retrieved" a later hit can lower the score,
            so "best" and "worst" are orders, not bounds.

    Returns:
        float64 (...,), NaN where nothing is relevant.

    Raises:
        ValueError: for histograms of different shapes, ``topk`` < 1, or an unknown name.
    """
    relevant, total = np.asarray(relevant), np.asarray(total)
    if relevant.shape != total.shape or relevant.ndim == 0:
        raise ValueError(f"relevant and total must have one shape (..., D), got {relevant.shape} and {total.shape}")
    if topk is not None:
        topk = check_integer("topk", topk)
    if ties not in ("average", "best", "worst"):
        raise ValueError(f"ties must be 'average', 'best' or 'worst', got {ties!r}")
    if denominator not in ("attainable", "retrieved"):
        raise ValueError(f"denominator must be 'attainable' or 'retrieved', got {denominator!r}")
    seen, hits = np.cumsum(total, axis=-1) - total, np.cumsum(relevant, axis=-1) - relevant
    everything, wanted = total.sum(axis=-1, keepdims=True), relevant.sum(axis=-1)
    cut = everything if topk is None else np.minimum(topk, everything)
    harmonic = _harmonic(int(everything.max(initial=0)))
    shown = np.clip(cut - seen, 0, total)
    if ties == "average":
        slope = (relevant - 1) / np.maximum(total - 1, 1)
        change = harmonic[seen + shown] - harmonic[seen]
        gain = relevant / np.maximum(total, 1) * (shown * slope + (hits + 1 - slope * (seen + 1)) * change)
        # In the distance that the cut goes through, the number of hits is random as well.
        retrieved = relevant * (shown == total)
    else:
        before = seen if ties == "best" else seen + total - relevant
        retrieved = np.clip(cut - before, 0, relevant)
        gain = retrieved + (hits - before) * (harmonic[before + retrieved] - harmonic[before])
    with np.errstate(invalid="ignore"):
        if denominator == "attainable":
            return np.asarray(gain.sum(axis=-1) / np.minimum(wanted, cut[..., 0]))
        broken = (shown > 0) & (shown < total) & (ties == "average")
        whole = np.where(broken, 0.0, gain).sum(axis=-1)
        score = np.where(wanted > 0, whole / np.maximum(retrieved.sum(axis=-1), 1), np.nan)
        for at in np.argwhere(broken & (relevant > 0)):
            row, d = tuple(at[:-1]), tuple(at)
            score[row] = _cut_through(relevant[d], total[d], shown[d], hits[d], seen[d], whole[row], harmonic)
        return score


def average_precision_credit(
    queries: Words,
    query_labels: Words,
    database: Words,
    database_labels: Words,
    bits: int,
    exclude: NDArray[np.int64] | None = None,
    backend: Backend = "auto",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision of every code, and the credit of each of its bits.

    Flipping bit b of a code moves an item from distance d to d + 1 where the two agree in b, and to d - 1 where they
    differ. So one pass that counts, at each distance, the items that differ in each bit gives the histograms of all
    q flipped codes, and :func:`average_precision` follows for each.

    Args:
        queries: packed codes, uint64 (n, W).
        query_labels: packed labels, uint64 (n, V).
        database: packed codes, uint64 (m, W).
        database_labels: packed labels, uint64 (m, V).
        bits: q, the length of the codes.
        exclude: int64 (n,), the row of the database that is left out for each code, -1 for none.
        backend: see the module.

    Returns:
        ap: float64 (n,), average precision over the whole database, averaged over ties, 0 where nothing is relevant.
        credit: float64 (n, q), AP(bit b = 1) - AP(bit b = 0), all other bits unchanged, 0 where nothing is relevant.

    Raises:
        ValueError: as :func:`distance_histograms`.
        ImportError: for ``backend="numba"`` if numba is not installed.
    """
    kernel = choose_kernel(_credit, backend)
    _check(queries, query_labels, database, database_labels, bits, exclude)
    queries, query_labels = _plain(queries), _plain(query_labels)
    items, labels = _columns(database), _columns(database_labels)
    rows = np.full(len(queries), -1, np.int64) if exclude is None else _plain(exclude)
    harmonic = _harmonic(len(database))
    ap, flipped = np.zeros(len(queries)), np.zeros((len(queries), bits))

    def run(start: int, stop: int) -> None:
        own = slice(start, stop)
        kernel(queries[own], query_labels[own], items, labels, rows[own], harmonic, ap[own], flipped[own])

    _on_threads(run, len(queries), len(database))
    return ap, (ap[:, None] - flipped) * np.where(codes.unpack(queries, bits), 1.0, -1.0)


def _check(
    queries: Words,
    query_labels: Words,
    database: Words,
    database_labels: Words,
    bits: int,
    exclude: NDArray[np.int64] | None,
    axes: tuple[int, ...] = (2,),
) -> None:
    """Raise ValueError for arrays that do not fit each other; ``axes`` are the numbers of axes that codes may have."""
    if not 1 <= bits < 1 << 14:
        raise ValueError(f"bits must be between 1 and {(1 << 14) - 1}, got {bits}")
    for name, array, allowed in (
        ("queries", queries, axes),
        ("query_labels", query_labels, (2,)),
        ("database", database, axes),
        ("database_labels", database_labels, (2,)),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != np.uint64 or array.ndim not in allowed or not array.size:
            kind = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            shapes = "(n, words) or (n, codes, words)" if 3 in allowed else "(n, words)"
            raise ValueError(f"{name} must be packed words, uint64 {shapes} and not empty, got {kind}; pack them")
    for name, array in (("queries", queries), ("database", database)):
        if array.shape[-1] != codes.word_count(bits):
            raise ValueError(f"{bits} bits take {codes.word_count(bits)} words, {name} have {array.shape[-1]}")
        if codes.longer_than(array, bits):
            raise ValueError(f"{name} have bits set beyond bit {bits - 1}: they are longer than {bits} bits")
    if query_labels.shape[1] != database_labels.shape[1]:
        raise ValueError(
            f"query and database labels differ in length: {query_labels.shape[1]} and {database_labels.shape[1]} words"
        )
    if len(queries) != len(query_labels) or len(database) != len(database_labels):
        raise ValueError(
            f"every code needs one row of labels: {len(queries)} queries with {len(query_labels)} rows, "
            f"{len(database)} database codes with {len(database_labels)}"
        )
    if exclude is not None:
        if exclude.shape != (len(queries),) or exclude.dtype != np.int64:
            raise ValueError(f"exclude must be int64 ({len(queries)},), got {exclude.dtype} {exclude.shape}")
        if exclude.min() < -1 or exclude.max() >= len(database):
            raise ValueError(f"exclude must name rows of the database, 0 to {len(database) - 1}, or -1 for none")


def choose_kernel(plain: Kernel, backend: Backend) -> Kernel:
    """Return a kernel for a backend: the NumPy kernel, or the function of numba_kernels of its name without underscore.

    Raises:
        ValueError: for an unknown backend.
        ImportError: for ``backend="numba"`` if numba is not installed.
    """
    if backend not in ("auto", "numba", "numpy"):
        raise ValueError(f"backend must be 'auto', 'numba' or 'numpy', got {backend!r}")
    if backend == "numpy":
        return plain
    compiled = _compiled()
    if isinstance(compiled, ModuleType):
        return getattr(compiled, plain.__name__.lstrip("_"))
    if backend == "numba":
        raise ImportError(
            f"the compiled kernels need numba ({compiled}): `pip install 'hashgym[speed]'`, or use backend='numpy'"
        )
    return plain


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | ImportError:
    try:
        from hashgym.retrieval import numba_kernels
    except ImportError as error:  # not installed, or too old for this NumPy
        return error
    return numba_kernels


def _plain(array: NDArray) -> NDArray:
    """Return a contiguous, writable array of NumPy's own class, so that one compiled version fits every caller."""
    return np.require(array, requirements=["C", "W", "E"])


def _columns(words: Words) -> Words:
    """Return words (m, W) as (W, m), (m, K, W) as (K, W, m): the same word of neighbouring items side by side."""
    return _plain(np.moveaxis(words, 0, -1))


def _on_threads(run: Callable[[int, int], None], rows: int, size: int) -> None:
    """Call ``run(start, stop)`` for parts of the rows, in threads if there is enough work."""
    threads = min(rows, _threads()) if rows * size > _SMALL else 1
    edges = np.linspace(0, rows, threads + 1).astype(int).tolist()
    if threads == 1:
        return run(0, rows)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    requested = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(requested)) if requested.isdigit() and int(requested) else cores


def _harmonic(size: int) -> NDArray[np.float64]:
    """Return the harmonic numbers H(0), H(1), ..., up to H(size) or further."""
    return _harmonic_table(1 << size.bit_length())


@lru_cache(maxsize=4)
def _harmonic_table(size: int) -> NDArray[np.float64]:
    table = np.zeros(size + 1)
    np.cumsum(1.0 / np.arange(1, size + 1), out=table[1:])
    return table


def _cut_through(
    relevant: int,
    total: int,
    shown: int,
    hits: int,
    seen: int,
    whole: float,
    harmonic: NDArray[np.float64],
) -> float:
    """Return the mean of AP / hits retrieved if the cut leaves ``shown`` of ``total`` tied items.

    The number of hits among the items shown is hypergeometric, and given that number every order is equally
    likely, so the closed form holds for each.
    """
    found = np.arange(max(0, shown - (total - relevant)), min(relevant, shown) + 1)
    now, following = found[:-1], found[1:]
    odds = (relevant - now) * (shown - now) / (following * (total - relevant - shown + following))
    weight = np.concatenate([[0.0], np.cumsum(np.log(odds))])
    weight = np.exp(weight - weight.max())
    slope = (found - 1) / max(shown - 1, 1)
    change = harmonic[seen + shown] - harmonic[seen]
    gain = found * slope + found / shown * (hits + 1 - slope * (seen + 1)) * change
    return float(np.average((whole + gain) / np.maximum(hits + found, 1), weights=weight))


def _distances(code: Words, items: Words) -> NDArray[np.uint16]:
    """Return the distance of every item (W, m) to a code (W,)."""
    distances = np.bitwise_count(items[0] ^ code[0]).astype(np.uint16)
    for word, column in zip(code[1:], items[1:], strict=True):
        distances += np.bitwise_count(column ^ word)
    return distances


def _keys(distances: NDArray[np.uint16], label: Words, labels: Words, width: int) -> NDArray[np.intp]:
    """Return the distances, plus ``width`` for the items that share a label."""
    similar = np.zeros(len(distances), np.bool_)
    for word, column in zip(label, labels, strict=True):
        if word:
            similar |= (column & word) != 0
    return (distances + similar * np.uint16(width)).astype(np.intp)


def _histograms(queries: Words, query_labels: Words, items: Words, labels: Words, counts: NDArray[np.int64]) -> None:
    """Count as numba_kernels.histograms does, in NumPy."""
    width = counts.shape[2]
    for start in range(0, items.shape[2], _BLOCK):
        block = slice(start, start + _BLOCK)
        for i in range(len(queries)):
            pairs = (_distances(code, item[:, block]) for code in queries[i] for item in items)
            keys = _keys(reduce(np.minimum, pairs), query_labels[i], labels[:, block], width)
            counts[i] += np.bincount(keys, minlength=2 * width).reshape(2, width)


def _credit(
    queries: Words,
    query_labels: Words,
    items: Words,
    labels: Words,
    exclude: NDArray[np.int64],
    harmonic: NDArray[np.float64],
    ap: NDArray[np.float64],
    flipped: NDArray[np.float64],
) -> None:
    """Compute the same as numba_kernels.credit, in NumPy."""
    bits = flipped.shape[1]
    width = bits + 1
    octets = codes.unpack(items.T, bits).view(np.uint8)
    for i in range(len(queries)):
        keys = _keys(_distances(queries[i], items), query_labels[i], labels, width)
        if exclude[i] >= 0:
            keys[exclude[i]] = 2 * width  # counted, and cut off below
        order = np.argsort(keys.astype(np.uint16), kind="stable")
        counts = np.bincount(keys, minlength=2 * width + 1)
        (present,) = np.nonzero(counts)
        ones = np.zeros((2 * width + 1, bits), np.int64)
        starts = (np.cumsum(counts) - counts)[present]
        ones[present] = np.add.reduceat(octets.take(order, axis=0), starts, axis=0, dtype=np.int32)
        counts, ones = counts[:-1].reshape(2, width), ones[:-1].reshape(2, width, bits)
        if not counts[1].any():
            continue
        differing = np.where(codes.unpack(queries[i], bits), counts[..., None] - ones, ones)
        moved = np.zeros((2, width, bits), np.int64)
        moved[:, :-1] += differing[:, 1:]
        moved[:, 1:] += (counts[..., None] - differing)[:, :-1]
        moved = np.moveaxis(moved, -1, 1)
        ap[i] = average_precision(counts[1], counts.sum(axis=0))
        flipped[i] = average_precision(moved[1], moved.sum(axis=0))
