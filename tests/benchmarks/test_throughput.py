"""The throughput benchmark runs every contestant; what it measures is for people to read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.results import Results

VECTORISED = {"floor", "native", "HashVecEnv", "SyncVectorEnv", "DummyVecEnv"}


def test_every_contestant_is_measured_and_written(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = throughput.Args(
        scenes=folders[0],
        lanes=(2, 3),
        rounds=1,
        seconds=0,
        async_lanes=2,
        ppo_lanes=4,
        ppo_episodes=2,
        ppo_batch=8,
        ppo_epochs=(1, 2),
        ppo_rollouts=1,
        net_arch=(8,),
        out=tmp_path,
    )
    rows = throughput.main(args)
    for env in ("BitGroupHashing-v0", "RegionKeep-v0"):
        for lanes, others in ((2, {"AsyncVectorEnv"}), (3, set())):
            steps = [row for row in rows if (row["env"], row["lanes"]) == (env, lanes)]
            assert {row["contestant"] for row in steps} == VECTORISED | others
            assert {row["measure"] for row in steps} == {"lane-steps/s"}
            assert all(row["value"] > 0 for row in steps)
        for epochs in (1, 2):
            ppo = [row for row in rows if (row["env"], row["epochs"]) == (env, epochs)]
            assert {row["contestant"] for row in ppo} == {"HashVecEnv", "DummyVecEnv"}
            assert len(ppo) == 8
            shares = [row["value"] for row in ppo if "share" in row["measure"]]
            assert all(0 < share < 1 for share in shares)
    written = Results(tmp_path, throughput.COLUMNS, throughput.KEY, "throughput.csv").rows()
    assert [float(row["value"]) for row in written] == [row["value"] for row in rows]
    printed = capsys.readouterr().out
    assert printed.count("not run:") == 2
    throughput.main(dataclasses.replace(args, lanes=(), ppo_epochs=(1,)))  # rows of the same name are replaced
    again = Results(tmp_path, throughput.COLUMNS, throughput.KEY, "throughput.csv").rows()
    assert len(again) == len(written)


def test_whole_episodes_are_counted() -> None:
    seen: list[int] = []
    speed = throughput.lane_steps_per_second(seen.append, [[1, 2, 3]] * 2, horizon=4, seconds=0)
    assert len(seen) == 4
    assert speed > 0
