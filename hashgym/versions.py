"""Versions of installed packages, recorded with every result."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata

__all__ = ["versions"]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed, by name; the others are left out."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
