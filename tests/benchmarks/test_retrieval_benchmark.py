from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import buckets
from benchmarks.retrieval import Args, main, published_loop
from hashgym.retrieval import mean_average_precision

SMALL = buckets.Args(images=500, bits=16, clusters=20, queries=30, radii=(0, 2), rounds=2)


def test_the_benchmark_runs_small_and_its_methods_agree(capsys):
    report = main(Args(queries=30, database=700, bits=12, labels=81, rounds=2, buckets=SMALL))
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


def test_without_faiss_the_bucket_search_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    assert buckets.main(SMALL) is None
    assert "faiss is not installed" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")
def test_bucket_searches_find_the_same_images(capsys):
    report = buckets.main(SMALL)  # it asserts so itself
    ways = {(radius, way, method) for radius in (0, 2) for way in ("single", "batch") for method in ("ours", "faiss")}
    assert set(report.times) == ways
    assert all(len(times) == 2 and min(times) > 0 for times in report.times.values())
    assert report.found[2] > report.found[0] > 0
    assert 500 < report.codes < 1000
    assert f"{report.codes:,} codes of 16 bits" in capsys.readouterr().out


def test_the_loop_gives_the_exact_number_where_nothing_ties():
    database = np.tri(9, 8, -1, dtype=bool)
    labels = np.random.default_rng(0).integers(0, 2, (9, 3)).astype(np.uint8)
    data = (np.zeros((2, 8), bool), np.array([[1, 0, 0], [0, 1, 1]], np.uint8), database, labels)
    assert published_loop(*data)[0] == pytest.approx(mean_average_precision(*data), abs=1e-12)
