"""End the program ``hashgym`` without a traceback on Ctrl-C while it still imports its packages.

The package imports this module before all others; :func:`hashgym.terminal.command_line` then takes over.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["handle_interrupts"]

_IS_PROGRAM = os.path.basename(sys.argv[0]).removesuffix(".exe") == "hashgym" or sys.orig_argv[1:3] == ["-m", "hashgym"]
_quiet = _IS_PROGRAM and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _quiet:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def handle_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, if this module has changed that."""
    global _quiet
    if _quiet:
        _quiet = False
        signal.signal(signal.SIGINT, signal.default_int_handler)
