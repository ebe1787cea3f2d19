"""``make clean`` removes what can be made again, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

OURS = (
    ".venv/.hashgym",
    ".venv/bin/python",
    "docs/_build/.buildinfo",
    "docs/_build/index.html",
    ".mypy_cache/CACHEDIR.TAG",
    ".ruff_cache/CACHEDIR.TAG",
    ".pytest_cache/CACHEDIR.TAG",
    "hashgym/data/__pycache__/cache.cpython-311.pyc",
    "tests/__pycache__/conftest.cpython-311.pyc",
)
OTHERS = (
    "runs/drlih/checkpoint.pt",
    "dist/photo.jpg",
    "build/letter.txt",
    "photos/__pycache__/photo.jpg",
    "hashgym/__pycache__/notes.txt",
    ".hypothesis/examples/x",
)


def clean(folder: Path, *names: str) -> list[str]:
    """The files of these names that are left after ``make clean``."""
    shutil.copyfile(Path(__file__).parents[1] / "Makefile", folder / "Makefile")
    for name in ("agents", "benchmarks", "docs", "hashgym", "tests"):
        (folder / name).mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    subprocess.run(["make", "clean"], cwd=folder, check=True, capture_output=True)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_clean_removes_generated_files(tmp_path: Path) -> None:
    assert clean(tmp_path, *OURS, *OTHERS) == sorted(["Makefile", *OTHERS])
    assert not (tmp_path / ".venv").exists()
    assert not (tmp_path / "tests" / "__pycache__").exists()


def test_clean_leaves_folders_that_something_else_made(tmp_path: Path) -> None:
    mine = (".venv/bin/python", ".venv/.installed", "docs/_build/photo.jpg", ".mypy_cache/x", ".pytest_cache/x")
    assert clean(tmp_path, *mine) == sorted(["Makefile", *mine])


def test_an_environment_that_was_not_finished_is_continued(tmp_path: Path) -> None:
    """A kill may leave Python without pip, and the mark must be there by then."""
    shutil.copyfile(Path(__file__).parents[1] / "Makefile", tmp_path / "Makefile")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / "python").write_text(
        "#!/bin/sh\nmkdir -p .venv/bin && printf '#!/bin/sh\\necho $* >> calls\\n' > .venv/bin/python"
        " && chmod +x .venv/bin/python\n"
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".hashgym").touch()
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")  # no pip
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    subprocess.run(["make", ".venv/.installed", "PYTHON=./python"], cwd=tmp_path, check=True, capture_output=True)
    assert "-m pip install --constraint constraints.txt torch" in (tmp_path / "calls").read_text()
