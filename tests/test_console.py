"""Text is printed literally, and by one module only."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hashgym.console import Console, Table, Text, bar, error, plain_table, say, say_json, styled, track, warn

ROOT = Path(__file__).parent.parent
NAMES = ["[/b]", "[old]", "a:dog:b", "[red]x[/red]", "[link=http://a]b[/link]", "\\[x]", "{task}", "100%", "größe"]
HOSTILE = "\x1b]0;title\x9b\u202egpj"
SHOWN = "\ufffd]0;title\ufffd\ufffdgpj"
PROGRAM = [path for folder in ("hashgym", "agents", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def printed(*things, terminal=False, **options) -> str:
    file = io.StringIO()
    Console(file=file, force_terminal=terminal, **options).print(*things)
    return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_neither_markup_nor_emoji(name, capsys):
    table, plain = Table(title=name, caption=name), plain_table(name)
    table.add_column(name)
    for filled in (table, plain):
        filled.add_row(name)
    assert printed(name) == printed(styled(name, "green")) == f"{name}\n"
    assert printed(table).count(name) == 4
    assert printed(plain).split() == [name, name]
    for function in (say, lambda text: say(styled(text, "red")), error, warn):
        function(name)
        captured = capsys.readouterr()
        assert captured.out + captured.err == f"{name}\n"
    assert list(track([7], name, total=1)) == [7]
    assert capsys.readouterr().out.startswith(name)


def test_control_characters_are_shown(capsys):
    table, plain = Table(title=HOSTILE), plain_table(HOSTILE)
    for filled in (table, plain):
        filled.add_row(HOSTILE)
        filled.add_row(Text(HOSTILE, "bold"))
        assert printed(filled).count(SHOWN) >= 3
    assert printed(HOSTILE) == printed(Text(HOSTILE)) == f"{SHOWN}\n"
    assert "\x1b[32m" + SHOWN in printed(styled(HOSTILE, "green"), terminal=True, color_system="standard")
    say(HOSTILE, Text(HOSTILE, "red"))
    error(HOSTILE)
    with bar() as drawn:
        drawn.add_task(HOSTILE, total=1)
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{SHOWN}{SHOWN}\n{SHOWN} ")
    assert captured.err == f"{SHOWN}\n"
    assert not set("\x1b\x9b\u202e") & set(captured.out + captured.err)


def test_lines_are_neither_wrapped_nor_cut_without_a_terminal():
    digest = "0123456789abcdef" * 40
    table = plain_table("key", "value")
    table.add_row("weights", digest)
    table.add_row("short", "x")
    lines = printed(table, width=40).splitlines()
    assert lines == ["key      value", f"weights  {digest}", "short    x"]
    assert printed(f"a path {digest}", width=40) == f"a path {digest}\n"
    assert (
        max(map(len, printed(table, terminal=True, color_system=None, width=40).splitlines())) <= 40
    )  # a terminal's table is folded


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii"])
def test_every_encoding_gets_all_lines(encoding):
    code = (
        "from hashgym.console import *\nfrom hashgym.terminal import command_line\n"
        "with command_line():\n"
        "    say('größe 日本 \\udcff'); error('größe 日本 \\udcff'); say_json({'name': 'größe 日本 \\udcff'})\n"
        "    table = Table(title='日本'); table.add_column('日本'); table.add_row('größe'); Console().print(table)\n"
        "    for _ in track([1], '日本', total=1): pass\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, cwd=ROOT)
    assert done.returncode == 0
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    wanted = "größe 日本 \ufffd".encode(encoding, "backslashreplace").decode(encoding)
    assert out.splitlines()[0] == wanted
    assert err == f"{wanted}\n"
    start = out.index("{")
    answer, _ = json.JSONDecoder().raw_decode(out[start:])
    assert answer == {"name": "größe 日本 \udcff"}
    assert out[start : out.index("}")].isascii()
    assert "1/1" in out


def test_json_keeps_the_bytes_of_any_name(capsys):
    say_json([os.fsdecode(b"\xff.png"), "größe"])
    captured = capsys.readouterr().out
    assert captured.isascii()
    assert [os.fsencode(name) for name in json.loads(captured)] == [b"\xff.png", "größe".encode()]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@pytest.mark.parametrize("path", PROGRAM, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_printing_goes_through_the_console(path):
    """Other modules do not print, make a console or read markup, so that names are never read as markup."""
    if path.relative_to(ROOT).as_posix() == "hashgym/console.py":
        return
    for node in ast.walk(parsed(path)):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.stdout.write", "sys.stderr.write"), f"{where}: use hashgym.console.say"
            assert called.split(".")[-1] not in ("from_markup", "escape_markup"), f"{where}: no markup is read"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rich":
            own = {"Console", "Progress", "Table", "Text", "TextColumn"}
            own |= {"console", "escape", "print", "table", "track"}
            allowed = {"TextColumn"} if path.name == "pipeline.py" else set()
            assert not {name.name for name in node.names} & (own - allowed), f"{where}: take it from hashgym.console"
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & {"rich"}, f"{where}: use hashgym.console"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.search(r"\[/?(bold|dim|red|green|yellow)\]|\[/\]", node.value)
            assert not found, f"{where}: markup is not read, use hashgym.console.styled"
