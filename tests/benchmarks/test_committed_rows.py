"""Rows in the repository are those of today's settings, so that the benchmarks continue them."""

from pathlib import Path

import pytest

from benchmarks import drlih, sb3
from benchmarks.common.methods import load
from benchmarks.common.results import Results

RESULTS = Path(drlih.__file__).parent / "results"


def test_rows_of_drlih_on_digits():
    results = Results(RESULTS / "digits")
    rows = results.rows()
    methods, bits = (tuple(dict.fromkeys(row[column] for row in rows)) for column in ("method", "bits"))
    args = drlih.Args(features=("digits",), methods=methods, bits=tuple(map(int, bits)), effort=0.4)
    names = [name for own in drlih.cells(args).values() for name in own]
    assert len(names) == len(rows)
    assert all(results.done(name) for name in names)


@pytest.mark.parametrize("env", [sb3.CODES, sb3.REGIONS])
def test_rows_of_sb3_on_embedded_datasets(env):
    results = Results(RESULTS / "sb3", sb3.COLUMNS, sb3.KEY)
    own = [row for row in results.rows() if row["env"] == env]
    assert own
    datasets = {name: load(name) for name in {row["dataset"] for row in own}}
    for row in own:
        cell = sb3.Cell(env, row["dataset"], row["method"], int(row["seed"]))
        assert results.done(sb3._names(cell, datasets[row["dataset"]]))
