"""`hashgym export`: the hashers that it fits, and its number of threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from hashgym.encoders import build  # noqa: E402
from hashgym.hashers.base import Hasher  # noqa: E402
from tests.conftest import small_dataset  # noqa: E402


@pytest.mark.parametrize(("name", "count"), [("itq", 60), ("sdh", 55)])
def test_all_images_or_all_with_a_label(name, count, tmp_path, monkeypatch):
    """A hasher of labels leaves out images without any; none is held out as a query."""
    dataset = small_dataset(0)
    labels = dataset.labels.copy()
    labels[:5] = 0
    dataset = dataclasses.replace(dataset, labels=labels)
    seen = []
    fit = Hasher.fit
    monkeypatch.setattr(Hasher, "fit", lambda self, x, y=None: seen.append(len(x)) or fit(self, x, y))
    for train, wanted in (("split", len(dataset.train)), ("all", count)):
        out = tmp_path / f"{train}.onnx"
        build.build_encoder(name, out, features=dataset, bits=4, features_only=True, train=train)
        assert seen.pop() == wanted
    with pytest.raises(ValueError, match="train must be one of split, all, got 'every'"):
        build.build_encoder(name, tmp_path / "o.onnx", features=dataset, bits=4, features_only=True, train="every")


def test_threads_are_limited_and_given_back():
    from threadpoolctl import threadpool_info

    np.ones((4, 4)) @ np.ones((4, 4))
    before, pools = torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]
    try:
        torch.set_num_threads(2)
        with build._limited_threads(1):
            assert torch.get_num_threads() == 1
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [pool["num_threads"] for pool in threadpool_info()] == pools


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (None, "do not name the backbone"),
        ({"name": "gist", "size": 32, "digest": ""}, "has no ONNX form"),
        ({"name": "pixels", "size": 4, "digest": "other", "weights": "mine"}, "has other weights here"),
    ],
)
def test_a_backbone_that_cannot_be_included_is_refused_before_a_hasher_is_fitted(
    backbone, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(build.hashers, "fitted", lambda *_, **__: pytest.fail("fitted"))
    dataset = dataclasses.replace(small_dataset(0), provenance={"backbone": backbone} if backbone else {})
    with pytest.raises(ValueError, match=message):
        build.build_encoder("itq", tmp_path / "o.onnx", features=dataset, bits=4)
    assert not (tmp_path / "o.onnx").exists()
