"""Old import paths and old names: they keep working in this version, with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from operator import attrgetter
from types import ModuleType
from typing import Any, TypeVar

__all__ = ["MODULES", "NAMES", "install", "keep_old_names", "renamed"]

Function = TypeVar("Function", bound=Callable[..., Any])

MODULES: dict[str, str | tuple[str, ...]] = {  # old path -> new path, or those it was split into; all below hashgym
    "data.addresses": "storage.addresses",
    "data.arrays": "storage.reading",
    "data.atomic": "storage.atomic",
    "data.batches": "storage.array_pickles",
    "data.checksums": "storage.checksums",
    "data.cifar10": "data.readers.cifar10",
    "data.coco": "data.readers.coco",
    "data.digit_scenes": "data.readers.digit_scenes",
    "data.digits": "data.readers.digits",
    "data.files": ("data.image_files", "data.pictures", "storage.reading"),
    "data.folders": "data.readers.folders",
    "data.lists": "data.readers.lists",
    "data.mirflickr25k": "data.readers.mirflickr25k",
    "data.nuswide21": "data.readers.nuswide21",
    "data.owned": "storage.owned",
    "data.sealed": "storage.sealed",
    "data.readers.cifar_batches": "storage.array_pickles",
    "data.user_cache": "storage.user_cache",
    "encoders.export": "encoders.write",
    "encoders.sources": "encoders.build",
    "encoding": "policies",
    "envs.lockstep": "envs.base",
    "features.cluster": "storage.ray_cluster",
    "features.efficientnet_lite0": "features.efficientnet_lite",
    "features.engines": "features.runtimes",
    "features.pipeline": "storage.pipeline",
    "features.runtime": "features.onnx_runtime",
    "features.store": "storage.job_store",
    "gallery.codes": "gallery.encode",
    "gallery.gallery": ("gallery.search", "gallery.index"),
    "hashers.threads": "threads",
    "retrieval.brute_force": "index.brute_force",
    "retrieval.bucket_table": "index.buckets",
    "retrieval.compiled": "retrieval.numba_kernels",
    "retrieval.faiss_index": "index.faiss",
    "retrieval.index": "index.base",
    "retrieval.milvus": "index.milvus",
    "retrieval.tensors": "retrieval.torch_kernels",
}
# Module that calls keep_old_names -> {name that it had: its module now, or "module:name" if it is also renamed}.
NAMES: dict[str, dict[str, str]] = {
    "data.dataset": {"described": "storage.errors:describe"},
    "encoders.build": {"Exported": "encoders.build:BuiltEncoder", "export": "encoders.build:build_encoder"},
    "envs.bit_group_hashing": {"make_vector_env": "envs.vector"},
    "envs.torch_backend": {"TensorCodebook": "rewards.torch_view", "TensorView": "rewards.torch_view"},
    "gallery": {"Codes": "gallery.encoded_images:EncodedImages"},
    "gallery.encode": {
        "Codes": "gallery.encoded_images:EncodedImages",
        "Encoded": "gallery.encode:EncodingReport",
        "find_images": "gallery.find_images",
    },
    "data.splits": {"apply": "data.dataset:HashingDataset.with_split"},
    "retrieval": {"BucketIndex": "retrieval.buckets:BucketTable"},
    "retrieval.buckets": {"BucketIndex": "retrieval.buckets:BucketTable"},
    "storage.atomic": {"hold": "storage.locks:lock_open_file", "is_full": "storage.atomic:full_disk_error"},
    "storage.job_store": {"Store": "storage.job_store:JobStore", "tidy": "storage.job_store:remove_journal"},
    "storage.pipeline": {
        "Bad": "storage.pipeline:UnreadableImage",
        "ahead": "storage.pipeline:prefetch",
        "versions": "versions",
    },
    "storage.ray_cluster": {"result": "storage.ray_cluster:task_result"},
    "storage.sealed": {
        "Kind": "storage.sealed:FolderFormat",
        "META": "storage.sealed:FolderFormat.manifest",
    },
    "terminal": {"quote": "text"},
}


def keep_old_names(module: str) -> None:
    """Keep the old names of a module (its row of :data:`NAMES`) importable from it, with a DeprecationWarning.

    Args:
        module: ``__name__`` of the module, which must not define ``__getattr__`` itself.
    """
    moved = NAMES[module.removeprefix("hashgym.")]

    def find(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = moved[name].partition(":")
        _warn(f"{module}.{name}", f"hashgym.{place}.{new or name}")
        return attrgetter(new or name)(import_module(f"hashgym.{place}"))

    # Set here rather than by an assignment in the module, which would let type checkers accept every name in it.
    vars(sys.modules[module])["__getattr__"] = find


class _MovedFinder:
    """Find a module under its old path, for the import system (``sys.meta_path``)."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a module that has moved; None for any other."""
        if name.startswith("hashgym.") and name.removeprefix("hashgym.") in MODULES:
            return ModuleSpec(name, _MovedLoader)  # type: ignore[arg-type]  # its methods are static
        return None


class _MovedLoader:
    """Load a module from its new path."""

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        """Return the module itself, so that its classes and state are the same under both paths.

        For a module that was split, return a new module with the names of its parts.
        """
        new = MODULES[spec.name.removeprefix("hashgym.")]
        paths = [f"hashgym.{path}" for path in ([new] if isinstance(new, str) else new)]
        _warn(spec.name, " and ".join(paths))
        modules = [import_module(path) for path in paths]
        if len(modules) == 1:
            spec.loader_state = modules[0].__spec__
            return modules[0]
        joined = ModuleType(spec.name)
        for module in reversed(modules):
            vars(joined).update({name: value for name, value in vars(module).items() if not name.startswith("_")})
        joined.__all__ = [name for module in modules for name in module.__all__]  # type: ignore[attr-defined]
        return joined

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Restore the module's own spec, which the import system has replaced; nothing is executed again."""
        spec = module.__spec__
        assert spec is not None
        if spec.loader_state is not None:
            module.__spec__ = spec.loader_state


def install() -> None:
    """Make old paths importable; calling it again does nothing."""
    if not any(finder is _MovedFinder for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder)


def renamed(**names: str) -> Callable[[Function], Function]:
    """Make a function accept keyword arguments under their old names too, ``renamed(old="new")``, with a warning.

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


def _warn(old: str, new: str) -> None:
    """Warn the caller of the function that calls this."""
    message = f"{old} has moved to {new}: import it from there; the old path is removed in the next version"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
