"""The benchmark of all algorithms: runs are kept and resumed, and the table agrees with the rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import sb3
from benchmarks.common.results import Results


@pytest.mark.usefixtures("in_this_process")
def test_runs_are_kept_and_shown(tmp_path: Path) -> None:
    args = sb3.Args(out=tmp_path, methods=("lsh", "a2c"), envs=(sb3.CODES,), seeds=1, steps=1_024)
    console = Console(file=io.StringIO(), width=200)
    assert sb3.main(args, console) == 0
    rows = Results(tmp_path, sb3.COLUMNS, sb3.KEY).rows()
    assert [(row["method"], row["bits"], row["seed"]) for row in rows] == [("lsh", "24", "0"), ("a2c", "24", "0")]
    assert [int(row["steps"]) for row in rows] == [0, 1_024]
    assert all(0.1 < float(row["map"]) < 1 and row["anhc"] == "1.0" for row in rows)
    text = (tmp_path / "table.md").read_text()
    assert "| lsh |" in text
    assert "| a2c |" in text
    before = (tmp_path / "results.csv").read_bytes()
    assert sb3.main(args, console) == 0
    assert "2 of 2 runs are in" in console.file.getvalue()  # type: ignore[attr-defined]
    assert (tmp_path / "results.csv").read_bytes() == before


def test_the_table_averages_over_seeds() -> None:
    def row(env: str, method: str, seed: int, score: float, seconds: float) -> dict[str, Any]:
        values = {"map": score, "recall_radius0": 0.5, "anhc": 2.0, "steps": 100, "train_seconds": seconds}
        names = {"env": env, "dataset": "d", "features": "f", "bits": 24, "method": method, "seed": seed}
        return {**names, **values}

    rows = [row(sb3.CODES, "ppo", s, 0.5 + s / 10, 10 * s) for s in range(3)] + [row(sb3.REGIONS, "dqn", 0, 0.7, 3)]
    text = sb3.table(rows)
    assert "BitGroupHashing-v0, d, 24 bits" in text
    assert "| ppo | .600 [.500, .700] | .500 [.500, .500] | 3 | 100 | 10 s |" in text
    assert "| dqn | .700 | .500 | 2.000 | 1 | 100 | 3 s |" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"methods": ("adsh",)}, "there is no method 'adsh': choose from lsh, itq"),
        ({"methods": ("sac",), "envs": (sb3.REGIONS,)}, "there is no method 'sac'.*: choose from dch, mch, ppo"),
        ({"envs": ("CartPole-v1",)}, "there is no environment 'CartPole-v1'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_rejected(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sb3.main(sb3.Args(out=tmp_path / "out", **arguments))
    assert not (tmp_path / "out").exists()


def test_data_have_tables_of_their_own() -> None:
    row = dict.fromkeys(sb3.COLUMNS, "1") | {"env": sb3.CODES, "method": "itq", "bits": "24"}
    shown = sb3.table([row | {"dataset": "digits", "map": "0.9"}, row | {"dataset": "cifar10", "map": "0.3"}])
    assert [line for line in shown.splitlines() if "bits" in line] == [
        f"{sb3.CODES}, {name}, 24 bits" for name in ("digits", "cifar10")
    ]
    assert "| itq | .900 |" in shown
    assert "| itq | .300 |" in shown
