"""`import hashgym` is light and registers the environments."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym

import hashgym

HEAVY = ("torch", "torchvision", "sklearn", "matplotlib", "numba", "scipy", "stable_baselines3", "PIL")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    assert run(f"import sys, hashgym; print([m for m in {HEAVY!r} if m in sys.modules])") == "[]"


def test_import_registers() -> None:
    code = "import gymnasium, hashgym; print(gymnasium.make('hashgym/BitGroupHashing-v0').unwrapped.task.bits)"
    assert run(code) == "24"


def test_make_imports_the_package_by_its_prefix() -> None:
    assert run("import gymnasium; print(gymnasium.make('hashgym:BitGroupHashing-v0').spec.id)") == "BitGroupHashing-v0"


def test_registration_is_idempotent() -> None:
    before = gym.spec("BitGroupHashing-v0")
    hashgym.register_envs()
    assert gym.spec("BitGroupHashing-v0") is before
