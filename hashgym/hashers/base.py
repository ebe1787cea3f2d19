"""Hasher: what every fitted hash function has in common, and how it is saved."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym.checks import check_integer, is_integer
from hashgym.hashers.registry import HASHERS
from hashgym.storage import owned
from hashgym.storage.atomic import atomic_write
from hashgym.storage.reading import read_arrays

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

__all__ = ["Features", "Hasher", "Labels", "NotFittedError", "namespace"]

Features = NDArray[np.float32]
Labels = NDArray[np.uint8]

_ROWS = 8192  # rows that are transformed at once: keeps memory flat, also for memory maps
_FORMAT = "hashgym.hasher/1"
_MAX_DIM = 1 << 24  # features of a saved hasher; a picture of 224 x 224 has 150,528

ALIKE = "the features of all {n} training images are the same, so there is nothing to learn: check the features"


class NotFittedError(ValueError, AttributeError):
    """The hasher was used before ``fit``; both base classes, as scikit-learn's own."""


@dataclass(kw_only=True, eq=False)
class Hasher(ABC):
    """A function from feature vectors to binary codes, learnt by :meth:`fit`.

    A subclass is a dataclass whose fields are its settings. It writes ``_fit``, which sets attributes that end in
    ``_`` (arrays or numbers: these are what is saved), and ``_transform``. That is written in what NumPy's arrays and
    torch's tensors share (methods, operators, and functions of ``namespace``), so that it can be exported as well;
    where it is not, :meth:`head` says how.

    Attributes:
        bits: the code length q.
        seed: draws everything random; the same seed on the same data and machine gives the same codes.
        n_features_in_: D, set by ``fit``.
    """

    bits: int = 32
    seed: int = 0

    supervised: ClassVar[bool] = False  # whether ``fit`` needs labels
    learns: ClassVar[bool] = True  # whether ``fit`` needs images that differ

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", int) or (field.type in ("int | None", int | None) and value is not None):
                if not is_integer(value):
                    raise ValueError(f"{field.name} must be an integer, got {value!r}")
                setattr(self, field.name, int(value))
            elif isinstance(value, np.floating):  # a setting out of an array: JSON, which files hold, takes none
                setattr(self, field.name, float(value))
        check_integer("bits", self.bits)

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn the hash function.

        Args:
            X: float32 (n, D), training features.
            y: uint8 (n, L), multi-hot labels; two images are similar when they share one. Unsupervised hashers
                ignore it, supervised ones need it.

        Returns:
            The hasher itself.

        Raises:
            ValueError: for features that are not finite or not two-dimensional, images that are all alike, labels that
                are missing, of another length or not multi-hot, and more bits than the method can give on this data.
        """
        features = _features(X)
        if self.learns and not _differ(features):
            raise ValueError(ALIKE.format(n=len(features)))
        if self.supervised and getattr(y, "shape", None) == (len(features), 0):
            raise ValueError(f"{type(self).__name__} learns from labels, and there are none: lsh, itq and sh need none")
        labels = _labels(y, len(features)) if y is not None and self.supervised else None
        if labels is None and self.supervised:
            raise ValueError(f"{type(self).__name__} learns from labels: call fit(X, y), y multi-hot uint8 (n, L)")
        self._fit(features, labels)
        self.n_features_in_ = features.shape[1]
        return self

    def transform(self, X: ArrayLike) -> Features:
        """The real values (n, q) in float32 whose signs are the code.

        Raises:
            NotFittedError: before ``fit``.
            ValueError: for features of another dimension than those fitted on, or not finite.
        """
        self._check_fitted()
        features = _features(X)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"{type(self).__name__} was fitted on {self.n_features_in_} features, got {features.shape[1]}: "
                "encode with the backbone that it was fitted on"
            )
        values = np.empty((len(features), self.bits), np.float32)
        for start in range(0, len(features), _ROWS):
            values[start : start + _ROWS] = self._transform(features[start : start + _ROWS])
        return values

    def encode(self, X: ArrayLike) -> NDArray[np.bool_]:
        """The codes, bool (n, q): True where :meth:`transform` is above 0, so that 0 itself is a False bit."""
        return self.transform(X) > 0

    def head(self) -> nn.Module:
        """:meth:`transform` as a torch module, float32 (n, D) -> (n, q), to be exported; this one runs ``_transform``.

        Raises:
            NotFittedError: before ``fit``.
        """
        from hashgym.hashers.module import Transform

        self._check_fitted()
        return Transform(self)

    @abstractmethod
    def _fit(self, X: Features, y: Labels | None) -> None:
        """Learn from checked arrays; ``y`` is None unless ``supervised``."""

    @abstractmethod
    def _transform(self, X: Features) -> Features:
        """Real values of checked features; tensors of tensors, where the fitted attributes are tensors too."""

    def _check_fitted(self) -> None:
        if not hasattr(self, "n_features_in_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")

    @classmethod
    def parameters(cls) -> list[str]:
        """Names of the settings."""
        return [field.name for field in dataclasses.fields(cls)]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name, so that ``sklearn.base.clone`` works."""
        return {name: getattr(self, name) for name in self.parameters()}

    def save(self, path: str | Path) -> None:
        """Write the fitted hasher to one file (NumPy's npz, no pickle); whole or not at all.

        It replaces no file but a saved hasher: DataError where there is another one.

        Raises:
            NotFittedError: before ``fit``.
            ValueError: if the class is not registered, so that ``load`` would not find it.
            OSError: if it cannot be written.
        """
        self._check_fitted()
        owned.require_replaceable(path, "a saved hasher", _is_saved)
        meta = {"format": _FORMAT, "hasher": self._registered_name(), "parameters": self.get_params()}
        with atomic_write(path) as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **self._state())  # type: ignore[arg-type]

    def is_saved_in(self, path: str | Path) -> bool:
        """Whether a file holds this very hasher: its class, settings and fitted arrays, as :meth:`save` writes them."""
        try:
            meta, state = read(path)
        except (OSError, ValueError):
            return False
        own, parameters = self._state(), json.loads(json.dumps(self.get_params()))
        return (
            meta == {"hasher": self._registered_name(), "parameters": parameters}
            and state.keys() == own.keys()
            and all(
                state[name].dtype == value.dtype and np.array_equal(state[name], value) for name, value in own.items()
            )
        )

    @classmethod
    def _registered_name(cls) -> str:
        """The class's name in a saved file: its registered name, or "module:Class"."""
        name = HASHERS.name_of(cls)
        if name.startswith("__main__:") or "<locals>" in name:
            raise ValueError(
                f"{cls.__qualname__} is not registered, and no module holds it: call hashgym.hashers.register(name, "
                f"{cls.__name__}) before saving"
            )
        return name

    def _state(self) -> dict[str, NDArray[Any]]:
        """The fitted attributes, by name."""
        return {name: np.asarray(value) for name, value in vars(self).items() if name.endswith("_")}

    def _restore(self, state: dict[str, NDArray[Any]], path: Any) -> Self:
        """Take over fitted attributes, and check on one vector that they belong together."""
        for name, value in state.items():
            setattr(self, name, value if value.ndim else value.item())
        try:
            dim = self.n_features_in_
            if not is_integer(dim) or not 1 <= dim <= _MAX_DIM:
                raise ValueError(f"n_features_in_ is {dim!r:.60}")
            values = self._transform(np.zeros((1, dim), np.float32))
            if values.shape != (1, self.bits):  # one value would be taken for every bit
                raise ValueError(f"the values of a vector have the shape {values.shape}, not (1, {self.bits})")
        except Exception as error:  # whatever a method of others raises for arrays that do not fit, MemoryError too
            raise ValueError(f"{path} does not hold a whole {type(self).__name__}: save it again ({error})") from error
        return self


def namespace(array: Any) -> Any:
    """The functions for arrays of this kind: NumPy, or torch for tensors, which name most of them alike."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def _is_saved(path: Path) -> bool:
    try:
        read(path)
    except (OSError, ValueError):
        return False
    return True


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What :meth:`Hasher.save` wrote: the description, and the fitted attributes by name."""
    try:
        state = read_arrays(path)
        meta = json.loads(str(state.pop("meta")))
        if meta["format"] != _FORMAT:
            raise ValueError(f"format {meta['format']!r}")
        if not all(name.endswith("_") and name.isidentifier() and name[0] != "_" for name in state):
            raise ValueError("names of attributes that no hasher has")
        return {"hasher": meta["hasher"], "parameters": dict(meta["parameters"])}, state
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a saved hasher of this version, or is damaged ({error})") from error


def _features(X: ArrayLike) -> Features:
    array = np.asarray(X)
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] == 0 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"features must be real numbers of shape (n, D), got {array.dtype} {array.shape}; "
            "a single image is X[None], a picture is flattened or passed through a backbone first"
        )
    features = array.astype(np.float32, copy=False)
    for start in range(0, len(features), _ROWS):
        finite = np.isfinite(features[start : start + _ROWS]).all(axis=1)
        if not finite.all():
            raise ValueError(f"features of row {start + int(finite.argmin())} hold NaN or infinity: leave the row out")
    return features


def _differ(X: Features) -> bool:
    """Whether any two rows differ."""
    return any((X[start : start + _ROWS] != X[0]).any() for start in range(0, len(X), _ROWS))


def _labels(y: ArrayLike, n: int) -> Labels:
    labels = np.asarray(y)
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise ValueError(
            f"labels must be multi-hot of shape (n, L), got {labels.dtype} {labels.shape}; "
            "class numbers become multi-hot by `(y[:, None] == np.arange(classes)).astype(np.uint8)`"
        )
    if len(labels) != n:
        raise ValueError(f"{len(labels)} labels for {n} features: give every row of X its row of y")
    if labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() > 1:
        raise ValueError("labels must be the integers 0 and 1; one column for each label")
    return labels.astype(np.uint8, copy=False)
