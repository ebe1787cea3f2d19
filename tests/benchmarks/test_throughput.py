"""The throughput benchmark runs every contestant; what it measures is for people to read."""

from __future__ import annotations

import pytest

from benchmarks import throughput


def test_every_contestant_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    results = throughput.main(throughput.Args(lanes=(2, 3), rounds=1, steps=3))
    assert [lanes for lanes, _ in results] == [2, 3]
    for _, speeds in results:
        assert set(speeds) == {"floor (copies only)", "native", "SyncVectorEnv"}
        assert all(speed > 0 for speed in speeds.values())
    assert "SyncVectorEnv" in capsys.readouterr().out
