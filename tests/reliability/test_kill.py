"""Every long job is killed a few times; ``python -m tests.reliability.kill --times 20`` kills each twenty times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.reliability import jobs, kill


@pytest.fixture(scope="module")
def runner() -> Iterator[kill.Runner]:
    with kill.Runner(*kill.MODULES) as runner:
        yield runner


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    jobs.make_inputs(folder / "inputs")
    return folder


@pytest.mark.parametrize("name", jobs.jobs())
def test_a_killed_job_loses_nothing(runner: kill.Runner, base: Path, name: str) -> None:
    report = kill.torture(runner, name, jobs.jobs()[name], base, times=1, seed=1)
    assert not report.faults
    assert report.kills == 1


def test_what_is_left_over_missing_or_different_is_found(tmp_path: Path) -> None:
    """The comparison must find what a faulty job would leave."""
    job = kill.Job("none", (), {}, ignored=("*.log",), volatile=("seconds",))
    for name in ("whole", "other"):
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "out" / "same").write_bytes(b"1")
        (tmp_path / name / "rows.csv").write_text(f"key,seconds\n1,{name}\n")
        (tmp_path / name / f"{name}.log").write_text("ignored")
    assert kill.differences(job, tmp_path / "whole", tmp_path / "other") == []
    (tmp_path / "other" / "out" / "same").write_bytes(b"2")
    (tmp_path / "other" / ".same.tmp").write_bytes(b"")
    (tmp_path / "other" / "rows.csv").write_text("key,seconds\n2,1\n")
    (tmp_path / "whole" / "lost").write_bytes(b"")
    lines = kill.differences(job, tmp_path / "whole", tmp_path / "other")
    assert lines == [".same.tmp is left over", "lost is missing", "out/same differs", "rows.csv differs"]


def test_checkpoints_are_compared_tensor_by_tensor() -> None:
    import torch

    def content(value: float) -> dict:
        return {"policy": {"weight": torch.tensor([1.0, value])}, "marks": [1, (2.0, float("nan"))], "none": None}

    assert kill._same(content(float("nan")), content(float("nan")))
    assert not kill._same(content(0.0), content(-0.0))
    assert not kill._same(content(1.0), content(1.0) | {"marks": [1, (3.0, float("nan"))]})
    assert not kill._same({"a": np.float32(1)}, {"a": 1.0})
