"""adsh: asymmetric deep supervised hashing (Jiang and Li, AAAI 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hashgym.hashers.deep import DeepHasher, Objective
from hashgym.hashers.pairwise import PairwiseHasher, dissimilar_value, pair_weights, signs

__all__ = ["ADSH", "asymmetric_loss", "discrete_coordinate_descent", "similarity_product"]

_ROWS = 128  # images whose pairs with all others are computed at once: few enough for the processor's cache


def asymmetric_loss(distance: Tensor, similar: Tensor, bits: int) -> Tensor:
    """Return ((q - 2 d) - q (2 s - 1))^2: the inner product of two codes should be q or -q.

    Args:
        distance: real numbers in [0, q].
        similar: bool, of a shape that broadcasts with ``distance``.
        bits: q.
    """
    return (bits - 2 * distance - torch.where(similar, bits, -bits)) ** 2


def discrete_coordinate_descent(codes: Tensor, gram: Tensor, target: Tensor) -> Tensor:
    """Set each column of V in turn to the exact minimiser of tr(V G V^T) - 2 tr(V T^T) given the others.

    With G = U^T U and T = q S^T U that is ||U V^T - q S||^2 up to a constant, S any matrix (m, n).

    Args:
        codes: V (n, q), of -1 and +1; is not changed.
        gram: G (q, q), symmetric.
        target: T (n, q).

    Returns:
        The new V. A bit that does not change the objective becomes -1.
    """
    codes = codes.clone()
    for k in range(codes.shape[1]):
        others = gram[:, k].clone()
        others[k] = 0  # a column's own square is constant
        codes[:, k] = signs(target[:, k] - codes @ others)
    return codes


def similarity_product(labels: Tensor, dissimilar: float, values: Tensor) -> Tensor:
    """Return S values, (n, q), in blocks of rows; S is 1 where two images share a label, -``dissimilar`` elsewhere.

    Args:
        labels: float (n, L), multi-hot.
        dissimilar: a number from 0 up.
        values: (n, q), of the type of ``labels``.
    """
    blocks = [(labels[i : i + _ROWS] @ labels.T).clamp_(max=1) @ values for i in range(0, len(labels), _ROWS)]
    return (1 + dissimilar) * torch.cat(blocks) - dissimilar * values.sum(0)


@dataclass(kw_only=True, eq=False)
class ADSH(DeepHasher, PairwiseHasher):
    """A network with outputs u = tanh(logits), and codes v of all training images, learnt in turn.

    Training minimises the mean over images i of a batch and all training images j of (u_i v_j - q S_ij)^2, plus
    ``gamma`` times the mean of ||v_i - u_i||^2. After each pass over the images, their codes V are improved by
    :func:`discrete_coordinate_descent` against the network's most recent outputs. V is used in training only: all
    images are encoded by the network, since MCH encodes regions too.

    Attributes:
        gamma: weight of the squared distance of outputs to learnt codes, summed over bits.
        dissimilar: r, where S_ij = 1 for similar and -r for dissimilar pairs; ``pair_loss`` has r = 1, as Table 1.
            None is the authors' choice, r = similar pairs / dissimilar pairs, so that S sums to 0: otherwise the many
            dissimilar pairs, whose inner products cannot all be -q, outweigh the few similar ones. If similar pairs
            are more frequent, r is 1, since no inner product is below -q.
        passes: number of passes of coordinate descent after each pass over the images.
    """

    gamma: float = 0.1
    dissimilar: float | None = None
    passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0 or (self.dissimilar is not None and self.dissimilar < 0) or self.passes < 1:
            raise ValueError(
                "gamma must be at least 0, dissimilar too (or None), passes at least 1; "
                f"got {self.gamma}, {self.dissimilar} and {self.passes}"
            )

    def pair_loss(self, distance: Tensor, similar: Tensor) -> Tensor:
        """:func:`asymmetric_loss`."""
        return asymmetric_loss(distance, similar, self.bits)

    def objective(self, labels: Tensor) -> Objective:
        """Return the asymmetric loss of a batch against all training images, and its distance to their codes."""
        weights = pair_weights(labels.cpu().numpy())
        self._weigh(weights)
        r = dissimilar_value(weights, self.dissimilar)
        n, period = len(labels), -(-len(labels) // self.batch_size)
        similar = similarity_product(labels, 0, torch.ones_like(labels[:, :1]))[:, 0]
        constant = self.bits**2 * (similar + r**2 * (n - similar))  # sum over j of (q S_ij)^2
        outputs = labels.new_zeros(n, self.bits)  # 0 for images not seen yet
        codes = signs(torch.randn(n, self.bits).to(labels))
        gram, target = codes.T @ codes, self.bits * similarity_product(labels, r, codes)
        batches = 0

        def loss(logits: Tensor, rows: Tensor, update: int) -> Tensor:
            nonlocal codes, gram, target, batches
            if batches and batches % period == 0:  # not ``update``, which skips numbers while the head is trained alone
                wanted = self.bits * similarity_product(labels, r, outputs) + self.gamma * n * outputs
                for _ in range(self.passes):
                    codes = discrete_coordinate_descent(codes, outputs.T @ outputs, wanted)
                gram, target = codes.T @ codes, self.bits * similarity_product(labels, r, codes)
            batches += 1
            u = torch.tanh(logits)
            outputs[rows] = u.detach()
            # The sum over all j without a pair: u V^T V u^T - 2 u (q S V) + constant.
            pairs = ((u @ gram - 2 * target[rows]) * u).sum(1) + constant[rows]
            return pairs.mean() / n + self.gamma * ((codes[rows] - u) ** 2).sum(1).mean()

        return loss
