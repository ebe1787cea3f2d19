"""Sealed folders: files, and a ``meta.json`` that says what they are and has the size and SHA-256 of each.

``meta.json`` is written last and atomically, and has a digest of itself: where it can be read, the folder is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from hashgym.storage.atomic import sync, write_text
from hashgym.storage.checksums import has_checksum, sha256
from hashgym.storage.errors import DataError
from hashgym.storage.reading import map_array, read_bounded

__all__ = ["META", "Kind", "read_json", "sync", "write_json"]

META = "meta.json"
SMALL = 1 << 24  # bytes that are read so quickly that they are always compared with their checksum
PATIENCE = 2.0  # seconds of comparing after which the user learns why it takes long

Thorough: TypeAlias = bool | Literal["once"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of sealed folder.

    Attributes:
        format: its name in ``meta.json``.
        version: of the format.
        what: what such a folder is, for messages.
        command: what writes one.
        remedy: what to do where one is damaged.
        facts: what ``meta.json`` says besides, and of which type it is.
    """

    format: str
    version: int
    what: str
    command: str
    remedy: str
    facts: Mapping[str, type] = field(default_factory=dict)

    def seal(self, folder: Path, files: Iterable[str], **facts: Any) -> None:
        """Sync the files, given relative to the folder, and write their ``meta.json`` with the facts."""
        entries: dict[str, Any] = {}
        for name in files:
            file = folder / name
            sync(file)
            entries[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            if file.suffix == ".npy":
                array = map_array(file)
                entries[name] |= {"dtype": str(array.dtype), "shape": list(array.shape)}
        meta = {"format": self.format, "version": self.version, **facts, "files": entries}
        write_json(folder / META, meta | {"digest": digest(meta)}, indent=1)

    def is_one(self, folder: str | Path) -> bool:
        """Whether there is a ``meta.json`` of this format, damaged or not."""
        try:
            with (Path(folder) / META).open("rb") as file:
                return f'"{self.format}"'.encode() in file.read(200)
        except OSError:
            return False

    def read(self, folder: str | Path) -> dict[str, Any]:
        """What ``meta.json`` says, checked against its own digest.

        Raises:
            DataError: if there is none, it is of another kind or version, or damaged.
        """
        file = Path(folder) / META
        if not file.is_file():
            raise DataError(f"{folder} is no {self.what}: it has no {META}; `{self.command}` writes one")
        meta = read_json(file, self.remedy)
        if not isinstance(meta, dict) or meta.get("format") != self.format:
            raise DataError(f"{folder} is no {self.what}: its {META} is of another kind; `{self.command}` writes one")
        if meta.get("version") != self.version:
            raise DataError(
                f"{folder} is of version {meta.get('version')!r}, this hashgym reads version {self.version}: "
                f"{self.remedy}, or use the hashgym that wrote it"
            )
        said = {key: value for key, value in meta.items() if key != "digest"}
        if meta.get("digest") != digest(said) or not self._sensible(said):
            raise DataError(f"{file} is damaged or was edited; {self.remedy}")
        return meta

    def _sensible(self, meta: Mapping[str, Any]) -> bool:
        """Whether all is there that is looked for, and no file elsewhere: a digest does not say who wrote it."""
        if not all(type(meta.get(key)) is kind for key, kind in {"files": dict, **self.facts}.items()):
            return False
        wanted = {"bytes": int, "sha256": str}
        array = wanted | {"dtype": str, "shape": list}
        return all(
            isinstance(entry, dict)
            and not (Path(name).is_absolute() or ".." in Path(name).parts)
            and all(type(entry.get(key)) is kind for key, kind in (array if name.endswith(".npy") else wanted).items())
            for name, entry in meta["files"].items()
        )

    def check(self, folder: str | Path, meta: Mapping[str, Any], *, thorough: Thorough = False) -> None:
        """Compare the files' sizes, and the checksums of files of up to 16 MB.

        Args:
            folder: the folder.
            meta: what :meth:`read` gave.
            thorough: True to compare the checksums of larger files too; ``"once"`` to do so unless that was done on
                this machine since they were written (see :func:`hashgym.storage.checksums.has_checksum`).

        Raises:
            DataError: naming every file that is missing or damaged.
        """
        large = sum(entry["bytes"] for entry in meta["files"].values() if entry["bytes"] > SMALL)
        began, said = time.monotonic(), False

        def tick() -> None:
            nonlocal said
            if not said and time.monotonic() - began > PATIENCE:
                said = True
                once = ", once on this machine" if thorough == "once" else ""
                _log.warning("comparing %s with its checksums: %.1f GB%s", folder, large / 1e9, once)

        files = meta["files"].items()
        states = {name: _state(Path(folder) / name, entry, thorough, tick) for name, entry in files}
        if wrong := [f"{name} {state}" for name, state in states.items() if state]:
            raise DataError(f"{folder} is damaged: {', '.join(wrong)}; {self.remedy}")

    def array(self, folder: str | Path, meta: Mapping[str, Any], name: str) -> NDArray[Any]:
        """An array of the folder, mapped.

        Raises:
            DataError: if the file is missing, damaged, or of another type or shape than it was written with.
        """
        file, entry = Path(folder) / name, meta["files"].get(name)
        if entry is None:
            raise DataError(f"{folder} has no {name}; {self.remedy}")
        try:
            array = map_array(file)
        except DataError as error:
            raise DataError(f"{error}; {self.remedy}") from error
        if str(array.dtype) != entry["dtype"] or list(array.shape) != entry["shape"]:
            found, written = f"{array.dtype} {list(array.shape)}", f"{entry['dtype']} {entry['shape']}"
            raise DataError(f"{name} in {folder} is {found}, {written} was written; {self.remedy}")
        return array


def read_json(file: Path, remedy: str) -> Any:
    """What a JSON file says.

    Raises:
        DataError: if it is missing or damaged; the message ends with ``remedy``.
    """
    try:
        return json.loads(read_bounded(file).decode("utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}; {remedy}") from error


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file that is whole at every moment."""
    write_text(file, json.dumps(content, indent=indent) + "\n")


def _state(file: Path, entry: Mapping[str, Any], thorough: Thorough, tick: Callable[[], None]) -> str:
    """What is wrong with a file, in words; empty where nothing is."""
    try:
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"has {size} of {entry['bytes']} bytes"
        if not file.is_file():  # a pipe or a device may be read for ever
            return "is no regular file"
        if size <= SMALL:
            right = sha256(file) == entry["sha256"]
        else:
            right = not thorough or has_checksum(file, entry["sha256"], again=thorough is True, tick=tick)
        return "" if right else "has changed since it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 of what ``meta.json`` says besides its digest."""
    canonical = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
