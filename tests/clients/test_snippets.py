"""The examples of docs/using-other-libraries.md, each with the library that it is for, where that is installed."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "using-other-libraries.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
LIBRARIES = {
    "Gymnasium": "gymnasium",
    "Stable-Baselines3": "stable_baselines3",
    "sb3-contrib": "sb3_contrib",
    "TorchRL": "torchrl",
    "RLlib": "ray.rllib",
    "Tianshou": "tianshou",
    "skrl": "skrl",
    "Data of your own": "hashgym",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def blocks(section: str, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], flags=re.M | re.S))


def need(section: str, library: str) -> None:
    """Skip where a library is missing, or a part that it needs."""
    try:
        importlib.import_module(library)
    except ImportError as error:
        pytest.skip(f"{section} is not installed here ({error}): make test-clients installs it, except RLlib")


def run(command: list[str], folder: Path) -> None:
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2_000:] + ran.stderr[-4_000:]


def test_every_library_of_the_table_has_a_section() -> None:
    listed = re.findall(r"^\| \[(.+?)\]\(#", PAGE, flags=re.M)
    assert set(listed) == set(LIBRARIES) - {"Data of your own"} | {"rl_zoo3", "CleanRL"}
    assert set(listed) <= set(SECTIONS)


@pytest.mark.parametrize("section", LIBRARIES)
def test_example(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(section, LIBRARIES[section])
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    exec(compile(blocks(section, "python"), section, "exec"), namespace)
    if "hashgym.encode" in SECTIONS[section]:
        codes = namespace["codes"]
        assert isinstance(codes, np.ndarray)
        assert codes.dtype == np.bool_
        assert codes.shape[0] == 1_797
        assert 0 < codes.mean() < 1


def test_rl_zoo3(tmp_path: Path) -> None:
    need("rl_zoo3", "rl_zoo3")
    (tmp_path / "hyperparams.yml").write_text(blocks("rl_zoo3", "yaml"))
    commands = re.sub(r"\\\n\s*", "", blocks("rl_zoo3", "console")).splitlines()
    (train,) = (shlex.split(command) for command in commands if command.startswith("python "))
    run([sys.executable, *train[1:]], tmp_path)
    assert (tmp_path / "logs" / "ppo" / "BitGroupHashing-v0_1" / "best_model.zip").is_file()


@pytest.mark.parametrize("script", ["ppo", "dqn", "sac_continuous_action"])
def test_cleanrl(script: str, tmp_path: Path) -> None:
    folder = os.environ.get("CLEANRL")
    if folder is None or not (Path(folder) / "cleanrl" / f"{script}.py").is_file():
        pytest.skip(f"CLEANRL names no checkout of CleanRL with cleanrl/{script}.py")
    (tmp_path / "my_hashing.py").write_text(blocks("CleanRL", "python"))
    (command,) = (line for line in blocks("CleanRL", "console").splitlines() if f"/{script}.py" in line)
    few = "--total-timesteps 1100 --num-steps 32" if script == "ppo" else "--total-timesteps 1100 --buffer-size 2000"
    few += "" if script == "ppo" else " --learning-starts 1000"
    _, file, *options = shlex.split(f"{command} {few}")
    run([sys.executable, str(Path(folder) / file), *options], tmp_path)
