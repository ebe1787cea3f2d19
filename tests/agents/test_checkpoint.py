"""Files of training runs: locks, checkpoints, policies, also those of earlier versions."""

from __future__ import annotations

import json
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

import pytest
import torch

from agents import checkpoint, drlih, mch, sb3
from agents.arguments import RENAMED, CommonArgs
from hashgym.data.readers import digits

HOLDER = """
import sys
from pathlib import Path
from agents import checkpoint
with checkpoint.hold_folder(Path(sys.argv[1])):
    print("training", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_run_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    out, args = tmp_path / "run", drlih.Args(bits=4, group_bits=2, updates=1, num_envs=4, hidden=8, rnn_hidden=2)
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
        with checkpoint.hold_folder(tmp_path):
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
    with checkpoint.hold_folder(out), checkpoint.hold_folder(out):
        assert (out / ".lock").exists()
    assert not out.exists()
    out.mkdir()
    with checkpoint.hold_folder(out):
        pass
    assert out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"), checkpoint.hold_folder(tmp_path / "file"):
        pass


@pytest.mark.parametrize("name", ["policy.pt", "policy.onnx"])
def test_a_policy_of_another_run_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name} exists, but no checkpoint: name another folder"):
        checkpoint.load_checkpoint(tmp_path, CommonArgs(), resume=False)
    assert checkpoint.load_checkpoint(tmp_path / "new", CommonArgs(), resume=False) is None


def test_links_to_nothing_are_not_replaced(tmp_path: Path) -> None:
    for name, message in (("policy.pt", "exists, but no checkpoint"), ("checkpoint.pt", "holds a run")):
        (tmp_path / name).symlink_to("nowhere")
        with pytest.raises(ValueError, match=message):
            checkpoint.load_checkpoint(tmp_path, CommonArgs(), resume=False)
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(ValueError, match="a broken link"), checkpoint.hold_folder(tmp_path / "out"):
        pass


def test_a_lock_file_of_a_user_is_left_alone(tmp_path: Path) -> None:
    """The library that locks empties the file."""
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(ValueError, match=r"\.lock was not written by hashgym"), checkpoint.hold_folder(tmp_path):
        pass
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / ".lock")
    with (
        pytest.raises(ValueError, match=r"\.lock was not written by hashgym"),
        checkpoint.hold_folder(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"


def test_giant_and_compressed_checkpoints_are_rejected_unread(tmp_path: Path) -> None:
    file = tmp_path / "policy.pt"
    checkpoint.save({"args": "{}", "weights": torch.arange(5)}, file)
    assert checkpoint.load(file)["weights"].tolist() == [0, 1, 2, 3, 4]
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
    with pytest.raises(
        ValueError, match=r"small\.pt is corrupt, or not a hashgym checkpoint: its content is compressed"
    ):
        checkpoint.load(tmp_path / "small.pt")
    os.truncate(file, 64 << 30)
    with pytest.raises(ValueError, match="at most 17,179,869,184 are read"):
        checkpoint.load(file)


def rewrite(path: Path) -> None:
    """Give a file the argument names that an earlier version wrote."""
    content = checkpoint.load(path)
    former = {new: old for old, new in RENAMED.items()}
    args = {former.get(name, name): value for name, value in json.loads(content["args"]).items()}
    assert {"lanes", "history"} <= set(args)
    checkpoint.save({**content, "args": json.dumps(args)}, path)


def test_runs_of_earlier_versions_resume_and_load(tmp_path: Path) -> None:
    args = drlih.Args(bits=4, group_bits=2, updates=2, num_envs=4, hidden=8, rnn_hidden=2)
    policy = drlih.train(digits.load(), args, out=tmp_path, progress=False)
    for name in ("checkpoint.pt", "policy.pt"):
        rewrite(tmp_path / name)
    loaded = drlih.load(tmp_path / "policy.pt", "cpu")
    assert loaded.args == args
    resumed = drlih.train(digits.load(), args, out=tmp_path, resume=True, progress=False)
    for name, part in policy.state_dict().items():
        assert torch.equal(part, loaded.state_dict()[name])
        assert torch.equal(part, resumed.state_dict()[name])


def test_ctrl_c_within_a_save_is_ctrl_c(tmp_path: Path) -> None:
    """Inside torch.save it would be a RuntimeError, or abort the process; the file in force stays complete."""
    path = tmp_path / "checkpoint.pt"
    content = {"weights": torch.arange(500_000.0), "more": [torch.zeros(1000) for _ in range(200)]}
    checkpoint.save(content, path)
    interrupted = 0
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for trial in range(60):
            timer = threading.Timer(0.0005 * (1 + trial % 20), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                checkpoint.save(content, path)
                timer.join()
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.signal(signal.SIGINT, handler)
    assert interrupted == 60
    assert torch.equal(torch.load(path, weights_only=True)["weights"], content["weights"])
