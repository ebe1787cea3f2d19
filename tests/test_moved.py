"""Old import paths keep working in this version, with a warning that names the new one."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from operator import attrgetter

import pytest

import hashgym
from hashgym import moved


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget old paths that were imported before, and afterwards those that a test imported."""
    for old in moved.MODULES:
        monkeypatch.setitem(sys.modules, f"hashgym.{old}", None)
        del sys.modules[f"hashgym.{old}"]


@pytest.mark.parametrize("old", [old for old, new in moved.MODULES.items() if isinstance(new, str)])
def test_a_module_is_the_same_under_its_old_path(old: str) -> None:
    new = moved.MODULES[old]
    assert isinstance(new, str)
    module = import_module(f"hashgym.{new}")
    with pytest.warns(DeprecationWarning, match=f"^hashgym.{old} has moved to hashgym.{new}: import it from there"):
        assert import_module(f"hashgym.{old}") is module
    assert module.__name__ == module.__spec__.name == f"hashgym.{new}"


def test_a_module_that_was_split_has_the_names_of_its_parts() -> None:
    from hashgym.data import image_files, pictures
    from hashgym.storage import reading

    with pytest.warns(DeprecationWarning, match="moved to hashgym.data.image_files and hashgym.data.pictures and"):
        from hashgym.data import files  # type: ignore[attr-defined]
    assert files.list_images is image_files.list_images
    assert files.open_image is pictures.open_image
    assert files.MAX_PIXELS == pictures.MAX_PIXELS
    assert files.read_bounded is reading.read_bounded
    assert {*image_files.__all__, *pictures.__all__} < set(files.__all__)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, row in moved.NAMES.items() for name in row])
def test_a_name_that_left_a_module_is_found_there(module: str, name: str) -> None:
    place, _, new = moved.NAMES[module][name].partition(":")
    old, now = import_module(f"hashgym.{module}"), import_module(f"hashgym.{place}")
    assert name not in vars(old), "the row is not needed"
    with pytest.warns(DeprecationWarning, match=f"^hashgym.{module}.{name} has moved to hashgym.{place}") as found:
        assert getattr(old, name) is attrgetter(new or name)(now)
    assert found[0].filename == __file__
    with pytest.raises(AttributeError, match=f"module 'hashgym.{module}' has no attribute 'nonsense'"):
        _ = old.nonsense


def test_new_paths_give_no_warning() -> None:
    """Nothing in the package uses an old path, and none is imported without need."""
    code = "import hashgym, hashgym.cli, hashgym.data.pictures; from hashgym.storage import job_store, pipeline"
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:hashgym", "-c", code], check=True)
    before = list(sys.meta_path)
    moved.install()
    assert sys.meta_path == before
    assert hashgym.__version__
