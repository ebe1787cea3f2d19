"""Non-RL hashing baselines, as scikit-learn estimators.

hasher = hashgym.hashers.make("itq", bits=32).fit(X)
bits = hasher.encode(Z)                                # bool (n, 32)
hasher.save("itq.npz"); hashgym.hashers.load("itq.npz")
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from hashgym.checks import closest
from hashgym.hashers.base import Hasher, NotFittedError, read
from hashgym.hashers.registry import HASHERS
from hashgym.registry import named_settings

if TYPE_CHECKING:
    from hashgym.data.dataset import HashingDataset

__all__ = ["Hasher", "NotFittedError", "available", "fitted", "load", "make", "register"]

HasherClass = TypeVar("HasherClass", bound=type[Hasher])


def available() -> dict[str, str]:
    """Return the name of every hasher, with a one-line description."""
    return dict(HASHERS.descriptions)


@overload
def register(name: str, *, description: str = "") -> Callable[[HasherClass], HasherClass]: ...
@overload
def register(name: str, target: type[Hasher] | str, description: str = "") -> None: ...
def register(name: str, target: Any = None, description: str = "") -> Callable[[HasherClass], HasherClass] | None:
    """Register a hasher of your own for :func:`make` and :func:`load`.

    ``@register("mine")`` before a class does the same. Another process finds only the names that its imported modules
    register: name a hasher of your own ``"package.module:Class"`` if workers make it.

    Args:
        name: its name; it can be registered once.
        target: the class, or where it is, as "package.module:Class", which is imported at first use.
        description: one line for :func:`available`; by default the first line of the class's docstring.

    Raises:
        ValueError: if the name is taken by another class, or the target is neither a hasher's class nor of that form.
    """
    return HASHERS.register(name, target, description, check=_checked)


def make(name: str, **kwargs: Any) -> Hasher:
    """Return a new hasher, not fitted yet; ``kwargs`` are its settings, always including ``bits`` and ``seed``.

    A name is one of :func:`available`, or ``"package.module:Class"``.

    Raises:
        ValueError: for a name that is not in :func:`available`, a setting it does not have, or a bad value.
    """
    cls = _checked(name, HASHERS.find(name))
    named_settings(name, kwargs, cls.parameters())
    return cls(**kwargs)


def load(path: Any) -> Hasher:
    """Return the fitted hasher that :meth:`Hasher.save` wrote to ``path``; nothing in the file is executed or imported.

    A class that was not registered when it was saved is found by its module, which must be imported before.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is not a saved hasher, is damaged, or names a hasher that is not registered.
    """
    meta, state = read(path)
    name = str(meta["hasher"])
    module = name.partition(":")[0]
    if name not in HASHERS.entries and (module == name or module not in sys.modules):
        remedy = (
            f"import {module}" if module != name else "call hashgym.hashers.register, or import the module that does,"
        )
        raise ValueError(f"{path} holds a hasher {name!r}, which is not registered: {remedy} before loading it")
    return make(name, **meta["parameters"])._restore(state, path)


def fitted(source: str | Path | Hasher, dataset: HashingDataset, **settings: Any) -> Hasher:
    """Return a fitted hasher: read from a file, or made and fitted to the training images of a dataset.

    Args:
        source: a name, as for :func:`make`; the path of a saved hasher; or a hasher, which is fitted if it is not
            yet. A text that is a registered name is never taken for a path.
        dataset: the images: a new hasher is fitted to ``features[train]``, with ``labels[train]``.
        settings: of a new hasher made by name, as for :func:`make`; a saved hasher has its own. For activations and
            pixels ``backbone`` is the dataset's own by default.

    Raises:
        ValueError: for a source that is none of these, a bad setting, a hasher of another number of features, and as
            :func:`load` and :meth:`Hasher.fit`.
    """
    if isinstance(source, str) and source in HASHERS:
        hasher = make(source, **settings)
    elif isinstance(source, Hasher):
        hasher = source
    elif isinstance(source, str | Path) and Path(source).is_file():
        hasher = load(source)
    else:
        close = closest(source, available()) if isinstance(source, str) else ""
        raise ValueError(
            f"{str(source)!r:.200} is neither a hasher{close} nor the file of a saved one; hashers are "
            f"{', '.join(available())}"
        )
    if not hasattr(hasher, "n_features_in_"):
        if dataset.has_maps:
            _set_backbone(hasher, dataset)
        return hasher.fit(dataset.training_images, dataset.labels[dataset.train])
    shape = tuple(map(int, getattr(hasher, "image_shape_", (hasher.n_features_in_,))))
    if shape != dataset.image_shape:
        if len(shape) > 1 or dataset.has_maps:
            raise ValueError(
                f"the hasher was fitted on images of shape {shape}, those of {dataset.name!r} have the shape "
                f"{dataset.image_shape}: extract them with the same backbone and cut"
            )
        raise ValueError(
            f"the hasher was fitted on {hasher.n_features_in_} features, images of {dataset.name!r} have "
            f"{dataset.dim}: fit it on features of the same backbone"
        )
    return hasher


def _set_backbone(hasher: Hasher, dataset: HashingDataset) -> None:
    """Set the backbone of a hasher to that of the dataset's activations or pixels, unless it names one."""
    from hashgym.features.trainable import spec_of

    if "backbone" not in hasher.parameters():
        raise ValueError(
            f"{type(hasher).__name__} takes feature vectors, and the images of {dataset.name!r} are maps of shape "
            f"{dataset.image_shape}: extract features without --cut, or use a hasher that trains a network, such as "
            "orthohash or hashnet"
        )
    settings = hasher.get_params()
    hasher.set_params(backbone=spec_of(dataset, settings["backbone"], settings["backbone_weights"]))


def _checked(name: str, cls: Any) -> type[Hasher]:
    if not isinstance(cls, type) or not issubclass(cls, Hasher):
        raise ValueError(f"hasher {name!r} must be a subclass of hashgym.hashers.Hasher, got {cls!r:.80}")
    return cls
