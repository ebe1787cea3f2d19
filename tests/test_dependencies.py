"""The least versions that pyproject.toml allows are those that `make test-oldest` installs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hashgym import optional

ROOT = Path(__file__).parents[1]
UNTESTED = {"torch", "torchvision"}  # constraints-oldest.txt says why


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lower_bounds_are_tested() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    version = pytest.importorskip("packaging.version").Version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "constraints-oldest.txt").read_text("utf-8").splitlines()
    pinned = {normalized(name): version(pin) for name, _, pin in (line.partition("==") for line in lines) if pin}
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(need for extra in extras if extra != "clients" for need in extras[extra])]
    for need in needed:
        if match := re.match(r"([\w.-]+)(?:>=|==)([\d.]+)", need):
            name, least = normalized(match[1]), version(match[2]).release
            if name not in UNTESTED:
                assert pinned[name].release[: len(least)] == least, f"{need}, but {pinned[name]} is tested"


def test_packages_without_their_dependencies_have_one_version() -> None:
    """`make` installs what the error message of a missing package names."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for requirement in optional.ALONE.values():
        assert makefile.count(f"--no-deps {requirement.partition('==')[0]}\n") == 2
        for constraints in ("constraints.txt", "constraints-oldest.txt"):
            assert requirement in (ROOT / constraints).read_text("utf-8").splitlines()
