"""Every Python block of the README runs, in order, in one namespace, as a reader would paste them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["codes"].shape == (300, 24)
    assert 0 < namespace["result"].map < 1
    assert "group/triplet" in capsys.readouterr().out


def test_the_readmes_commands_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^    )make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for module in re.findall(r"python -m (agents|benchmarks)\.(\w+)", README):
        assert (Path(__file__).parents[1] / module[0] / f"{module[1]}.py").exists()
