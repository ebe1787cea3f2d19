"""Opening encoders, damaged ones, and what they refuse to encode."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hashgym import features, load_encoder
from hashgym.codes import span, unpack
from hashgym.data import DataError
from hashgym.data.pictures import open_image
from hashgym.encoders import write
from hashgym.encoders.encoder import seal
from hashgym.features.onnx_runtime import thread_count
from tests.reliability.damage import bounded

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Views(torch.nn.Module):
    """The first 8 features are the margins; every code is kept."""

    def forward(self, x):
        return x[..., :8] * 1, torch.ones_like(x[..., 0])


class View(torch.nn.Module):
    """The first 8 features are the margins."""

    def forward(self, x):
        return x[..., :8] * 1


class Codes(torch.nn.Module):
    """Codes of 4 bits from 12 features; the second and third are kept with the probabilities .7 and .2."""

    def forward(self, x):
        return x.unflatten(1, (3, 4)) * 1, torch.stack([0 * x[:, 0] + p for p in (1.0, 0.7, 0.2)], dim=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Encoders by what they take."""
    folder = tmp_path_factory.mktemp("encoders")
    paths = {name: folder / f"{name}.onnx" for name in ("features", "views", "pictures", "pictures of views")}
    write.write(paths["features"], View(), dim=12, bits=8, source={})
    write.write(paths["views"], Views(), dim=12, bits=8, source={}, regions=5, sigma=0.5, threshold=0.5)
    pixels = features.make("pixels", size=2)
    write.add_backbone(paths["features"], paths["pictures"], pixels)
    write.add_backbone(paths["views"], paths["pictures of views"], pixels)
    return paths


def x(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("takes", "values", "message"),
    [
        ("features", x(2, 13), r"shape \(n, 12\), n at least 1, got \(2, 13\)"),
        ("features", x(12), r"shape \(n, 12\)"),
        ("features", x(0, 12), r"n at least 1, got \(0, 12\)"),
        ("features", x(2, 6, 12), r"shape \(n, 12\), n"),
        ("features", x(2, 12, dtype=np.float64), "must be float32, got float64"),
        ("features", x(2, 12) * np.array([[1], [np.nan]], np.float32), "NaN or infinity, first in row 1"),
        ("features", x(2, 12) * np.float32(np.inf), "NaN or infinity, first in row 0"),
        ("views", x(2, 7, 12), r"\(n, V, 12\) with V from 1 to 6"),
        ("views", x(2, 0, 12), "with V from 1"),
        ("views", x(2, 13), r"\(n, 12\) or \(n, V, 12\)"),
    ],
)
def test_features_that_cannot_be_encoded(files, takes, values, message):
    encoder = load_encoder(files[takes])
    for call in (encoder.encode, encoder.margins):
        with pytest.raises(ValueError, match=message):
            call(values)


@pytest.mark.parametrize(
    ("takes", "values", "message"),
    [
        ("pictures", x(2, 2, 3, 3, dtype=np.uint8), r"shape \(n, 2, 2, 3\), n"),
        ("pictures", x(2, 2, 3, dtype=np.uint8), r"shape \(n, 2, 2, 3\), n"),
        ("pictures", x(0, 2, 2, 3, dtype=np.uint8), "n at least 1"),
        ("pictures", x(2, 6, 2, 2, 3, dtype=np.uint8), r"shape \(n, 2, 2, 3\), n"),
        ("pictures", x(2, 2, 2, 3), "uint8, values 0 to 255, got float32"),
        ("pictures of views", x(2, 7, 2, 2, 3, dtype=np.uint8), "with V from 1 to 6"),
    ],
)
def test_pictures_that_cannot_be_encoded(files, takes, values, message):
    encoder = load_encoder(files[takes])
    for call in (encoder.encode_pictures, encoder.margins):
        with pytest.raises(ValueError, match=message):
            call(values)


def test_the_wrong_kind_of_input(files):
    with pytest.raises(ValueError, match="takes pictures, not features: call encode_pictures"):
        load_encoder(files["pictures"]).encode(x(2, 12))
    encoder = load_encoder(files["features"])
    with pytest.raises(ValueError, match="takes features, not pictures: `hashgym export`"):
        encoder.encode_pictures(x(2, 2, 2, 3, dtype=np.uint8))
    with pytest.raises(ValueError, match="takes features, not pictures"):
        encoder.prepare(None)
    assert encoder.boxes(3, 4) == [(0, 0, 3, 4)]
    with pytest.raises(ValueError, match="at least one pixel"):
        encoder.boxes(0, 4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_seen(files, tmp_path_factory, data):
    whole = files["pictures of views"].read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1), "at")
    kind = data.draw(st.sampled_from(["change", "cut", "drop", "insert", "append"]))
    some = data.draw(st.binary(min_size=1, max_size=20))
    if kind == "change":
        flipped = whole[at] ^ data.draw(st.integers(1, 255))
        damaged = whole[:at] + bytes([flipped]) + whole[at + 1 :]
    else:
        damaged = {
            "cut": whole[:at],
            "drop": whole[:at] + whole[at + 1 :],
            "insert": whole[:at] + some + whole[at:],
            "append": whole + some,
        }[kind]
    path = tmp_path_factory.mktemp("damaged") / "encoder.onnx"
    path.write_bytes(damaged)
    if damaged != whole:
        with pytest.raises(DataError, match=r"encoder\.onnx (is|has)"):
            load_encoder(path)


def test_files_that_are_not_encoders(files, tmp_path):
    path = tmp_path / "encoder.onnx"
    with pytest.raises(DataError, match=r"the encoder .* cannot be read .No such file"):
        load_encoder(path)
    with pytest.raises(DataError, match=r"the encoder .* cannot be read .*directory"):
        load_encoder(tmp_path)
    model = onnx.load(files["features"])
    del model.metadata_props[:]
    foreign = model.SerializeToString()
    for content in (b"", b"text", foreign):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not an encoder of hashgym"):
            load_encoder(path)
    for content in (b"text", foreign, foreign[:-9]):  # sealed, but empty words
        path.write_bytes(seal(content))
        with pytest.raises(DataError, match="cannot be run"):
            load_encoder(path)


def test_a_later_format_is_rejected(files, tmp_path):
    path = tmp_path / "encoder.onnx"
    whole = files["features"].read_bytes()
    body = whole[: -len(seal(b""))]
    assert seal(body) == whole
    assert body.count(b'"format": 1') == 1
    path.write_bytes(seal(body.replace(b'"format": 1', b'"format": 2')))
    with pytest.raises(DataError, match="format 2, and this hashgym reads format 1: upgrade hashgym"):
        load_encoder(path)


def rewritten(path, target, **changes):
    """The encoder with other metadata and a digest of its own; None removes a key."""
    model = onnx.load(path)
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}["hashgym.encoder"])
    metadata |= changes
    for key in [key for key, value in changes.items() if value is ...]:
        del metadata[key]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"hashgym.encoder": json.dumps(metadata)})
    target.write_bytes(seal(model.SerializeToString()))
    return target


NUMBERS = (..., None, -1, 0, 1, 3, 9, 65, 10**9, 10**30, True, 8.0, "8", [8], {}, float("nan"), float("inf"))
FIT = {"kind": "fit", "size": 2, "short_side": 2, "interpolation": "bilinear"}
STRETCH = {"kind": "stretch", "size": 2}
NONSENSE = {
    "bits": NUMBERS,
    "dim": (*NUMBERS, 2**40),
    "regions": (*(value for value in NUMBERS if value != 0), 5),
    "group_bits": tuple(value for value in NUMBERS if value not in (None, 1, 3, 9, 65) or value is True),
    "sigma": (..., -1, 0, 0.0, 0.5, 1.5, True, "0.5", [0.5], float("nan")),
    "threshold": (..., -1, 0.5, 1.5, True, "0.5", {}, float("inf")),
    "takes": (..., None, "pixels", "pictures", 1, ["features"], {}),
    "backbone": (..., "pixels", [], 3, True),
    "codes": (None, -1, 0, 1, 3, 10**9, True, 1.0, "1", [1], {}),
    "lengths": ([], [4], [8, 4], [4, 4, 8], [0, 8], [4.0, 8], [True, 8], [4, 9], 8, "8", {}, ["a", 8]),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in NONSENSE for value in NONSENSE[key]])
def test_metadata_that_do_not_fit_the_network_are_rejected(files, tmp_path, key, value):
    with pytest.raises(DataError, match=r"bad\.onnx is not a valid encoder: its metadata (has|describes|lacks)"):
        load_encoder(rewritten(files["features"], tmp_path / "bad.onnx", **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("sigma", value) for value in (..., None, 0, 0.0, -0.5, 1.01, True, "0.5", float("nan"), 10**400)),
        *(("threshold", value) for value in (..., None, -0.1, 1.01, True, "0.5", float("inf"))),
        *(("regions", value) for value in (0, 1, 4, 6, 5.0)),
        *(("preprocess", value) for value in (..., None, [], "stretch", {}, {"kind": "fold"}, {"kind": []})),
        *(("preprocess", STRETCH | {"size": value}) for value in (-1, 0, 3, 10**9, True, 2.0, "2", None, [2])),
        *(("preprocess", FIT | {"short_side": value}) for value in (-1, 0, 10**9, True, 2.0, "2", None)),
        *(("preprocess", FIT | {"interpolation": value}) for value in ("", "cubic", 3, None, ["box"])),
        ("preprocess", STRETCH | {"more": 1}),
        ("takes", "features"),
    ],
)
def test_metadata_of_pictures_and_regions_that_do_not_fit_are_rejected(files, tmp_path, key, value):
    with pytest.raises(DataError, match=r"bad\.onnx is not a valid encoder: its metadata"):
        load_encoder(rewritten(files["pictures of views"], tmp_path / "bad.onnx", **{key: value}))


def test_metadata_that_are_not_an_object_are_rejected(files, tmp_path):
    for metadata in ("null", "[]", "3", "", "{", "[" * 100_000, '{"format": 1}', '{"format": [1]}'):
        model = onnx.load(files["features"])
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {"hashgym.encoder": metadata})
        (tmp_path / "bad.onnx").write_bytes(seal(model.SerializeToString()))
        with pytest.raises(DataError, match=r"bad\.onnx"):
            load_encoder(tmp_path / "bad.onnx")


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_an_encoder_that_is_cut_gives_the_first_bits(files, bits, seed):
    rows = np.random.default_rng(seed).standard_normal((5, 6, 12), np.float32)
    for takes, values in (("features", rows[:, 0]), ("views", rows)):
        whole = load_encoder(files[takes])
        cut = whole.cut(bits)
        assert (cut.bits, cut.lengths, whole.bits) == (bits, (bits,), 8)
        np.testing.assert_array_equal(cut.margins(values), whole.margins(values)[..., :bits])
        np.testing.assert_array_equal(cut.encode(values).words[:, 0], span(whole.encode(values).words[:, 0], 0, bits))
        assert cut.cut(bits) is cut
        assert cut.digest == (whole.digest if bits == 8 else f"{whole.digest}:{bits}")
    shorter = cut.cut(1)
    assert shorter.digest == (whole.digest + ":1")


def test_an_encoder_of_further_codes_can_be_cut(tmp_path):
    write.write(tmp_path / "codes.onnx", Codes(), dim=12, bits=4, codes=2, threshold=0.5, source={})
    whole, rows = load_encoder(tmp_path / "codes.onnx"), np.random.default_rng(0).standard_normal((6, 12), np.float32)
    assert (whole.codes, whole.most_codes, whole.regions) == (2, 3, 0)
    assert "2 further codes" in repr(whole)
    for encoder in (whole, whole.cut(3)):
        sets = encoder.encode(rows)
        assert encoder.margins(rows).shape == (6, 3, encoder.bits)
        np.testing.assert_array_equal(encoder.margins(rows), rows.reshape(6, 3, 4)[..., : encoder.bits])
        np.testing.assert_array_equal(unpack(sets.words, encoder.bits), rows.reshape(6, 3, 4)[..., : encoder.bits] > 0)
        differs = (sets.words[:, 1] != sets.words[:, 0]).any(axis=1)
        np.testing.assert_array_equal(sets.kept, np.stack([np.ones(6, bool), differs, np.zeros(6, bool)], axis=1))
    for wrong in ({"threshold": None}, {"regions": 5}, {"sigma": 0.5}):
        options = {"dim": 12, "bits": 4, "codes": 2, "threshold": 0.5, "source": {}, **wrong}
        with pytest.raises(ValueError, match=r"codes|regions"):
            write.write(tmp_path / "bad.onnx", Codes(), **options)


@pytest.mark.parametrize(
    ("bits", "message"), [(9, "8 bits, which cannot be cut to 9"), (0, "at least 1"), (2.0, "an integer")]
)
def test_an_encoder_cannot_be_cut_to_more_bits_than_it_has(files, bits, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(files["features"]).cut(bits)


def test_an_encoder_of_nestable_codes_names_their_lengths(files, tmp_path):
    write.write(tmp_path / "nested.onnx", View(), dim=12, bits=8, lengths=(3, 6, 8), source={})
    encoder = load_encoder(tmp_path / "nested.onnx")
    assert encoder.lengths == (3, 6, 8)
    assert [encoder.cut(bits).lengths for bits in (7, 6, 2)] == [(3, 6, 7), (3, 6), (2,)]
    assert load_encoder(files["features"]).lengths == (8,)
    with pytest.raises(ValueError, match="lengths must ascend"):
        write.write(tmp_path / "bad.onnx", View(), dim=12, bits=8, lengths=(6, 3, 8), source={})


def test_metadata_missing_in_earlier_versions_are_accepted(files, tmp_path):
    """They laid transparent pixels on nothing; pictures without such pixels are read as ever."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    whole = load_encoder(files["pictures of views"])
    assert whole.metadata["background"] == "white"
    earlier = load_encoder(rewritten(files["pictures of views"], tmp_path / "old.onnx", background=...))
    assert "background" not in earlier.metadata
    assert np.array_equal(earlier.prepare(image), whole.prepare(image))
    assert earlier.prepare(Image.new("RGBA", (4, 4))).min() == 255


def test_a_network_with_other_shapes_than_declared_is_rejected(files, tmp_path):
    model = onnx.load(files["features"])
    for output in model.graph.output:  # the file declares n x 8; the same values are given as 2n x 4
        name, node = output.name, next(node for node in model.graph.node if output.name in node.output)
        node.output[list(node.output).index(name)] = f"{name}/whole"
        for other in model.graph.node:
            other.input[:] = [f"{name}/whole" if value == name else value for value in other.input]
        steps = [
            ("Shape", [f"{name}/whole"], f"{name}/shape"),
            ("Mul", [f"{name}/shape", "times"], f"{name}/more"),
            ("Div", [f"{name}/more", "over"], f"{name}/wanted"),
            ("Reshape", [f"{name}/whole", f"{name}/wanted"], name),
        ]
        model.graph.node.extend(onnx.helper.make_node(op, inputs, [out]) for op, inputs, out in steps)
        output.type.tensor_type.shape.dim[1].dim_param = "q"
    for name, values in ("times", [2, 1]), ("over", [1, 2]):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    del model.metadata_props[-1:]
    (tmp_path / "bad.onnx").write_bytes(seal(model.SerializeToString()))
    encoder = load_encoder(tmp_path / "bad.onnx")
    with pytest.raises(DataError, match=r"gives bits of shape \(2, 4\) instead of \(1, 8\)"):
        encoder.encode(x(1, 12))


def test_a_picture_and_its_file_have_one_code(files, tmp_path):
    encoder = load_encoder(files["pictures of views"])
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(noise[..., :3]).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(noise).quantize(16).save(tmp_path / "palette.png", exif=exif)
    for path in tmp_path.iterdir():
        opened = open_image(path)
        assert opened.size == (20, 30)
        with Image.open(path) as lazy:
            assert np.array_equal(encoder.prepare(lazy), encoder.prepare(opened))
    with pytest.raises(DataError, match="more than 8 bits"):
        encoder.prepare(Image.new("I;16", (4, 4), 40_000))


def test_giant_files_are_not_encoders(tmp_path):
    with (tmp_path / "encoder.onnx").open("wb") as file:
        file.truncate(40_000_000_000)  # sparse
    with bounded(octets=1 << 26), pytest.raises(DataError, match="more than 2,147,483,648 bytes"):
        load_encoder(tmp_path / "encoder.onnx")


def python(script, *arguments):
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)


def test_nothing_heavy_is_imported_to_encode(files):
    python(
        "import sys, numpy, hashgym, PIL.Image;"
        "hashgym.load_encoder(sys.argv[1]).encode(numpy.ones((2, 12), numpy.float32));"
        "encoder = hashgym.load_encoder(sys.argv[2]);"
        "encoder.encode_pictures(encoder.prepare(PIL.Image.new('RGB', (9, 7)))[None]);"
        "assert not {'torch', 'onnx', 'sklearn', 'matplotlib', 'flask', 'faiss'} & set(sys.modules)",
        files["features"],
        files["pictures of views"],
    )


def test_without_onnx_runtime(files):
    python(
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import hashgym\n"
        "try: hashgym.load_encoder(sys.argv[1])\n"
        "except ValueError as error: assert \"pip install 'hashgym[onnx]'\" in str(error), error\n"
        "else: raise SystemExit(1)",
        files["features"],
    )


def test_threads(monkeypatch):
    for wish, count in (("3", 3), ("2,4", 2), (" 5 ", 5)):
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
        assert thread_count() == count
    for wish in ("", "0", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
        assert thread_count() >= 1
