"""Which characters reach a terminal, and how paths are quoted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hashgym.text import printable, quote


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
def test_control_characters_are_replaced(text, shown):
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
