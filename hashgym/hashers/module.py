"""A fitted hasher as a torch module, for export."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Transform"]


class Transforms(Protocol):
    """A hasher; its class in base.py uses this module, so it is not imported here."""

    def _transform(self, X: Any) -> Any: ...


class Transform(nn.Module):
    """The ``_transform`` of a hasher on tensors, with its fitted arrays as tensors.

    Args:
        hasher: fitted; it is not changed.
    """

    def __init__(self, hasher: Transforms) -> None:
        super().__init__()
        self.hasher = copy.copy(hasher)
        for name, value in vars(hasher).items():
            if isinstance(value, np.ndarray) and value.dtype.kind not in "OU":  # names of columns stay arrays
                setattr(self.hasher, name, torch.from_numpy(value.copy()))

    def forward(self, features: Tensor) -> Tensor:
        """Return real values (n, q) of features (n, D); a bit is 1 where they are above 0."""
        values: Tensor = self.hasher._transform(features)
        return values
