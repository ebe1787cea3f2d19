"""Time, memory, packages and revision of the measuring process, as the rows record them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hashgym.versions import versions

__all__ = [
    "import_optimizers",
    "load_average",
    "package_versions",
    "peak_mb",
    "resident_mb",
    "revision",
    "seconds",
    "with_seconds",
]

PACKAGES = ("numpy", "numba", "faiss-cpu", "pymilvus", "milvus-lite")


def seconds(function: Callable[..., Any], *args: Any) -> float:
    """Seconds of wall time that a call takes."""
    return with_seconds(function, *args)[1]


def with_seconds(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Return the result of a call, and the seconds of wall time that it takes."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - start


def import_optimizers() -> None:
    """Make the first optimizer of a process, for which torch imports for a second, so that training is timed alone."""
    import torch

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def load_average() -> float:
    """Processes that ran or waited over the last minute; NaN where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def peak_mb() -> float:
    """The most memory this process has had resident, in MB (10^6 bytes)."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        # getrusage would count the parent's memory in a process that was forked from it.
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def resident_mb(entry: str = "VmRSS") -> float:
    """Resident memory of this process and its children in MB (10^6 bytes); the peak of this one without /proc.

    Args:
        entry: of ``/proc/PID/status``: ``VmRSS`` for memory now, ``VmHWM`` for the peak.
    """
    own, total = Path("/proc/self/task"), 0
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # free memory goes back to the system first
    if not own.exists():
        return peak_mb()
    children = [child for task in own.iterdir() for child in (task / "children").read_text().split()]
    for process in ("self", *children):
        lines = Path("/proc", process, "status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))
    return total * 1024 / 1e6


def package_versions() -> str:
    """Versions of the packages whose code is measured, as a row records them."""
    return ", ".join(f"{name} {version}" for name, version in versions(PACKAGES).items())


@lru_cache
def revision() -> str:
    """The git commit of this checkout, with "-dirty" where files differ from it; "" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()
