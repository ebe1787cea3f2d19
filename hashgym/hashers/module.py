"""A fitted hasher as a torch module, which can be exported."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Transform"]


class Transforms(Protocol):
    """A hasher, for which base.py has the class: it makes this module of itself."""

    def _transform(self, X: Any) -> Any: ...


class Transform(nn.Module):
    """A hasher's own ``_transform``, with its fitted arrays as tensors: no formula is written twice.

    Args:
        hasher: fitted; it stays as it is.
    """

    def __init__(self, hasher: Transforms) -> None:
        super().__init__()
        self.hasher = copy.copy(hasher)
        for name, value in vars(hasher).items():
            if isinstance(value, np.ndarray):
                setattr(self.hasher, name, torch.from_numpy(value.copy()))

    def forward(self, features: Tensor) -> Tensor:
        """Real values (n, q) of features (n, D); a bit is 1 where they are above 0."""
        values: Tensor = self.hasher._transform(features)
        return values
