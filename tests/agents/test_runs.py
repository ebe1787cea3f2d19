"""The loop that all training runs share."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from agents import drlih, mch, runs, sb3
from hashgym.data.readers import digits
from hashgym.storage.atomic import DiskFullError
from tests.conftest import file_limit


class Failing(runs.Run):
    """Two updates, then an exception."""

    def learn(self) -> dict[str, float]:
        if self.update == 2:
            raise RuntimeError("out of luck")
        self.update += 1
        return {"train/update": float(self.update)}

    def watch(self) -> dict[str, float]:
        return {}


def test_curves_are_whole_where_training_fails(tmp_path: Path) -> None:
    dataset, policy = digits.load(), nn.Linear(2, 2)
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=dataset)
    run = Failing(policy, torch.optim.Adam(policy.parameters()), envs, dataset, runs.RunArgs(updates=5, log_every=1))
    with pytest.raises(RuntimeError, match="out of luck"):
        runs.drive(run, "failing", out=tmp_path, checkpoint=None, progress=False)
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/update")] == [(1, 1.0), (2, 2.0)]


HOLDER = """
import sys
from pathlib import Path
from agents import runs
with runs.hold_folder(Path(sys.argv[1])):
    print("training", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_run_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    out, args = tmp_path / "run", drlih.Args(bits=4, group_bits=2, updates=1, lanes=4, hidden=8, history=2)
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], **pipes) as process:
        assert process.stdout.readline() == b"training\n"
        with pytest.raises(ValueError, match=f"another process is training into {re.escape(str(out))}: wait for it"):
            drlih.train(digits.load(), args, out=out, progress=False)
        assert [path.name for path in out.iterdir()] == [".lock"]
        os.kill(process.pid, signal.SIGKILL)
    drlih.train(digits.load(), args, out=out, progress=False)
    assert (out / "policy.pt").exists()
    with pytest.raises(ValueError, match="holds a run"):
        drlih.train(digits.load(), args, out=out, progress=False)


@pytest.mark.parametrize("train", [drlih.train, mch.train, sb3.train])
def test_every_agent_holds_its_folder(train: Callable[..., Any], tmp_path: Path) -> None:
    """Before it looks at anything else."""
    held = threading.Event(), threading.Event()

    def hold() -> None:
        with runs.hold_folder(tmp_path):
            held[0].set()
            held[1].wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held[0].wait(10)
        with pytest.raises(ValueError, match="another process is training into"):
            train(*[None] * (3 if train is mch.train else 2), out=tmp_path)
    finally:
        held[1].set()
        thread.join()


def test_holding_is_repeatable_and_leaves_no_folder_of_a_run_that_never_began(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with runs.hold_folder(out), runs.hold_folder(out):
        assert (out / ".lock").exists()
    assert not out.exists()
    out.mkdir()
    with runs.hold_folder(out):
        pass
    assert out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"), runs.hold_folder(tmp_path / "file"):
        pass


class Counting(Failing):
    """A run whose checkpoint grows."""

    def learn(self) -> dict[str, float]:
        self.update += 1
        return {f"train/{i}": float(self.update) for i in range(20)}

    def checkpoint(self) -> dict[str, Any]:
        return {"args": "", "update": self.update, "policy": torch.zeros(self.update * 10_000)}


def counting(**options: int) -> Counting:
    dataset, policy = digits.load(), nn.Linear(2, 2)
    envs = gym.make_vec("BitGroupHashing-v0", num_envs=2, dataset=dataset)
    return Counting(policy, torch.optim.Adam(policy.parameters()), envs, dataset, runs.RunArgs(**options))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    run = counting(updates=9, log_every=100, evaluate_every=100, checkpoint_every=1)
    with pytest.raises(DiskFullError) as caught, runs.hold_folder(tmp_path), file_limit(150_000):
        runs.drive(run, "counting", out=tmp_path, checkpoint=None, progress=False)
    path = tmp_path / "checkpoint.pt"
    assert str(caught.value).startswith(f"{path} cannot be written: ")
    assert str(caught.value).endswith(f"the same command again with --resume: it goes on from {path}, which is whole")
    assert runs.load(path)["update"] == run.update - 1 == 3
    assert not list(tmp_path.glob(".*.hashgym-tmp"))


def test_curves_that_do_not_fit_are_explained_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = counting(updates=400, log_every=1, evaluate_every=1000, checkpoint_every=1000)
    with pytest.raises(DiskFullError, match="cannot be written"), runs.hold_folder(tmp_path), file_limit(20_000):
        runs.drive(run, "counting", out=tmp_path, checkpoint=None, progress=False)
    assert 0 < run.update < 400
    assert "Exception" not in capfd.readouterr().err


def test_a_full_disk_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    command = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)); "
        "sys.argv[0] = 'agents.drlih'; runpy._run_module_as_main('agents.drlih')"
    )
    words = ["--bits", "4", "--group-bits", "2", "--updates", "2", "--lanes", "4", "--out", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", command, *words], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "checkpoint.pt cannot be written: file too large" in " ".join(ended.stderr.split())


@pytest.mark.parametrize("name", ["policy.pt", "policy.onnx"])
def test_a_policy_of_another_run_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name} exists, but no checkpoint: name another folder"):
        runs.resumed(tmp_path, runs.CommonArgs(), resume=False)
    assert runs.resumed(tmp_path / "new", runs.CommonArgs(), resume=False) is None


def test_links_to_nothing_are_not_replaced(tmp_path: Path) -> None:
    for name, message in (("policy.pt", "exists, but no checkpoint"), ("checkpoint.pt", "holds a run")):
        (tmp_path / name).symlink_to("nowhere")
        with pytest.raises(ValueError, match=message):
            runs.resumed(tmp_path, runs.CommonArgs(), resume=False)
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(ValueError, match="a link to nothing"), runs.hold_folder(tmp_path / "out"):
        pass


def test_a_lock_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """The library that locks empties the file."""
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(ValueError, match=r"\.lock was not written by hashgym"), runs.hold_folder(tmp_path):
        pass
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock was not written by hashgym"), runs.hold_folder(tmp_path / "run"):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"


def test_giant_and_compressed_checkpoints_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "policy.pt"
    runs.save({"args": "{}", "weights": torch.arange(5)}, file)
    assert runs.load(file)["weights"].tolist() == [0, 1, 2, 3, 4]
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match=r"small\.pt is damaged or no file of ours: its content is compressed"):
        runs.load(tmp_path / "small.pt")
    os.truncate(file, 64 << 30)
    with pytest.raises(ValueError, match="at most 17,179,869,184 are read"):
        runs.load(file)
