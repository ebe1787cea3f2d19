"""Hasher: the base class of hash functions, scikit-learn estimators, and the file that holds a fitted one."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym.checks import check_integer, check_number, first_not_finite, is_integer, plain_numbers, row_blocks
from hashgym.data.dataset import LABEL_FREE
from hashgym.hashers.registry import HASHERS
from hashgym.optional import require
from hashgym.registry import named_settings
from hashgym.storage import owned
from hashgym.storage.atomic import atomic_write
from hashgym.storage.reading import read_arrays

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

__all__ = ["Features", "Hasher", "Labels", "NotFittedError", "as_maps", "namespace"]

Features = NDArray[np.float32]
Labels = NDArray[np.uint8]

_ROWS = 8192  # rows that are transformed at once: keeps memory constant, also for memory maps
_FORMAT = "hashgym.hasher/1"
_MAX_DIM = 1 << 24  # features of a saved hasher; a picture of 224 x 224 has 150,528

ALIKE = "the features of all {n} training images are equal, so there is nothing to learn: check the features"
ONE = "one sample is too few to learn from: give several training images that differ"


class NotFittedError(ValueError, AttributeError):
    """The hasher was used before ``fit``."""


def _not_fitted_error() -> type[NotFittedError]:
    """Return the class of the error; one of scikit-learn's as well where that is imported, so that both catch it."""
    if (sklearn := sys.modules.get("sklearn.exceptions")) is None:
        return NotFittedError
    pickled = {"__reduce__": lambda self: (NotFittedError, self.args)}
    return type("NotFittedError", (NotFittedError, sklearn.NotFittedError), pickled)


@dataclass(kw_only=True, eq=False)
class Hasher(ABC):
    """A function from feature vectors to binary codes, learnt by :meth:`fit`.

    A subclass is a dataclass whose fields are its settings. It implements ``_fit``, which sets attributes that end in
    ``_`` (arrays or numbers; they are saved), and ``_transform``. The latter uses only operations that NumPy arrays and
    torch tensors share (methods, operators, and functions of ``namespace``), so that it can be exported as well;
    otherwise the subclass overrides :meth:`head`.

    A hasher is an estimator of scikit-learn: it works in ``Pipeline``, ``clone`` and ``GridSearchCV``.

    Attributes:
        bits: q, the code length.
        seed: seed of all random draws; the same seed on the same data and machine gives the same codes.
        n_features_in_: D, set by ``fit``.
        feature_names_in_: names of the columns (D,), set by ``fit`` if X is a data frame.
    """

    bits: int = 32
    seed: int = 0

    supervised: ClassVar[bool] = False  # whether ``fit`` needs labels
    learns: ClassVar[bool] = True  # whether ``fit`` needs images that differ

    def __post_init__(self) -> None:
        plain_numbers(self)  # settings are saved as JSON
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", int) or (field.type in ("int | None", int | None) and value is not None):
                if not is_integer(value):
                    raise ValueError(f"{field.name} must be an integer, got {value!r}")
            elif field.type in ("float", float) or (field.type in ("float | None", float | None) and value is not None):
                check_number(field.name, value)
        check_integer("bits", self.bits)
        check_integer("seed", self.seed, 0)

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn the hash function; if that fails, the hasher is what it was before.

        Args:
            X: (n, D), training features: real numbers, which are converted to float32. Hashers with a backbone take
                images, see :class:`hashgym.hashers.deep.DeepHasher`.
            y: multi-hot labels (n, L), 0 and 1; two images are similar when they share one. Or the class of each image
                (n,), a number or a name. Unsupervised hashers ignore it, supervised ones need it.

        Returns:
            The hasher itself.

        Raises:
            ValueError: for features that are not finite, sparse or not two-dimensional, images that are all equal,
                labels that are missing, of another length or not multi-hot, and more bits than the method can give on
                this data.
        """
        features = self._check_images(X, views=True)
        if self.learns and not _differ(features):
            raise ValueError(ONE if len(features) == 1 else ALIKE.format(n=len(features)))
        labels = self._needed_labels(y, len(features))
        before = self._forget()
        try:
            self._fit(features, labels)
            self.n_features_in_ = math.prod(features.shape[-3:]) if features.ndim > 2 else features.shape[1]
            self._check_names(X, reset=True)
        except BaseException:
            self._forget()
            vars(self).update(before)
            raise
        return self

    def _forget(self) -> dict[str, Any]:
        """Remove what ``fit`` learnt, the attributes that end in ``_``, and return it."""
        return {name: vars(self).pop(name) for name in list(vars(self)) if name.endswith("_")}

    def fit_transform(self, X: ArrayLike, y: ArrayLike | None = None) -> Features:
        """``fit(X, y)``, then ``transform(X)``."""
        return self.fit(X, y).transform(X)

    def transform(self, X: ArrayLike) -> Features:
        """Return the real values (n, q) in float32 whose signs are the code.

        Raises:
            NotFittedError: before ``fit``; it is scikit-learn's as well, where that is imported.
            ValueError: for features of another dimension than those fitted on, or not finite; if ``bits`` was changed
                after ``fit``.
        """
        self._check_fitted()
        features = self._check_images(X, views=False)
        if (dim := math.prod(features.shape[1:])) != self.n_features_in_:
            raise ValueError(
                f"X has {dim} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input: encode with the backbone that it was fitted on"
            )
        self._check_names(X, reset=False)
        values = np.empty((len(features), self.bits), np.float32)
        for start in range(0, len(features), _ROWS):
            block = self._transform(features[start : start + _ROWS])
            if block.shape[1] != self.bits:
                raise ValueError(
                    f"{type(self).__name__} was fitted with {block.shape[1]} bits, and bits is now {self.bits}: fit it "
                    "again"
                )
            values[start : start + _ROWS] = block
        return values

    def encode(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return the codes, bool (n, q): True where :meth:`transform` is above 0; 0 itself gives False."""
        return self.transform(X) > 0

    def head(self) -> nn.Module:
        """Return :meth:`transform` as a torch module, float32 (n, D) -> (n, q), for export; it runs ``_transform``.

        Raises:
            NotFittedError: before ``fit``.
        """
        self._check_fitted()
        require("torch", "a hasher's module")
        from hashgym.hashers.module import Transform

        return Transform(self)

    def _check_images(self, X: ArrayLike, *, views: bool) -> Features:
        """Return checked images: feature vectors (n, D), or what else the hasher takes.

        ``views``: they may be several views of each image, where the hasher takes such.
        """
        return _features(X)

    @abstractmethod
    def _fit(self, X: Features, y: Labels | None) -> None:
        """Learn from checked arrays; ``y`` is None unless ``supervised``."""

    @abstractmethod
    def _transform(self, X: Features) -> Features:
        """Return the real values of checked features, as tensors if these and the fitted attributes are tensors."""

    def _needed_labels(self, y: ArrayLike | None, n: int) -> Labels | None:
        """Return the labels of n images as ``_fit`` takes them: None unless supervised."""
        if not self.supervised:
            return None
        name = type(self).__name__
        if y is None:
            raise ValueError(
                f"{name} requires y to be passed, but the target y is None: it learns from labels, so call fit(X, y), "
                "y multi-hot uint8 (n, L)"
            )
        if getattr(y, "shape", None) == (n, 0):
            raise ValueError(f"{name} learns from labels, and there are none: use {LABEL_FREE}")
        return _labels(y, n)

    def _check_names(self, X: Any, reset: bool) -> None:
        """Set ``feature_names_in_`` to the columns of a data frame (``reset``), or compare them, as scikit-learn does.

        This needs scikit-learn 1.6, which is not imported without data frames.
        """
        if hasattr(X, "columns") or hasattr(self, "feature_names_in_"):
            with suppress(ImportError):
                from sklearn.utils.validation import validate_data

                validate_data(self, X, reset=reset, skip_check_array=True)

    def _check_fitted(self) -> None:
        if not hasattr(self, "n_features_in_"):
            raise _not_fitted_error()(f"this {type(self).__name__} is not fitted yet: call fit first")

    @classmethod
    def parameters(cls) -> list[str]:
        """Return the names of the settings."""
        return [field.name for field in dataclasses.fields(cls)]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings by name; ``deep`` makes no difference."""
        return {name: getattr(self, name) for name in self.parameters()}

    def set_params(self, **params: Any) -> Self:
        """Change settings, validated like the constructor's; for a bad one nothing is changed.

        Raises:
            ValueError: for a setting that the hasher does not have, or a bad value.
        """
        named_settings(type(self).__name__, params, self.parameters())
        checked = dataclasses.replace(self, **params)
        for name in params:
            setattr(self, name, getattr(checked, name))
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=self.supervised, two_d_labels=True),
            transformer_tags=TransformerTags(preserves_dtype=["float32"]),
            input_tags=InputTags(),
        )

    def _more_tags(self) -> dict[str, Any]:
        """Return the tags for scikit-learn before 1.6."""
        return {"requires_y": self.supervised, "preserves_dtype": [np.float32]}

    def save(self, path: str | Path) -> None:
        """Write the fitted hasher to one file (NumPy's npz, no pickle), atomically.

        A saved hasher at the path is replaced; any other file is kept, and DataError raised.

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
        """Return whether a file holds this hasher: the same class, settings and fitted arrays."""
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
        """Return the class's name in a saved file: its registered name, or "module:Class"."""
        name = HASHERS.name_of(cls)
        if name.startswith("__main__:") or "<locals>" in name:
            raise ValueError(
                f"{cls.__qualname__} is not registered, and no module holds it: call hashgym.hashers.register(name, "
                f"{cls.__name__}) before saving"
            )
        return name

    def _state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted attributes, by name."""
        state = {name: np.asarray(value) for name, value in vars(self).items() if name.endswith("_")}
        return {name: value.astype(str) if value.dtype == object else value for name, value in state.items()}

    def _restore(self, state: dict[str, NDArray[Any]], path: Any) -> Self:
        """Set fitted attributes, and check on one vector that they belong together."""
        for name, value in state.items():
            setattr(self, name, value if value.ndim else value.item())
        try:
            dim = self.n_features_in_
            if not is_integer(dim) or not 1 <= dim <= _MAX_DIM:
                raise ValueError(f"n_features_in_ is {dim!r:.60}")
            shape = getattr(self, "image_shape_", (dim,))
            if math.prod(shape) != dim:
                raise ValueError(f"image_shape_ is {shape!r:.60}")
            values = self._transform(np.zeros((1, *shape), np.float32))
            if values.shape != (1, self.bits):  # one value would be broadcast to every bit
                raise ValueError(f"the values of a vector have the shape {values.shape}, not (1, {self.bits})")
        except Exception as error:  # users' classes raise any type for arrays that do not fit, MemoryError too
            raise ValueError(
                f"{path} does not hold a complete {type(self).__name__}: save it again ({error})"
            ) from error
        return self


def namespace(array: Any) -> Any:
    """Return the module of functions for an array: numpy, or torch for tensors; most functions have the same names."""
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
    """Read a file of :meth:`Hasher.save`: the description, and the fitted attributes by name."""
    try:
        state = read_arrays(path)
        meta = json.loads(str(state.pop("meta")))
        if meta["format"] != _FORMAT:
            raise ValueError(f"format {meta['format']!r}")
        if not all(name.endswith("_") and name.isidentifier() and name[0] != "_" for name in state):
            raise ValueError("names of attributes that are not a hasher's")
        return {"hasher": meta["hasher"], "parameters": dict(meta["parameters"])}, state
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a saved hasher of this version, or is damaged ({error})") from error


def _features(X: ArrayLike) -> Features:
    if hasattr(X, "toarray"):
        raise ValueError(f"features are sparse ({type(X).__name__}), and hashers take dense arrays: pass X.toarray()")
    array = np.asarray(X)
    if array.ndim in (4, 5):
        raise ValueError(
            f"this hasher takes feature vectors (n, D), got images of shape {array.shape}: extract features without "
            "--cut; or, for activations or pixels, give a hasher that trains a network its backbone, such as "
            "OrthoHash(backbone='efficientnet_lite0:11')"
        )
    if array.dtype == object:
        array = array.astype(np.float64)
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: features must be real numbers, got {array.dtype}")
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"features must be real numbers of shape (n, D), got {array.dtype} {array.shape}. Reshape your data: a "
            "single image is X[None], a picture is flattened or passed through a backbone first"
        )
    for count, name in zip(array.shape, ("sample", "feature"), strict=True):
        if not count:
            raise ValueError(f"features have 0 {name}(s) (shape={array.shape}) while a minimum of 1 is required.")
    features = array.astype(np.float32, copy=False)
    if (row := first_not_finite(features)) is not None:
        raise ValueError(f"features of row {row} hold NaN or infinity: leave the row out")
    return features


def as_maps(X: ArrayLike, *, views: bool) -> NDArray[Any]:
    """Return images as networks take them, (n, C, H, W), or with ``views`` also (n, V, C, H, W); not copied.

    Raises:
        ValueError: for arrays of another shape, of another type than uint8, float16 or float32, or not finite.
    """
    array = np.asarray(X)
    if array.ndim == 5 and not views:
        raise ValueError(
            f"transform takes one view of each image, (n, C, H, W), got {array.shape}: X[:, 0] is the first"
        )
    if array.ndim not in ((4, 5) if views else (4,)) or array.dtype.name not in ("uint8", "float16", "float32"):
        raise ValueError(
            "a hasher with a backbone takes images (n, C, H, W), pixels of uint8 or activations of float16 or float32, "
            f"got {array.dtype} {array.shape}: `hashgym features --cut BLOCK` extracts them; for feature vectors leave "
            "out backbone"
        )
    if 0 in array.shape:
        raise ValueError(f"there is no image: the array has the shape {array.shape}")
    if array.dtype != np.uint8 and (row := first_not_finite(array)) is not None:
        raise ValueError(f"image {row} holds NaN or infinity: leave it out")
    return array


def _differ(X: NDArray[Any]) -> bool:
    """Return whether any two rows differ."""
    return any((X[rows] != X[0]).any() for rows in row_blocks(X))


def _labels(y: ArrayLike, n: int) -> Labels:
    labels = np.asarray(y)
    if labels.ndim not in (1, 2) or labels.shape[-1] == 0:
        raise ValueError(
            f"labels must be multi-hot of shape (n, L), or classes (n,), got {labels.dtype} {labels.shape}"
        )
    if len(labels) != n:
        raise ValueError(f"{len(labels)} labels for {n} features: give every row of X its row of y")
    if labels.ndim == 1:
        if labels.dtype.kind == "f" and (labels != np.rint(labels)).any():
            raise ValueError("labels of shape (n,) must be classes, got real numbers")
        return (labels[:, None] == np.unique(labels)).astype(np.uint8)
    if labels.dtype.kind not in "iubf" or (labels != labels.astype(bool)).any():
        raise ValueError("labels must be the integers 0 and 1; one column for each label")
    return labels.astype(np.uint8, copy=False)
