from __future__ import annotations

from pathlib import Path

from benchmarks.common.results import read_csv
from benchmarks.labels import Args, main


def test_the_benchmark_runs_on_few_images(tmp_path: Path) -> None:
    rows = main(Args(images=(300,), labels=12, num_envs=4, steps=2, out=tmp_path))
    assert {row["labels"] for row in rows} == {10, 12}
    assert len(read_csv(tmp_path / "labels.csv")[1]) == len(rows) == 4
