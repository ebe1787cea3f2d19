"""The throughput benchmark runs every contestant; what it measures is for people to read."""

from __future__ import annotations

import pytest

from benchmarks import throughput


def test_every_contestant_is_measured(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = throughput.main(throughput.Args(scenes=folders[0], lanes=(2, 3), rounds=1, steps=3))
    assert list(results) == ["BitGroupHashing-v0", "RegionKeep-v0"]
    for measured in results.values():
        assert [lanes for lanes, _ in measured] == [2, 3]
        for _, speeds in measured:
            assert set(speeds) == {"floor (copies only)", "native", "SyncVectorEnv"}
            assert all(speed > 0 for speed in speeds.values())
    printed = capsys.readouterr().out
    assert printed.count("SyncVectorEnv") >= 4
    assert all(name in printed for name in results)
