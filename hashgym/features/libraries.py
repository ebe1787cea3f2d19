"""The registry of libraries whose models are backbones; they are imported at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hashgym.registry import Registry

__all__ = ["LIBRARIES", "is_library_model", "packages_of"]

LIBRARIES: Registry[Callable[..., Any]] = Registry(
    "library",
    {
        "timm": ("hashgym.features.from_timm:load", "timm:NAME, any model of timm, its pooled features"),
        "open_clip": (
            "hashgym.features.from_open_clip:load",
            "open_clip:NAME/TAG, an image-text model of OpenCLIP, TAG one of its weights or the file of a checkpoint: "
            "its index can be searched by texts",
        ),
        "hf": (
            "hashgym.features.from_transformers:load",
            "hf:NAME_OR_PATH, a model of transformers such as DINOv2; an index by CLIP or SigLIP can be searched by "
            "texts",
        ),
    },
)
"""Libraries whose models are backbones, by the prefix of their names; described by the form of these names."""

_PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch", "hf": "transformers"}


def packages_of(name: str) -> tuple[str, ...]:
    """Return the packages that compute a backbone's features, beside torch, whose versions are recorded with them."""
    return (_PACKAGES[name.partition(":")[0]],) if is_library_model(name) else ()


def is_library_model(name: str) -> bool:
    """Return whether a backbone's name is that of another library's model."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library in LIBRARIES.entries
