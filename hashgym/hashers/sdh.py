"""SDH: supervised discrete hashing; codes from which a linear classifier reads the labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hashgym.hashers.adsh import discrete_coordinate_descent
from hashgym.hashers.base import Features, Hasher, Labels
from hashgym.hashers.kernel import rbf, squared_distances
from hashgym.hashers.pairwise import pair_weights

__all__ = ["SDH"]

Matrix = NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class SDH(Hasher):
    """Supervised discrete hashing with the L2 loss (Shen, Shen, Liu and Shen, CVPR 2015).

    Over codes B (n, q) of -1 and +1, a classifier W (q, L) and a hash function F(x) = (k(x) - mean) P + c it minimises

        ||Y - B W||^2 + lambda ||W||^2 + nu (||B - F(X)||^2 + ridge ||P||^2),

    Y (n, L) being the labels with rows of unit length, so that images of many labels do not outweigh the others;
    in turn for B (coordinate descent, column by column, without relaxing the signs), for W, and for P and c (both least
    squares), starting from random codes. k is an RBF kernel to anchors; new images are hashed by sign F(x). The ridge
    on P keeps its least squares solvable, and is part of the objective so that no step raises it.

    Attributes:
        anchors: number of random training images that the kernel compares with; all if there are fewer.
        width: width of the kernel exp(-||x - anchor||^2 / (2 width_^2)), in units of the root mean squared distance.
        lambda_w: lambda, regularisation of the classifier.
        nu: weight of the distance between the codes and the hash function.
        ridge: regularisation of the hash function.
        iterations: number of updates of B, W and F.
        passes: number of passes over the columns of B in each iteration, at most.
        anchors_: float32 (anchors, D).
        width_: width of the kernel, in units of the features.
        means_: float32 (anchors,), of the kernel over all training images.
        weights_: float32 (anchors, q), P.
        intercept_: float32 (q,), c.
        losses_: float64 (iterations + 1,), the objective per image from the random start on; never increases.
    """

    anchors: int = 1000
    width: float = 1.0
    lambda_w: float = 1.0
    nu: float = 1e-5
    ridge: float = 0.1
    iterations: int = 5
    passes: int = 10

    supervised = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("anchors", "iterations", "passes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("width", "lambda_w", "nu", "ridge"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def _fit(self, X: Features, y: Labels | None) -> None:
        assert y is not None
        pair_weights(y)  # raises if there is no similar or no dissimilar pair
        rng = np.random.default_rng(self.seed)
        self.anchors_ = X[rng.permutation(len(X))[: self.anchors]].copy()
        squares = squared_distances(X, self.anchors_)
        self.width_ = self.width * float(np.sqrt(squares.mean(dtype=np.float64))) or 1.0
        kernel = rbf(squares, self.width_).astype(np.float64)
        means = kernel.mean(0)
        kernel -= means
        Y = y / np.sqrt(np.maximum(y.sum(1, keepdims=True, dtype=np.float64), 1))

        B = rng.choice([-1.0, 1.0], (len(X), self.bits))
        gram = kernel.T @ kernel
        losses = []
        for step in range(self.iterations + 1):
            W = least_squares(B.T @ B, B.T @ Y, self.lambda_w)
            intercept, P = B.mean(0), least_squares(gram, kernel.T @ B, self.ridge)
            F = kernel @ P + intercept
            hashing = ((B - F) ** 2).sum() + self.ridge * (P**2).sum()
            losses.append((((Y - B @ W) ** 2).sum() + self.lambda_w * (W**2).sum() + self.nu * hashing) / len(X))
            if step < self.iterations:
                B = codes_step(B, W, Y, F, self.nu, self.passes)
        self.means_, self.weights_ = means.astype(np.float32), P.astype(np.float32)
        self.intercept_, self.losses_ = intercept.astype(np.float32), np.array(losses)

    def _transform(self, X: Features) -> Features:
        return (rbf(squared_distances(X, self.anchors_), self.width_) - self.means_) @ self.weights_ + self.intercept_


def least_squares(gram: Matrix, product: Matrix, ridge: float) -> Matrix:
    """Minimise ||T - A x||^2 + ridge ||x||^2 over x (m, q), given ``gram`` A^T A (m, m) and ``product`` A^T T."""
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), product), np.float64)


def codes_step(B: Matrix, W: Matrix, Y: Matrix, F: Matrix, nu: float, passes: int) -> Matrix:
    """Return the codes (n, q) after coordinate descent on ||Y - B W||^2 + nu ||B - F||^2, which is, up to a constant,
    tr(B W W^T B^T) - 2 tr(B (Y W^T + nu F)^T).

    Args:
        B: float64 (n, q) of -1 and +1, the start; it is not changed.
        W: float64 (q, L).
        Y: float64 (n, L).
        F: float64 (n, q).
        nu: weight of the second term.
        passes: number of passes over all columns, at most.
    """
    codes, gram, target = (torch.from_numpy(array) for array in (B, W @ W.T, Y @ W.T + nu * F))
    for _ in range(passes):
        before, codes = codes, discrete_coordinate_descent(codes, gram, target)
        if torch.equal(before, codes):
            break
    return codes.numpy()
