"""``hashgym train``: agents and hashers by name, in a checkout and from a wheel."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import hashgym.data
from hashgym import cli, hashers, load_encoder, train

ROOT = Path(__file__).parents[1]


def test_a_hasher_is_fitted_saved_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    cli.main(["train", "itq", "--dataset", "digits", "--bits", "12", "--iterations", "3", "--out", f"{tmp_path}/itq"])
    assert "12 bits on digits: mAP 0." in capsys.readouterr().out
    digits = hashgym.data.load("digits")
    hasher = hashers.load(tmp_path / "itq" / "hasher.npz")
    expected = hasher.encode(digits.standardized().features)
    assert hasher.get_params()["iterations"] == 3
    codes = load_encoder(tmp_path / "itq" / "policy.onnx").encode(digits.features)
    assert np.mean(hashgym.codes.unpack(codes.words[:, 0], 12) != expected) < 1e-3
    cli.main(["export", f"{tmp_path}/itq", "--features-only", "--out", f"{tmp_path}/encoder.onnx"])


def test_an_agent_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--bits", "8", "--updates", "3", "--num-envs", "16"]
    cli.main(["train", "drlih", "norec", *options, "--out", f"{tmp_path}/run"])
    assert "norec, 8 bits on digits: mAP" in capsys.readouterr().out
    assert (tmp_path / "run" / "policy.pt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ict"], "unknown agent or hasher 'ict' (did you mean 'itq'?)"),
        (["--dataset", "digits", "itq"], "write `hashgym train NAME --dataset ...`"),
        (["itq", "--dataset", "nowhere"], "nowhere"),
        (["itq", "--out", "HERE"], "HERE"),
        (["lsh", "--dataset", "digits-pixels"], "LSH takes feature vectors"),
        (["csq", "--dataset", "digits-pixels", "--backbone", "convnt"], "did you mean 'convnet'"),
        (["drlih", "--variant", "lstn"], "did you mean 'lstm'"),
    ],
)
def test_errors_are_reported_before_anything_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.jpg").write_text("not ours")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *(word.replace("HERE", str(tmp_path)) for word in words)])
    assert stopped.value.code == 2
    assert message.replace("HERE", str(tmp_path)) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_fitted_hasher_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "lsh", "--bits", "8", "--out", f"{tmp_path}/lsh"]
    cli.main(words)
    before = (tmp_path / "lsh" / "hasher.npz").read_bytes()
    with pytest.raises(SystemExit):
        cli.main([*words, "--seed", "1"])
    assert "has a hasher already" in capsys.readouterr().err
    assert (tmp_path / "lsh" / "hasher.npz").read_bytes() == before


def test_a_hasher_is_saved_where_onnx_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    cli.main(["train", "lsh", "--bits", "8", "--out", f"{tmp_path}/lsh"])
    assert "policy.onnx is not written: ONNX models need onnx" in capsys.readouterr().err
    assert hashers.load(tmp_path / "lsh" / "hasher.npz").bits == 8
    assert not (tmp_path / "lsh" / "policy.onnx").exists()


def test_a_hasher_without_an_onnx_form_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_in_numpy.py").write_text(
        "from dataclasses import dataclass\nimport numpy as np\nfrom hashgym.hashers.lsh import LSH\n\n"
        "@dataclass(kw_only=True, eq=False)\nclass Mine(LSH):\n    'My own.'\n"
        "    def _transform(self, X):\n        return np.ascontiguousarray(super()._transform(np.asarray(X)))\n"
        "    def head(self):\n        raise ValueError('it has no torch form')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cli.main(["train", "mine_in_numpy:Mine", "--bits", "8", "--out", f"{tmp_path}/mine"])
    assert "policy.onnx is not written: it has no torch form" in " ".join(capsys.readouterr().err.split())
    assert hashers.load(tmp_path / "mine" / "hasher.npz").bits == 8


def test_help_lists_the_agents(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(f" {agent}, " in shown for agent in train.AGENTS)
    assert "NAME OPTIONS..." in shown


def test_the_wheel_brings_the_agents(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
        assert not [name for name in file.namelist() if name.startswith(("agents/", "benchmarks/", "tests/"))]
    code = "import hashgym, hashgym.optional as o; print(o.find_agent('drlih').__name__, hashgym.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["hashgym.agents.drlih", str(tmp_path / "site" / "hashgym" / "__init__.py")]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of scenes and of their regions, without labels."""
    scenes = hashgym.data.load("digit-scenes")
    none = np.zeros((len(scenes), 0), np.uint8)
    folder = tmp_path_factory.mktemp("unlabelled") / "features"
    hashgym.data.cache.save(dataclasses.replace(scenes, name="none", labels=none, label_names=()), folder)
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["noseq", "--bits", "8", "--updates", "5"], "8 bits on none, fitted in"),
        (["drlih", "norec", "--bits", "8", "--updates", "2", "--num-envs", "16"], "norec, 8 bits on none, trained in"),
        (["mch", "--bits", "8", "--updates", "2", "--base", "ksh"], "codes an image; without labels"),
        (["multicode", "--bits", "8", "--updates", "2", "--base", "ksh"], "codes an image; without labels"),
        (["sb3", "--bits", "8", "--steps", "64", "--num-envs", "8"], "ppo on none, trained in"),
    ],
)
def test_agents_and_hashers_learn_from_neighbours(
    words: list[str], said: str, unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["train", *words, "--dataset", str(unlabelled), "--similarity", "neighbours"])
    assert said in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *words, "--dataset", str(unlabelled)])
    assert stopped.value.code == 2
    assert "no labels" in capsys.readouterr().err


def test_a_hasher_that_learns_from_neighbours_is_measured_by_labels(capsys: pytest.CaptureFixture[str]) -> None:
    score = {}
    for words in (["itq"], ["noseq", "--updates", "200", "--similarity", "neighbours"]):
        cli.main(["train", *words, "--dataset", "digits", "--bits", "16"])
        score[words[0]] = float(capsys.readouterr().out.split("mAP ")[1][:6])
    assert score["itq"] + 0.03 < score["noseq"] < 0.9
