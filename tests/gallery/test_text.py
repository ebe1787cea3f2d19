"""Searches by texts, compared with the distances of all pictures by the hash function on floats."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from hashgym import hashers
from hashgym.cli import main
from hashgym.data import DataError, HashingDataset
from hashgym.data.pictures import open_image
from hashgym.encoders.write import without_backbone
from hashgym.features import library_models
from hashgym.gallery import build, encode_images, index_photos, open_codes, open_gallery
from hashgym.gallery.encode import EncodingSettings
from tests.features.small_models import CLIP_NAME, WORDS, open_clip_file, timm_file, transformers_folder
from tests.gallery.small import write_encoder, write_pictures

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

NAMES = [f"{i}.png" for i in range(60)]
BITS = 16


def index(photos: Path, out: Path, backbone: str) -> Path:
    settings = EncodingSettings(skip_bad=True, batch_size=16, progress=False)
    index_photos([photos], out, bits=BITS, backbone=backbone, method="itq", backend="brute-force", settings=settings)
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), NAMES)


@pytest.fixture(scope="module", params=["clip", "siglip", "open_clip"])
def made(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """The name of an image-text model, the pictures, and their index by it."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "open_clip":
        name = f"open_clip:{CLIP_NAME}/{open_clip_file(folder)[1]}"
    else:
        name = f"hf:{transformers_folder(request.param, folder)[1]}"
    return name, pictures, index(pictures, folder / "index", name)


def sentences(count: int) -> list[str]:
    """Different texts, most of them of known words."""
    rng = np.random.default_rng(5)
    return [" ".join([*rng.choice(WORDS, rng.integers(1, 8)).tolist(), str(i)]) for i in range(count)]


def hash_function(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The hash function that is fitted to features of photos: features -> real values, on floats without an encoder."""
    every = np.arange(len(features))
    data = HashingDataset("photos", features, np.zeros((len(features), 0), np.uint8), every[:0], every, every)
    scaled = data.standardized()
    hasher = hashers.fitted("itq", scaled, bits=BITS)
    assert scaled.center is not None
    assert scaled.scale is not None
    center, scale = scaled.center, scaled.scale
    return lambda x: hasher.transform((x - center) / scale)


def test_two_hundred_texts_are_brute_force_on_floats(made: tuple[str, Path, Path]) -> None:
    name, photos, out = made
    network, texts = library_models.load(name), sentences(200)
    with open_gallery(out) as gallery:
        backbone = network.backbone(device="cpu")
        images = [open_image(photos / gallery.names.at(row)) for row in range(len(gallery))]
        features = backbone(np.stack([backbone.preprocess(image) for image in images]))
        real_values = hash_function(features)
        of_images, of_texts = real_values(features), real_values(np.concatenate([network.embed([t]) for t in texts]))
        # No margin is so near to 0 that the order of float32 sums decides the bit.
        assert min(np.abs(of_images).min(), np.abs(of_texts).min()) > 1e-6 * np.abs(of_images).mean()
        expected = ((of_texts > 0)[:, None] != (of_images > 0)[None]).sum(2)
        assert len({row.tobytes() for row in of_texts > 0}) > 10  # texts have different codes
        for number, (text, distances, margins) in enumerate(zip(texts, expected, of_texts, strict=True)):
            found = gallery.search_text(text, k=len(NAMES))
            rows = gallery.rows(np.array([match.id for match in found]))
            assert sorted(rows.tolist()) == list(range(len(NAMES)))
            assert [match.distance for match in found] == distances[rows].tolist() == sorted(distances.tolist())
            if number % 10:
                continue
            near = gallery.search_text(text, k=None, radius=5)
            assert [(match.id, match.distance) for match in near] == [
                (match.id, match.distance) for match in found if match.distance <= 5
            ]
            first = gallery.search_text(text, k=1, rerank="margins")[0]
            differ = (margins > 0) != (of_images > 0)
            weighted = np.where(differ, np.abs(margins), 0).sum(1)
            assert first.weighted == pytest.approx(weighted.min(), rel=1e-3, abs=1e-5)


def test_the_library_is_recorded_with_its_version(made: tuple[str, Path, Path]) -> None:
    name, _, out = made
    package = {"hf": "transformers", "open_clip": "open_clip_torch"}[name.partition(":")[0]]
    with open_gallery(out) as gallery:
        assert gallery.takes_texts
        assert gallery.encoder.metadata["versions"][package] == metadata.version(package)


def test_an_encoder_without_its_backbone_hashes_its_features(made: tuple[str, Path, Path]) -> None:
    name, photos, out = made
    path = out / "codes" / "encoder.onnx"
    backbone, head = library_models.make(name, device="cpu"), without_backbone(path)
    batch = np.stack([backbone.preprocess(open_image(photos / each)) for each in open_codes(out / "codes").names])
    np.testing.assert_array_equal(head.encode(backbone(batch)).words, open_codes(out / "codes").words)
    assert (head.takes, head.size, head.dim) == ("features", None, 24 if "siglip" not in name else 32)
    assert len(path.read_bytes()) > 10_000


@pytest.mark.parametrize("regions", [False, True])
def test_an_encoder_with_regions_without_its_backbone(regions: bool, tmp_path: Path) -> None:
    from hashgym.encoders import load_encoder
    from hashgym.features import make

    path = write_encoder(tmp_path / "encoder.onnx", regions)
    whole, head, backbone = load_encoder(path), without_backbone(path), make("pixels", size=4)
    views = np.random.default_rng(0).integers(0, 256, (5, *((6,) if regions else ()), 4, 4, 3), np.uint8)
    features = backbone(views.reshape(-1, 4, 4, 3)).reshape(*views.shape[:-3], 48)
    np.testing.assert_array_equal(head.margins(features), whole.margins(views))
    np.testing.assert_array_equal(head.encode(features).words, whole.encode_pictures(views).words)
    assert without_backbone(write_features(tmp_path)).takes == "features"


def write_features(folder: Path) -> Path:
    """An encoder that takes features already."""
    from hashgym.encoders import write

    write.write(folder / "head.onnx", torch.nn.Linear(3, 2), dim=3, bits=2, source={})
    return folder / "head.onnx"


def test_the_command(made: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, out = made
    main(["search", str(out), "--text", "a red <car>", "-k", "3", "--json", "--html", str(tmp_path / "found.html")])
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == "a red <car>"
    with open_gallery(out) as gallery:
        expected = gallery.search_text("a red <car>", k=3)
    assert [match["name"] for match in found["matches"]] == [match.name for match in expected]
    assert "a red &lt;car&gt;" in (tmp_path / "found.html").read_text("utf-8")
    for words, message in (
        ([], "give the file of a photo .* or --text, not both"),
        (["0.png", "--text", "a car"], "give the file of a photo .* or --text, not both"),
        (["--text", " "], "give one or more texts, none of them empty"),
        (["0.png", "--weights", "x"], "--weights is for --text"),
        (["--text", "a car", "-k", "0"], "k, the number of images to find, must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["search", str(out), *words])
        assert stopped.value.code == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_the_page_takes_words(made: tuple[str, Path, Path]) -> None:
    pytest.importorskip("flask")
    pytest.importorskip("waitress")
    from hashgym.gallery.server import create_app

    _, _, out = made
    with open_gallery(out) as gallery:
        client = create_app(gallery).test_client()
        expected = [match.name for match in gallery.search_text("a red <car>", k=24)]
        assert 'name="text" value=""' in client.get("/").text
        found = client.post("/search", data={"text": " a red <car> ", "k": 24}).json
        assert [match["name"] for match in found["matches"]] == expected
        first, second = (client.get(f"/?text=a+red+<car>&page={page}").text for page in (1, 2))
        assert re.findall(r'class="name" title="(.*?)"', first + second) == expected
        assert "12 nearest to <bdi>“a red &lt;car&gt;”</bdi>" in first
        assert 'name="text" value="a red &lt;car&gt;"' in second
        assert "give" not in client.get("/?text=+").text
        assert "300 characters at most" in client.post("/search", data={"text": "x" * 301}).json["error"]
        loaded = gallery._text_encoders[None]
        with open_gallery(out) as again:  # as after a change of the index
            again.share_text_encoders(gallery)
            assert again._text_encoders[None] is loaded


def test_other_weights_are_an_error(tmp_path: Path, pictures: Path) -> None:
    model, folder = transformers_folder("clip", tmp_path)
    out = index(pictures, tmp_path / "index", f"hf:{folder}")
    folder.rename(tmp_path / "moved")
    with open_gallery(out) as gallery:
        with pytest.raises(DataError, match="could not be loaded"):
            gallery.search_text("a red car")
        found = gallery.search_text("a red car", weights=str(tmp_path / "moved"))
        assert len(found) == 10
        with torch.no_grad():
            next(model.text_model.parameters()).add_(1e-3)  # the texts' network counts, too
        model.save_pretrained(tmp_path / "moved")
    with (
        open_gallery(out) as gallery,
        pytest.raises(DataError, match=r"hf:.* has other weights here \(moved, .*: name these with --weights"),
    ):
        gallery.search_text("a red car", weights=str(tmp_path / "moved"))


def test_an_index_by_a_network_of_pictures_alone(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_images(write_encoder(tmp_path / "encoder.onnx"), [pictures], tmp_path / "codes", progress=False)
    build([tmp_path / "codes"], tmp_path / "pixels", progress=False)
    _, folder = transformers_folder("dinov2", tmp_path)
    for out, name in (
        (tmp_path / "pixels", "pixels"),
        (index(pictures, tmp_path / "dinov2 index", f"hf:{folder}"), f"hf:{folder}"),
    ):
        with (
            open_gallery(out) as gallery,
            pytest.raises(ValueError, match=f"were encoded by {name}, which embeds no texts: make an index with"),
        ):
            gallery.search_text("a red car")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with (
        open_gallery(tmp_path / "dinov2 index") as gallery,
        pytest.raises(ValueError, match=r"needs transformers: pip install 'hashgym\[transformers\]'"),
    ):
        gallery.search_text("a red car")


def test_the_weights_of_an_index_are_named(tmp_path: Path, pictures: Path) -> None:
    _, weights = open_clip_file(tmp_path)
    words = ["--backbone", f"open_clip:{CLIP_NAME}", "--weights", str(weights), "--backend", "brute-force"]
    for _ in range(2):  # the same command updates the index
        main(["index", str(pictures), "--out", str(tmp_path / "index"), "--bits", "8", *words])
    with open_gallery(tmp_path / "index") as gallery:
        assert gallery.encoder.metadata["backbone"]["weights"] == "clip.pt"
        with pytest.raises(ValueError, match=f"open_clip:{CLIP_NAME} has no weights, as there is no tag: .*FILE"):
            gallery.search_text("a red car")
        assert len(gallery.search_text("a red car", weights=str(weights))) == 10


def test_a_network_without_an_onnx_form_is_rejected_before_anything_is_written(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(ValueError, match="the backbone gist has no ONNX form"):
        index(pictures, out, "gist")
    _, weights = timm_file("test_vit4", tmp_path)  # the exporter has no RMS norm
    features = library_models.make("timm:test_vit4", weights=str(weights), device="cpu")
    if features.runtime == "onnx":
        pytest.skip("this torch exports every operator of the network")
    assert features.runtime == "torch:cpu"
    with pytest.raises(ValueError, match="this network cannot be written as ONNX, so its encoders take features"):
        index_photos([pictures], out, backbone="timm:test_vit4", weights=str(weights))
    assert not out.exists()


def test_photos_by_a_network_of_timm(tmp_path: Path, pictures: Path) -> None:
    """An encoder that is exported with its backbone, as `hashgym export --weights` does."""
    from hashgym.data import read_images
    from hashgym.encoders import build as encoders
    from hashgym.features import extract, make

    _, weights = timm_file("test_resnet", tmp_path)
    backbone = make("timm:test_resnet", size=64, weights=str(weights), device="cpu")
    extract(read_images(f"photos:{pictures}"), backbone, tmp_path / "features", progress=False)
    made = encoders.build_encoder(
        "itq", tmp_path / "encoder.onnx", features=tmp_path / "features", bits=8, weights=str(weights), train="all"
    )
    assert made.encoder.takes == "pictures"
    codes = encode_images(tmp_path / "encoder.onnx", [pictures], tmp_path / "codes", progress=False)
    assert len(open_codes(codes)) == len(NAMES)
