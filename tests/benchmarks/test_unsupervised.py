"""Codes without labels, on digits: the rows, what they learn from, and the ranking by real numbers."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks import unsupervised
from benchmarks.common import cells
from benchmarks.common.methods import AGENTS
from benchmarks.common.results import Results
from hashgym.data.readers import digits

SMALL = {"variant": "norec", "reward": "nca", "logit_scale": 3.0, "updates": 20, "num_envs": 32, "holdout": 0.0}


@pytest.fixture
def _small_agent(monkeypatch):
    monkeypatch.setitem(AGENTS, "drlih-nca", SMALL)


@pytest.mark.usefixtures("in_this_process", "_small_agent")
def test_rows_and_table(tmp_path, monkeypatch):
    methods = ("float cosine", "itq", "noseq", "drlih-nca")
    args = unsupervised.Args(out=tmp_path, methods=methods, bits=(8,), seeds=1)
    console = Console(record=True, width=200)
    assert unsupervised.main(args, console) == 0
    rows = {row["method"]: row for row in Results(tmp_path, unsupervised.COLUMNS).rows()}
    assert list(rows) == list(methods)
    assert rows["float cosine"]["bits"] == "0"
    for row in rows.values():
        assert 0 < float(row["map_pessimistic"]) <= float(row["map"]) <= float(row["map_optimistic"]) < 1
    assert float(rows["noseq"]["map"]) > float(rows["itq"]["map"])
    assert json.loads(rows["noseq"]["config"])["similarity"] == "20 neighbours"
    assert "similarity" not in json.loads(rows["itq"]["config"])
    (judged,) = Results(tmp_path, unsupervised.JUDGED, unsupervised.JUDGED[:2], "neighbours.csv").rows()
    text = " ".join(console.export_text().split())
    assert f"similar {100 * float(judged['precision']):.1f}% share a label, of all pairs" in text
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
    assert unsupervised.main(args, Console(record=True)) == 0


@pytest.mark.usefixtures("in_this_process")
def test_methods_may_have_other_lengths(tmp_path):
    for methods, bits in ((("lsh",), (8, 16)), (("itq",), (8,))):
        console = Console(record=True, width=200)
        args = unsupervised.Args(out=tmp_path, methods=methods, bits=bits, seeds=1)
        assert unsupervised.main(args, console) == 0
    (line,) = [line for line in console.export_text().splitlines() if "itq" in line and "features" in line]
    assert " - " in line


@pytest.mark.usefixtures("in_this_process", "_small_agent")
def test_neighbours_of_other_data_are_judged_again(tmp_path):
    args = unsupervised.Args(out=tmp_path, methods=("drlih-nca",), bits=(8,), seeds=1)
    results = Results(tmp_path, unsupervised.JUDGED, unsupervised.JUDGED[:2], "neighbours.csv")
    assert unsupervised.main(args, Console(quiet=True)) == 0
    (row,) = results.rows()
    results.append({**row, "precision": 0.5, "config": json.dumps({"data": "another"})})
    with pytest.raises(ValueError, match="another configuration"):
        unsupervised.main(args, Console(quiet=True))
    assert unsupervised.main(dataclasses.replace(args, replace=True), Console(quiet=True)) == 0
    assert [old["precision"] for old in results.rows()] == [row["precision"]]


def test_neighbours_are_judged_as_by_a_loop():
    whole = digits.load().standardized()
    data = dataclasses.replace(whole, train=whole.train[:150])
    similar = data.with_similarity("neighbours")
    counts = {(a, b): 0 for a in (False, True) for b in (False, True)}
    for i in data.train:
        for j in data.train:
            if i != j:
                pair = (similar.labels[i] & similar.labels[j]).any(), (data.labels[i] & data.labels[j]).any()
                counts[bool(pair[0]), bool(pair[1])] += 1
    found = unsupervised.judge_neighbours(data)
    right = counts[True, True]
    assert found["precision"] == right / (right + counts[True, False])
    assert found["recall"] == right / (right + counts[False, True])
    assert found["chance"] == pytest.approx((right + counts[False, True]) / sum(counts.values()))
    assert found["precision"] > 2 * found["chance"]


def test_the_first_images_by_cosine_equal_a_loop(monkeypatch):
    monkeypatch.setattr(unsupervised, "FIRST", 7)
    data = digits.load().standardized()
    unit = data.features / np.linalg.norm(data.features, axis=1, keepdims=True)
    total = 0.0
    for query in data.query:
        order = sorted(range(len(data.database)), key=lambda j: -float(unit[query] @ unit[data.database[j]]))
        relevant = [bool((data.labels[query] & data.labels[data.database[j]]).any()) for j in order]
        hits, found = 0, 0.0
        for rank, right in enumerate(relevant[:7], 1):
            if right:
                hits += 1
                found += hits / rank
        total += found / min(sum(relevant), 7)
    score = unsupervised._ranked_by_cosine(data)
    assert score["map_1000"] == pytest.approx(total / len(data.query), abs=1e-4)
    assert score["map"] < score["map_1000"]


def test_bad_arguments_stop_before_anything_runs(tmp_path):
    for change, message in (({"seeds": 0}, "seeds must be"), ({"methods": ("itk",)}, "did you mean 'itq'")):
        with pytest.raises(ValueError, match=message):
            unsupervised.main(unsupervised.Args(**{"out": tmp_path, "bits": (8,), **change}))
    assert not list(tmp_path.iterdir())
