"""Work on several machines: connecting to a Ray cluster, and reading the results of its tasks.

Ray comes with ``pip install 'hashgym[ray]'`` and is imported on first use.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hashgym.moved import keep_old_names
from hashgym.optional import require
from hashgym.processes import environment_variables
from hashgym.storage.addresses import without_password

__all__ = ["cluster", "import_ray", "task_result"]


def import_ray() -> Any:
    """Import ``ray``.

    Raises:
        MissingPackageError: if Ray is not installed.
    """
    return require("ray", "the executor ray")


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[Any]:
    """Connect to the Ray cluster at ``RAY_ADDRESS``, or start one on this machine if that is not set; yields ``ray``.

    The connection is closed at the end, unless this process was connected before.

    Args:
        cpus: tasks of one CPU that a cluster started here runs at a time; None for one per core.

    Raises:
        ValueError: if Ray is not installed or cannot be reached.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address, **quiet)
        else:
            cores = os.cpu_count() or 1
            threads = str(max(1, cores // (cpus or cores)))
            with environment_variables({"OMP_NUM_THREADS": threads, "RAY_USAGE_STATS_ENABLED": "0"}):
                ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises many types, some of them plain Exception
        where = f"no connection to the Ray cluster at RAY_ADDRESS={address}" if address else "Ray cannot start here"
        raise ValueError(without_password(f"{where}: {str(error.__cause__ or error).strip()}")) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def task_result(ray: Any, reference: Any) -> Any:
    """Return the result of a task, or raise the error of the task itself, without Ray's error around it.

    Raises:
        ChildProcessError: if Ray lost the process of the task and of every retry.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"Ray lost the process of a task: {error}") from error


keep_old_names(__name__)
