import csv
import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import engines, retrieval
from benchmarks.common.results import Results
from benchmarks.retrieval import KEY, Args, BucketArgs, bucket_table, main, measure_buckets, published_loop
from hashgym import index
from hashgym.codes import hamming
from hashgym.console import Console
from hashgym.data import cache
from hashgym.retrieval import mean_average_precision
from tests.conftest import small_dataset

SMALL = BucketArgs(images=500, bits=16, clusters=20, queries=30, radii=(0, 2), rounds=2)
FEW = engines.Args(codes=300, bits=16, queries=4, k=3, data=("clustered",), backends=("buckets",))


def test_the_benchmark_runs_small_and_its_methods_agree(tmp_path, capsys):
    sizes = {"queries": 30, "database": 700, "bits": 12, "labels": 81, "rounds": 2}
    report = main(Args(**sizes, buckets=SMALL, engines=FEW, out=tmp_path))
    methods = {"numpy", "numba", "loop"} if find_spec("numba") else {"numpy", "loop"}
    assert set(report.map) == methods
    # The loop breaks ties arbitrarily, so it is near the exact number but not equal to it.
    assert report.map["loop"] == pytest.approx(report.map["numpy"], abs=0.02)
    assert report.map["loop"] != report.map["numpy"]
    assert all(len(seconds) == 2 for seconds in report.seconds.values())
    assert report.peak_mb > 0
    printed = capsys.readouterr().out
    assert all(method in printed for method in methods)
    assert f"{report.map['numpy']:.6f}"[:5] in printed
    assert (report.buckets is not None) == bool(find_spec("faiss"))
    assert report.engines is not None
    assert (tmp_path / "engines.csv").exists()
    with (tmp_path / "retrieval.csv").open() as file:
        rows = {(row["task"], row["method"]): row for row in csv.DictReader(file)}
    of_map = {method: row for (task, method), row in rows.items() if task == "mAP of all queries"}
    assert of_map.keys() == report.seconds.keys()
    assert float(of_map["numpy"]["result"]) == report.map["numpy"]
    assert float(of_map["numpy"]["times_baseline"]) == report.ratio("numpy")
    assert [of_map["numpy"][name] for name in KEY[1:4]] == ["30", "700", "12"]
    assert json.loads(of_map["numpy"]["config"]).items() >= {"labels": 81, "rounds": 2, "seed": 0}.items()
    if report.buckets is not None:
        ours = rows["images within radius 2, single", "ours"]
        assert float(ours["seconds"]) == pytest.approx(report.buckets.median(2, "single", "ours") / 1e6)
        assert float(ours["times_baseline"]) == report.buckets.ratio(2, "single")
        assert float(rows["images within radius 2, single", "faiss"]["times_baseline"]) == 1


def test_without_faiss_the_bucket_search_is_skipped(capsys, monkeypatch):
    monkeypatch.setattr(retrieval, "find_spec", lambda name: None)
    report = main(Args(queries=10, database=100, bits=12, labels=5, rounds=1, buckets=SMALL, engines=FEW))
    assert report.buckets is None
    assert "faiss is not installed: pip install 'hashgym[faiss]'" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")
def test_bucket_searches_find_the_same_images(capsys):
    report = measure_buckets(SMALL)  # it asserts so itself
    Console().print(bucket_table(SMALL, report))
    ways = {(radius, way, method) for radius in (0, 2) for way in ("single", "batch") for method in ("ours", "faiss")}
    assert set(report.times) == ways
    assert all(len(times) == 2 and min(times) > 0 for times in report.times.values())
    assert report.found[2] > report.found[0] > 0
    assert 500 < report.codes < 1000
    assert f"{report.codes:,} codes of 16 bits" in capsys.readouterr().out


def test_backends_are_measured_against_brute_force(tmp_path, capsys):
    local = tuple(name for name in index.backends() if name != "milvus")
    args = replace(FEW, backends=local, candidates=(5,), out=tmp_path)
    report = engines.main(args)
    installed = [*(name for name in local if "faiss" not in name or find_spec("faiss")), "prefix:5"]
    assert [row["backend"] for row in report.rows[::2]] == installed  # brute force first
    for row in report.rows:
        assert row["images"] == 188
        assert row["recall"] == 1 or (row["backend"], row["task"]) == ("prefix:5", "nearest 3")
        assert row["recall"] > 0.3
        assert 250 < row["codes"] < 350
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert min(row[key] for key in ("build_seconds", "peak_mb", "queries_per_second", "times_brute_force")) > 0
        assert row["found"] == 3 or row["task"] == "within 2"
    assert report.of("clustered", "brute-force", "nearest 3")["times_brute_force"] == 1
    assert "numpy" in report.rows[0]["versions"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*installed, "nearest 3", "within 2"))
    results = Results(tmp_path, engines.COLUMNS, engines.KEY, "engines.csv")
    assert len(results.rows()) == 2 * len(installed)
    results.append(*report.rows)
    assert len(results.rows()) == 2 * len(installed)


def test_codes_to_index_have_the_given_number_and_spread(tmp_path):
    args = engines.Args(codes=30_000, per_image=1.6, bits=32, queries=50)
    least = {}
    for kind in ("random", "clustered"):
        sets, queries = engines.make_data(kind, args)
        assert len(sets) == 18_750
        assert sets.anhc == pytest.approx(1.6, abs=0.02)
        assert queries.shape == (50, 1)
        least[kind] = hamming(queries[:, None], sets.words[:, 0][None]).min(axis=1).mean()
    assert least["clustered"] < least["random"] - 2
    cache.save(small_dataset(0, n=400, dim=40), tmp_path / "features")
    sets, _ = engines.make_data("features", replace(args, codes=900, per_image=1, features=tmp_path / "features"))
    assert sets.words.shape == (900, 6, 1)
    assert sets.anhc == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": ("random", "x")}, "data must be one of random, clustered, features, got 'x'"),
        ({"data": ("random", "features")}, "--features DIR"),
        ({"backends": ("faiss", "fais")}, "backends must be one of .*, got 'fais'.*faiss"),
    ],
)
def test_bad_arguments_of_engines_stop_before_anything_is_measured(change, match, monkeypatch):
    monkeypatch.setattr(engines, "make_data", None)
    with pytest.raises(ValueError, match=match):
        engines.measure(engines.Args(**change), Console(quiet=True))


def test_the_loop_gives_the_exact_number_where_nothing_ties():
    database = np.tri(9, 8, -1, dtype=bool)
    labels = np.random.default_rng(0).integers(0, 2, (9, 3)).astype(np.uint8)
    data = (np.zeros((2, 8), bool), np.array([[1, 0, 0], [0, 1, 1]], np.uint8), database, labels)
    assert published_loop(*data)[0] == pytest.approx(mean_average_precision(*data), abs=1e-12)
