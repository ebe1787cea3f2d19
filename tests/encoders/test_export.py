"""Encoders against the heads they were exported from."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym.codes import CodeSets
from hashgym.data import HashingDataset
from hashgym.encoders import export, load_encoder

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Linear(torch.nn.Module):
    """Margins by one matrix."""

    def __init__(self, dim, bits, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(dim, bits, generator=generator))

    def forward(self, x):
        return x @ self.weight


class Identity(torch.nn.Module):
    """Margins that are the standardised features."""

    def forward(self, x):
        return x * 1


class Regions(Linear):
    """A region is kept as far as it differs from the image."""

    def forward(self, x):
        p = torch.sigmoid((x[:, 1:] - x[:, :1]).abs().sum(-1) - 3)
        return super().forward(x), torch.cat([torch.ones_like(x[:, :1, 0]), p], dim=1)


def dataset(n=50, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, dim)) * rng.uniform(1e-3, 1e3, dim) + rng.normal(size=dim) * 100).astype(np.float32)
    features[:, 0] = 3.25  # never varies
    index = np.arange(n)
    labels = np.ones((n, 1), np.uint8)
    return HashingDataset("toy", features, labels, index[:0], index, index)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 1 << 30))
def test_standardisation_is_the_datasets_to_the_last_bit(tmp_path_factory, n, dim, seed):
    path = tmp_path_factory.mktemp("encoders") / "encoder.onnx"
    raw = dataset(n, dim, seed)
    moved = raw.standardized()
    export.write(path, Identity(), dim=dim, bits=dim, source={}, center=moved.center, scale=moved.scale)
    assert np.array_equal(load_encoder(path).margins(raw.features)[:, 0], moved.features)


def test_several_codes(tmp_path):
    path, head = tmp_path / "encoder.onnx", Regions(4, 9)
    options = {"regions": 5, "sigma": 0.5, "threshold": 0.6}
    export.write(path, head, dim=4, bits=9, source={"method": "mch"}, **options)
    encoder = load_encoder(path)
    x = np.random.default_rng(0).normal(size=(30, 6, 4)).astype(np.float32)
    for views in (1, 2, 6):
        margin, keep = (y.detach().numpy() for y in head(torch.from_numpy(x[:, :views])))
        sets, expected = encoder.encode(x[:, :views]), CodeSets.of(margin > 0, keep >= 0.6)
        assert np.array_equal(sets.words, expected.words)
        assert np.array_equal(sets.kept, expected.kept)
        assert np.allclose(encoder.margins(x[:, :views]), margin, atol=1e-5)
    assert np.array_equal(encoder.encode(x[:, 0]).words, encoder.encode(x[:, :1]).words)


def test_neither_loading_nor_encoding_imports_torch(tmp_path):
    path = tmp_path / "encoder.onnx"
    export.write(path, Linear(4, 8), dim=4, bits=8, source={})
    script = (
        "import sys, numpy, hashgym; hashgym.load_encoder(sys.argv[1]).encode(numpy.ones((2, 4), numpy.float32));"
        "assert not {'torch', 'onnx', 'sklearn', 'matplotlib', 'flask'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
