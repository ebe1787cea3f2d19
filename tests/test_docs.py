"""README, documentation site and environments' docstrings: their code runs, their commands exist, the site builds."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

import hashgym.cli
import hashgym.train

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]
IN_MARKDOWN = [  # classes whose docstrings are pages
    name for page in PAGES for name in re.findall(r"^<!-- docstring (.*) -->$", page.read_text("utf-8"), re.MULTILINE)
]
CLIENTS = DOCS / "using-other-libraries.md"  # whose Python needs libraries that may be missing: see tests/clients

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture
def as_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize("page", [page for page in PAGES if page != CLIENTS], ids=lambda page: page.name)
def test_python_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = run(page.read_text(encoding="utf-8"), str(page))
    if page.name == "README.md":
        assert namespace["codes"].shape == (1797, 24)
        assert 0 < namespace["result"].map < 1
        assert "group/triplet" in capsys.readouterr().out


@pytest.mark.usefixtures("as_reader")
@pytest.mark.parametrize("name", IN_MARKDOWN)
def test_python_of_docstrings_runs(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    text = inspect.getdoc(getattr(importlib.import_module(module), attribute)) or ""
    assert run(text, name), f"{name} shows no code"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # a module runs that was imported before
@pages
def test_commands_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in blocks are parsed with all their options, nothing is run; commands in a line must exist."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    fences = re.compile(r"^```(\S*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
    lines = [line for language, block in fences.findall(text) if language != "python" for line in block.splitlines()]
    text = fences.sub("", text)
    lines += re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)
    for line in lines:
        if re.match(r"(\$ )?(hashgym|make|python -m|pip) ", line):
            check(shlex.split(line.removeprefix("$ "), comments=True), monkeypatch)
    for line in re.findall(r"`((?:hashgym|make|python -m|pip) [^`]+)`", text):
        check(shlex.split(line), monkeypatch, whole=False)


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size < 9_000


def test_the_architecture_names_every_room() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    folders = {path.parent.name for path in (ROOT / "hashgym").glob("*/__init__.py")}
    files = {path.stem for path in (ROOT / "hashgym").glob("*.py")} - {"__init__", "__main__", "moved"}
    missing = {f"{name}/" for name in folders if f"  {name}/" not in text} | {
        name for name in files if f"  {name}.py" not in text and f"`{name}`" not in text
    }
    assert not missing


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text("utf-8")):
        assert (ROOT / target).exists(), target


def test_every_page_is_in_the_table_of_contents() -> None:
    entries = set()
    for page in PAGES[1:]:
        for tree in re.findall(r"^```{toctree}\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE):
            entries |= {page.parent / f"{line}.md" for line in tree.splitlines() if line and not line.startswith(":")}
    assert entries | {DOCS / "index.md"} == set(PAGES[1:])


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for needed in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(needed, reason=f"the documentation site needs {needed}: pip install 'hashgym[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert built.returncode == 0, built.stderr
    assert "<math" in (tmp_path / "metrics.html").read_text("utf-8")
    environment = (tmp_path / "environments" / "bit-group-hashing.html").read_text("utf-8")
    assert 'id="action-space"' in environment
    assert "<table" in environment
    for written in tmp_path.rglob("*.html"):  # pages are read without internet
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]*)|<link[^>]* href=\"(https?:[^\"]*)",
            (written.read_text("utf-8")),
        )
        assert not fetched, f"{written.name} fetches {fetched}"


def run(text: str, name: str) -> dict[str, Any]:
    """Run a page's Python blocks in order, as a reader would paste them; tracebacks show the page's lines."""
    namespace: dict[str, Any] = {"__name__": "page"}
    first = len(namespace)
    for block in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        before = "\n" * text[: block.start(1)].count("\n")
        exec(compile(before + block[1], name, "exec"), namespace)
    return {} if len(namespace) == first else namespace


def check(words: list[str], monkeypatch: pytest.MonkeyPatch, *, whole: bool = True) -> None:
    """Fail unless a command is one of ours that exists and, if ``whole``, takes these options."""
    match words:
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(f"\n{target}:" in makefile for target in targets), words
        case ["hashgym", "train", *job] if job:
            if whole:
                hashgym.train.read(job)
        case ["hashgym", command, *options]:
            assert command in hashgym.cli.COMMANDS, words
            if whole:
                monkeypatch.setattr(hashgym.cli, "COMMANDS", {k: silent(f) for k, f in hashgym.cli.COMMANDS.items()})
                hashgym.cli.main([command, *options])
        case ["python", "-m", module, *options] if module.partition(".")[0] in ("agents", "benchmarks", "hashgym"):
            path = ROOT / module.replace(".", "/")
            path = main if (main := path / "__main__.py").exists() else path.with_suffix(".py")
            if "*" in module or "NAME" in module:  # stands for any of them
                return
            assert path.exists(), words
            if whole and re.search("tyro|parse", path.read_text(encoding="utf-8")):
                with monkeypatch.context() as patch:
                    patch.setattr(tyro, "cli", parse_only)
                    patch.setattr(sys, "argv", [str(path), *options])
                    with pytest.raises(Parsed):
                        runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["pip", "install", *what]:
            for extra in re.findall(r"(?:hashgym|\.)\[(.*?)\]", " ".join(what)):
                assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), words


class Parsed(BaseException):
    """A command line was understood."""


TYRO = tyro.cli


def parse_only(*args: Any, **kwargs: Any) -> None:
    """Read a command line as the program would, and go no further."""
    TYRO(*args, **kwargs)
    raise Parsed


def silent(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the same options and does nothing."""

    @functools.wraps(command)
    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    return nothing
