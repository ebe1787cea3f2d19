"""Retrieval measures for ranking and lookup by Hamming distance.

All functions take codes as bool (n, q), the result of ``Hasher.encode``, or as :class:`hashgym.codes.CodeSets`, several
for an item, whose distance is then the least over them; and labels as multi-hot 0/1 (n, L), as in
:class:`hashgym.data.HashingDataset`. All are packed inside, and two items are relevant to each other when they share a
label. :func:`evaluate` returns all measures from one pass; recall and precision of the lookup in the query's own bucket
(R@H=0 and P@H=0) are ``recall_by_radius[0]`` and ``precision_by_radius[0]`` of its result.

A measure is a mean over the queries that have something relevant in the database; the others are left out, and
:func:`evaluate` counts them. If everything in the database is relevant to all of them, as with labels of a single
class, any ranking scores 1: the measures warn, and :func:`check_labels`, to be called before long work, raises a
ValueError. Items at the same distance are tied, and measures of a ranking are exact means over all orders of tied items
unless ``ties`` says otherwise. A lookup within radius r returns the items at distances <= r.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym import codes
from hashgym.checks import check_integer, is_integer
from hashgym.codes import CodeSets, Words
from hashgym.retrieval.kernels import Backend, Denominator, Ties, average_precision, distance_histograms

__all__ = [
    "RetrievalResult",
    "check_labels",
    "evaluate",
    "mean_average_precision",
    "precision_at",
    "precision_recall_by_radius",
    "precision_within",
    "recall_within",
]

_QUERIES = 4096  # queries counted at once

NOTHING_RELEVANT = "no query has a relevant item in the database, so there is nothing to measure: check the labels"
NO_LABELS = "there are no labels, by which codes are measured: extract features of labelled images"
ALL_RELEVANT = (
    "every item of the database is relevant to every query, so that any ranking scores 1: "
    "such labels cannot measure codes; give labels of at least two classes"
)

_TIES: tuple[Ties, ...] = ("average", "best", "worst")

Histogram = NDArray[np.int64]
Measure = Callable[[Histogram, Histogram], NDArray[np.float64]]


@dataclass(frozen=True)
class RetrievalResult:
    """Result of :func:`evaluate`.

    Attributes:
        map: mean average precision, at ``topk``, averaged over ties.
        map_optimistic: the same with the relevant items first inside every distance.
        map_pessimistic: the same with the relevant items last inside every distance.
        precision_at: k -> precision among the first k.
        precision_within: precision of the lookup within ``radius``; a lookup that finds nothing scores 0.
        recall_within: recall of the lookup within ``radius``.
        precision_by_radius: float64 (q + 1,), precision of the lookup within radius 0, 1, ..., q.
        recall_by_radius: float64 (q + 1,), its recall.
        topk: rank at which ``map`` is cut, None for the whole database.
        radius: of ``precision_within`` and ``recall_within``.
        queries: number of queries measured.
        queries_without_relevant: number of queries left out because nothing in the database is relevant to them.
    """

    map: float
    map_optimistic: float
    map_pessimistic: float
    precision_at: dict[int, float]
    precision_within: float
    recall_within: float
    precision_by_radius: NDArray[np.float64]
    recall_by_radius: NDArray[np.float64]
    topk: int | None
    radius: int
    queries: int
    queries_without_relevant: int


def evaluate(
    query_codes: ArrayLike | CodeSets,
    query_labels: ArrayLike,
    database_codes: ArrayLike | CodeSets,
    database_labels: ArrayLike,
    *,
    topk: int | None = None,
    denominator: Denominator = "attainable",
    precision_at: Sequence[int] = (),
    radius: int = 2,
    backend: Backend = "auto",
) -> RetrievalResult:
    """Compute every measure of this module in one pass over the database.

    Args:
        query_codes: bool (n, q), or the code sets of n items.
        query_labels: multi-hot (n, L).
        database_codes: bool (m, q), or the code sets of m items.
        database_labels: multi-hot (m, L).
        topk: rank at which average precision is cut, None for mAP@all.
        denominator: of average precision at ``topk``, see :func:`~hashgym.retrieval.kernels.average_precision`.
        precision_at: the numbers k of first items among which precision is measured.
        radius: Hamming radius of ``precision_within`` and ``recall_within``.
        backend: see :mod:`hashgym.retrieval.kernels`.

    Raises:
        ValueError: for codes or labels that are not 0/1 tables, bits, labels or lengths that disagree, empty input,
            ``topk``, ranks or a radius out of range, or if no query has anything relevant.
    """
    data = _Packed(query_codes, query_labels, database_codes, database_labels)
    radius = check_integer("radius", radius, 0)
    for k in precision_at:
        _check_rank(k, data)
    lookup, ranks = min(radius, data.bits), len(precision_at)

    def measure(relevant: Histogram, total: Histogram) -> NDArray[np.float64]:
        columns = [average_precision(relevant, total, topk, ties, denominator) for ties in _TIES]
        columns += [_precision_at(relevant, total, k) for k in precision_at]
        return np.column_stack([*columns, _precision_by_radius(relevant, total), _recall_by_radius(relevant)])

    means, measured = data.mean(measure, backend)
    precision, recall = means[3 + ranks :].reshape(2, -1)
    average, best, worst = means[:3].tolist()
    return RetrievalResult(
        map=average,
        map_optimistic=best,
        map_pessimistic=worst,
        precision_at=dict(zip(precision_at, means[3 : 3 + ranks].tolist(), strict=True)),
        precision_within=float(precision[lookup]),
        recall_within=float(recall[lookup]),
        precision_by_radius=precision,
        recall_by_radius=recall,
        topk=topk,
        radius=radius,
        queries=measured,
        queries_without_relevant=len(data.queries) - measured,
    )


def mean_average_precision(
    query_codes: ArrayLike | CodeSets,
    query_labels: ArrayLike,
    database_codes: ArrayLike | CodeSets,
    database_labels: ArrayLike,
    *,
    topk: int | None = None,
    ties: Ties = "average",
    denominator: Denominator = "attainable",
    backend: Backend = "auto",
) -> float:
    """Return the mean average precision: of the whole ranking, or of its first ``topk`` items.

    Arguments and errors as :func:`evaluate`; ``ties`` and ``denominator`` as
    :func:`~hashgym.retrieval.kernels.average_precision`. mAP@5000 in published NUS-WIDE tables uses
    ``denominator="retrieved"``.
    """
    data = _Packed(query_codes, query_labels, database_codes, database_labels)
    means, _ = data.mean(lambda relevant, total: average_precision(relevant, total, topk, ties, denominator), backend)
    return float(means)


def precision_at(
    k: int,
    query_codes: ArrayLike | CodeSets,
    query_labels: ArrayLike,
    database_codes: ArrayLike | CodeSets,
    database_labels: ArrayLike,
    *,
    backend: Backend = "auto",
) -> float:
    """Return the precision among the first ``k`` items, 1 <= k <= m. Arguments and errors as :func:`evaluate`."""
    data = _Packed(query_codes, query_labels, database_codes, database_labels)
    _check_rank(k, data)
    return float(data.mean(lambda relevant, total: _precision_at(relevant, total, k), backend)[0])


def precision_recall_by_radius(
    query_codes: ArrayLike | CodeSets,
    query_labels: ArrayLike,
    database_codes: ArrayLike | CodeSets,
    database_labels: ArrayLike,
    *,
    backend: Backend = "auto",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall of the lookup within radius 0, 1, ..., q, each float64 (q + 1,).

    Both are means over queries, and a lookup that finds nothing has precision 0. Arguments and errors as
    :func:`evaluate`.
    """
    data = _Packed(query_codes, query_labels, database_codes, database_labels)
    means, _ = data.mean(
        lambda relevant, total: np.stack([_precision_by_radius(relevant, total), _recall_by_radius(relevant)], axis=1),
        backend,
    )
    return means[0], means[1]


def precision_within(
    query_codes: ArrayLike | CodeSets,
    query_labels: ArrayLike,
    database_codes: ArrayLike | CodeSets,
    database_labels: ArrayLike,
    *,
    radius: int = 2,
    backend: Backend = "auto",
) -> float:
    """Return the precision of the lookup within ``radius``; 0 if it finds nothing. See :func:`evaluate`."""
    radius = check_integer("radius", radius, 0)
    precision, _ = precision_recall_by_radius(
        query_codes, query_labels, database_codes, database_labels, backend=backend
    )
    return float(precision[: radius + 1][-1])


def recall_within(
    query_codes: ArrayLike | CodeSets,
    query_labels: ArrayLike,
    database_codes: ArrayLike | CodeSets,
    database_labels: ArrayLike,
    *,
    radius: int = 2,
    backend: Backend = "auto",
) -> float:
    """Return the share of the relevant items that the lookup within ``radius`` finds. See :func:`evaluate`."""
    radius = check_integer("radius", radius, 0)
    _, recall = precision_recall_by_radius(query_codes, query_labels, database_codes, database_labels, backend=backend)
    return float(recall[: radius + 1][-1])


class _Packed:
    """The packed codes and labels of queries and database, checked against each other."""

    def __init__(self, query_codes: Any, query_labels: Any, database_codes: Any, database_labels: Any) -> None:
        self.queries, self.bits = pack_table("query codes", query_codes)
        self.database, bits = pack_table("database codes", database_codes)
        if bits != self.bits:
            raise ValueError(
                f"query codes have {self.bits} bits, database codes {bits}: encode both with the same hasher"
            )
        self.query_labels, self.database_labels = pack_labels(
            query_labels, database_labels, len(self.queries), len(self.database)
        )

    def mean(self, measure: Measure, backend: Backend) -> tuple[NDArray[np.float64], int]:
        """Return the measure's mean over the queries with something relevant, and their number."""
        nothing = np.zeros((0, self.bits + 1), np.int64)
        total = np.asarray(measure(nothing, nothing).sum(axis=0))  # raises for invalid arguments before the work
        count, all_relevant = 0, True
        for start in range(0, len(self.queries), _QUERIES):
            block = slice(start, start + _QUERIES)
            relevant, items = distance_histograms(
                self.queries[block],
                self.query_labels[block],
                self.database,
                self.database_labels,
                self.bits,
                backend=backend,
            )
            measured = relevant.any(axis=1)
            total = total + measure(relevant[measured], items[measured]).sum(axis=0)
            count += int(measured.sum())
            all_relevant = all_relevant and np.array_equal(relevant[measured], items[measured])
        if not count:
            raise ValueError(NOTHING_RELEVANT)
        if all_relevant:
            warnings.warn(ALL_RELEVANT, stacklevel=_level_of_caller())
        return total / count, count


def check_labels(query_labels: ArrayLike, database_labels: ArrayLike) -> None:
    """Check, before any work, that labels can distinguish good codes from bad ones.

    Args:
        query_labels: multi-hot (n, L).
        database_labels: multi-hot (m, L).

    Raises:
        ValueError: for labels that are no such tables, if there are none, no query shares one with anything in the
            database, or every query that does shares one with everything in it, so that any ranking would score 1.
    """
    queries, database = np.asarray(query_labels, np.float32), np.asarray(database_labels, np.float32)
    if queries.ndim == 2 and not queries.shape[1]:
        raise ValueError(NO_LABELS)
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"labels must be multi-hot, (n, L) and (m, L), got {queries.shape} and {database.shape}: make such tables "
            "of class numbers by np.eye(L)[numbers]"
        )
    some = False
    for start in range(0, len(queries), 64):  # with useful labels the first block decides
        relevant = queries[start : start + 64] @ database.T > 0
        found = relevant.any(axis=1)
        some = some or bool(found.any())
        if not relevant[found].all():
            return
    raise ValueError(ALL_RELEVANT if some else NOTHING_RELEVANT)


def pack_labels(
    query_labels: ArrayLike, database_labels: ArrayLike, queries: int, database: int
) -> tuple[Words, Words]:
    """Return the packed labels, checked against the numbers of query and database codes.

    Raises:
        ValueError: for labels that are not 0/1 tables, or of different numbers of columns or rows.
    """
    of_queries, columns = pack_table("query labels", query_labels)
    of_database, database_columns = pack_table("database labels", database_labels)
    if columns != database_columns:
        raise ValueError(f"query labels have {columns} columns, database labels {database_columns}")
    for name, wanted, labels in (("query", queries, of_queries), ("database", database, of_database)):
        if wanted != len(labels):
            raise ValueError(f"{wanted} {name} codes, but labels for {len(labels)}: give every code its labels")
    return of_queries, of_database


def pack_table(name: str, table: Any) -> tuple[Words, int]:
    """Return the packed rows of a 0/1 table (n, width), or of code sets, and their width."""
    if isinstance(table, CodeSets):
        return table.filled, table.bits
    table = np.asarray(table)
    if table.ndim != 2 or table.size == 0:
        remedy = ""
        if name.endswith("labels") and table.ndim == 1 and table.size:
            remedy = "; convert classes y by `y[:, None] == classes`, with an array of all classes"
        raise ValueError(
            f"{name} must be a 0/1 table of shape (n, columns) and not empty, got shape {table.shape}{remedy}"
        )
    try:
        return codes.pack(table), table.shape[1]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _level_of_caller() -> int:
    """Return the stack level, for a warning, of the first frame outside this module."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame, level = frame.f_back, level + 1
    return level


def _check_rank(k: int, data: _Packed) -> None:
    if not is_integer(k) or not 1 <= k <= len(data.database):
        raise ValueError(
            f"precision at {k!r}: the rank must be an integer between 1 and the {len(data.database)} database items"
        )


def _precision_at(relevant: Histogram, total: Histogram, k: int) -> NDArray[np.float64]:
    shown = np.clip(k - (np.cumsum(total, axis=1) - total), 0, total)
    return (relevant * (shown / np.maximum(total, 1))).sum(axis=1) / k


def _precision_by_radius(relevant: Histogram, total: Histogram) -> NDArray[np.float64]:
    return np.cumsum(relevant, axis=1) / np.maximum(np.cumsum(total, axis=1), 1)


def _recall_by_radius(relevant: Histogram) -> NDArray[np.float64]:
    return np.cumsum(relevant, axis=1) / relevant.sum(axis=1, keepdims=True)
