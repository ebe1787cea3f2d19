from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.retrieval import Args, main, published_loop
from hashgym.retrieval import mean_average_precision


def test_the_benchmark_runs_small_and_its_methods_agree(capsys):
    report = main(Args(queries=30, database=700, bits=12, labels=81, rounds=2))
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


def test_the_loop_gives_the_exact_number_where_nothing_ties():
    database = np.tri(9, 8, -1, dtype=bool)
    labels = np.random.default_rng(0).integers(0, 2, (9, 3)).astype(np.uint8)
    data = (np.zeros((2, 8), bool), np.array([[1, 0, 0], [0, 1, 1]], np.uint8), database, labels)
    assert published_loop(*data)[0] == pytest.approx(mean_average_precision(*data), abs=1e-12)
