"""Pictures to codes: which pictures, what codes, and what happens to a job that is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import load_encoder
from hashgym.data import DataError, sealed
from hashgym.data.files import open_image
from hashgym.gallery import encode_images, find_images, open_codes
from tests.gallery.small import content, picture, write_encoder, write_pictures

NAMES = ["b/10.png", "b/9.png", "a.png", "b/c/1.PNG", "z z.jpg"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "regions.onnx", regions=True)


def encode(encoder: Path, images: list[Path | str], out: Path, **options: object) -> Path:
    return encode_images(encoder, images, out, progress=False, **options)


@pytest.mark.parametrize("kind", ["encoder", "several"])
@pytest.mark.parametrize(("batch_size", "workers"), [(64, 1), (2, 3)])
def test_every_row_is_its_picture(kind, batch_size, workers, request, tmp_path):
    path = request.getfixturevalue(kind)
    write_pictures(tmp_path / "photos", NAMES)
    codes = open_codes(encode(path, [tmp_path / "photos"], tmp_path / "out", batch_size=batch_size, workers=workers))
    run = load_encoder(path)
    assert codes.names == ["a.png", "b/9.png", "b/10.png", "b/c/1.PNG", "z z.jpg"]
    assert (codes.root, codes.encoder, codes.bits, len(codes)) == (tmp_path / "photos", run.digest, 48, 5)
    for row, name in enumerate(codes.names):
        image = open_image(tmp_path / "photos" / name)
        views = [run.encode_pictures(run.prepare(image.crop(box), regions=False)) for box in run.boxes(*image.size)]
        assert [view.words[0, 0].tolist() for view in views] == codes.words[row].tolist()
        assert codes.sizes[row].tolist() == [32, 24]
    assert codes.words.shape[1] == (6 if kind == "several" else 1)
    assert codes.kept[:, 0].all()
    assert load_encoder(tmp_path / "out" / "encoder.onnx").digest == run.digest
    assert (codes.sets(slice(1, 3)).words == codes.words[1:3]).all()


def test_sizes_are_of_the_upright_picture(encoder, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, 30, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert open_codes(encode(encoder, [tmp_path / "turned.jpg"], tmp_path / "out")).sizes.tolist() == [[20, 30]]


def test_the_same_pictures_however_they_are_named(encoder, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "photos", NAMES)
    (photos / ".hidden").mkdir()
    write_pictures(photos, [".hidden/x.png", ".y.png"])
    (photos / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    wanted = content(encode(encoder, [photos], tmp_path / "0"))
    for i, places in enumerate(
        [
            ["photos", "photos/a.png", "photos/b"],
            ["photos/b/../b", "photos/*.png", "photos/z z.jpg"],
            ["./photos/**/*", "photos"],
            ["photos/*"],
        ],
        1,
    ):
        assert content(encode(encoder, places, tmp_path / str(i))) == wanted
    root, names = find_images(["photos/b/c", "photos/b/9.png"])
    assert (root, names) == (photos / "b", ["9.png", "c/1.PNG"])
    assert find_images(["photos/b/9.png"]) == (photos / "b", ["9.png"])
    os.symlink(photos, tmp_path / "link")
    assert find_images(["link/b", "photos/b"]) == (photos / "b", ["9.png", "10.png", "c/1.PNG"])


def test_places_without_pictures(encoder, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, message in [
        ("empty", "holds no images"),
        ("absent", "does not exist"),
        ("empty/*.png", "no image or folder matches"),
        (os.fsdecode(b"\xff"), "does not exist"),
    ]:
        with pytest.raises(DataError, match=message):
            encode(encoder, [tmp_path / place], tmp_path / "out")
    with pytest.raises(DataError, match="there is no image"):
        encode(encoder, [], tmp_path / "out")
    with pytest.raises(ValueError, match="at least 1"):
        encode(encoder, [tmp_path], tmp_path / "out", workers=0)
    assert not list(tmp_path.glob("out*"))


NAME = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(NAME, min_size=1, max_size=4, unique_by=str.casefold), st.binary(min_size=1, max_size=4))
def test_names_of_any_characters(encoder, tmp_path_factory, names, octets):
    folder = tmp_path_factory.mktemp("any")
    names = ["x" + name + ".png" for name in names]
    if b"/" not in octets and b"\0" not in octets:
        names.append("y" + os.fsdecode(octets) + ".png")
    write_pictures(folder / "photos", names)
    codes = open_codes(encode(encoder, [folder / "photos"], folder / "out"))
    assert sorted(codes.names) == sorted(names)
    (folder / "photos" / "[x].png").write_bytes((folder / "photos" / names[0]).read_bytes())
    assert find_images([folder / "photos" / "[x].png"])[1] == ["[x].png"]  # a file before a pattern


def test_unreadable_files_stop_or_are_left_out(encoder, tmp_path):
    photos = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(9)])
    os.truncate(photos / "3.png", 20)
    (photos / "5.jpg").write_text("no picture")
    (photos / "6.png").unlink()
    (photos / "6.png").symlink_to("nowhere.png")
    os.mkfifo(photos / "7.webp")
    picture(0).save(tmp_path / "secret.png")
    (photos / "8.png").unlink()
    (photos / "8.png").symlink_to(tmp_path / "secret.png")
    (photos / "2.png").unlink()
    (photos / "2.png").symlink_to("1.png")  # within the root
    with pytest.raises(DataError, match=r"3\.png.*same command again; --skip-bad"):
        encode(encoder, [photos], tmp_path / "out", batch_size=2)
    codes = open_codes(encode(encoder, [photos], tmp_path / "out", batch_size=2, skip_bad=True))
    assert codes.names == ["0.png", "1.png", "2.png", "4.png", "5.png", "7.png"]
    assert list(codes.left_out) == ["3.png", "5.jpg", "6.png", "7.webp", "8.png"]
    assert "link that leads out" in codes.left_out["8.png"]
    assert "is no file" in codes.left_out["7.webp"]
    alone = open_codes(encode(encoder, [photos / name for name in codes.names], tmp_path / "alone"))
    for key in ("words", "kept", "sizes"):
        np.testing.assert_array_equal(getattr(codes, key), getattr(alone, key))
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        encode(encoder, [photos / "5.jpg"], tmp_path / "none", skip_bad=True)


def test_a_finished_folder_is_left_alone(encoder, several, tmp_path):
    photos = write_pictures(tmp_path / "photos", NAMES)
    out = encode(encoder, [photos], tmp_path / "out")
    before = content(out)
    (out / "journal.jsonl").write_text("of a run that was killed at its very end")
    encode(encoder, [photos], out)
    assert content(out) == before
    with pytest.raises(DataError, match=r"codes of another encoder.*another --out"):
        encode(several, [photos], out)
    write_pictures(photos, ["new.png"])
    with pytest.raises(DataError, match=r"codes of other pictures.*index --add"):
        encode(encoder, [photos], out)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="exists already"):
        encode(encoder, [photos], tmp_path / "other")
    assert content(out) == before


def test_killed_at_any_moment_it_ends_with_the_same_bytes(several, tmp_path):
    photos = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(40)])
    (photos / "x.png").write_text("no picture")
    wanted = content(encode(several, [photos], tmp_path / "whole", batch_size=3, skip_bad=True))
    slow = (
        "import sys, time\nfrom hashgym.gallery import codes\nreal = codes.open_image\n"
        "def call(*args, **options):\n    time.sleep(0.02)\n    return real(*args, **options)\n"
        "codes.open_image = call\ncodes.encode_images(*sys.argv[1:2], sys.argv[2:3], sys.argv[3], batch_size=3, "
        "skip_bad=True, progress=False)\nassert 'torch' not in sys.modules"
    )
    args = [sys.executable, "-c", slow, str(several), str(photos), str(tmp_path / "out")]
    journal = tmp_path / "out.partial" / "journal.jsonl"
    for lines in (2, 6):
        process = subprocess.Popen(args)
        while not (journal.exists() and journal.read_text().count("\n") > lines):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(DataError, match="is not finished"):
        open_codes(tmp_path / "out")
    with pytest.raises(DataError, match="another, unfinished job"):
        encode(several, [photos / "1.png"], tmp_path / "out")
    subprocess.run(args, check=True)
    assert content(tmp_path / "out") == wanted


def test_what_is_no_folder_of_codes_or_damaged(encoder, tmp_path, monkeypatch):
    out = encode(encoder, [write_pictures(tmp_path / "photos", NAMES)], tmp_path / "out")
    with pytest.raises(DataError, match=r"no folder of codes.*hashgym encode"):
        open_codes(tmp_path / "photos")
    words, meta = (out / "words.npy").read_bytes(), (out / "meta.json").read_text()
    (out / "words.npy").write_bytes(words[:-8] + b"\0" * 8)
    with monkeypatch.context() as large:
        large.setattr(sealed, "SMALL", 0)
        open_codes(out, verify=False)
        for verify in ("once", "once", True):
            with pytest.raises(DataError, match=r"words\.npy has changed"):
                open_codes(out, verify=verify)
    with pytest.raises(DataError, match=r"words\.npy has changed"):
        open_codes(out)
    (out / "words.npy").write_bytes(words[:-8])
    with pytest.raises(DataError, match=r"words\.npy has \d+ of \d+ bytes"):
        open_codes(out)
    (out / "meta.json").write_text(meta.replace('"bits": 48', '"bits": 40'))
    with pytest.raises(DataError, match="damaged or was edited"):
        open_codes(out)
    changed = json.loads(meta) | {"version": 99}
    (out / "meta.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match="version 99"):
        open_codes(out)
    (out / "meta.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        open_codes(out)


def test_encoders_of_features_are_refused(encoder, tmp_path):
    torch = pytest.importorskip("torch")
    from hashgym.encoders import export

    export.write(tmp_path / "features.onnx", torch.nn.Identity(), dim=4, bits=4, source={})
    with pytest.raises(ValueError, match=r"takes features.*hashgym export"):
        encode(tmp_path / "features.onnx", [tmp_path], tmp_path / "out")
