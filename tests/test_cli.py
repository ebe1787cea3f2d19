"""The commands of `hashgym` for datasets and features."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hashgym
from hashgym import cli
from hashgym.data import cache
from hashgym.storage.checksums import sha256


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(tmp_path / "photos" / kind / f"{i}.png")
    return tmp_path / "photos"


def words(photos: Path, out: Path, *more: object) -> list[str]:
    return ["features", "--dataset", f"folder:{photos}", "--backbone", "pixels", "--out", str(out), *map(str, more)]


def fails(args: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that fails."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == code
    return capsys.readouterr().err


def flat(text: str) -> str:
    return " ".join(text.split())


def test_features_then_info(photos, tmp_path, capsys):
    options = ("--size", 4, "--regions", 5, "--sigma", 0.6, "--train-regions", 2, "--queries", 4, "--train", 8)
    cli.main(words(photos, tmp_path / "out", *options))
    output = flat(capsys.readouterr().out)
    assert "40/40" in output
    assert "4 queries" in output
    data = cache.open_cache(tmp_path / "out", verify=True)
    assert (len(data), data.dim, len(data.query), len(data.train)) == (40, 48, 4, 8)
    assert data.regions.shape == (40, 5, 48)
    assert data.train_regions.shape == (40, 2, 48)
    cli.main(["info", str(tmp_path / "out")])
    output = flat(capsys.readouterr().out)
    for wanted in (
        "40, 48 features each",
        "2: cat, dog",
        "4 queries",
        "bicubic to 4 x 4",
        "40 x 5 x 48",
        "checksums are right",
    ):
        assert wanted in output


def test_features_prints_the_split_and_the_skipped_files(photos, tmp_path, capsys):
    """Folders for the parts of a split, in any case; files of other kinds, links and what --exclude names."""
    for part, kind in (("Train", "cat"), ("Train", "dog"), ("val", "cat"), ("test", "dog")):
        (tmp_path / "set" / part / kind).mkdir(parents=True)
        for i in range(4):
            name = f"{part}/{kind}/{i}.png"
            (tmp_path / "set" / name).write_bytes((photos / kind / f"{i}.png").read_bytes())
    (tmp_path / "set" / "Train" / "cat" / "9.jxl").touch()
    (tmp_path / "set" / "Train" / "cat" / "8.txt").touch()
    (tmp_path / "set" / "Train" / "bird").symlink_to(photos / "cat")
    cli.main(words(tmp_path / "set", tmp_path / "out", "--exclude", "3.png", "--exclude", "*/dog/2.*"))
    output = flat(capsys.readouterr().out)
    assert "in folders for the parts of a split: Train, test, val" in output
    assert "2 files that are not read: 1 .jxl (pictures of a format that is not read here" in output
    assert "1 link (--follow-links follows them); 6 by --exclude" in output
    assert "cat: 0 queries, 3 to train, 3 in the database dog: 2 queries, 2 to train, 2 in the database" in output
    assert "3 validation images held out" in output
    assert "no queries of cat" in output
    cli.main(words(tmp_path / "set", tmp_path / "followed", "--follow-links"))
    data = cache.open_cache(tmp_path / "followed")
    assert data.label_names == ("bird", "cat", "dog")
    assert data.provenance["split"] == "given"
    assert "1 .jxl" in data.provenance["passed_over"]


def test_a_class_too_small_for_a_split_is_named(photos, tmp_path, capsys):
    assert "which leaves none of class dog: ask for at least 2" in fails(
        words(photos, tmp_path / "out", "--train", 1), 2, capsys
    ).replace("class cat", "class dog")
    error = fails(words(photos, tmp_path / "out", "--queries", 39), 2, capsys)
    assert "39 query images requested, but only 38 can be drawn" in error
    assert not list(tmp_path.glob("out*"))


def test_words_then_features(photos, tmp_path, capsys):
    pytest.importorskip("cv2")
    shared = ("--dataset", f"folder:{photos}", "--size", "16", "--queries", "4", "--seed", "3")
    learn = ["words", *shared, "--out", str(tmp_path / "w.npy"), "--words", "7", "--images", "9"]
    cli.main(learn)
    output = flat(capsys.readouterr().out)
    assert "9/9" in output or "100%" in output
    assert "7 words" in output
    cli.main(
        ["features", *shared, "--backbone", "bow", "--weights", f"{tmp_path / 'w.npy'}", "--out", f"{tmp_path}/out"]
    )
    data = cache.open_cache(tmp_path / "out", verify=True)
    assert (len(data), data.dim, len(data.query)) == (40, 7, 4)
    np.testing.assert_allclose(data.features.sum(1), 1, rtol=1e-5)
    assert data.provenance["backbone"]["digest"] == sha256(tmp_path / "w.npy")
    assert "exists already" in fails(learn, 2, capsys)
    without = ["features", *shared, "--backbone", "bow", "--out", str(tmp_path / "more")]
    assert "`hashgym words --dataset NAME" in fails(without, 2, capsys)


def test_info_of_a_damaged_folder(photos, tmp_path, capsys):
    cli.main(words(photos, tmp_path / "out"))
    content = bytearray((tmp_path / "out" / "features.npy").read_bytes())
    content[-3] ^= 1
    (tmp_path / "out" / "features.npy").write_bytes(content)
    capsys.readouterr()
    assert "features.npy has changed" in fails(["info", str(tmp_path / "out")], 1, capsys)
    (tmp_path / "out" / "meta.json").write_text("{")
    assert "meta.json is damaged" in fails(["info", str(tmp_path / "out")], 1, capsys)
    assert "is not a folder of features" in fails(["info", str(tmp_path)], 2, capsys)


def test_a_bad_image(photos, tmp_path, capsys):
    os.truncate(photos / "dog" / "7.png", 50)
    error = fails(words(photos, tmp_path / "out"), 2, capsys)
    assert "dog/7.png" in error
    assert "--skip-bad" in error
    assert "Traceback" not in error
    cli.main(words(photos, tmp_path / "out", "--skip-bad"))
    output = capsys.readouterr().out
    assert "1 image was left out" in output
    assert "dog/7.png" in output
    assert len(cache.open_cache(tmp_path / "out")) == 39


def test_errors_are_one_line_and_code_2(photos, tmp_path, capsys):
    cli.main(words(photos, tmp_path / "there"))
    capsys.readouterr()
    for args, message in [
        (words(photos, tmp_path / "there"), "exists already"),
        (words(photos / "absent", tmp_path / "out"), "absent"),
        (words(photos, tmp_path / "out", "--regions", 4), "regions must be 5"),
        (words(photos, tmp_path / "out", "--split", "moon"), "moon"),
        (words(photos, tmp_path / "out", "--weights", "w.pth"), "neither weights"),
        (["features", "--dataset", "cifar10", "--backbone", "pixels", "--out", str(tmp_path / "out")], "--root"),
        (["features", "--dataset", "digits", "--backbone", "pixels", "--out", str(tmp_path / "out")], "embedded"),
        (["features", "--dataset", "moon", "--backbone", "pixels", "--out", str(tmp_path / "out")], "moon"),
    ]:
        error = fails(args, 2, capsys)
        assert message in error
        assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "there"]


@pytest.mark.parametrize(
    "args",
    [[], ["nonsense"], ["features"], ["features", "--size", "big"], ["words"]],
)
def test_wrong_arguments_exit_with_2(args, capsys):
    fails(args, 2, capsys)


def test_lists(capsys):
    cli.main(["datasets"])
    output = capsys.readouterr().out
    embedded, read = ("digits", "digits-pixels", "digit-scenes"), ("cifar10", "mirflickr25k", "nuswide21", "coco")
    for name in (*embedded, *read, "folder:PATH", "list:FILE"):
        assert re.search(rf"^{name}\b", output, re.MULTILINE)
    cli.main(["backbones"])
    output = capsys.readouterr().out
    for name in ("pixels", "gist", "bow", "efficientnet_lite0", "alexnet", "vgg19", "torchvision"):
        assert name in output
    for name, cuts in {"efficientnet_lite0": "0 to 16", "vgg16_conv": "0 to 12", "convnet": "0"}.items():
        assert re.search(rf"^{name} .* {cuts}$", output, re.MULTILINE)
    cli.main(["hashers"])
    output = capsys.readouterr().out
    for name in ("lsh", "itq"):
        assert re.search(rf"^{name}\b", output, re.MULTILINE)


@pytest.fixture
def random_weights(tmp_path: Path) -> Path:
    """Weights of the convolutions of AlexNet, at random."""
    shapes = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
    state = {}
    torch.manual_seed(0)
    for layer, (width, before, side) in zip((0, 3, 6, 8, 10), shapes, strict=True):
        state |= {f"{layer}.weight": torch.randn(width, before, side, side) / 30, f"{layer}.bias": torch.zeros(width)}
    torch.save(state, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def test_activations_then_info(photos, random_weights, tmp_path, capsys):
    network = ("--backbone", "alexnet_conv", "--weights", random_weights, "--size", 48, "--runtime", "torch")
    command = [*words(photos, tmp_path / "out"), *map(str, (*network, "--cut", 2, "--views", 3, "--train", 8))]
    cli.main(command)
    data = cache.open_cache(tmp_path / "out", verify=True)
    assert (data.features.shape, data.views.shape) == ((40, 192, 5, 5), (8, 3, 192, 5, 5))
    assert data.features.dtype == data.views.dtype == np.float16
    cli.main(["info", str(tmp_path / "out")])
    output = flat(capsys.readouterr().out)
    for wanted in (
        "40, activations 192 x 5 x 5 each, 3 views of each training image",
        "'cut': 2",
        "views 3",
        "8 x 3 x 192 x 5 x 5",
        "checksums are right",
    ):
        assert wanted in output.replace("cut: 2", "'cut': 2")
    for options, message in (
        (("--cut", 0, "--views", 3), "pixels are augmented anew in training"),
        (("--cut", 5), "alexnet_conv can be cut at 0 (pixels) to 4, before its last block, got 5"),
        (("--cut", 2, "--size", 20), "does not take pictures of 20 x 20 pixels"),
        (("--views", 3), "a whole network has none"),
        (("--cut", 2, "--regions", 5), "regions are of feature vectors"),
    ):
        failing = [*words(photos, tmp_path / "no"), *map(str, (*network, *options))]
        assert message in flat(fails(failing, 2, capsys))
        assert not list(tmp_path.glob("no*"))


def test_pixels_then_info(photos, tmp_path, capsys):
    cli.main([*words(photos, tmp_path / "out", "--cut", 0, "--size", 16), "--backbone", "convnet"])
    cli.main(["info", str(tmp_path / "out")])
    assert "40, pixels 3 x 16 x 16 each" in flat(capsys.readouterr().out)
    assert "the cut 0" in flat(fails([*words(photos, tmp_path / "no"), "--backbone", "convnet"], 2, capsys))
    assert "not a network that can be cut" in flat(fails(words(photos, tmp_path / "no", "--cut", 1), 2, capsys))


def test_help_lists_the_commands_and_is_light():
    code = (
        "import sys\nfrom hashgym.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'sklearn', 'torchvision', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in cli.COMMANDS:
        assert command in done.stdout


def test_features_without_ray(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'hashgym[ray]'" in fails(words(photos, tmp_path / "out", "--executor", "ray"), 2, capsys)
    assert "local" in fails(words(photos, tmp_path / "out", "--executor", "abacus"), 2, capsys)
    assert not list(tmp_path.glob("out*"))


def test_module_and_ctrl_c(photos, tmp_path):
    """Ctrl-C during a job: a message on how to resume, code 130; the same command finishes it."""
    slow = (
        "import signal, sys, time\nfrom hashgym.data import pictures\nfrom hashgym import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as background jobs of a shell ignore it
        "real = pictures.OpenImage.__call__\n"
        "def call(self, index):\n    time.sleep(0.1)\n    return real(self, index)\n"
        "pictures.OpenImage.__call__ = call\ncli.main(sys.argv[1:])"
    )
    args = words(photos, tmp_path / "out", "--batch-size", 4)
    process = subprocess.Popen([sys.executable, "-c", slow, *args], stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    while not (journal.exists() and "batch" in journal.read_text().partition("\n")[2]):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130
    assert f"the same command resumes from {tmp_path / 'out.partial'}" in flat(error).replace("- ", "-")
    assert "Traceback" not in error
    subprocess.run([sys.executable, "-m", "hashgym", *args], check=True, capture_output=True)
    cache.verify(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["images"] == 40


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"hashgym {hashgym.__version__}\n"


@pytest.mark.parametrize(
    ("args", "suggested"),
    [
        (["serch", "a", "b"], "there is no command 'serch' (did you mean 'search'?): choose one of datasets, "),
        (["moon"], "there is no command 'moon': choose one of"),
        (["search", "a", "b", "--jsn"], "--json"),
        (["features", "--dataset", "folder:x", "--backbone", "efficientnet-lite0", "--out", "o"], "efficientnet_lite0"),
        (["features", "--dataset", "cifar-10", "--backbone", "pixels", "--out", "o"], "(did you mean 'cifar10'?)"),
        (["export", "itqq", "--bits", "8", "--features", "digits", "--out", "o"], "(did you mean 'itq'?)"),
    ],
)
def test_typos_get_a_suggestion(args, suggested, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "x" / "a" / "1.png")
    assert suggested in flat(fails(args, 2, capsys))
    assert not (tmp_path / "o").exists()


ODD = "F/a [/b] c [old] a:dog:b"


def test_odd_names_are_shown_as_they_are_and_quoted_in_commands(photos, tmp_path, monkeypatch, capsys):
    """Markup and emoji codes are shown literally in results, left-out lists and `info`."""
    monkeypatch.chdir(tmp_path)
    (photos / "cat" / "0.png").rename(photos / "cat" / "[b]x[old] :dog:\x1b[31m\u202e.png")
    bad = photos / "cat" / "[b]x[old] :dog:\x1b[31m\u202e.png"
    bad.write_text("no picture")
    (photos / "cat").rename(photos / "[old] a:cat:b")
    cli.main(words(photos, ODD, "--skip-bad"))
    output = capsys.readouterr().out
    assert f"{ODD}: " in output
    assert f"`hashgym info '{ODD}'`" in output
    assert "[b]x[old] :dog:\ufffd[31m\ufffd.png" in output
    cli.main(["info", ODD])
    shown = capsys.readouterr().out
    assert "[old] a:cat:b, dog" in shown
    assert "[b]x[old] :dog:\ufffd[31m\ufffd.png" in shown
    assert not set("\x1b\u202e") & set(output + shown)
    assert f"{ODD} exists already" in fails(words(photos, ODD), 2, capsys)


def test_info_is_whole_when_piped(photos, tmp_path):
    """Digests and long label lists are neither broken over lines nor cut off."""
    for i in range(400):
        (photos / f"a class with a long name {i:03}").mkdir()
        for j in range(2):
            os.link(photos / "cat" / "1.png", photos / f"a class with a long name {i:03}" / f"{j}.png")
    cli.main(words(photos, tmp_path / "out"))
    data = cache.open_cache(tmp_path / "out")
    environment = os.environ | {"COLUMNS": "40"}
    args = [sys.executable, "-m", "hashgym", "info", str(tmp_path / "out")]
    output = subprocess.run(args, capture_output=True, text=True, check=True, env=environment).stdout
    lines = output.splitlines()
    assert f"402: {', '.join(data.label_names)}" in next(line for line in lines if line.startswith("labels"))
    assert lines[-1].endswith("checksums are right")
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_info_prints_in_every_encoding(encoding, photos, tmp_path):
    (photos / "cat").rename(photos / "größe 日本")
    cli.main(words(photos, tmp_path / "ö日"))
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    args = [sys.executable, "-m", "hashgym", "info", tmp_path / "ö日"]
    done = subprocess.run(args, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "größe 日本".encode(encoding, "backslashreplace") in done.stdout


def test_a_closed_pipe_ends_it_quietly(photos, tmp_path):
    """`hashgym ... | head -1` prints nothing more, in all commands and their help."""
    for args in (["hashers"], ["--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([sys.executable, "-m", "hashgym", *args], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert done.stderr == b""
        assert done.returncode in ((141,) if args == ["hashers"] else (0, 141))  # older tyro: nothing is left to write


@pytest.mark.parametrize("option", ["--runtime", "--engine"])
def test_the_runtime_has_its_old_name_too(photos, tmp_path, capsys, option):
    output = flat(fails(words(photos, tmp_path / "out", option, "onnx"), 2, capsys))
    assert "neither weights nor a device nor a runtime" in output
