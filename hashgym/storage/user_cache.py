"""The user's cache folder, for results that can be recomputed; shared by all processes of a user."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

__all__ = ["VARIABLE", "folder"]

VARIABLE = "HASHGYM_CACHE"

_log = logging.getLogger(__name__)
_warned: set[Path] = set()


def folder() -> Path | None:
    """Return the cache folder, which is created if it is missing; None if it cannot be written.

    The environment variable ``HASHGYM_CACHE`` names it; the default is the system's usual place, such as
    ``~/.cache/hashgym``. An empty ``HASHGYM_CACHE`` switches the cache off. Everything in the folder may be deleted at
    any time.

    Its content is trusted, so a folder that belongs to another user, or that every user can write to, is not used; a
    warning is logged in that case.
    """
    import platformdirs

    wanted = os.environ.get(VARIABLE)
    if wanted == "":
        return None
    path = Path(wanted) if wanted else platformdirs.user_cache_path("hashgym")
    try:
        path.mkdir(parents=True, exist_ok=True)
        status = path.stat()
    except OSError:
        return None
    if os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH):
        problem = "belongs to another user" if status.st_uid != os.geteuid() else "can be written by every user"
        if path not in _warned:
            _warned.add(path)
            _log.warning("%s %s and is not used: name a folder of your own in %s", path, problem, VARIABLE)
        return None
    return path if os.access(path, os.W_OK) else None
