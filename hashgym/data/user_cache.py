"""The user's cache folder: what can be computed again, shared by all processes of a user."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["VARIABLE", "folder"]

VARIABLE = "HASHGYM_CACHE"


def folder() -> Path | None:
    """Return the cache folder, created where it is missing, or None where none can be written.

    It is the one that the environment variable ``HASHGYM_CACHE`` names, or by default the system's usual place, such as
    ``~/.cache/hashgym``. An empty ``HASHGYM_CACHE`` switches the cache off. Everything in the folder may be deleted at
    any time.
    """
    import platformdirs

    wanted = os.environ.get(VARIABLE)
    if wanted == "":
        return None
    path = Path(wanted) if wanted else platformdirs.user_cache_path("hashgym")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None
