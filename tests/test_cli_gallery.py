"""The commands of `hashgym` from features to a search in one's own pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashgym import cli, hashers, load_encoder
from hashgym.data import DataError, cache
from hashgym.data.pictures import open_image
from hashgym.gallery import open_codes, open_gallery
from hashgym.storage import owned
from hashgym.storage.atomic import atomic_write
from tests.gallery.small import content

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, features of them, an encoder by ITQ, codes and an index."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / "photos" / kind / f"{i}.png")
    shared = ["features", "--dataset", f"folder:{folder / 'photos'}", "--backbone", "pixels", "--size", "4"]
    cli.main([*shared, "--queries", "4", "--train", "30", "--out", f"{folder}/features"])
    cli.main(["export", "itq", "--bits", "12", "--features", f"{folder}/features", "--out", f"{folder}/encoder.onnx"])
    cli.main(["encode", f"{folder}/encoder.onnx", f"{folder}/photos", "--out", f"{folder}/codes"])
    cli.main(["index", f"{folder}/codes", "--out", f"{folder}/index", "--backend", "buckets"])
    return folder


def fails(args: list[object], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The message of a command that fails, one line."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(arg) for arg in args])
    assert stopped.value.code == code
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "Traceback" not in output
    return output


def says(args: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    cli.main([str(arg) for arg in args])
    return " ".join(capsys.readouterr().out.split())


def test_the_codes_are_the_hashers(place):
    data = cache.open_cache(place / "features").standardized()
    hasher = hashers.make("itq", bits=12).fit(data.features[data.train])
    wanted = dict(zip(data.names, hasher.encode(data.features), strict=True))
    codes = open_codes(place / "codes")
    sets = codes.sets()
    assert codes.names == [name for name in data.names if name in wanted]
    from hashgym.codes import unpack

    for name, bits in zip(codes.names, unpack(sets.words[:, 0], 12), strict=True):
        assert (bits == wanted[name]).all()


def test_export_prints_the_agreement(place, tmp_path, capsys):
    output = says(
        ["export", "lsh", "--bits", 70, "--features", place / "features", "--out", tmp_path / "l.onnx"], capsys
    )
    assert "2,800 bits of 40 images: 0 differ from those of lsh" in output
    assert "70 bits from pictures" in output
    assert "hashgym encode" in output
    encoder = load_encoder(tmp_path / "l.onnx")
    assert (encoder.takes, encoder.bits, encoder.metadata["source"]["hasher"]) == ("pictures", 70, "LSH")
    args = ["export", "lsh", "--bits", 8, "--features", place / "features", "--features-only"]
    assert "8 bits from features. `hashgym.load_encoder` opens it" in says(
        [*args, "--out", tmp_path / "f.onnx"], capsys
    )
    assert load_encoder(tmp_path / "f.onnx").takes == "features"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.onnx", "l.onnx"]


def test_export_of_saved_hashers_and_runs(place, tmp_path, capsys):
    data = cache.open_cache(place / "features")
    moved = data.standardized()
    hashers.make("lsh", bits=9).fit(moved.features).save(tmp_path / "moved.npz")
    hashers.make("lsh", bits=9, seed=1).fit(data.features).save(tmp_path / "raw.npz")
    (tmp_path / "run").mkdir()
    features = ["--features", place / "features"]
    assert "0 differ" in says(
        ["export", tmp_path / "moved.npz", *features, "--features-only", "--out", tmp_path / "run" / "policy.onnx"],
        capsys,
    )
    output = says(
        ["export", tmp_path / "raw.npz", *features, "--unstandardized", "--out", tmp_path / "raw.onnx"], capsys
    )
    assert "0 differ" in output
    run, encoder = load_encoder(tmp_path / "run" / "policy.onnx"), load_encoder(tmp_path / "raw.onnx")
    for name in data.names[:5]:
        row = data.names.index(name)
        raw = hashers.load(tmp_path / "raw.npz").encode(data.features[row : row + 1])
        image = encoder.prepare(open_image(place / "photos" / name))
        assert ((encoder.margins(image)[:, 0] > 0) == raw).all()
    before = (tmp_path / "run" / "policy.onnx").read_bytes()
    says(["export", tmp_path / "run", "--out", tmp_path / "run.onnx"], capsys)
    says(["export", tmp_path / "run", *features, "--features-only", "--out", tmp_path / "copy.onnx"], capsys)
    assert (tmp_path / "copy.onnx").read_bytes() == before == (tmp_path / "run" / "policy.onnx").read_bytes()
    whole = load_encoder(tmp_path / "run.onnx")
    assert (whole.takes, whole.metadata["source"]) == ("pictures", run.metadata["source"])
    pictures = np.concatenate([whole.prepare(open_image(place / "photos" / name)) for name in data.names[:9]])
    assert (whole.encode_pictures(pictures).words == run.encode(np.array(data.features[:9])).words).all()


def test_export_rejects(place, tmp_path, capsys, monkeypatch):
    features = ["--features", place / "features"]
    (tmp_path / "run").mkdir()
    (tmp_path / "there.onnx").write_text("mine")
    hashers.make("lsh", bits=9).fit(np.zeros((3, 5), np.float32)).save(tmp_path / "small.npz")
    (tmp_path / "bad.npz").write_text("no hasher")
    for args, message in [
        (["moon", *features], "neither the folder of a training run"),
        (["itq", "--bits", 8], "give --features, the folder of features"),
        (["itq", *features], "needs its code length"),
        (["itq", *features, "--bits", 800], "principal component"),
        ([tmp_path / "small.npz", *features, "--bits", 9], "leave out --bits"),
        ([tmp_path / "small.npz", *features], "fitted on 5 features, images of"),
        ([tmp_path / "bad.npz", *features], "not a saved hasher"),
        ([tmp_path / "none.npz", *features], "none.npz does not exist"),
        ([tmp_path / "run"], "has no policy.onnx"),
        ([place / "encoder.onnx"], "takes pictures already"),
        (["lsh", "--bits", 8, "--features", "digits"], "do not name the backbone"),
        (["itq", "--bits", 8, *features, "--weights", "w"], "neither weights"),
    ]:
        assert message in fails(["export", *args, "--out", tmp_path / "new.onnx"], capsys)
    assert "exists already" in fails(["export", "itq", *features, "--out", tmp_path / "there.onnx"], capsys)
    with atomic_write(tmp_path / "new.onnx", new=True):
        again = ["export", "itq", "--bits", 8, *features, "--out", tmp_path / "new.onnx"]
        assert "another process is writing" in fails(again, capsys)
    (tmp_path / "new.onnx").unlink()
    from hashgym.hashers.lsh import LSH

    monkeypatch.setattr(LSH, "encode", lambda self, x: np.asarray(self.transform(x) > 0.5))
    error = fails(["export", "lsh", "--bits", 8, *features, "--out", tmp_path / "new.onnx"], capsys)
    assert "beyond rounding: nothing was written" in error
    monkeypatch.undo()
    says(["export", "lsh", "--bits", 8, *features, "--features-only", "--out", tmp_path / "head.onnx"], capsys)
    names = {"bad.npz", "head.onnx", "run", "small.npz", "there.onnx"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_export_rejects_other_weights(place, tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    from hashgym import features

    real = features.make
    monkeypatch.setattr(features, "make", lambda *args, **kwargs: replace(real(args[0], size=4), digest="f00"))
    args = ["export", "lsh", "--bits", 8, "--features", place / "features", "--out", tmp_path / "new.onnx"]
    assert "give it with --weights" in fails(args, capsys)
    assert not list(tmp_path.iterdir())


def test_encode_prints_a_report(place, tmp_path, capsys):
    words = ["encode", place / "encoder.onnx", place / "photos"]
    output = says([*words, "--out", tmp_path / "codes", "--batch-size", 7, "--workers", 1], capsys)
    assert "40/40" in output
    assert "images/s" in output
    assert "codes of 40 pictures, 12 bits each. Make them searchable with `hashgym index" in output
    before = content(tmp_path / "codes")
    assert "is finished already" in says([*words, "--out", tmp_path / "codes"], capsys)
    assert content(tmp_path / "codes") == before
    bad = tmp_path / "bad\x1b[31m.png"
    bad.write_text("no picture")
    some = ["encode", place / "encoder.onnx", place / "photos" / "cat" / "1.png", bad, "--out", tmp_path / "some"]
    assert "--skip-bad leaves such images out" in fails(some, capsys)
    output = says([*some, "--skip-bad"], capsys)
    assert "1 picture was left out" in output
    assert "bad\ufffd[31m.png" in output
    assert "codes of 1 picture," in output
    for args, message in [
        ([place / "photos" / "cat" / "1.png", place / "photos"], "not an encoder of hashgym"),
        ([place / "encoder.onnx"], "there are no images"),
        ([place / "encoder.onnx", tmp_path / "none"], "does not exist"),
    ]:
        assert message in fails(["encode", *args, "--out", tmp_path / "new"], capsys)


def test_a_sound_picture_with_damaged_exif_gives_no_warning(place, tmp_path, capsys):
    """Pillow warns of it, with a line about its own source file."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        says(["encode", place / "encoder.onnx", tmp_path / "a.jpg", "--out", tmp_path / "codes"], capsys)
    assert not [str(warning.message) for warning in caught if "PIL" in warning.filename]


def test_index_adds_and_removes(place, tmp_path, capsys):
    for kind in ("cat", "dog"):
        says(["encode", place / "encoder.onnx", place / "photos" / kind, "--out", tmp_path / kind], capsys)
    index = ["index", "--out", tmp_path / "index"]
    output = says(["index", f"{tmp_path / 'cat'}/", "--out", tmp_path / "index", "--backend", "brute-force"], capsys)
    assert "20 pictures, codes of 12 bits, back end brute-force. Search it with" in output
    assert "40 pictures" in says([*index, tmp_path / "dog", "--add"], capsys)
    assert "38 pictures" in says([*index, "--remove", "cat/3.png", "dog/7.png"], capsys)
    names = set(open_gallery(tmp_path / "index").names.values())
    assert {"cat/3.png", "dog/7.png"} & names == set()
    assert "has no image cat/3.png" in fails([*index, "--remove", "cat/3.png"], capsys)
    assert "can be combined with --out and --uri only" in fails(
        [*index, tmp_path / "dog", "--remove", "cat/1.png"], capsys
    )
    for option in (["--bits", 7], ["--exclude", "q"], ["--checksum"], ["--weights", "w"]):
        assert "can be combined with --out and --uri only" in fails([*index, "--remove", "cat/1.png", *option], capsys)
    (tmp_path / "album").mkdir()
    shutil.copyfile(place / "photos" / "cat" / "1.png", tmp_path / "album" / "1.png")
    (tmp_path / "album.partial").mkdir()  # not of hashgym
    photos = ["index", tmp_path / "album", "--encoder", place / "encoder.onnx", "--out", tmp_path / "album-index"]
    assert "1 picture, codes of 12 bits" in says(photos, capsys)
    assert "exists already" in fails([*index, tmp_path / "dog"], capsys)
    assert "nothing to index" in fails(index, capsys)
    assert "takes no options" in fails(
        ["index", tmp_path / "cat", "--out", tmp_path / "i", "--uri", "http://h"], capsys
    )


def test_nestable_codes_are_cut_and_searched(place, tmp_path, capsys):
    """A nested hasher, exported; codes of its first bits, an index of them, and a search with queries cut alike."""
    data = cache.open_cache(place / "features")
    hashers.make("noseq", bits=12, nested=4, updates=20, hidden=0).fit(
        data.standardized().features[data.train], data.labels[data.train]
    ).save(tmp_path / "nested.npz")
    encoder, photo = tmp_path / "nested.onnx", place / "photos" / "dog" / "5.png"
    command = ["export", tmp_path / "nested.npz", "--features", place / "features", "--out", encoder]
    assert "12 bits from pictures, of which the first 4 or 8 are codes too (--bits)" in says(command, capsys)
    for bits in (12, 8):
        says(["encode", encoder, place / "photos", "--out", tmp_path / f"codes{bits}", "--bits", bits], capsys)
        says(["index", tmp_path / f"codes{bits}", "--out", tmp_path / f"index{bits}", "--backend", "prefix"], capsys)
    whole, cut = (open_codes(tmp_path / f"codes{bits}") for bits in (12, 8))
    from hashgym.codes import span

    assert cut.bits == 8
    assert (cut.words == span(whole.words, 0, 8)).all()
    found = says(["search", tmp_path / "index8", photo, "--k", 40, "--json"], capsys)
    answer = json.loads(found)
    assert (answer["bits"], answer["matches"][0]["distance"], len(answer["matches"])) == (8, 0, 40)
    assert max(match["distance"] for match in answer["matches"]) <= 8
    assert "encode its pictures with --bits 8" in fails(
        ["index", tmp_path / "codes12", "--out", tmp_path / "index8", "--add"], capsys
    )
    assert "has codes of 8 bits by the same encoder: give --bits 8, or choose" in fails(
        ["encode", encoder, place / "photos", "--out", tmp_path / "codes8"], capsys
    )
    assert "cannot be cut to 13" in fails(
        ["encode", encoder, place / "photos", "--out", tmp_path / "c", "--bits", 13], capsys
    )


def test_an_agent_of_further_codes_is_trained_exported_and_searched(place, tmp_path, capsys):
    run, features = tmp_path / "run", place / "features"
    words = [
        "--bits",
        12,
        "--codes",
        2,
        "--updates",
        4,
        "--num-envs",
        16,
        "--hidden",
        16,
        "--xi",
        0,
        "--start",
        0,
        "--out",
        run,
    ]
    assert "several codes an image" in says(["train", "multicode", "--dataset", features, *words], capsys)
    says(["export", run, "--features", features, "--out", tmp_path / "encoder.onnx"], capsys)
    says(["encode", tmp_path / "encoder.onnx", place / "photos", "--out", tmp_path / "codes"], capsys)
    codes = open_codes(tmp_path / "codes")
    assert codes.words.shape[:2] == (40, 3)
    assert codes.sets().anhc > 1.5
    says(["index", tmp_path / "codes", "--out", tmp_path / "index"], capsys)
    photo = place / "photos" / "dog" / "5.png"
    answer = json.loads(says(["search", tmp_path / "index", photo, "--k", 40, "--json"], capsys))
    first = answer["matches"][0]
    assert (first["distance"], first["region"], first["box"]) == (0, "whole", None)
    assert {match["region"] for match in answer["matches"]} == {"whole"}


def test_search_in_a_table_json_and_html(place, tmp_path, capsys):
    photo = place / "photos" / "dog" / "5.png"
    output = says(["search", place / "index", photo, "--k", 3, "--html", tmp_path / "out.html"], capsys)
    assert "rank distance picture region that matched 1 0 dog/5.png whole 2" in output
    assert "out.html shows these pictures." in output
    assert (tmp_path / "out.html").read_text().count("<figure>") == 3
    cli.main(["search", str(place / "index"), str(photo), "--k", "4", "--json", "--html", str(tmp_path / "out.html")])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["bits"], answer["images"], len(answer["matches"])) == (12, 40, 4)
    first = {"name": "dog/5.png", "path": str(photo), "distance": 0, "region": "whole", "box": None}
    assert {key: answer["matches"][0][key] for key in first} == first
    wanted = [(m.id, m.distance) for m in open_gallery(place / "index").search(photo, 4)]
    assert [(m["id"], m["distance"]) for m in answer["matches"]] == wanted
    far = says(["search", place / "index", photo, "--k", 40, "--radius", 2, "--json"], capsys)
    assert {match["distance"] for match in json.loads(far)["matches"]} <= {0, 1, 2}
    blank = tmp_path / "blank.png"
    Image.new("RGB", (5, 5)).save(blank)
    output = says(["search", place / "index", blank, "--radius", 0], capsys)
    assert "pictures is within 0 bits" in output or "1 0" in output


def test_search_by_the_name_of_an_indexed_picture(place, tmp_path, monkeypatch, capsys):
    gallery = open_gallery(place / "index")
    wanted = [(match.name, match.distance) for match in gallery.search_name("dog/5.png", 3)]
    answer = json.loads(says(["search", place / "index", "dog/5.png", "-k", 3, "--json"], capsys))
    assert answer["query"] == "dog/5.png"
    assert [(match["name"], match["distance"]) for match in answer["matches"]] == wanted
    assert "dog/5.png" not in {match["name"] for match in answer["matches"]}
    page = tmp_path / "out.html"
    assert f"1 {wanted[0][1]} {wanted[0][0]} whole" in says(
        ["search", place / "index", "dog/5.png", "--html", page], capsys
    )
    assert "Nearest to dog/5.png" in page.read_text()
    assert 'alt="the query"' in page.read_text()
    photos = shutil.copytree(place / "photos", tmp_path / "photos")
    (photos / "dog" / "5.png").unlink()  # is not read, and cannot be shown
    moved = ["search", place / "index", "dog/5.png", "--root", photos, "--html", page, "--json"]
    assert len(json.loads(says(moved, capsys))["matches"]) == 10
    assert 'alt="the query"' not in page.read_text()
    (tmp_path / "dog").mkdir()
    shutil.copyfile(place / "photos" / "cat" / "3.png", tmp_path / "dog" / "5.png")
    monkeypatch.chdir(tmp_path)  # a file of that name wins
    assert "1 0 cat/3.png whole" in says(["search", place / "index", "dog/5.png"], capsys)


def test_search_ranks_again_by_margins(place, capsys):
    photo = place / "photos" / "dog" / "5.png"
    search = ["search", place / "index", photo, "-k", 40, "--rerank", "margins"]
    assert "rank distance weighted picture region that matched 1 0 0.0000 dog/5.png whole" in says(search, capsys)
    answer = json.loads(says([*search, "--json"], capsys))["matches"]
    wanted = open_gallery(place / "index").search(photo, 40, rerank="margins")
    assert [(match["id"], match["distance"], match["weighted"]) for match in answer] == [
        (match.id, match.distance, match.weighted) for match in wanted
    ]
    assert [match["distance"] for match in answer] != sorted(match["distance"] for match in answer)


def test_duplicates_in_a_table_json_and_html(place, tmp_path, capsys):
    photos = tmp_path / "photos"
    for i in range(4):
        (photos / "sub").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / "photos" / "cat" / f"{i}.png", photos / f"{i}.png")
    shutil.copyfile(place / "photos" / "cat" / "2.png", photos / "sub" / "copy [old].png")
    Image.open(photos / "2.png").resize((24, 18), Image.Resampling.NEAREST).save(photos / "sub" / "large.png")
    for i, file in enumerate(sorted(photos.rglob("*.png"))):
        os.utime(file, (1_500_000_000 + i,) * 2)
    says(["encode", place / "encoder.onnx", photos, "--out", tmp_path / "codes"], capsys)
    says(["index", tmp_path / "codes", "--out", tmp_path / "index", "--backend", "brute-force"], capsys)
    before = content(photos)
    words = ["duplicates", tmp_path / "index", "--radius", 0]
    output = says([*words, "--html", tmp_path / "alike.html"], capsys)
    assert output.startswith("group picture pixels kB changed 1 2.png 12 x 9 0.4")
    assert "1 sub/copy [old].png 12 x 9" in output
    assert re.search(r"1 sub/large\.png 24 x 18 [0-9.]+ 2017-07-1[345] [0-9:]{8} largest", output)
    assert "1 group of 3 pictures that look alike, of 6" in output
    assert "alike.html shows these pictures." in output
    assert (tmp_path / "alike.html").read_text().count("<figure>") == 3
    answer = json.loads(says([*words, "--json", "--html", tmp_path / "alike.html"], capsys))
    assert {key: answer[key] for key in ("radius", "bits", "images")} == {"radius": 0, "bits": 12, "images": 6}
    (group,) = answer["groups"]
    assert group["pictures"][0] == {
        "id": 2,
        "name": "2.png",
        "path": str(photos / "2.png"),
        "width": 12,
        "height": 9,
        "bytes": (photos / "2.png").stat().st_size,
        "modified": 1_500_000_002.0,
        "largest": False,
        "oldest": True,
    }
    (photos / "sub" / "large.png").unlink()
    assert "sub/large.png 24 x 18 unknown unknown" in says(words, capsys)
    (photos / "sub" / "large.png").write_bytes(before["sub/large.png"])
    assert content(photos) == before
    with pytest.MonkeyPatch.context() as closed:
        closed.setattr(sys, "stdout", None)  # as after `>&-`
        cli.main(list(map(str, words)))
    (tmp_path / "page.html").write_text("<html>mine</html>")
    assert "is not a page of duplicates" in fails([*words, "--html", tmp_path / "page.html"], capsys)
    assert "radius must be at most 12, got 13" in fails(["duplicates", tmp_path / "index", "--radius", 13], capsys)
    assert "radius must be at least 0" in fails(["duplicates", tmp_path / "index", "--radius", -1], capsys)
    assert "is not an index" in fails(["duplicates", tmp_path / "codes"], capsys)
    says(["index", "--out", tmp_path / "index", "--remove", "sub/copy [old].png", "sub/large.png"], capsys)
    output = says([*words, "--html", tmp_path / "alike.html"], capsys)
    assert "no two of 4 pictures have codes within 0 bits of each other" in output
    assert "<figure>" not in (tmp_path / "alike.html").read_text()


def test_the_radius_of_duplicates_is_that_of_python():
    import inspect

    from hashgym.gallery import duplicates

    assert inspect.signature(cli.duplicates).parameters["radius"].default == duplicates.RADIUS


def test_search_overwrites_no_page_of_others(place, tmp_path, capsys):
    (tmp_path / "page.html").write_text("<html>mine</html>")
    words = ["search", place / "index", tmp_path / "none.png", "--html", tmp_path / "page.html"]
    assert "page.html exists already and is not a page of search results of hashgym" in fails(words, capsys)
    assert (tmp_path / "page.html").read_text() == "<html>mine</html>"


def test_info_of_codes_and_indices(place, tmp_path, capsys):
    output = says(["info", place / "codes"], capsys)
    for wanted in (
        "of 40 pictures, 12 bits each",
        f"below {place / 'photos'}",
        "words.npy",
        "all 7 checksums are right",
    ):
        assert wanted in output
    output = says(["info", place / "index"], capsys)
    for wanted in (
        "of 40 pictures, codes of 12 bits",
        "back end buckets",
        "1/text.npy",
        "1/engine/words-",
        "checksums are right",
    ):
        assert wanted in output
    shutil.copytree(place / "index", tmp_path / "index")
    shutil.copytree(place / "codes", tmp_path / "codes")
    data = [*(tmp_path / "index" / "1").rglob("*.npy"), *(tmp_path / "codes").glob("*.npy"), *tmp_path.rglob("*.json")]
    assert len(data) > 14
    for file in data:
        octets = file.read_bytes()
        file.write_bytes(octets[:-3] + bytes([octets[-3] ^ 1]) + octets[-2:])
        output = fails(["info", tmp_path / file.relative_to(tmp_path).parts[0]], capsys, 1)
        assert "damaged" in output
        assert file.name in output
        file.write_bytes(octets)
    owned.create(tmp_path / "begun.partial")
    for name in ("begun", "begun.partial"):
        assert f"{tmp_path / 'begun.partial'} is not finished" in fails(["info", tmp_path / name], capsys)


def test_search_rejects(place, tmp_path, capsys):
    photo = place / "photos" / "dog" / "5.png"
    (tmp_path / "letter.jpg").write_text("no picture")
    for args, message in [
        ([place / "index", tmp_path / "none.jpg"], "none.jpg does not exist: name the index, then the file"),
        ([place / "index", "dog/55.png"], "or the name of a picture of the index (did you mean 'dog/5.png'?)"),
        ([place / "index", "dog/5.png", "--rerank", "margins"], "--rerank needs the file of a photo"),
        ([tmp_path / "none", photo], "none does not exist: name the folder that `hashgym index` wrote"),
        (
            [tmp_path / "none.jpg", place / "index"],
            f"is a folder, and there is no file {tmp_path / 'none.jpg'};",
        ),
        ([place / "index", tmp_path / "letter.jpg"], "letter.jpg is damaged or not a picture"),
        ([place / "photos", photo], "is not an index"),
        ([place / "codes", photo], "is not an index"),
        ([place / "index", photo, "--k", 0], "at least 1"),
        ([place / "index", photo, "--radius", -1], "at least 0"),
        ([place / "index", photo, "--root", tmp_path / "none"], "with --root"),
        ([place / "index", photo, "--root", tmp_path], "with --root"),
    ]:
        assert message in fails(["search", *args], capsys)


def test_names_in_any_bytes(place, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, name in enumerate([b"\xff\xfe.png", b"line\nbreak.png", b"[red]x[bold].png", "größe.png".encode()]):
        with open(os.fsencode(photos) + b"/" + name, "wb") as file:
            Image.open(place / "photos" / "cat" / f"{i}.png").save(file, "PNG")
    says(["encode", place / "encoder.onnx", photos, "--out", tmp_path / "codes"], capsys)
    says(["index", tmp_path / "codes", "--out", tmp_path / "index", "--backend", "brute-force"], capsys)
    query = place / "photos" / "cat" / "0.png"
    args = [sys.executable, "-m", "hashgym", "search", tmp_path / "index", query, "--k", "9"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "100"}
    table = subprocess.run(args, capture_output=True, check=True, env=strict).stdout.decode()
    for shown in ("\ufffd\ufffd.png", "line\ufffdbreak.png", "[red]x[bold].png", "größe.png"):
        assert shown in table
    found = subprocess.run([*args, "--json"], capture_output=True, check=True, env=strict).stdout
    names = {os.fsencode(match["name"]) for match in json.loads(found)["matches"]}
    assert names == {b"\xff\xfe.png", b"line\nbreak.png", b"[red]x[bold].png", "größe.png".encode()}


def test_the_search_side_needs_no_torch(place, tmp_path):
    code = (
        "import sys\nfrom hashgym.cli import main\n"
        "encoder, photos, photo, out = sys.argv[1:]\n"
        "main(['encode', encoder, photos, '--out', out + '/c'])\n"
        "main(['index', out + '/c', '--out', out + '/i', '--backend', 'brute-force'])\n"
        "main(['search', out + '/i', photo, '--html', out + '/o.html'])\n"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'matplotlib', 'onnx') if m in sys.modules])"
    )
    args = [place / "encoder.onnx", place / "photos", place / "photos" / "cat" / "1.png", tmp_path]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["export", "encode", "index", "search", "duplicates", "serve"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"`hashgym {command} " in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_shows_all_steps(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    output = capsys.readouterr().out
    places = [output.index(f"`hashgym {command} ") for command in ("features", "index", "search", "export", "encode")]
    assert places == sorted(places)


def test_encode_again_encodes_changed_pictures(place, tmp_path, capsys):
    photos, encoder = tmp_path / "photos", place / "encoder.onnx"
    for i in range(4):
        (photos / "sub").mkdir(parents=True, exist_ok=True)
        (photos / "sub" / f"{i}.png").write_bytes((place / "photos" / "cat" / f"{i}.png").read_bytes())
    (photos / "notes.txt").touch()
    (photos / "link").symlink_to(place / "photos")
    args = ["encode", encoder, photos, "--out", photos / "codes"]
    output = says([*args, "--exclude", "3.png"], capsys)
    assert "skipped: 1 file that is not read: 1 .txt; 1 link (--follow-links follows them); 1 by --exclude" in output
    assert "codes of 3 pictures, 12 bits each" in output
    output = says([*args, "--exclude", "3.png"], capsys)
    assert "is finished already and no picture has changed: it has codes of 3 pictures" in output
    (photos / "sub" / "1.png").write_bytes((place / "photos" / "dog" / "7.png").read_bytes())
    (photos / "sub" / "0.png").unlink()
    output = says(args, capsys)
    assert "1 new, 1 changed, 1 removed, the others unchanged; codes of 3 pictures" in output
    assert f"Update an index with `hashgym index {photos}/codes --out INDEX --add`" in output
    assert "The index keeps removed pictures until `--remove` names them." in output
    assert "updating" in output
    assert "resuming" not in output
    assert "finished already" in says([*args, "--checksum"], capsys)


def test_search_takes_a_short_k_and_names_swapped_arguments(place, capsys):
    photo = place / "photos" / "dog" / "5.png"
    output = says(["search", place / "index", photo, "-k", 3], capsys)
    assert output == says(["search", place / "index", photo, "--k", 3], capsys)
    error = fails(["search", photo, place / "index", "-k", 3], capsys)
    assert "the arguments are in the wrong order" in error
    assert f"`hashgym search {place / 'index'} {photo}`" in error


def test_files_that_begin_with_a_dash(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture = Image.open(place / "photos" / "dog" / "5.png")
    picture.save("-dash.png")
    picture.save("--k", "PNG")  # an option's name stays an option
    output = says(["search", place / "index", "-dash.png", "-k", 3], capsys)
    assert "1 0 dog/5.png whole" in output
    assert output == says(["search", place / "index", "--k", 3, "--", "-dash.png"], capsys)
    picture.save("other.png")
    output = says(["encode", place / "encoder.onnx", "-dash.png", "other.png", "--out", "codes"], capsys)
    assert "codes of 2 pictures" in output
    output = says(["index", "codes", "--out=-index", "--backend", "brute-force"], capsys)
    assert "`hashgym search ./-index photo.jpg`" in output
    assert "1 picture," in says(["index", "--out=-index", "--remove=-dash.png"], capsys)
    assert "Unrecognized options: -none.png" in flat_error(["search", place / "index", place, "-none.png"], capsys)


def flat_error(args: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(arg) for arg in args])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_search_in_any_encoding_and_into_a_closed_pipe(place, tmp_path):
    """Names come out in every encoding; JSON is ASCII and whole; a reader that leaves early gets no message."""
    photos = tmp_path / "photos"
    photos.mkdir()
    names = [b"\xff.png", "größe 日本.png".encode(), b"[old] a:dog:b\x1b[31m.png"]
    for i, name in enumerate(names):
        with open(os.fsencode(photos) + b"/" + name, "wb") as file:
            Image.open(place / "photos" / "cat" / f"{i}.png").save(file, "PNG")
    run = [sys.executable, "-m", "hashgym"]
    subprocess.run([*run, "encode", place / "encoder.onnx", photos, "--out", tmp_path / "c"], check=True)
    subprocess.run([*run, "index", tmp_path / "c", "--out", tmp_path / "i", "--backend", "brute-force"], check=True)
    search = [*run, "search", tmp_path / "i", place / "photos" / "cat" / "0.png"]
    for encoding in ("ascii", "cp1252"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        table = subprocess.run(search, capture_output=True, check=True, env=environment)
        for name in ("\ufffd.png", "größe 日本.png", "[old] a:dog:b\ufffd[31m.png"):
            assert name.encode(encoding, "backslashreplace") in table.stdout
        found = subprocess.run([*search, "--json"], capture_output=True, check=True, env=environment)
        assert found.stdout.isascii()
        assert {os.fsencode(match["name"]) for match in json.loads(found.stdout)["matches"]} == set(names)
        assert table.stderr == found.stderr == b""
    for more in ([], ["--json"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([*search, *more], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b"")


def test_export_learns_from_all_images(place, tmp_path, capsys, monkeypatch):
    """--train all: no image is held out, and the hasher is the one that is fitted to all of them."""
    data = cache.open_cache(place / "features")
    args = ["export", "itq", "--bits", 12, "--features", place / "features", "--features-only", "--threads", 1]
    assert "0 differ" in says([*args, "--train", "all", "--out", tmp_path / "all.onnx"], capsys)
    says([*args, "--train", "split", "--out", tmp_path / "split.onnx"], capsys)
    every, split = load_encoder(tmp_path / "all.onnx"), load_encoder(tmp_path / "split.onnx")
    assert every.metadata["source"]["train"] == "all"
    assert "train" not in split.metadata["source"]
    center, scale = data.features.mean(0, dtype=np.float64), data.features.std(0, dtype=np.float64)
    moved = ((data.features - center.astype(np.float32)) / scale.astype(np.float32)).astype(np.float32)
    wanted = hashers.make("itq", bits=12).fit(moved).transform(moved)
    margins = every.margins(np.array(data.features))[:, 0]
    np.testing.assert_allclose(margins, wanted, atol=1e-4)
    assert np.abs(split.margins(np.array(data.features))[:, 0] - wanted).max() > 0.01
    hashers.make("lsh", bits=9).fit(data.features).save(tmp_path / "saved.npz")
    fitted = ["export", tmp_path / "saved.npz", "--features", place / "features", "--out", tmp_path / "o.onnx"]
    assert "a saved one is fitted already" in fails([*fitted, "--train", "all"], capsys)
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "split.onnx").rename(run / "policy.onnx")
    assert "a run is trained already" in fails(["export", run, "--train", "all", "--out", tmp_path / "o.onnx"], capsys)
    assert "threads must be at least 1, got 0" in fails([*args, "--threads", 0, "--out", tmp_path / "o.onnx"], capsys)
    assert not (tmp_path / "o.onnx").exists()


def test_export_shows_its_progress_unless_quiet(place, tmp_path, capsys, monkeypatch):
    from hashgym.hashers.dsh import DSH

    monkeypatch.setitem(DSH.__init__.__kwdefaults__, "updates", 20)
    args = ["export", "dsh", "--bits", 8, "--features", place / "features", "--features-only"]
    assert "DSH ━" in says([*args, "--out", tmp_path / "a.onnx"], capsys)
    assert "DSH" not in says([*args, "--quiet", "--out", tmp_path / "b.onnx"], capsys)
    a, b = load_encoder(tmp_path / "a.onnx"), load_encoder(tmp_path / "b.onnx")
    x = np.array(cache.open_cache(place / "features").features)
    assert (a.encode(x).words == b.encode(x).words).all()


def test_names_of_files_are_shown_where_there_are_too_many(place, tmp_path, monkeypatch, capsys):
    """`hashgym search INDEX *` in a folder with names that would control the terminal."""
    error = flat_error(["search", place / "index", place, "\x1b]0;title\x07.png", "\u202egpj"], capsys)
    assert re.search(r"Unrecognized (options|arguments): \ufffd\]0;title\ufffd?\.png,? \ufffdgpj", error)
    assert not set("\x1b\x07\u202e") & set(error)


def test_info_looks_again_where_the_folder_was_replaced_meanwhile(place, tmp_path, capsys, monkeypatch):
    index, real, calls = shutil.copytree(place / "index", tmp_path / "index"), cli._index_facts, []

    def replaced(folder: str) -> object:
        calls.append(folder)
        if len(calls) == 1:
            meta = (index / "meta.json").read_bytes()
            with atomic_write(index / "meta.json") as file:
                file.write(meta)
            raise DataError("the old content is gone")
        return real(folder)

    monkeypatch.setattr(cli, "_index_facts", replaced)
    assert "checksums are right" in says(["info", index], capsys)
    assert len(calls) == 2


@pytest.mark.parametrize("command", ["encode", "features"])
def test_the_error_for_a_foreign_folder_does_not_suggest_removing_it(place, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for out in (".", "mine", "dangling"):
        arguments = {
            "encode": ["encode", place / "encoder.onnx", place / "photos", "--out", out],
            "features": ["features", "--dataset", f"folder:{place}/photos", "--backbone", "pixels", "--out", out],
        }[command]
        output = fails(arguments, capsys, 2)
        assert "exists already" in output
        assert "remove" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "mine"]


def test_one_command_from_photos_to_a_search(place, tmp_path, capsys):
    photos, index = shutil.copytree(place / "photos", tmp_path / "photos"), tmp_path / "index"
    (photos / "notes.txt").touch()
    (photos / "broken.jpg").write_bytes(b"nothing")
    command = ["index", photos, "--backbone", "pixels", "--size", "4", "--bits", "12", "--out", index]
    output = says(command, capsys)
    assert "1 picture was left out" in output
    assert "broken.jpg is damaged" in output
    assert "1 .txt" in output
    assert "40 pictures, codes of 12 bits" in output
    found = json.loads(says(["search", index, photos / "cat" / "3.png", "-k", "40", "--json"], capsys))
    assert found["matches"][0]["name"] == "cat/3.png"

    (photos / "cat" / "3.png").unlink()
    shutil.copy(photos / "dog" / "1.png", photos / "dog" / "copy.png")
    output = says(["index", photos, "--out", index], capsys)  # the backbone and the length are known
    assert "1 new, 0 changed, 1 removed, 39 unchanged" in output
    found = json.loads(says(["search", index, photos / "dog" / "1.png", "-k", "40", "--json"], capsys))
    assert {match["name"] for match in found["matches"][:2]} == {"dog/1.png", "dog/copy.png"}
    assert "cat/3.png" not in {match["name"] for match in found["matches"]}

    again = tmp_path / "again"
    says(["index", photos, "--encoder", place / "encoder.onnx", "--out", again], capsys)
    assert load_encoder(again / "codes" / "encoder.onnx").digest == load_encoder(place / "encoder.onnx").digest
    assert "has codes of 12 bits: leave out --bits" in fails([*command[:-3], "16", "--out", index], capsys)
    assert "--add is for folders of codes" in fails(["index", photos, "--add", "--out", index], capsys)
    assert "index photos, or folders of codes" in fails(["index", photos, place / "codes", "--out", again], capsys)
    assert "--bits, --size, --checksum: only for photos" in fails(
        ["index", place / "codes", "--bits", "8", "--size", "8", "--checksum", "--out", tmp_path / "x"], capsys
    )
    assert not (tmp_path / "x").exists()
