"""The benchmark of several codes, run for real on scenes, and its controls."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks import multicode
from benchmarks.common import cells, figures
from benchmarks.common.results import Results
from hashgym.codes import CodeSets, pack
from hashgym.data import load


@pytest.mark.usefixtures("in_this_process")
def test_every_method_has_a_row_and_controls_have_as_many_codes(tmp_path, folders, monkeypatch):
    args = multicode.Args(features=folders[0], out=tmp_path, bases=("ksh",), bits=(12,), seeds=1, updates=40)
    console = Console(record=True, width=200)
    assert multicode.main(args, console) == 0
    rows = {row["method"]: row for row in Results(tmp_path, multicode.COLUMNS, multicode.KEY).rows()}
    assert list(rows) == list(multicode.METHODS)
    codes = {method: float(row["anhc"]) for method, row in rows.items()}
    assert codes["single"] == 1
    for method in ("flipped", "random-region", "certain-region"):
        assert codes[method] == pytest.approx(codes["multicode"], abs=0.01)
    assert codes["mch"] <= codes["both"] <= codes["mch"] + codes["multicode"] - 1 + 1e-9
    assert codes["all-regions"] > codes["mch"]
    for method in ("mch", "multicode"):
        assert codes[f"{method}-matched"] <= min(codes["mch"], codes["multicode"])
        if codes[method] == min(codes["mch"], codes["multicode"]):
            assert rows[f"{method}-matched"]["map"] == rows[method]["map"]
    for method, row in rows.items():
        assert int(row["views"]) == multicode.VIEWS[method]
        assert 0 < float(row["map_pessimistic"]) <= float(row["map"]) <= float(row["map_optimistic"]) < 1
    assert json.loads(rows["multicode-2"]["config"])["multicode-2"]["codes"] == 2
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["map.png", "recall-12.png"]
    printed = console.export_text()
    assert all(method in printed for method in multicode.METHODS)

    few = dataclasses.replace(
        args, out=tmp_path / "few", methods=("single", "multicode-groups", "multicode", "mch-dropout", "one-policy")
    )
    assert multicode.main(few, Console(record=True)) == 0
    other = {row["method"]: row for row in Results(few.out, multicode.COLUMNS, multicode.KEY).rows()}
    assert list(other) == list(few.methods)
    for method in ("single", "multicode"):  # neither depends on what else is measured
        assert (other[method]["map"], other[method]["config"]) == (rows[method]["map"], rows[method]["config"])
    assert json.loads(other["multicode-groups"]["config"])["multicode-groups"]["group_bits"] == 8
    dropout = json.loads(other["mch-dropout"]["config"])["mch-dropout"].pop("code_dropout")
    assert (dropout, "code_dropout" in json.loads(rows["mch"]["config"])["mch"]) == (multicode.CODE_DROPOUT, False)

    assert 1 < float(other["one-policy"]["anhc"]) <= 7
    spent = [float(other[method]["train_seconds"]) for method in ("one-policy", "multicode")]
    assert spent[0] > spent[1] > 0  # the writer's are among them

    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
    assert multicode.main(args, Console(record=True)) == 0


def test_methods_are_drawn_by_code_length_and_by_recall(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "write", lambda figure, path: drawn.setdefault(path.name, figure))
    rows = [
        {"dataset": "photos", "base": base, "method": method, "bits": bits, "recall_radius0": seed, "map": place + seed}
        for base in ("dch", "ksh")
        for place, method in enumerate(multicode.METHODS)
        for bits in (16, 8)
        for seed in (0, 0.5)
    ]
    multicode.draw(rows, tmp_path)
    assert sorted(drawn) == ["map.png", "recall-16.png", "recall-8.png"]
    for pane, base in zip(drawn["map.png"].axes, ("dch", "ksh"), strict=True):
        assert pane.get_title() == base
        places = [multicode.METHODS.index(method) for method in ("single", "multicode", "mch", "both")]
        lines = [line.get_xydata().tolist() for line in pane.lines if len(line.get_xydata())]
        assert lines == [[[8, place + 0.25], [16, place + 0.25]] for place in places]
    for pane in drawn["recall-8.png"].axes:
        points = {line.get_label(): line for line in pane.lines}
        assert list(points) == [method for method in multicode.METHODS if not method.endswith("-matched")]
        for method, point in points.items():
            place = multicode.METHODS.index(method)
            assert point.get_xydata().tolist() == [[0.25, place + 0.25]]
            assert point.get_marker() == {1: "o", 2: "s", 6: "^"}[multicode.VIEWS[method]]


def test_a_control_gives_codes_to_the_images_of_the_highest_rank():
    own, more = np.zeros((6, 4), bool), np.ones((6, 4), bool)
    more[3] = False  # equal to the own code, which is no further one
    sets = multicode.control(pack(own)[:, None], pack(more), np.array([1, 5, 2, 9, 4, 3]), 0.5, 4)
    np.testing.assert_array_equal(sets.kept[:, 1], [False, True, False, False, True, True])
    assert sets.anhc == 1.5


def test_codes_are_matched_at_the_least_xi_from_one_half_on():
    p = np.array([[1, 0.4, 0.9], [1, 0.502, 0.701], [1, 0.6, 0.2]])
    words = np.arange(9, dtype=np.uint64).reshape(3, 3, 1)
    asked = []

    def encode(xi):
        asked.append(xi)
        return CodeSets(words, p >= xi, 4)

    for codes, kept in ((3, p >= 0.5), (7 / 3, p >= 0.5), (2, p >= 0.503), (5 / 3, p >= 0.7), (1, p >= 0.95)):
        np.testing.assert_array_equal(multicode.matched(encode, codes).kept, kept)
    assert min(asked) >= 0.5
    assert max(asked) <= 1


def test_rare_labels_are_counted_over_all_images_and_the_split_keeps_those_that_have_one():
    dataset = load("digit-scenes")
    share = float(np.sort(dataset.labels.mean(axis=0))[2])
    found = multicode.rare_labels(dataset, share)
    columns = [k for k in range(dataset.labels.shape[1]) if dataset.labels[:, k].mean() <= share]
    assert len(columns) == found.labels.shape[1] >= 3
    np.testing.assert_array_equal(found.labels, dataset.labels[:, columns])
    for name in ("query", "database", "train"):
        kept = [row for row in getattr(dataset, name) if dataset.labels[row, columns].any()]
        assert getattr(found, name).tolist() == kept
        assert 0 < len(kept) < len(getattr(dataset, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bases": ("itq",)}, "no pairwise loss"),
        ({"features": "digits"}, "has no regions"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"rare": 0.01}, "raise --rare"),
        ({"methods": ("multicod",)}, "did you mean 'multicode'"),
    ],
)
def test_bad_arguments_stop_before_anything_runs(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        multicode.main(multicode.Args(**{"out": tmp_path, "bits": (8,), "seeds": 1, **change}))
    assert not list(tmp_path.iterdir())
