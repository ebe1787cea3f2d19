"""A machine that only searches needs the packages of requirements-light.txt, and no others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from tests.gallery.small import write_encoder, write_pictures

ROOT = Path(__file__).parents[1]


def pins(file: str) -> dict[str, str]:
    """Names of packages, normalized, and their versions in a file of requirements."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text("utf-8").splitlines()]
    return {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(): line.partition("==")[2] for line in lines if line}


def test_versions_are_those_of_the_constraints() -> None:
    constraints = pins("constraints.txt")
    assert {name: constraints.get(name) for name in pins("requirements-light.txt")} == pins("requirements-light.txt")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages as an environment has it, with those of requirements-light.txt alone."""
    folder = tmp_path_factory.mktemp("site-packages")
    for name, version in pins("requirements-light.txt").items():
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        if package.version != version:
            pytest.skip(f"{name} {package.version} is installed, requirements-light.txt has {version}")
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    (folder / "hashgym").symlink_to(ROOT / "hashgym")
    return folder


def command(light: Path, *words: object) -> tuple[list[str], dict[str, str]]:
    """A command line of hashgym, and the environment variables that leave it no other packages."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    # -S leaves out this interpreter's own site-packages.
    return [sys.executable, "-S", "-m", "hashgym", *map(str, words)], kept | {"PYTHONPATH": str(light)}


def run(light: Path, *words: object) -> str:
    """Run a command and return its output; raise if it fails."""
    args, env = command(light, *words)
    return subprocess.run(args, env=env, cwd=light, check=True, capture_output=True, text=True).stdout


def test_nothing_else_is_there(light: Path) -> None:
    args, env = command(light)
    heavy = ("torch", "torchvision", "sklearn", "scipy", "tensorboard", "stable_baselines3", "onnx", "filelock")
    code = f"import importlib.util as u; print([name for name in {heavy} if u.find_spec(name)])"
    assert subprocess.run([*args[:2], "-c", code], env=env, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_encode_index_search_and_serve(light: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder.onnx")
    photos = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(12)])
    run(light, "encode", encoder, photos, "--out", tmp_path / "codes")
    run(light, "index", tmp_path / "codes", "--out", tmp_path / "index")  # faiss
    found = run(light, "search", tmp_path / "index", photos / "3.png", "--k", 1)
    assert "3.png" in found
    args, env = command(light, "serve", tmp_path / "index", "--port", 0)
    with subprocess.Popen(
        args, env=env | {"HASHGYM_TOKEN": "a-secret-of-the-tests"}, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            page = build_opener(HTTPCookieProcessor).open(address[0]).read()
            assert b"<!doctype html>" in page.lower()
        finally:
            server.send_signal(signal.SIGKILL)


def test_missing_files_are_named(light: Path, tmp_path: Path) -> None:
    args, env = command(light, "export", "itq", "--features", "digits", "--bits", "8", "--out", tmp_path / "itq.onnx")
    failed = subprocess.run(args, env=env, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "pip install" in failed.stderr
    assert "Traceback" not in failed.stderr
