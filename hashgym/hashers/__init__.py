"""Hash functions without reinforcement learning, the baselines of the agents, in scikit-learn's style.

hasher = hashgym.hashers.make("itq", bits=32).fit(X)
bits = hasher.encode(Z)                                # bool (n, 32)
hasher.save("itq.npz"); hashgym.hashers.load("itq.npz")
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, overload

from hashgym.hashers.base import Hasher, NotFittedError, read
from hashgym.registry import Registry, named_settings

__all__ = ["Hasher", "NotFittedError", "available", "load", "make", "register"]

HasherClass = TypeVar("HasherClass", bound=type[Hasher])


def _check(name: str, cls: Any) -> None:
    if not isinstance(cls, type) or not issubclass(cls, Hasher):
        raise ValueError(f"hasher {name!r} must be a subclass of hashgym.hashers.Hasher, got {cls!r:.80}")


# Modules are imported when a hasher of theirs is asked for: most need torch.
HASHERS: Registry[type[Hasher]] = Registry(
    "hasher",
    {
        "lsh": ("hashgym.hashers.lsh:LSH", "random hyperplanes (Charikar 2002); learns nothing"),
        "itq": ("hashgym.hashers.itq:ITQ", "PCA and iterative quantisation (Gong and Lazebnik 2011, 2013); no labels"),
        "sh": (
            "hashgym.hashers.sh:SH",
            "spectral hashing (Weiss 2008): eigenfunctions along principal directions; no labels",
        ),
        "sdh": ("hashgym.hashers.sdh:SDH", "codes that a linear classifier can read, bit by bit (Shen 2015)"),
        "cnnh": ("hashgym.hashers.cnnh:CNNH", "codes that factorise the similarity matrix, then a network (Xia 2014)"),
        "ninh": ("hashgym.hashers.ninh:NINH", "triplet ranking, each bit from its own slice of the layer (Lai 2015)"),
        "dsh": ("hashgym.hashers.dsh:DSH", "contrastive loss of pairs, outputs drawn to -1 and 1 (Liu 2016)"),
        "csq": ("hashgym.hashers.csq:CSQ", "one hidden layer, codes drawn to centres far from each other (Yuan 2020)"),
        "orthohash": ("hashgym.hashers.orthohash:OrthoHash", "cosine softmax to orthogonal targets (Hoe 2021)"),
        "noseq": ("hashgym.hashers.noseq:NoSeq", "one hidden layer, triplet ranking loss: DRLIH without its agent"),
        "ksh": ("hashgym.hashers.ksh:KSH", "kernels, greedy bit by bit (Liu 2012); base of MCH"),
        "ksh-relaxed": ("hashgym.hashers.ksh:RelaxedKSH", "one hidden layer, KSH's loss of pairs; base of MCH"),
        "hashnet": ("hashgym.hashers.hashnet:HashNet", "one hidden layer, tanh that sharpens (Cao 2017); base of MCH"),
        "adsh": (
            "hashgym.hashers.adsh:ADSH",
            "one hidden layer against learnt database codes (Jiang 2018); base of MCH",
        ),
        "dch": ("hashgym.hashers.dch:DCH", "one hidden layer, Cauchy loss of pairs (Cao 2018); base of MCH"),
        "mmhh": ("hashgym.hashers.mmhh:MMHH", "one hidden layer, Hamming balls with a margin (Kang 2019); base of MCH"),
    },
    check=_check,
)


def available() -> dict[str, str]:
    """Every hasher's name with one line that describes it."""
    return dict(HASHERS.descriptions)


@overload
def register(name: str, *, description: str = "") -> Callable[[HasherClass], HasherClass]: ...
@overload
def register(name: str, target: type[Hasher] | str, description: str = "") -> None: ...
def register(name: str, target: Any = None, description: str = "") -> Callable[[HasherClass], HasherClass] | None:
    """Let :func:`make` and :func:`load` find a hasher of your own; a name can be registered once.

    ``@register("mine")`` before a class does the same. Other processes know what the modules register that they
    import: name a hasher of your own ``"package.module:Class"`` where workers make it.

    Args:
        name: what to call it.
        target: the class, or where it is, as "package.module:Class", which is imported at first use.
        description: one line for :func:`available`; by default the first line of the class's docstring.

    Raises:
        ValueError: if the name is taken by another class, or the target is neither a hasher's class nor of that form.
    """
    return HASHERS.register(name, target, description)


def make(name: str, **kwargs: Any) -> Hasher:
    """A new hasher by name, not fitted yet; ``kwargs`` are its settings, at least ``bits`` and ``seed``.

    A name is one of :func:`available`, or ``"package.module:Class"``.

    Raises:
        ValueError: for a name that is not in :func:`available`, a setting it does not have, or a bad value.
    """
    cls = HASHERS.find(name)
    named_settings(name, kwargs, cls.parameters())
    return cls(**kwargs)


def load(path: Any) -> Hasher:
    """The fitted hasher that :meth:`Hasher.save` wrote to ``path``; nothing in the file is executed or imported.

    A class that was not registered when it was saved is known by its module, which must be imported before.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no saved hasher, is damaged, or names a hasher that is not known here.
    """
    meta, state = read(path)
    name = str(meta["hasher"])
    module = name.partition(":")[0]
    if name not in HASHERS.entries and (module == name or module not in sys.modules):
        remedy = f"import {module}" if module != name else "call hashgym.hashers.register, or import what calls it,"
        raise ValueError(f"{path} holds a hasher {name!r}, which is not known here: {remedy} before loading it")
    return make(name, **meta["parameters"])._restore(state, path)


def _name_of(cls: type[Hasher]) -> str:
    """What a saved file says of a class: its registered name, or its module and name."""
    name = HASHERS.name_of(cls)
    if name.startswith("__main__:") or "<locals>" in name:
        raise ValueError(
            f"{cls.__qualname__} is not registered, and no module holds it: call hashgym.hashers.register(name, "
            f"{cls.__name__}) before saving"
        )
    return name
