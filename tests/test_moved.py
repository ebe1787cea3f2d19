"""Old import paths and old names of arguments keep working, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest

from hashgym.moved import MOVED, install, renamed

NEEDS_EXTRA = {"index.faiss": "faiss", "retrieval.numba_kernels": "numba", "features.runtimes": "torch"}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_the_same_module_with_a_warning(old, monkeypatch):
    new = MOVED[old]
    if new in NEEDS_EXTRA:
        pytest.importorskip(NEEDS_EXTRA[new])
    module = importlib.import_module(f"hashgym.{new}")
    monkeypatch.delitem(sys.modules, f"hashgym.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"hashgym\.{old} has moved to hashgym\.{new}: import it from there"):
        moved = importlib.import_module(f"hashgym.{old}")
    assert moved is module
    assert module.__spec__.name == module.__name__ == f"hashgym.{new}"


def test_new_paths_and_other_packages_are_imported_as_ever():
    install()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module("hashgym.storage.atomic")
        with pytest.raises(ModuleNotFoundError, match=r"No module named 'hashgym\.nothing'"):
            importlib.import_module("hashgym.nothing")


@renamed(lanes="num_envs", history="hidden")
def function(num_envs=1, *, hidden=2):
    """Return both."""
    return num_envs, hidden


def test_renamed_arguments_warn_and_are_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(3, hidden=4) == (3, 4)
    with pytest.warns(DeprecationWarning, match=r"^lanes= is called num_envs= now$") as caught:
        assert function(lanes=5) == (5, 2)
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="lanes= is the old name of num_envs=: give only num_envs="):
        function(lanes=5, num_envs=6)
    assert function.__doc__ == "Return both."
