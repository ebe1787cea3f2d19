"""The benchmark of encoding runs, and its ratio is that of its rates."""

import numpy as np
import pytest

from benchmarks import encoding
from benchmarks.common.results import Results
from hashgym.encoders import load_encoder
from hashgym.features import make


def test_everything_is_measured_against_the_backbone_in_the_same_run(tmp_path):
    pytest.importorskip("onnxruntime")
    what = tuple(encoding.FILES)
    measured = encoding.main(
        encoding.Args(what=what, images=5, backbone="pixels", size=8, bits=8, rounds=2, out=tmp_path)
    )
    assert tuple(measured) == what
    rows = {name: Results(tmp_path, encoding.columns(name), encoding.KEY, encoding.FILES[name]).rows() for name in what}
    for name, own in rows.items():
        assert [(row["images"], row["round"]) for row in own] == [("5", "0"), ("5", "1")]
        for row, first, returned in zip(own, rows["encode"], measured[name], strict=True):
            assert row["backbone_images_per_second"] == first["backbone_images_per_second"]
            rates = [float(row[f"{which}_images_per_second"]) for which in ("backbone", name)]
            assert float(row["ratio"]) == pytest.approx(rates[1] / rates[0]) == returned["ratio"]


def test_encoders_give_the_codes_and_take_the_views_that_are_measured(tmp_path):
    pytest.importorskip("onnxruntime")
    backbone, rng = make("pixels", size=8), np.random.default_rng(0)
    for what, views, codes in (("encode", 1, 1), ("multicode", 1, 2), ("regions", 6, 6)):
        encoder = load_encoder(encoding.make_encoder(backbone, 8, what, tmp_path))
        pictures = rng.integers(0, 256, (3, views, 8, 8, 3), np.uint8)
        assert encoder.margins(pictures if views > 1 else pictures[:, 0]).shape == (3, codes, 8)


def test_unknown_things_are_not_measured(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'regions'"):
        encoding.main(encoding.Args(what=("region",), out=tmp_path))
