"""Old import paths of modules and old names of arguments: they work in this version, with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

__all__ = ["MOVED", "install", "renamed"]

Function = TypeVar("Function", bound=Callable[..., Any])

MOVED = {  # old path -> new path, both below hashgym
    "data.addresses": "storage.addresses",
    "data.arrays": "storage.reading",
    "data.atomic": "storage.atomic",
    "data.batches": "data.readers.cifar_batches",
    "data.checksums": "storage.checksums",
    "data.cifar10": "data.readers.cifar10",
    "data.coco": "data.readers.coco",
    "data.digit_scenes": "data.readers.digit_scenes",
    "data.digits": "data.readers.digits",
    "data.folders": "data.readers.folders",
    "data.lists": "data.readers.lists",
    "data.mirflickr25k": "data.readers.mirflickr25k",
    "data.nuswide21": "data.readers.nuswide21",
    "data.owned": "storage.owned",
    "data.sealed": "storage.sealed",
    "data.user_cache": "storage.user_cache",
    "encoders.export": "encoders.write",
    "encoders.sources": "encoders.build",
    "encoding": "policies",
    "envs.lockstep": "envs.base",
    "features.cluster": "storage.ray_cluster",
    "features.engines": "features.runtimes",
    "features.pipeline": "storage.pipeline",
    "features.runtime": "features.onnx_runtime",
    "features.store": "storage.job_store",
    "gallery.codes": "gallery.encode",
    "retrieval.brute_force": "index.brute_force",
    "retrieval.bucket_table": "index.buckets",
    "retrieval.compiled": "retrieval.numba_kernels",
    "retrieval.faiss_index": "index.faiss",
    "retrieval.index": "index.base",
    "retrieval.milvus": "index.milvus",
    "retrieval.tensors": "retrieval.torch_kernels",
}


class _MovedFinder:
    """Find a module under its old path, for the import system (``sys.meta_path``)."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a module that has moved; None for any other."""
        if name.startswith("hashgym.") and name[len("hashgym.") :] in MOVED:
            return ModuleSpec(name, _MovedLoader)  # type: ignore[arg-type]  # its methods are static
        return None


class _MovedLoader:
    """Load a module from its new path."""

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        """Return the module itself, so that its classes and state are the same under both paths."""
        new = f"hashgym.{MOVED[spec.name[len('hashgym.') :]]}"
        warnings.warn(
            f"{spec.name} has moved to {new}: import it from there; the old path is removed in the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        module = import_module(new)
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Restore the module's own spec, which the import system has replaced; nothing is executed again."""
        spec = module.__spec__
        assert spec is not None
        module.__spec__ = spec.loader_state


def install() -> None:
    """Let old paths be imported; calling it again does nothing."""
    if not any(finder is _MovedFinder for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder)


def renamed(**names: str) -> Callable[[Function], Function]:
    """Let a function take keyword arguments under their old names too, ``renamed(old="new")``, with a warning.

    Raises:
        TypeError: when the function is called with both.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{old}= is the old name of {new}=: give only {new}=")
                warnings.warn(f"{old}= is called {new}= now", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate
