"""Work on several machines: a connection to a Ray cluster, and what its tasks give back.

Ray comes with ``pip install 'hashgym[ray]'``, and is imported when it is asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hashgym.moved import keep_old_names
from hashgym.storage.addresses import without_password

__all__ = ["cluster", "import_ray", "task_result"]


def import_ray() -> Any:
    """The module ``ray``.

    Raises:
        ValueError: where Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: the executor `ray` needs pip install 'hashgym[ray]'") from error
    return ray


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[Any]:
    """Ray, connected: to the cluster at ``RAY_ADDRESS`` where that is set, else to one that is started on this machine.

    What is opened here is closed at the end; where this process is connected already, that connection is used and kept.

    Args:
        cpus: how many tasks of one CPU a cluster started here runs at a time; None for one a core.

    Raises:
        ValueError: where Ray is not installed or cannot be reached.
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
        else:  # its processes have the environment of this one
            cores = os.cpu_count() or 1
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // (cpus or cores))))
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
    except Exception as error:  # of every kind, some of them plain Exception
        where = f"no connection to the Ray cluster at RAY_ADDRESS={address}" if address else "Ray cannot start here"
        raise ValueError(without_password(f"{where}: {str(error.__cause__ or error).strip()}")) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def task_result(ray: Any, reference: Any) -> Any:
    """What a task returned. What it raised is raised here too, instead of Ray's error around it.

    Raises:
        ChildProcessError: where Ray lost the task's process as often as it was to try again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"Ray lost the process of a task: {error}") from error


keep_old_names(__name__)
