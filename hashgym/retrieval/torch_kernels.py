"""The kernels for torch tensors, on their device: counts at every Hamming distance, average precision.

Results are those of :mod:`hashgym.retrieval.kernels`, from unpacked codes: counts are identical, averages equal up to
rounding (float64). Memory is bounded by processing the queries in blocks. Functions that count take ``backend``:
"torch", or "auto", which counts tensors on the CPU with the compiled kernels, because those are faster there.
This module imports torch, so ``hashgym.retrieval`` does not import it.

Distances and counts are matrix products of float32. They are exact on every device, in TF32 too: the factors are 0, 1
and -1, which every format holds, and the sums are integers below 2**24, accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from hashgym import codes
from hashgym.retrieval import kernels
from hashgym.retrieval.kernels import Kernel

__all__ = ["average_precision", "average_precision_credit", "distance_histograms"]

_BLOCK = 1 << 27  # numbers in memory at once
_EXACT = 1 << 24  # integers below this are exact in float32


def distance_histograms(
    queries: Tensor,
    query_labels: Tensor,
    database: Tensor,
    database_labels: Tensor,
    exclude: Tensor | None = None,
    backend: Literal["auto", "torch"] = "auto",
) -> tuple[Tensor, Tensor]:
    """Count the database items at every Hamming distance from every query.

    Args:
        queries: codes, (n, q), bool or numbers 0 and 1.
        query_labels: multi-hot labels, (n, L), bool or numbers 0 and 1.
        database: codes, (m, q), as ``queries``.
        database_labels: (m, L), as ``query_labels``.
        exclude: int64 (n,), the row of the database that is left out for each query, -1 for none.
        backend: see the module.

    Returns:
        relevant, total: int64 (n, q + 1); ``total[i, d]`` items are at distance d from query i, ``relevant[i, d]`` of
        them share a label with it.

    Raises:
        ValueError: for tensors whose shapes do not fit, or 2**24 items or more.
    """
    _check(queries, query_labels, database, database_labels, exclude)
    if backend == "auto" and queries.device.type == "cpu":
        return _on_host(kernels.distance_histograms, exclude, queries, query_labels, database, database_labels)
    width, one = queries.shape[1] + 1, torch.ones_like(database[:, :1], dtype=torch.float32)
    blocks = _blocks(queries, query_labels, database, database_labels, exclude)
    both = torch.cat([_tally(keys, one, width)[..., 0].long() for _, keys in blocks])
    return both[:, 1], both.sum(1)


def average_precision(relevant: Tensor, total: Tensor) -> Tensor:
    """Average precision of whole rankings, the mean over all orders of tied items.

    Args:
        relevant: (..., D), integers of any type: relevant items at each distance.
        total: (..., D), all items at each distance.

    Returns:
        float64 (...,), NaN where nothing is relevant; the closed form is explained in
        :func:`hashgym.retrieval.kernels.average_precision`.

    Raises:
        ValueError: for histograms of different shapes.
    """
    if relevant.shape != total.shape or not relevant.ndim:
        shapes = f"{(*relevant.shape,)} and {(*total.shape,)}"
        raise ValueError(f"relevant and total must have one shape (..., D), got {shapes}")
    relevant, total = relevant.double(), total.double()
    end, found = total.cumsum(-1), relevant.cumsum(-1)
    seen, hits = end - total, found - relevant
    slope = (relevant - 1) / (total - 1).clamp(min=1)
    change = torch.digamma(end + 1) - torch.digamma(seen + 1)  # of harmonic numbers: digamma(n + 1) is H(n) - 0.577...
    gain = relevant / total.clamp(min=1) * (total * slope + (hits + 1 - slope * (seen + 1)) * change)
    return gain.sum(-1) / found[..., -1]


def average_precision_credit(
    queries: Tensor,
    query_labels: Tensor,
    database: Tensor,
    database_labels: Tensor,
    exclude: Tensor | None = None,
    backend: Literal["auto", "torch"] = "auto",
) -> tuple[Tensor, Tensor]:
    """Average precision of every code, and the credit of each of its bits.

    Arguments and errors as for :func:`distance_histograms`; how the histograms of all flipped codes follow from one
    pass is explained in :func:`hashgym.retrieval.kernels.average_precision_credit`.

    Returns:
        ap: float64 (n,), average precision over the whole database, averaged over ties, 0 where nothing is relevant.
        credit: float64 (n, q), AP(bit b = 1) - AP(bit b = 0), all other bits unchanged, 0 where nothing is relevant.
    """
    _check(queries, query_labels, database, database_labels, exclude)
    if backend == "auto" and queries.device.type == "cpu":
        return _on_host(kernels.average_precision_credit, exclude, queries, query_labels, database, database_labels)
    width, bits = queries.shape[1] + 1, database.float()
    weights = torch.cat([torch.ones_like(bits[:, :1]), bits], dim=1)  # summed: items, and those with a one in each bit
    scores = []
    for own, keys in _blocks(queries, query_labels, database, database_labels, exclude):
        items, ones = _tally(keys, weights, width).transpose(2, 3).split([1, width - 1], dim=2)  # (r, 2, 1 or q, q + 1)
        differing = torch.where(queries[own].bool()[:, None, :, None], items - ones, ones)
        moved = torch.zeros_like(differing)
        moved[..., :-1] += differing[..., 1:]
        moved[..., 1:] += (items - differing)[..., :-1]
        counts = torch.cat([items, moved], dim=2)
        scores.append(average_precision(counts[:, 1], counts.sum(1)).nan_to_num())
    ap, flipped = torch.cat(scores).split([1, width - 1], dim=1)
    return ap[:, 0], torch.where(queries.bool(), ap - flipped, flipped - ap)


def _check(
    queries: Tensor, query_labels: Tensor, database: Tensor, database_labels: Tensor, exclude: Tensor | None
) -> None:
    shapes = [(*x.shape,) for x in (queries, query_labels, database, database_labels)]
    (n, *q), (_, *labels), (m, *_), _ = (shape or (0,) for shape in shapes)
    if shapes != [(n, *q), (n, *labels), (m, *q), (m, *labels)] or {len(q), len(labels)} != {1} or not n * m * q[0]:
        raise ValueError(
            f"codes and labels must have shapes (n, q), (n, L), (m, q) and (m, L) and not be empty, got {shapes}"
        )
    if exclude is not None and (exclude.shape != (n,) or exclude.dtype != torch.int64):
        raise ValueError(f"exclude must be int64 ({n},), got {exclude.dtype} {(*exclude.shape,)}")
    if m >= _EXACT:
        raise ValueError(f"counts are exact below {_EXACT:,} items, got {m:,}; count them in parts")


def _blocks(
    queries: Tensor, query_labels: Tensor, database: Tensor, database_labels: Tensor, exclude: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of the queries, and the keys of their pairs, float32 (r, m).

    A key is the distance, plus q + 1 for items that share a label, and -1 for an item that is left out.
    """
    bits = queries.shape[1]
    signs, labels = database.float() * 2 - 1, database_labels.float()
    rows = max(1, _BLOCK // (len(database) * 2 * (bits + 1)))
    for start in range(0, len(queries), rows):
        own = slice(start, start + rows)
        keys = (bits - _product(queries[own].float() * 2 - 1, signs.T)) / 2
        keys += (bits + 1) * (_product(query_labels[own].float(), labels.T) > 0)
        if exclude is not None:
            left_out = exclude[own, None]
            at = left_out.clamp(min=0)
            keys.scatter_(1, at, keys.gather(1, at).masked_fill(left_out >= 0, -1))
        yield own, keys


def _tally(keys: Tensor, weights: Tensor, width: int) -> Tensor:
    """Return sums of the items' weights (m, c) by key (r, m), float32 (r, 2, width, c): a product with one-hot keys."""
    hot = keys[:, None] == torch.arange(2 * width, device=keys.device)[:, None]
    return _product(hot.float(), weights).view(len(keys), 2, width, -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product in float32, also if the caller's autocast would round it."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _on_host(kernel: Kernel, exclude: Tensor | None, *hot: Tensor) -> tuple[Tensor, Tensor]:
    """Call a kernel for packed arrays on tensors that are on the CPU."""
    words = (codes.pack(x.bool().numpy()) for x in hot)
    first, second = kernel(*words, hot[0].shape[1], exclude=None if exclude is None else exclude.numpy())
    return torch.from_numpy(first), torch.from_numpy(second)
