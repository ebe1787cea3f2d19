"""Which characters reach a terminal, how paths are quoted, and how a command line ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hashgym.terminal import command_line
from hashgym.text import printable, quote

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b.png", "a b.png"),
        ("größe 日本 e\u0301 \u202fPM.png", "größe 日本 e\u0301 \u202fPM.png"),  # macOS writes U+202F into screenshots
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\x1b[31mred\x1b]0;title\x07", "\ufffd[31mred\ufffd]0;title\ufffd"),
        ("\x9b31m\x85\x7f\x00", "\ufffd31m\ufffd\ufffd\ufffd"),
        ("photo\u202egpj.exe \u2066x\u2069 \u200f", "photo\ufffdgpj.exe \ufffdx\ufffd \ufffd"),
        ("\udcff\udcfe.png", "\ufffd\ufffd.png"),
        ("a\nb\r\tc\u2028d", "a\ufffdb\ufffd\ufffdc\ufffdd"),
        ("", ""),
    ],
)
def test_what_steers_a_terminal_is_replaced(text, shown):
    assert printable(text) == shown
    assert printable(text, lines=True).replace("\n", "\ufffd") == shown


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "a b",
        "it's",
        "[b] :dog: $HOME `x` \\",
        "-dash",
        "\x1b[31m\n",
        "größe",
        os.fsdecode(b"\xff 'q' \\\x01"),
    ],
)
def test_a_quoted_path_is_one_word_of_a_shell(name, tmp_path):
    word = quote(name)
    assert word == printable(word)
    (tmp_path / name).write_text("right")
    script = f"cat {word}\n".encode("utf-8", "surrogateescape")
    assert subprocess.run(["bash"], input=script, cwd=tmp_path, capture_output=True, check=True).stdout == b"right"


def test_paths_are_quoted_as_they_are():
    assert quote(Path("runs/a b")) == "'runs/a b'"
    assert quote("runs/drlih") == "runs/drlih"


def ends(body: str, **options) -> subprocess.CompletedProcess:
    code = f"import sys, os\nfrom hashgym import console\nfrom hashgym.terminal import command_line\n{body}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, **options)


@pytest.mark.parametrize(
    ("raised", "code", "error"),
    [
        ("ValueError('two\\n lines [/b] \\x1b[31m')", 2, b"two lines [/b] \xef\xbf\xbd[31m\n"),
        ("FileNotFoundError(2, 'No such file', 'a.jpg')", 2, b"[Errno 2] No such file: 'a.jpg'\n"),
        ("ImportError(\"pip install 'hashgym[ray]'\")", 2, b"pip install 'hashgym[ray]'\n"),
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
