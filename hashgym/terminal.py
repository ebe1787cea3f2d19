"""How a command line begins and ends: its arguments, its version, its errors, its exit code.

This module imports no heavy package, so that ``--help`` stays quick; :mod:`hashgym.console` does the printing.
"""

from __future__ import annotations

import io
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TypeVar

from hashgym.moved import keep_old_names
from hashgym.text import printable

__all__ = ["arguments", "command_line", "parse", "wants_version"]

T = TypeVar("T")

STOPPED = 130  # exit codes of shells, for Ctrl-C and for a pipe whose reader is gone
PIPE_CLOSED = 141


@contextmanager
def command_line(stopped: str = "stopped") -> Iterator[None]:
    """Run the body of a command line: output in any encoding, errors in one line, and an end without a traceback.

    Characters that the output's encoding lacks are written as escapes. A reader that leaves early, such as ``head``,
    ends the command without a message.

    Args:
        stopped: the message after Ctrl-C: what was kept, and how to continue.

    Raises:
        SystemExit: with 2 for wrong arguments, data or files, 130 for Ctrl-C, 141 where nobody reads the output.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of sound pictures, such as EXIF that cannot be read
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        _end(stopped, STOPPED)
    except (ValueError, OSError, ImportError) as error:  # DataError is a ValueError
        if isinstance(error, BrokenPipeError) and _pipe_closed():
            raise SystemExit(PIPE_CLOSED) from None
        _end(str(error), 2)
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # closed meanwhile
                stream.reconfigure(errors=errors)


def parse(what: Callable[..., T], module: str, args: Sequence[str] | None = None, **options: Any) -> T:
    """Read the command line of ``python -m MODULE``, or print its help or version and exit.

    Args:
        what: a dataclass of settings, or a function, which is called.
        module: its name, such as "agents.drlih".
        args: the arguments; those of this process by default.
        options: of ``tyro.cli``.
    """
    import tyro

    words = sys.argv[1:] if args is None else args
    wants_version(words)
    with arguments(words):
        return tyro.cli(what, prog=f"python -m {module}", args=words, **options)


@contextmanager
def arguments(words: Sequence[str]) -> Iterator[None]:
    """Parse these words here: the parser repeats what it does not know, which may be a file's name as `*` gave it."""
    if all(word == printable(word) for word in words):
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    finally:
        if said.getvalue():
            from hashgym import console

            console.say(said.getvalue().rstrip("\n"), stderr=True)


def wants_version(args: Sequence[str]) -> None:
    """Print the version and exit if that is all that was asked for."""
    if list(args) == ["--version"]:
        from hashgym import __version__, console

        console.say(f"hashgym {__version__}")
        raise SystemExit(0)


def _end(message: str, code: int) -> None:
    from hashgym import console

    with suppress(BrokenPipeError):
        console.error(message)
    raise SystemExit(code) from None


def _pipe_closed() -> bool:
    """Whether the reader of the standard output is gone; if so, what is still to be written goes nowhere.

    A broken pipe may also be a connection's, such as that to Milvus, which is an error like any other.
    """
    try:
        descriptor = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError, ValueError):  # no file, or a system without poll
        return False
    poll.register(descriptor, 0)  # errors are always reported
    if not poll.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return True


keep_old_names(__name__)
