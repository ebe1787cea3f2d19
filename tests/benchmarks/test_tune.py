"""The search for settings: by its rule, within its budget, never on the queries."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

import hashgym.data.cache
from benchmarks import drlih, tune
from benchmarks.common import cells, methods
from benchmarks.common.results import Results
from hashgym.data.readers import digits
from hashgym.retrieval import mean_average_precision


def test_held_out_images_come_from_the_training_set_alone():
    dataset = digits.load()
    inner, outer = tune.held_out(dataset)
    np.testing.assert_array_equal(np.sort(np.concatenate([outer, inner.train])), np.sort(dataset.train))
    assert len(outer) == len(dataset.train) // 5
    np.testing.assert_array_equal(outer, tune.held_out(dataset)[1])


def test_tries_begin_with_the_defaults_and_never_repeat(monkeypatch):
    monkeypatch.setattr(tune, "SPACE", {"noseq": {"margin": (None, 2.0), "learning_rate": (1e-3, 2e-3)}})
    drawn = list(tune.tries("noseq", 12))
    assert drawn[0] == {}
    assert len({json.dumps(t, sort_keys=True) for t in drawn}) == len(drawn) == 4  # the defaults once
    assert drawn == list(tune.tries("noseq", 12))
    assert list(tune.tries("noseq", 2)) == drawn[:2]
    assert list(tune.tries("lsh", 12)) == [{}]


def test_every_space_names_settings_that_the_method_has_and_accepts():
    for method, space in tune.SPACE.items():
        for name, values in space.items():
            for value in values:
                made = methods.settings(methods.Cell("digits", method, 12, 0, ((name, value),)))
                assert getattr(made, name) == value


@pytest.fixture
def searched(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "SPACE", {"itq": {"iterations": (0, 2)}})
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: work(cell))  # in this process: quicker
    args = tune.Args(out=tmp_path, methods=("itq",), tries=3)
    assert tune.main(args, Console(quiet=True)) == 0
    return args


def test_the_best_try_is_chosen_and_used(searched, tmp_path):
    rows = Results(searched.out, tune.COLUMNS, tune.KEY).rows()
    assert [r["trial"] for r in rows] == ["0", "1", "2"]
    inner, outer = tune.held_out(hashgym.data.load("digits"))
    inner = inner.standardized()
    for r in rows:  # the settings of a row give its mAP
        cell = methods.Cell("digits", "itq", 24, 0, tuple(json.loads(r["settings"]).items()))
        found = methods.fit(cell, inner)[0](inner.features[outer])
        each = [  # an image does not find itself
            mean_average_precision(found[[i]], inner.labels[outer[[i]]], found[others], inner.labels[outer[others]])
            for i in range(len(outer))
            for others in [np.delete(np.arange(len(outer)), i)]
        ]
        assert float(r["map"]) == pytest.approx(np.mean(each))
    best = max(rows, key=lambda r: float(r["map"]))
    assert tune.chosen(searched.out) == {("digits", "itq"): json.loads(best["settings"])}

    args = drlih.Args(out=tmp_path / "out", methods=("itq",), bits=(8,), seeds=1, tuned=searched.out)
    assert drlih.main(args, Console(quiet=True)) == 0
    (row,) = Results(args.out).rows()
    assert json.loads(row["config"])["iterations"] == json.loads(best["settings"]).get("iterations", 50)


def test_splits_hold_out_other_images_and_the_best_mean_over_them_wins(searched):
    again = replace(searched, splits=3)
    assert tune.main(again, Console(quiet=True)) == 0  # the tries of the first are there
    rows = Results(searched.out, tune.COLUMNS, tune.KEY).rows()
    assert [(r["seed"], r["trial"]) for r in rows] == [(seed, trial) for seed in "012" for trial in "012"]
    parts = [tune.held_out(hashgym.data.load("digits"), seed)[1].tolist() for seed in range(3)]
    assert all(parts[i] != parts[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    scores = {s: np.mean([float(r["map"]) for r in rows if r["settings"] == s]) for s in {r["settings"] for r in rows}}
    assert tune.chosen(searched.out) == {("digits", "itq"): json.loads(max(scores, key=lambda s: scores[s]))}


def test_over_several_features_the_best_mean_wins(tmp_path):
    results, found = (
        Results(tmp_path, tune.COLUMNS, tune.KEY),
        {("a", 0): 0.5, ("a", 1): 0.6, ("b", 0): 0.9, ("b", 1): 0.7},
    )
    for (features, trial), score in found.items():
        named = {
            "dataset": "digits",
            "features": features,
            "method": "itq",
            "trial": trial,
            "settings": ["{}", '{"iterations": 2}'][trial],
        }
        results.append({**dict.fromkeys(tune.COLUMNS, ""), **named, "map": score})
    assert tune.chosen(tmp_path) == {("digits", "itq"): {}}
    with pytest.raises(ValueError, match=r"there is no .*results.csv: --tuned is the folder of"):
        tune.chosen(tmp_path / "nothing")


def test_an_ablation_has_the_settings_of_its_method(tmp_path):
    named = {"dataset": "digits", "features": "a", "method": "drlih", "trial": 0, "settings": '{"dropout": 0.2}'}
    Results(tmp_path, tune.COLUMNS, tune.KEY).append({**dict.fromkeys(tune.COLUMNS, ""), **named, "map": 0.5})
    assert tune.chosen(tmp_path) == {("digits", method): {"dropout": 0.2} for method in ("drlih", "ng", "nested")}


def test_a_search_is_not_repeated_and_another_rule_is_noticed(searched, monkeypatch):
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail("tried again"))
    assert tune.main(searched, Console(quiet=True)) == 0
    with pytest.raises(ValueError, match=r"another configuration \(tries: 3 -> 2"):
        tune.main(replace(searched, tries=2), Console(quiet=True))


def test_tries_of_an_earlier_search_are_not_chosen(searched, monkeypatch):
    results = Results(searched.out, tune.COLUMNS, tune.KEY)
    *_, last = results.rows()
    results.append({**last, "map": 1.0})  # the best of three
    assert tune.chosen(searched.out) == {("digits", "itq"): json.loads(last["settings"])}
    assert tune.main(replace(searched, tries=1, replace=True), Console(quiet=True)) == 0
    assert [row["trial"] for row in results.rows()] == ["1", "2", "0"]
    assert tune.chosen(searched.out) == {("digits", "itq"): {}}


def test_held_out_images_without_a_similar_pair_stop_before_anything_is_tried(tmp_path):
    data = digits.load()
    rows = np.array([data.train[data.labels[data.train, digit] == 1][0] for digit in range(10)])
    hashgym.data.cache.save(replace(data, train=rows), tmp_path / "few")
    with pytest.raises(ValueError, match=r"no two of the 2 held-out training images of .*few share a label"):
        tune.main(tune.Args(out=tmp_path / "out", features=(str(tmp_path / "few"),), methods=("sh",)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [({"methods": ("lsh",)}, "no space of settings"), ({"tries": 0}, "tries must be at least 1, got 0")],
)
def test_bad_arguments_stop_before_anything_is_tried(tmp_path, change, match):
    with pytest.raises(ValueError, match=match):
        tune.main(tune.Args(out=tmp_path, **change))
    assert not list(tmp_path.iterdir())
