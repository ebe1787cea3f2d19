"""Print to terminals: the command line, agents, benchmarks and progress bars print only with this module.

Text is shown literally. Brackets are never read as markup and ``:dog:`` is not an emoji, because names of files, labels
and messages may contain them; :func:`styled` gives text a colour. Characters that control a terminal are replaced, see
:func:`hashgym.text.printable`. If the output is not a terminal, lines are neither wrapped nor truncated.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any, TypeVar

import rich.console
import rich.table
from rich import progress
from rich.progress import Progress
from rich.text import Text

from hashgym.text import printable

__all__ = [
    "Console",
    "Field",
    "Progress",
    "Table",
    "Text",
    "bar",
    "error",
    "plain_table",
    "say",
    "say_json",
    "styled",
    "track",
    "warn",
]

T = TypeVar("T")

_WIDE = 100_000  # columns of an output that is not a terminal


def styled(text: object, style: str) -> Text:
    """Return text in a colour or weight such as "green", "bold" or "dim"."""
    return Text(printable(str(text), lines=True), style)


class Console(rich.console.Console):
    """A rich console that shows text literally.

    Args:
        stderr: write to the standard error.
        file: write there instead.
        options: further options of ``rich.console.Console``.
    """

    def __init__(self, *, stderr: bool = False, file: IO[str] | None = None, **options: Any) -> None:
        super().__init__(stderr=stderr, file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to text; rich calls this for every string that is printed, also for titles of tables."""
        return super().render_str(printable(text, lines=True), **options | {"markup": False, "emoji": False})

    def print(self, *objects: Any, **options: Any) -> None:
        """Print text without wrapping its lines, so that paths can be copied; tables go to files in full width."""
        if len(objects) == 1 and isinstance(objects[0], rich.table.Table) and not (self.is_terminal or self.record):
            wide = Console(file=self.file, width=_WIDE)
            with wide.capture() as captured:
                super(Console, wide).print(objects[0])
            rows = "\n".join(line.rstrip() for line in captured.get().split("\n")[:-1])
            super().print(Text(rows), soft_wrap=True)
        elif all(isinstance(thing, (str, Text)) for thing in objects):
            super().print(*map(_as_text, objects), **{"soft_wrap": True} | options)
        else:
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Let :func:`hashgym.terminal.command_line` end the program; rich would exit with 1."""
        if threading.current_thread() is not threading.main_thread():  # a thread that refreshes a progress bar
            raise SystemExit
        raise


class Table(rich.table.Table):
    """A rich table whose cells are shown literally."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of strings or :class:`Text`."""
        super().add_row(*(_as_text(cell) if isinstance(cell, (str, Text)) else cell for cell in cells), **options)


def plain_table(*columns: str, padding_below: int = 0) -> Table:
    """Return a table with headings and without rules."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, padding_below, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def say(*parts: str | Text, stderr: bool = False) -> None:
    """Print one line of strings and :func:`styled` text, with nothing between them."""
    Console(stderr=stderr).print(Text.assemble(*map(_as_text, parts)))


def say_json(content: Any) -> None:
    """Print JSON in ASCII, which every encoding has; bytes of names that are not UTF-8 become lone surrogates."""
    import json

    print(json.dumps(content, indent=1))


def warn(message: object) -> None:
    """Print a warning as one line on the standard error."""
    _notice(message, "yellow")


def error(message: object) -> None:
    """Print an error as one line on the standard error."""
    _notice(message, "red")


def bar(*columns: Any, console: rich.console.Console | None = None, show: bool = True) -> Progress:
    """Return a progress bar: a description, a bar, the count and further ``columns``.

    Args:
        columns: further rich columns, after the count.
        console: the console to draw on; by default the standard output.
        show: False to draw nothing.
    """
    shown = (Field("description"), progress.BarColumn(), progress.MofNCompleteColumn(), *columns)
    return Progress(*shown, console=console or Console(), disable=not show)


def track(items: Iterable[T], doing: str, *, total: int, show: bool = True) -> Iterator[T]:
    """Yield the items one by one while a progress bar is shown."""
    with bar(progress.TimeRemainingColumn(), show=show) as progress_bar:
        yield from progress_bar.track(items, total=total, description=doing)


class Field(progress.ProgressColumn):
    """A column of a progress bar that shows a field of its task literally, such as "description"."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def render(self, task: progress.Task) -> Text:
        """Return the text of the field."""
        return Text(printable(str(task.fields.get(self._name, task.description))))


def _as_text(thing: str | Text) -> Text:
    if isinstance(thing, str):
        return Text(printable(thing, lines=True))
    clean = thing.copy()
    clean.plain = printable(thing.plain, lines=True)
    return clean


def _notice(message: object, style: str) -> None:
    Console(stderr=True).print(styled(" ".join(str(message).split()), style))
