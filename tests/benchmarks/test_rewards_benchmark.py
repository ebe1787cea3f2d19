"""The benchmark of reward designs, run for real on digits with few updates."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import hashgym
from agents import drlih as agent
from benchmarks import rewards as benchmark
from benchmarks.common import cells
from benchmarks.common.results import Results
from hashgym import rewards
from hashgym.data.readers import digits
from hashgym.retrieval import mean_average_precision

SUM = "average_precision+0.5*balance"


def here(work, cell):
    """Run in this process, which is quicker; arguments and results are still pickled."""
    return pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(cell)))))


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr(cells, "_in_fresh_process", here)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("rewards")
    args = benchmark.Args(out=out, designs=("pairwise:hashnet", SUM), bits=(8,), seeds=2, updates=12)
    console = Console(record=True, width=160)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_in_fresh_process", here)
        failed = benchmark.main(args, console)
    return args, failed, console.export_text()


def test_rows_are_those_of_the_agent_trained_by_the_design(finished):
    args, failed, text = finished
    assert failed == 0
    rows = Results(args.out, benchmark.COLUMNS, benchmark.KEY).rows()
    assert [(r["method"], r["seed"]) for r in rows] == [(d, s) for d in args.designs for s in "01"]
    dataset = digits.load().standardized()
    cell = benchmark.Cell("digits", "norec", SUM, 8, 1, 12)
    policy = agent.train(dataset, benchmark.settings(cell), progress=False)
    query, database = (
        hashgym.encode(policy, dataset.features[rows_], bits=8, group_bits=8)
        for rows_ in (dataset.query, dataset.database)
    )
    labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
    own = float(rows[3]["map"])
    assert own == pytest.approx(mean_average_precision(query, labels[0], database, labels[1]), abs=1e-6)
    mean = np.mean([float(r["map"]) for r in rows if r["method"] == SUM])
    table = (args.out / "table.md").read_text()
    for shown in (text, table):
        assert f"{mean:.3f}".removeprefix("0") in shown
        assert SUM in shown
    assert "| reward | 8 bits |" in table
    config = json.loads(rows[0]["config"])
    assert (config["updates"], config["holdout"]) == (12, 0.0)


def test_curves_hold_the_weighted_components(finished):
    args, _, _ = finished
    with open(args.out / "curves.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert {(p["method"], p["component"]) for p in points} == {
        ("pairwise:hashnet", "global/pairwise:hashnet"),
        (SUM, "global/average_precision"),
        (SUM, "global/balance"),
    }
    ap = [float(p["value"]) for p in points if p["component"] == "global/average_precision" and p["seed"] == "0"]
    assert len(ap) == 12
    assert all(0 < value < 1 for value in ap)
    assert len(points) == 3 * 2 * 12


def test_the_figure_has_a_panel_with_lines_for_each_design(finished):
    args, _, _ = finished
    picture = np.asarray(Image.open(args.out / "curves-8.png").convert("RGB")).astype(int)
    colored = (picture.max(-1) - picture.min(-1)) > 60
    left, right = np.array_split(colored, 2, axis=1)
    assert left.sum() > 200
    assert right.sum() > 200


def test_finished_runs_are_skipped_and_others_replaced(finished, tmp_path, monkeypatch):
    args, _, _ = finished
    console = Console(record=True, width=160)
    with monkeypatch.context() as patch:
        patch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
        assert benchmark.main(args, console) == 0
        assert "4 of 4 runs are in" in console.export_text()
        with pytest.raises(ValueError, match=r"another configuration \(updates: 12 -> 3\)"):
            benchmark.main(dataclasses.replace(args, updates=3))
    one = dataclasses.replace(args, out=tmp_path, designs=("triplet",), seeds=1, updates=5)
    assert benchmark.main(one, console) == 0
    assert benchmark.main(dataclasses.replace(one, updates=2, replace=True), console) == 0
    curves = Results(tmp_path, benchmark.CURVES, benchmark.KEY, "curves.csv").rows()
    assert [row["update"] for row in curves] == ["1", "2"]


def test_a_failing_run_does_not_cost_the_others(tmp_path):
    args = benchmark.Args(out=tmp_path, designs=("test-fails", "triplet"), bits=(12,), seeds=1, updates=2)
    rewards.register("test-fails", make_failing)
    console = Console(record=True, width=200)
    assert benchmark.main(args, console) == 1
    text = console.export_text()
    assert "norec test-fails 12 bits seed 0 failed: RewardError: reward failing, global scope: its value" in text
    assert (tmp_path / "curves-12.png").exists()


def failing(view):
    return None


def make_failing():
    return failing


@pytest.mark.parametrize("name", ["hashgym", "norec"])
def test_agents_run_in_groups(name):
    row, points = benchmark.run(benchmark.Cell("digits", name, "pairwise:adsh", 14, 0, 2))
    assert (row["agent"], row["method"], row["bits"]) == (name, "pairwise:adsh", 14)
    assert 0 < row["map_pessimistic"] <= row["map"] <= row["map_optimistic"] < 1
    assert {point["component"] for point in points} == {"global/pairwise:adsh"}


def test_the_defaults_can_be_made():
    for design in benchmark.DESIGNS:
        assert callable(rewards.make(design))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"designs": ("tripplet",)}, "unknown reward 'tripplet' \\(did you mean 'triplet'"),
        ({"designs": ("triplet+x*balance",)}, "weight 'x' in the reward 'triplet\\+x\\*balance' is not a number"),
        ({"agent": "paper"}, "no agent 'paper' that takes a reward: choose from hashgym, norec"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"designs": ()}, "designs must not be empty"),
        ({"features": "no/such/folder"}, "neither a folder"),
    ],
)
def test_bad_arguments_stop_before_anything_runs(tmp_path, change, match):
    args = {"out": tmp_path, "designs": ("triplet",), "bits": (12,), "seeds": 1, **change}
    with pytest.raises(ValueError, match=match):
        benchmark.main(benchmark.Args(**args))
    assert not list(tmp_path.iterdir())
