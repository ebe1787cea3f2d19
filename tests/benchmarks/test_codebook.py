"""The benchmark of codebooks: every kind learns with the same settings, and a shared codebook is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import codebook
from benchmarks.common.results import read_csv
from hashgym.integrations.sb3 import HashVecEnv


def test_every_kind_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[Any, int]] = []
    measure = codebook.mean_average_precision

    def counted(envs: Any, dataset: Any, bits: int, steps: int, seed: int) -> float:
        made = [envs.envs] if isinstance(envs, HashVecEnv) else envs.envs
        given.append((envs, len({env.unwrapped._core._words for env in made})))
        return measure(envs, dataset, bits, steps, seed)

    monkeypatch.setattr(codebook, "mean_average_precision", counted)
    rows = codebook.main(codebook.Args(bits=4, num_envs=4, steps=32, seeds=1, out=tmp_path))
    assert all(0 < row["map"] < 1 for row in rows)
    assert [books for _, books in given] == [4, 1, 1]
    assert [isinstance(envs, HashVecEnv) for envs, _ in given] == [False, False, True]
    assert [envs.num_envs for envs, _ in given] == [4] * 3
    assert "4 environments on digits, 4 bits, 32 steps" in capsys.readouterr().out
    columns, stored = read_csv(tmp_path / "codebook.csv")
    assert columns == read_csv(Path(codebook.__file__).parent / "results" / "codebook" / "codebook.csv")[0]
    assert [float(row["map"]) for row in stored] == [row["map"] for row in rows]
