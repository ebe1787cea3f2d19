"""What must not be in the sources: pickle, unsafe loading, imports against the stream."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for part in ("hashgym", "agents", "benchmarks") for path in sorted((ROOT / part).rglob("*.py"))]
LAYERS = [
    ["checks", "console", "registry", "terminal"],
    ["codes"],
    ["data"],
    ["features", "hashers", "retrieval"],
    ["encoders"],
    ["gallery"],
    ["rewards"],
    ["envs"],
    ["encoding"],
    ["integrations"],
]


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
    """``hashgym.data.atomic`` syncs, renames, cleans up and explains a full disk; an index replaces several files."""
    if path.relative_to(ROOT).as_posix() not in ("hashgym/data/atomic.py", "hashgym/retrieval/index.py"):
        assert not re.search(r"os\.(replace|rename)\(|mkstemp|NamedTemporary", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "hashgym" or parts[1] in ("__init__", "__main__", "cli"):
        return
    own = next(i for i, layer in enumerate(LAYERS) if parts[1] in layer)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            assert not name.startswith(("agents", "benchmarks")), f"{path} imports {name}"
            if name.startswith("hashgym.") and name.split(".")[1] != "__version__":
                layer = next((i for i, layer in enumerate(LAYERS) if name.split(".")[1] in layer), -1)
                assert layer <= own, f"{path} imports {name}, which comes after it"
