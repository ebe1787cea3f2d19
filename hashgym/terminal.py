"""Start and end a command line: arguments, version, errors, exit codes.

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
from hashgym.optional import install_command
from hashgym.startup import handle_interrupts
from hashgym.text import printable

__all__ = ["arguments", "command_line", "parse", "wants_version"]

T = TypeVar("T")

STOPPED = 130  # exit codes of shells: after Ctrl-C, and for a pipe without a reader
PIPE_CLOSED = 141


@contextmanager
def command_line(stopped: str = "stopped") -> Iterator[None]:
    """Run the body of a command line: output in any encoding, errors as one line, and no traceback at the end.

    Characters that the output's encoding lacks are written as escapes. If its reader ends early, such as ``head``, the
    command ends without a message.

    Args:
        stopped: the message after Ctrl-C, such as how to continue.

    Raises:
        SystemExit: with 2 for wrong arguments, data or files, 130 for Ctrl-C, 141 if the output is no longer read.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on valid pictures, such as unreadable EXIF
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        handle_interrupts()
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        _end(stopped, STOPPED)
    except (ValueError, OSError, ImportError, MemoryError) as error:  # DataError is a ValueError
        if isinstance(error, BrokenPipeError) and _pipe_closed():
            raise SystemExit(PIPE_CLOSED) from None
        _end(_with_remedy(error), 2)
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # closed in the meantime
                stream.reconfigure(errors=errors)


def parse(target: Callable[..., T], module: str, args: Sequence[str] | None = None, **options: Any) -> T:
    """Read the command line of ``python -m MODULE``, or print its help or version and exit.

    Args:
        target: a dataclass of settings, or a function, which is called.
        module: name of the module, such as "agents.drlih".
        args: the arguments; those of this process by default.
        options: of ``tyro.cli``.
    """
    import tyro

    words = sys.argv[1:] if args is None else args
    wants_version(words)
    with arguments(words):
        return tyro.cli(target, prog=f"python -m {module}", args=words, **options)


@contextmanager
def arguments(words: Sequence[str]) -> Iterator[None]:
    """Make the parser's messages about these arguments printable: it repeats unknown ones, such as names of files."""
    if all(word == printable(word) for word in words):
        yield
        return
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            yield
    finally:
        if errors.getvalue():
            from hashgym import console

            console.say(errors.getvalue().rstrip("\n"), stderr=True)


def wants_version(args: Sequence[str]) -> None:
    """Print the version and exit if ``--version`` is the only argument."""
    if list(args) == ["--version"]:
        from hashgym import __version__, console

        console.say(f"hashgym {__version__}")
        raise SystemExit(0)


def _with_remedy(error: Exception) -> str:
    """Return an error's message; for a missing package, with the command that installs it."""
    if isinstance(error, MemoryError):
        return str(error) or "there is not enough memory"  # Python's own has no message
    if not isinstance(error, ModuleNotFoundError) or error.name is None or "pip install" in str(error):
        return str(error)
    return f"this needs {error.name}, which is not installed: `{install_command(error.name)}`"


def _end(message: str, code: int) -> None:
    from hashgym import console

    with suppress(BrokenPipeError):
        console.error(message)
    raise SystemExit(code) from None


def _pipe_closed() -> bool:
    """Return whether the reader of the standard output is gone; if so, further output is discarded.

    A broken pipe may also be a network connection, such as that to Milvus, which is an error like any other.
    """
    try:
        descriptor = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError, ValueError):  # not a file, or a system without poll
        return False
    poll.register(descriptor, 0)  # errors are always reported
    if not poll.poll(0):
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
    return True


keep_old_names(__name__)
