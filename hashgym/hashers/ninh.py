"""ninh: network in network hashing (Lai, Pan, Liu, Yan, CVPR 2015): triplets, and each bit from its own slice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hashgym.hashers.noseq import NoSeq

__all__ = ["NINH", "DivideAndEncode", "piecewise_threshold"]


def piecewise_threshold(s: Tensor, epsilon: float) -> Tensor:
    """Return 0 below 0.5 - epsilon, 1 above 0.5 + epsilon, and s between them, the only part with a gradient."""
    return torch.where((s - 0.5).abs() <= epsilon, s, (s > 0.5).to(s.dtype))


class DivideAndEncode(nn.Linear):
    """Linear layer whose input is cut into q slices, equal up to one unit; each logit reads one slice.

    Raises:
        ValueError: if there are fewer units than bits.
    """

    own: Tensor

    def __init__(self, width: int, bits: int) -> None:
        if width < bits:
            raise ValueError(f"{width} units cannot be cut into slices for {bits} bits: set hidden={bits} or more")
        super().__init__(width, bits)
        slices = torch.arange(width) * bits // width
        self.register_buffer("own", slices == torch.arange(bits)[:, None])
        with torch.no_grad():  # the initial scale of a linear layer of a slice's width; other slices' weights stay 0
            self.weight *= self.own * bits**0.5

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (b, q) of units (b, width)."""
        return nn.functional.linear(input, self.weight * self.own, self.bias)


@dataclass(kw_only=True, eq=False)
class NINH(NoSeq):
    """Triplet ranking loss of relaxed codes: sigmoid and :func:`piecewise_threshold` of each slice's logit.

    The loss averages all triplets of a batch; the paper samples them.

    Attributes:
        margin: number of bits by which dissimilar images should be farther than similar ones; None for bits / 12.
        epsilon: see :func:`piecewise_threshold`; at 0.5 or more there is no threshold.
    """

    margin: float | None = 1.0
    epsilon: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon <= 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")

    def hash_layer(self, width: int) -> nn.Linear:
        """Return a :class:`DivideAndEncode` layer."""
        return DivideAndEncode(width, self.bits)

    def relaxed(self, logits: Tensor) -> Tensor:
        """Return :func:`piecewise_threshold` of the probabilities that bits are 1."""
        return piecewise_threshold(super().relaxed(logits), self.epsilon)
