"""The benchmark of agreement compares every kind of method with its encoder, once."""

import dataclasses

import pytest

from benchmarks import agreement
from benchmarks.common.results import Results


def test_encoders_are_compared_with_their_methods(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    methods = ("hasher lsh", "drlih norec", "sb3 a2c", "mch apart", "mch-sb3 dqn")
    args = agreement.Args(images=100, bits=12, methods=methods, out=tmp_path)
    agreement.main(args)
    rows = Results(tmp_path, agreement.COLUMNS, agreement.KEY, "agreement.csv").rows()
    assert [(row["method"], row["images"], row["compared"]) for row in rows] == [
        *((name, "100", "1200") for name in methods[:3]),
        *((name, "100", "7200") for name in methods[3:]),  # of the image and its five regions
    ]
    assert all(row["different"] == row["different_ties"] and row["different_keeps"] == "0" for row in rows)
    assert "mch-sb3 dqn: 0 of 7,200 bits differ" in capsys.readouterr().out or rows[-1]["different"] != "0"
    assert agreement.main(args) == []
    with pytest.raises(ValueError, match=r"run with another configuration \(seed: 0 -> 7\)"):
        agreement.main(dataclasses.replace(args, seed=7))
    with pytest.raises(ValueError, match="there is no hasher moon to compare: choose from hasher"):
        agreement.main(agreement.Args(methods=("hasher moon",)))
