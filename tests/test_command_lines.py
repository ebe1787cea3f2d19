"""Command lines of agents and benchmarks: name, version, errors, and no traceback."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hashgym
from tests.conftest import small_dataset

pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent
AGENTS = ["agents.drlih", "agents.mch", "agents.sb3"]
BENCHMARKS = [  # every module at the top of benchmarks/, and benchmarks.report
    f"benchmarks.{path.stem if path.suffix else path.name}"
    for path in sorted((ROOT / "benchmarks").iterdir())
    if (path.suffix == ".py" and path.stem != "__init__") or (path / "__main__.py").exists()
]


@pytest.mark.parametrize("module", AGENTS + BENCHMARKS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_command_line_prints_its_name_and_version(module, monkeypatch, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anything.py", *words])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, *capsys.readouterr()

    assert run("--version") == (0, f"hashgym {hashgym.__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    assert out.startswith(f"usage: python -m {module} ")
    code, _, error = run("--no-such-option", "[/b]")
    assert code == 2
    assert f"python -m {module} --help" in " ".join(error.replace("│", " ").split())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("agents.drlih", ["--group-bits", "0"], "group_bits must be above 0, got 0"),
        ("agents.drlih", ["--bits", "-3"], "bits must be above 0, got -3"),
        ("agents.drlih", ["--dataset", "digit"], "(did you mean 'digits'?)"),
        ("agents.mch", ["hashgym", "--lanes", "0"], "num_envs must be above 0, got 0"),
        ("agents.mch", ["hashgym", "--base", "dcch"], "(did you mean 'dch'?)"),
        ("agents.sb3", ["--algo", "pp0"], "(did you mean 'ppo'?)"),
        ("agents.sb3", ["--group-bits", "-1"], "group_bits must be above 0, got -1"),
        ("benchmarks.drlih", ["--methods", "itqq", "--features", "digits"], "(did you mean 'itq'?)"),
        ("benchmarks.sb3", ["--methods", "pp0", "--out", "runs"], "(did you mean"),
        ("benchmarks.tune", ["--methods", "orthohsh", "--features", "digits"], "(did you mean 'orthohash'?)"),
    ],
)
def test_wrong_arguments_are_one_message_and_code_2(module, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anything.py", *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert stopped.value.code == 2
    output = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("module", ["agents.drlih", "benchmarks.drlih"])
def test_a_reader_that_is_gone_ends_it_quietly(module):
    """As in `python -m agents.drlih | head -0`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", module, "--help"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode in (0, 141)  # 0 with older versions of tyro


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )


def test_ctrl_c_prints_how_to_resume(tmp_path):
    """The signal goes to the program and its children, as from a terminal."""
    out = tmp_path / "a [/b] :dog:"
    command = [sys.executable, "-m", "agents.drlih", "--bits", "12", "--num-envs", "16", "--updates", "1000000"]
    command += ["--checkpoint-every", "5", "--out", str(out)]
    slow = started(command, ROOT)
    while not (out / "checkpoint.pt").exists():
        assert slow.poll() is None
        time.sleep(0.05)
    os.killpg(slow.pid, signal.SIGINT)
    _, error = slow.communicate(timeout=600)
    assert slow.returncode == 130
    assert error == f"stopped; the same command with --resume continues from the checkpoint in {out}\n"


def test_ctrl_c_and_no_folder(tmp_path, capsys):
    from agents import training

    for out, warning, message in (
        (None, "there is no --out: the trained policy is not saved", "nothing is saved"),
        (tmp_path / "out", "", "has no checkpoint yet, so the same command starts from the beginning"),
    ):
        with pytest.raises(SystemExit) as stopped, training.interruptible(out):  # noqa: PT012 - what it says comes before
            training.warn_unsaved(out)
            output = capsys.readouterr().err
            raise KeyboardInterrupt
        assert warning in output
        assert bool(output) == bool(warning)
        assert stopped.value.code == 130
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("to_all", [True, False])
def test_a_benchmark_is_interrupted_quietly(to_all, tmp_path):
    """Its workers are not waited for, whether they get the signal too, as in a shell, or are starting just then."""
    (tmp_path / "program.py").write_text(
        "import os, sys, time\n"
        "from hashgym.console import Console\nfrom hashgym.terminal import command_line\n"
        "from benchmarks.common.cells import CONTINUES, run_cells\n"
        "def work(cell):\n    os.write(1, b'at work\\n')\n    time.sleep(600)\n"
        "if __name__ == '__main__':\n    with command_line(CONTINUES):\n"
        "        sys.exit(run_cells([1, 2, 3], work, str, jobs=2, console=Console()))\n"
    )
    program = started([sys.executable, "program.py"], tmp_path)
    assert program.stdout is not None
    assert program.stdout.readline() == "at work\n"
    (os.killpg if to_all else os.kill)(program.pid, signal.SIGINT)
    _, error = program.communicate(timeout=120)
    assert program.returncode == 130
    assert error == "stopped; the same command continues with the runs that are not finished\n"


def test_labels_of_one_class_are_rejected_before_any_work(tmp_path):
    from agents import drlih, mch, sb3
    from benchmarks.common import methods

    dataset = small_dataset(0)
    one = replace(dataset, labels=np.ones((len(dataset), 1), np.uint8), label_names=("cat",))
    for run in (
        lambda: drlih.main(drlih.Main(drlih.PRESETS["hashgym"], one, tmp_path / "a")),
        lambda: mch.main(mch.Main(mch.PRESETS["hashgym"], one, out=tmp_path / "a")),
        lambda: sb3.main(sb3.Main(sb3.Args(), one, out=tmp_path / "a")),
        lambda: methods.load(one),
    ):
        with pytest.raises(ValueError, match="give labels of at least two classes"):
            run()
    assert not (tmp_path / "a").exists()
