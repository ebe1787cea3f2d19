"""Measures of retrieval by Hamming distance: mAP that is exact with ties, precision, recall, search by hash buckets.

>>> import numpy as np
>>> from hashgym.retrieval import evaluate
>>> query, database = np.array([[1, 1, 0]]), np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
>>> evaluate(query, [[1, 0]], database, [[1, 0], [1, 1], [0, 1]]).map_optimistic
1.0
"""

from hashgym.moved import keep_old_names
from hashgym.retrieval.buckets import BucketSearch, BucketTable, f1_bucket_curve
from hashgym.retrieval.kernels import average_precision, average_precision_credit, distance_histograms
from hashgym.retrieval.metrics import (
    RetrievalResult,
    check_labels,
    evaluate,
    mean_average_precision,
    precision_at,
    precision_recall_by_radius,
    precision_within,
    recall_within,
)

__all__ = [
    "BucketSearch",
    "BucketTable",
    "RetrievalResult",
    "average_precision",
    "average_precision_credit",
    "check_labels",
    "distance_histograms",
    "evaluate",
    "f1_bucket_curve",
    "mean_average_precision",
    "precision_at",
    "precision_recall_by_radius",
    "precision_within",
    "recall_within",
]

keep_old_names(__name__)
