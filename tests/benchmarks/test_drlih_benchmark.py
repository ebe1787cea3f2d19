"""The DRLIH benchmark, run for real on digits."""

import json

import numpy as np
import pytest
from rich.console import Console

import hashgym
from benchmarks import drlih
from benchmarks.common import cells, methods, results
from benchmarks.common.results import Results
from hashgym.data.readers import digits
from hashgym.retrieval import mean_average_precision, precision_at, precision_recall_by_radius

DATASETS = ("digits", "digits-pixels")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("drlih")
    args = drlih.Args(out=out, methods=("lsh", "itq"), bits=(8,), seeds=1, jobs=2)
    console = Console(record=True, quiet=False, width=120)
    return args, drlih.main(args, console), console.export_text()


def test_rows_have_the_runs_and_their_metrics(finished):
    args, failed, text = finished
    assert failed == 0
    rows = Results(args.out).rows()
    assert {(r["method"], r["seed"]) for r in rows} == {(m, s) for m in args.methods for s in "0"}
    dataset = digits.load().standardized()
    for r in rows:
        assert (r["dataset"], r["bits"], r["version"]) == ("digits", "8", hashgym.__version__)
        assert float(r["map_pessimistic"]) < float(r["map"]) < float(r["map_optimistic"])
        assert 50 < float(r["peak_mb"]) < 3000
        hasher = hashgym.hashers.make(r["method"], bits=8, seed=int(r["seed"])).fit(dataset.features[dataset.train])
        query, database = (hasher.encode(dataset.features[i]) for i in (dataset.query, dataset.database))
        expected = mean_average_precision(
            query, dataset.labels[dataset.query], database, dataset.labels[dataset.database]
        )
        assert float(r["map"]) == pytest.approx(expected, abs=1e-3)
    mean = np.mean([float(r["map"]) for r in rows if r["method"] == "itq"])
    assert f"{mean:.3f}".removeprefix("0") in text


def test_finished_runs_are_skipped_and_new_ones_added(finished, monkeypatch):
    args, _, _ = finished
    before = Results(args.out).path.read_bytes()
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail(f"{cell} was run again"))
    console = Console(record=True, width=120)
    assert drlih.main(args, console) == 0
    assert "2 of 2 runs are in" in console.export_text()
    assert Results(args.out).path.read_bytes() == before


def test_another_configuration_stops_before_anything_runs(finished, monkeypatch):
    args, _, _ = finished
    monkeypatch.setattr(cells, "_in_fresh_process", lambda work, cell: pytest.fail("ran"))
    monkeypatch.setattr(drlih, "config", lambda cell, dataset: {"iterations": 51})
    with pytest.raises(ValueError, match=r"another configuration .*iterations: 50 -> 51|data: "):
        drlih.main(args)


@pytest.mark.parametrize("method", ["orthohash", "drlih", "lsh"])
def test_settings_of_a_backbone_count_on_pixels_alone(method):
    """Rows of feature vectors, also those of earlier versions, are of the same configuration without them."""
    vectors, pixels = (methods.config(methods.Cell(name, method, 12, 0), methods.load(name)) for name in DATASETS)
    assert not set(methods.BACKBONE) & set(vectors)
    assert set(pixels) - set(vectors) == (set() if method == "lsh" else set(methods.BACKBONE))


@pytest.mark.usefixtures("in_this_process")
def test_one_failing_run_does_not_cost_the_others(tmp_path):
    console = Console(record=True, width=200)
    args = drlih.Args(out=tmp_path, methods=("itq", "lsh"), bits=(62,), seeds=1)
    assert drlih.main(args, console) == 1
    assert "itq 62 bits seed 0 failed" in (text := console.export_text())
    assert "at most 61 bits" in text
    assert [r["method"] for r in Results(tmp_path).rows()] == ["lsh"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"methods": ("lsh", "nosuch")}, "no method 'nosuch': choose from lsh, itq, pca, sh"),
        ({"bits": (0,)}, "bits must be"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"features": ("no/such/folder",)}, "neither a folder"),
        ({"effort": 0.0}, "effort is a share"),
        ({"methods": ()}, "methods must not be empty"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
    ],
)
def test_bad_arguments_stop_before_anything_runs(tmp_path, change, match):
    args = {"out": tmp_path, "methods": ("lsh",), "bits": (8,), "seeds": 1, **change}
    with pytest.raises(ValueError, match=match):
        drlih.main(drlih.Args(**args))
    assert not list(tmp_path.iterdir())


def test_the_split_is_part_of_the_configuration():
    cell = methods.Cell("digits", "lsh", 8, 0)
    assert methods.config(cell, digits.load(0)) == methods.config(cell, digits.load(0))
    assert methods.config(cell, digits.load(0)) != methods.config(cell, digits.load(1))


def test_another_split_is_drawn_and_is_another_configuration(tmp_path):
    args = drlih.Args(out=tmp_path, methods=("lsh",), bits=(8,), seeds=1, queries=60, train=300)
    ((cell, (named,)),) = drlih.cells(args).items()
    dataset = cell.load()
    assert (len(dataset.query), len(dataset.train)) == (60, 300)
    assert named["config"] != drlih.names(methods.Cell("digits", "lsh", 8, 0), digits.load())[0]["config"]
    (row,) = drlih.run(cell).rows
    hasher = hashgym.hashers.make("lsh", bits=8).fit(dataset.standardized().features[dataset.train])
    query, database = (hasher.encode(dataset.standardized().features[i]) for i in (dataset.query, dataset.database))
    labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
    assert row["map"] == pytest.approx(mean_average_precision(query, labels[0], database, labels[1]))


QUICK = {"updates": 4, "num_envs": 32, "hidden": 16}


@pytest.mark.parametrize("method", list(methods.AGENTS))
def test_agents_are_trained_measured_and_described(method, monkeypatch):
    monkeypatch.setattr(methods, "AGENTS", {name: {**settings, **QUICK} for name, settings in methods.AGENTS.items()})
    (row,) = drlih.run(methods.Cell("digits", method, 14, 1)).rows
    assert (row["method"], row["bits"], row["seed"]) == (method, 14, 1)
    assert 0 < row["map_pessimistic"] <= row["map"] <= row["map_optimistic"] < 1
    assert row["train_seconds"] > 0
    config = json.loads(row["config"])
    assert config["updates"] == 4
    assert config["group_bits"] == (1 if method == "ng" else 12)
    assert not {"bits", "seed"} & set(config)


@pytest.mark.parametrize("method", methods.NESTED)
@pytest.mark.usefixtures("in_this_process")
def test_a_nested_method_is_trained_once_for_all_lengths(tmp_path, method, monkeypatch):
    fits = []

    def fit(cell, dataset):
        encode, seconds = methods.fit(methods.dataclasses.replace(cell, changes=(("updates", 30),)), dataset)
        fits.append((cell, encode))
        return encode, seconds

    monkeypatch.setattr(drlih, "fit", fit)
    args = drlih.Args(out=tmp_path, methods=(method,), bits=(12, 18, 6), seeds=1)
    assert drlih.main(args, Console(record=True)) == 0
    ((cell, encode),) = fits
    assert (cell.bits, cell.prefixes) == (18, (6, 12, 18))
    rows = Results(tmp_path).rows()
    assert [row["bits"] for row in rows] == ["6", "12", "18"]
    assert len({row["train_seconds"] for row in rows}) == 1
    assert {json.loads(row["config"])["trained_bits"] for row in rows} == {18}
    dataset = methods.load("digits").standardized()
    query, database = methods.encode_both(encode, dataset)
    for row, length in zip(rows, (6, 12, 18), strict=True):
        labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
        expected = mean_average_precision(query[:, :length], labels[0], database[:, :length], labels[1])
        assert float(row["map"]) == pytest.approx(expected)
    assert drlih.main(args, Console(record=True)) == 0
    assert len(fits) == 1


def test_curves_and_examples_stand_beside_the_rows(finished):
    args, _, _ = finished
    curves = Results(args.out, drlih.CURVES, results.KEY, "curves.csv").rows()
    examples = Results(args.out, drlih.EXAMPLES, results.KEY, "examples.csv").rows()
    assert {r["method"] for r in curves} == {r["method"] for r in examples} == {"lsh", "itq"}
    dataset = digits.load().standardized()
    cell = methods.Cell("digits", "itq", 8, 0)
    query, database = methods.measure(methods.fit(cell, dataset)[0], dataset)[0]
    curve, example = ({r["method"]: r for r in rows}["itq"] for rows in (curves, examples))

    labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
    precision, recall = precision_recall_by_radius(query, labels[0], database, labels[1])
    np.testing.assert_allclose(json.loads(curve["precision_by_radius"]), precision, rtol=1e-3)
    np.testing.assert_allclose(json.loads(curve["recall_by_radius"]), recall, rtol=1e-3)
    ranks = json.loads(curve["ranks"])
    assert ranks == [k for k in drlih.RANKS if k <= len(dataset.database)]
    at = [precision_at(k, query, labels[0], database, labels[1]) for k in ranks]
    np.testing.assert_allclose(json.loads(curve["precision_at"]), at, rtol=1e-3)

    queries, found, distances, right = (json.loads(example[c]) for c in ("queries", "found", "distances", "right"))
    places = {int(image): place for place, image in enumerate(dataset.query)}
    searched = {int(image): place for place, image in enumerate(dataset.database)}
    assert len({dataset.labels[q].argmax() for q in queries}) == 10  # one query of each label
    for q, images, bits_off, good in zip(queries, found, distances, right, strict=True):
        every = (database != query[places[q]]).sum(axis=1)
        assert bits_off == [every[searched[image]] for image in images] == sorted(every)[:10]
        assert good == [int((dataset.labels[q] & dataset.labels[image]).any()) for image in images]


@pytest.mark.usefixtures("in_this_process")
def test_a_row_without_its_curves_is_run_again(finished):
    args, _, _ = finished
    (args.out / "curves.csv").unlink()
    assert drlih.main(args, Console(quiet=True)) == 0
    assert len(Results(args.out, drlih.CURVES, results.KEY, "curves.csv").rows()) == 2


@pytest.mark.usefixtures("in_this_process")
def test_effort_is_a_share_of_the_gradient_steps(tmp_path):
    args = drlih.Args(out=tmp_path, methods=("noseq", "itq"), bits=(8,), seeds=1, effort=0.01)
    assert drlih.main(args, Console(quiet=True)) == 0
    noseq, itq = (json.loads(r["config"]) for r in Results(tmp_path).rows())
    assert (noseq["updates"], itq["iterations"]) == (15, 50)


@pytest.mark.usefixtures("in_this_process")
def test_heads_are_linear_for_all_networks_alike(tmp_path):
    args = drlih.Args(out=tmp_path, methods=("noseq", "csq", "sdh"), bits=(8,), seeds=1, effort=0.01, hidden=0)
    assert drlih.main(args, Console(quiet=True)) == 0
    heads = {r["method"]: json.loads(r["config"]).get("hidden") for r in Results(tmp_path).rows()}
    assert heads == {"noseq": 0, "csq": 0, "sdh": None}


def test_presets_name_every_method_of_the_papers_tables():
    wanted = {"drlih", "hashnet", "dsh", "ninh", "cnnh", "sdh", "itq", "sh", "lsh", "noseq", "ng"}
    assert wanted <= set(drlih.PRESETS["smoke"].methods)
    for method in drlih.METHODS:
        methods.settings(methods.Cell("digits", method, 24, 0))
