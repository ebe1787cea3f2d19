"""Rules for the sources: no pickle, one way to write files, imports in one direction and without circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for part in ("hashgym", "agents", "benchmarks") for path in sorted((ROOT / part).rglob("*.py"))]
ORDER = [  # what comes later may import what comes earlier
    [
        f"hashgym.{name}"
        for name in (
            "checks",
            "device",
            "moved",
            "optional",
            "processes",
            "registry",
            "startup",
            "text",
            "threads",
            "versions",
        )
    ],
    ["hashgym.console"],
    ["hashgym.terminal"],
    ["hashgym.codes"],
    ["hashgym.storage"],
    ["hashgym.data"],
    ["hashgym.features", "hashgym.hashers", "hashgym.retrieval"],
    ["hashgym.index"],
    ["hashgym.encoders"],
    ["hashgym.gallery"],
    ["hashgym.rewards"],
    ["hashgym.envs"],
    ["hashgym.policies"],
    ["hashgym.integrations"],
    ["hashgym.cli", "hashgym.train", "hashgym.__main__", "agents"],
    ["benchmarks"],
]
SEPARATE = {"hashgym.index", "hashgym.encoders", "hashgym.gallery"}  # nothing but the command line is built on these


def module_name(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """The modules of this repository that a file imports, wherever the import stands."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = package.rsplit(".", node.level - 1)[0]
                base = f"{start}.{base}".rstrip(".")
            # `from package import module` needs the module; `from package import name` needs the package.
            wanted = [full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
        else:
            continue
        yield from (each for each in wanted if each in MODULES and each != name)


def layer(module: str) -> int:
    """The place of a module in ORDER."""
    return next(i for i, row in enumerate(ORDER) if any(f"{module}.".startswith(f"{each}.") for each in row))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) pickle\b", text, flags=re.MULTILINE)
    assert not re.search(r"allow_pickle *= *True|weights_only *= *False", text)
    for call in ast.walk(ast.parse(text)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_written_by_the_one_helper(path: Path) -> None:
    """``hashgym.storage.atomic`` syncs, renames, cleans up and explains a full disk."""
    if path.relative_to(ROOT).as_posix() != "hashgym/storage/atomic.py":
        assert not re.search(r"os\.(replace|rename)\(|mkstemp|NamedTemporary", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = module_name(path)
    if own == "hashgym":
        return
    for name in imports(path):
        if name != "hashgym":
            assert layer(name) <= layer(own), f"{own} imports {name}, which comes after it"
            if own.startswith(("hashgym.rewards", "hashgym.envs", "hashgym.policies", "hashgym.integrations")):
                assert not name.startswith(tuple(SEPARATE)), f"{own} imports {name}"


def test_no_import_is_circular() -> None:
    """A package's ``__init__`` counts as a file; importing a submodule is not importing what its package exports."""
    graph = {name: set(imports(path)) - {"hashgym"} for name, path in MODULES.items() if name != "hashgym"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' -> '.join(error.args[1])}")
