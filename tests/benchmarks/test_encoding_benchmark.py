"""The benchmark of encoding runs, and its ratio is that of its rates."""

import pytest

from benchmarks import encoding
from benchmarks.common.results import Results


def test_encoding_is_measured_against_its_backbone_in_the_same_run(tmp_path):
    pytest.importorskip("onnxruntime")
    args = encoding.Args(images=5, backbone="pixels", size=8, bits=8, rounds=2, out=tmp_path)
    measured = encoding.main(args)
    rows = Results(tmp_path, encoding.COLUMNS, encoding.KEY, "encoding.csv").rows()
    assert [(row["images"], row["round"]) for row in rows] == [("5", "0"), ("5", "1")]
    for row, returned in zip(rows, measured, strict=True):
        rates = [float(row[f"{name}_images_per_second"]) for name in ("backbone", "encode")]
        assert float(row["ratio"]) == pytest.approx(rates[1] / rates[0]) == returned["ratio"]
    indexed = Results(tmp_path, encoding.INDEX_COLUMNS, encoding.KEY, "indexing.csv").rows()
    for row, other in zip(indexed, rows, strict=True):
        assert row["backbone_images_per_second"] == other["backbone_images_per_second"]
        rate = float(row["index_images_per_second"])
        assert float(row["ratio"]) == pytest.approx(rate / float(row["backbone_images_per_second"]))
