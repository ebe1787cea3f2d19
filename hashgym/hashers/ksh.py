"""ksh: supervised hashing with kernels (Liu, Wang, Ji, Jiang, Chang, CVPR 2012), and its loss for a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashgym.hashers.base import Features, Labels
from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.kernel import rbf, squared_distances
from hashgym.hashers.pairwise import PairwiseHasher, inner_distance, pair_weights

__all__ = ["KSH", "RelaxedKSH", "ksh_loss"]


def ksh_loss(distance: Tensor, similar: Tensor, bits: int) -> Tensor:
    """Return ((q - 2 d) / q - (2 s - 1))^2: the inner product of two codes, as a share of q, should be 1 or -1.

    Args:
        distance: real numbers in [0, q].
        similar: bool, of a shape that broadcasts with ``distance``.
        bits: q.
    """
    return ((bits - 2 * distance) / bits - torch.where(similar, 1.0, -1.0)) ** 2


@dataclass(kw_only=True, eq=False)
class KSH(PairwiseHasher):
    """sign((k(x) - mean) a_k), k(x) an RBF kernel to anchors, learnt one bit after the other.

    The codes H (l, q) of ``labelled`` images minimise ||H H^T - q S||^2, S = 1 and -1. The k-th bit h approximates the
    residual R = q S - (earlier bits' h h^T): it maximises h^T R h. Its weights start at the leading
    solution of K^T R K a = lambda K^T K a, h being K a; from there L-BFGS maximises the objective for the
    smooth h = 2 sigmoid(K a) - 1. The one of the two whose signs have the larger h^T R h is kept.

    Attributes:
        anchors: number of random training images that the kernel compares with; all if there are fewer.
        labelled: number of random training images whose pairs are learnt from; all if there are fewer. Memory and
            time grow with its square.
        iterations: number of L-BFGS iterations for each bit, at most.
        anchors_: float32 (anchors, D).
        width_: the kernel is exp(-||x - anchor||^2 / (2 width^2)), width the root mean squared distance to anchors.
        means_: float32 (anchors,), of the kernel over all training images.
        weights_: float32 (anchors, q); values have mean square 1 on the labelled images.
    """

    anchors: int = 300
    labelled: int = 3000
    iterations: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("anchors", 1), ("labelled", 2), ("iterations", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`ksh_loss`."""
        return ksh_loss(distance, similar, self.bits)

    def _fit(self, X: Features, y: Labels | None) -> None:
        assert y is not None
        self._weigh(pair_weights(y))
        rng = np.random.default_rng(self.seed)
        self.anchors_ = X[rng.permutation(len(X))[: self.anchors]].copy()
        squares = squared_distances(X, self.anchors_)
        self.width_ = float(np.sqrt(squares.mean(dtype=np.float64))) or 1.0
        kernel = rbf(squares, self.width_)
        self.means_ = kernel.mean(0, dtype=np.float64).astype(np.float32)

        rows = rng.permutation(len(X))[: self.labelled]
        hot = y[rows].astype(np.float32)
        residual = np.where(hot @ hot.T > 0, np.float32(self.bits), np.float32(-self.bits))
        self.weights_ = greedy_weights(kernel[rows] - self.means_, residual, self.bits, self.iterations)

    def _transform(self, X: Features) -> Features:
        return (rbf(squared_distances(X, self.anchors_), self.width_) - self.means_) @ self.weights_


def greedy_weights(kernel: Features, residual: Features, bits: int, iterations: int) -> Features:
    """Return KSH's weights, float32 (m, bits), one column after the other; see :class:`KSH`.

    Args:
        kernel: float32 (l, m), centred.
        residual: float32 (l, l), q S; changed in place: each bit's h h^T is subtracted.
        bits: number of bits to learn.
        iterations: number of L-BFGS iterations for each bit, at most.
    """
    from scipy.linalg import eigh
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    m = kernel.shape[1]
    weights = np.empty((m, bits), np.float32)
    wide = kernel.astype(np.float64)
    gram = wide.T @ wide
    gram[np.diag_indices(m)] += 1e-6 * np.trace(gram) / m + 1e-12  # anchors may depend on each other

    def scaled(a: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``a`` with outputs of mean square 1, where the sigmoid is neither flat nor linear."""
        return a * np.sqrt(len(kernel) / max(float(a @ gram @ a), 1e-12))

    def negative_objective(a: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        h = np.tanh(kernel @ a.astype(np.float32) / 2)  # 2 sigmoid - 1
        explained = residual @ h
        return -float(h @ explained), -((1 - h * h) * explained @ kernel).astype(np.float64)

    with threadpool_limits(1, "blas"):  # many short products: threads cost more time than they save
        for k in range(bits):
            spectral = scaled(eigh(kernel.T @ residual @ kernel, gram, subset_by_index=[m - 1, m - 1])[1][:, 0])
            smooth = scaled(
                minimize(negative_objective, spectral, jac=True, method="L-BFGS-B", options={"maxiter": iterations}).x
            )
            candidates = [(np.where(kernel @ a > 0, np.float32(1), np.float32(-1)), a) for a in (spectral, smooth)]
            h, weights[:, k] = max(candidates, key=lambda found: float(found[0] @ residual @ found[0]))
            residual -= h[:, None] * h
    return weights


@dataclass(kw_only=True, eq=False)
class RelaxedKSH(DeepHasher, PairwiseHasher):
    """KSH's loss for a network, as MCH trains it: all pairs of a batch, with outputs 2 sigmoid(u) - 1."""

    least_batch: ClassVar[int] = 2

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`ksh_loss`."""
        return ksh_loss(distance, similar, self.bits)

    def objective(self, labels: Tensor) -> Objective:
        """Return the mean over the pairs of a batch of L."""
        self._weigh(pair_weights(labels.cpu().numpy()))

        def loss(u: Tensor, rows: Tensor, update: int) -> Tensor:
            h = 2 * torch.sigmoid(u) - 1
            return self.batch_loss(inner_distance(h, h), labels[rows])

        return loss
