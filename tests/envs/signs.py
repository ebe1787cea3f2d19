"""A hasher whose codes tests choose."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hashgym.hashers import Hasher

__all__ = ["Signs", "signs"]


@dataclass(kw_only=True, eq=False)
class Signs(Hasher):
    """The code is the signs of the features, so that tests choose codes. It has no pairwise loss."""

    learns = False

    def _fit(self, X: Any, y: Any) -> None:
        pass

    def _transform(self, X: Any) -> Any:
        return X


def signs(dim: int) -> Signs:
    """Return one that is fitted, for features of this dimension."""
    return Signs(bits=dim).fit(np.zeros((1, dim)))
