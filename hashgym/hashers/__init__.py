"""Hash functions that are fitted, not rewarded: the rivals of the agents, in scikit-learn's style.

hasher = hashgym.hashers.make("itq", bits=32).fit(X)
bits = hasher.encode(Z)                                # bool (n, 32)
hasher.save("itq.npz"); hashgym.hashers.load("itq.npz")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hashgym.checks import closest
from hashgym.hashers.base import Hasher, NotFittedError, read

__all__ = ["Hasher", "NotFittedError", "available", "load", "make", "register"]

# name -> where its class is, and one line on what it does; modules are imported when asked for (some need torch)
_REGISTRY: dict[str, tuple[str, str]] = {
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
    "adsh": ("hashgym.hashers.adsh:ADSH", "one hidden layer against learnt database codes (Jiang 2018); base of MCH"),
    "dch": ("hashgym.hashers.dch:DCH", "one hidden layer, Cauchy loss of pairs (Cao 2018); base of MCH"),
    "mmhh": ("hashgym.hashers.mmhh:MMHH", "one hidden layer, Hamming balls with a margin (Kang 2019); base of MCH"),
}


def available() -> dict[str, str]:
    """Every hasher's name with one line that describes it."""
    return {name: description for name, (_, description) in _REGISTRY.items()}


def register(name: str, target: str, description: str = "") -> None:
    """Let :func:`make` and :func:`load` find a hasher of your own.

    Args:
        name: what to call it.
        target: where its class is, as "package.module:Class"; imported at first use.
        description: one line for :func:`available`.

    Raises:
        ValueError: if the name is taken by another class, or the target is not of that form.
    """
    if target.count(":") != 1:
        raise ValueError(f"target must look like 'package.module:Class', got {target!r}")
    if name in _REGISTRY and _REGISTRY[name][0] != target:
        raise ValueError(f"the name {name!r} is taken by {_REGISTRY[name][0]}: choose another")
    _REGISTRY[name] = target, description


def make(name: str, **kwargs: Any) -> Hasher:
    """A new hasher by name, not fitted yet; ``kwargs`` are its settings, at least ``bits`` and ``seed``.

    Raises:
        ValueError: for a name that is not in :func:`available`, a setting it does not have, or a bad value.
    """
    if name not in _REGISTRY:
        raise ValueError(f"there is no hasher {name!r}{closest(name, _REGISTRY)}: choose one of {', '.join(_REGISTRY)}")
    module, _, attribute = _REGISTRY[name][0].partition(":")
    cls = getattr(import_module(module), attribute)
    if unknown := kwargs.keys() - cls.parameters():
        close = closest(min(unknown), cls.parameters())
        raise ValueError(
            f"{name} has no setting {', '.join(sorted(unknown))}{close}: it has {', '.join(cls.parameters())}"
        )
    return cls(**kwargs)


def load(path: Any) -> Hasher:
    """The fitted hasher that :meth:`Hasher.save` wrote to ``path``; nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no saved hasher, is damaged, or names a hasher that is not registered.
    """
    meta, state = read(path)
    return make(meta["hasher"], **meta["parameters"])._restore(state, path)


def _name_of(cls: type[Hasher]) -> str:
    """The registered name of a class: what a saved file says."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    for name, (known, _) in _REGISTRY.items():
        if known == target:
            return name
    raise ValueError(f"{target} is not registered: call hashgym.hashers.register(name, {target!r}) before saving")
