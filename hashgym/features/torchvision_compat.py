"""Import torchvision, also with a torch that was built without CUDA.

A torchvision wheel compiled against CUDA cannot load its library with a CPU-only torch, so its operators are never
declared and the import fails with "operator torchvision::nms does not exist". Classifiers and transforms
need none of those operators: declaring the two that torchvision refers to during its import is enough.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from hashgym.optional import require

__all__ = ["import_torchvision"]

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_keep: list[Any] = []  # a torch library is removed when it is garbage-collected


def import_torchvision() -> ModuleType:
    """Return the torchvision package; if its import fails for lack of an operator, declare the operators first.

    Raises:
        MissingPackageError: if torchvision is not installed.
    """
    try:
        return require("torchvision", "this backbone")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    from torch.library import Library

    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # left by the failed import
    library = Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + _SCHEMA)
    _keep.append(library)
    return importlib.import_module("torchvision")
