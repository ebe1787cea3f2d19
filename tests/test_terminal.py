"""How a command line begins and ends: interrupts, errors, exit codes, streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hashgym.terminal import command_line

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("package", ["gymnasium", "tyro"])
@pytest.mark.parametrize("how", ["module", "script"])
def test_ctrl_c_while_packages_are_imported(tmp_path, package, how):
    """The package interrupts the program that imports it, like a user."""
    (tmp_path / f"{package}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n")
    script = tmp_path / "bin" / "hashgym"
    script.parent.mkdir()
    script.write_text("from hashgym.cli import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, *(["-m", "hashgym"] if how == "module" else [script])],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_other_programs_keep_their_handler_of_ctrl_c():
    code = "import signal; before = signal.getsignal(signal.SIGINT); import hashgym.cli; "
    code += "print(before is signal.getsignal(signal.SIGINT))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout == b"True\n"


def ends(body: str, **options) -> subprocess.CompletedProcess:
    code = f"import sys, os\nfrom hashgym import console\nfrom hashgym.terminal import command_line\n{body}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, **options)


@pytest.mark.parametrize(
    ("raised", "code", "error"),
    [
        ("ValueError('two\\n lines [/b] \\x1b[31m')", 2, b"two lines [/b] \xef\xbf\xbd[31m\n"),
        ("FileNotFoundError(2, 'No such file', 'a.jpg')", 2, b"[Errno 2] No such file: 'a.jpg'\n"),
        ("ImportError(\"pip install 'hashgym[ray]'\")", 2, b"pip install 'hashgym[ray]'\n"),
        ("MemoryError()", 2, b"there is not enough memory\n"),
        ("MemoryError('lower batch_size')", 2, b"lower batch_size\n"),
        ("KeyboardInterrupt()", 130, b"stopped: go on\n"),
        ("BrokenPipeError(32, 'Milvus is gone')", 2, b"[Errno 32] Milvus is gone\n"),
        ("SystemExit(3)", 3, b""),
    ],
)
def test_the_end_is_one_line_and_a_code(raised, code, error):
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = ends(f"with command_line('stopped: go on'):\n    raise {raised}", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", error)


@pytest.mark.parametrize(
    "body",
    [
        "print('x')",
        "print('x' * 100_000)",
        "console.say('x' * 100_000)",
        "console.say_json(['x'] * 30_000)",
        "for _ in console.track(range(3), 'doing', total=3): pass",
        "console.say('x'); raise SystemExit(0)",
    ],
)
def test_a_reader_that_is_gone_ends_it_quietly(body):
    """As in `hashgym ... | head -0`."""
    read, write = os.pipe()
    os.close(read)
    code = f"from hashgym import console\nfrom hashgym.terminal import command_line\nwith command_line():\n    {body}"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_streams_are_left_as_they_were(capsys):
    before = sys.stdout.errors
    with command_line():
        print("\udcff")
    assert capsys.readouterr().out == "\\udcff\n"
    assert sys.stdout.errors == before
