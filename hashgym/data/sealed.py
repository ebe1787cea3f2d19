"""Sealed folders: files, and a ``meta.json`` that says what they are and has the size and SHA-256 of each.

``meta.json`` is written last and atomically, and has a digest of itself: where it can be read, the folder is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hashgym.data.arrays import map_array
from hashgym.data.checksums import sha256
from hashgym.data.dataset import DataError
from hashgym.data.files import read_bounded

__all__ = ["META", "Kind", "read_json", "sync", "write_json"]

META = "meta.json"
SMALL = 1 << 24  # bytes that are read so quickly that they are always compared with their checksum


@dataclass(frozen=True)
class Kind:
    """A kind of sealed folder.

    Attributes:
        format: its name in ``meta.json``.
        version: of the format.
        what: what such a folder is, for messages.
        command: what writes one.
        mend: what helps where one is damaged.
        facts: what ``meta.json`` says besides, and of which type it is.
    """

    format: str
    version: int
    what: str
    command: str
    mend: str
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
        meta = read_json(file, self.mend)
        if not isinstance(meta, dict) or meta.get("format") != self.format:
            raise DataError(f"{folder} is no {self.what}, says its {META}; `{self.command}` writes one")
        if meta.get("version") != self.version:
            raise DataError(
                f"{folder} is of version {meta.get('version')!r}, this hashgym reads version {self.version}: "
                f"{self.mend}, or use the hashgym that wrote it"
            )
        said = {key: value for key, value in meta.items() if key != "digest"}
        if meta.get("digest") != digest(said) or not self._sensible(said):
            raise DataError(f"{file} is damaged or was edited; {self.mend}")
        return meta

    def _sensible(self, meta: Mapping[str, Any]) -> bool:
        """Whether all is there that is looked for: a digest vouches for what was written, not for who wrote it."""
        if not all(type(meta.get(key)) is kind for key, kind in {"files": dict, **self.facts}.items()):
            return False
        wanted = {"bytes": int, "sha256": str}
        array = wanted | {"dtype": str, "shape": list}
        return all(
            isinstance(entry, dict)
            and all(type(entry.get(key)) is kind for key, kind in (array if name.endswith(".npy") else wanted).items())
            for name, entry in meta["files"].items()
        )

    def check(self, folder: str | Path, meta: Mapping[str, Any], *, thorough: bool = False) -> None:
        """Compare the files' sizes, and the checksums of files of up to 16 MB, with ``thorough`` of all.

        Raises:
            DataError: naming every file that is missing or damaged.
        """
        states = {name: _state(Path(folder) / name, entry, thorough) for name, entry in meta["files"].items()}
        if wrong := [f"{name} {state}" for name, state in states.items() if state]:
            raise DataError(f"{folder} is damaged: {', '.join(wrong)}; {self.mend}")

    def array(self, folder: str | Path, meta: Mapping[str, Any], name: str) -> NDArray[Any]:
        """An array of the folder, mapped.

        Raises:
            DataError: if the file is missing, damaged, or of another type or shape than it was written with.
        """
        file, entry = Path(folder) / name, meta["files"].get(name)
        if entry is None:
            raise DataError(f"{folder} has no {name}; {self.mend}")
        try:
            array = map_array(file)
        except DataError as error:
            raise DataError(f"{error}; {self.mend}") from error
        if str(array.dtype) != entry["dtype"] or list(array.shape) != entry["shape"]:
            found, written = f"{array.dtype} {list(array.shape)}", f"{entry['dtype']} {entry['shape']}"
            raise DataError(f"{name} in {folder} is {found}, {written} was written; {self.mend}")
        return array


def sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def read_json(file: Path, mend: str) -> Any:
    """What a JSON file says.

    Raises:
        DataError: if it is missing or damaged; the message ends with ``mend``.
    """
    try:
        return json.loads(read_bounded(file).decode("utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; {mend}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}; {mend}") from error


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON under another name, sync it and rename it, so that the file is whole at every moment."""
    temporary = file.with_name(f"{file.name}.new")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=indent)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
    sync(file.parent)


def _state(file: Path, entry: Mapping[str, Any], thorough: bool) -> str:
    """What is wrong with a file, in words; empty where nothing is."""
    try:
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"has {size} of {entry['bytes']} bytes"
        changed = (thorough or size <= SMALL) and sha256(file) != entry["sha256"]
        return "has changed since it was written" if changed else ""
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 of what ``meta.json`` says besides its digest."""
    canonical = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
