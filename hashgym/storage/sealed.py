"""Sealed folders: files, and a manifest that lists them with their sizes and SHA-256.

The manifest (``meta.json``, unless the format names it otherwise) is written last and atomically, and has a digest of
itself. So a folder whose manifest can be read is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from hashgym.moved import keep_old_names
from hashgym.storage import owned
from hashgym.storage.atomic import move, sync, write_text
from hashgym.storage.checksums import has_checksum, sha256
from hashgym.storage.errors import DataError
from hashgym.storage.reading import map_array, read_bounded

__all__ = ["FolderFormat", "Verify", "digest", "is_named_by_digest", "read_json", "write_json"]

SMALL = 1 << 24  # bytes; smaller files are read so quickly that their checksums are always compared
PATIENCE = 2.0  # seconds of comparing checksums after which a message is logged
_STORED = re.compile(r"[a-z]+-([0-9a-f]{16})\.[a-z]+")  # NAME-DIGEST.SUFFIX, of FolderFormat.seal_version

Verify: TypeAlias = bool | Literal["once"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderFormat:
    """A format of sealed folders.

    Attributes:
        name: of the format, in the manifest.
        version: of the format.
        description: what such a folder is, with its article, for messages.
        command: the command that writes one.
        remedy: what to do about a damaged one, for messages.
        fields: names of further fields of the manifest, and their types.
        manifest: file name of the manifest.
    """

    name: str
    version: int
    description: str
    command: str
    remedy: str
    fields: Mapping[str, type] = field(default_factory=dict)
    manifest: str = "meta.json"

    def seal(self, folder: Path, files: Iterable[str], **fields: Any) -> None:
        """Sync the files, given relative to the folder, and write the manifest with them and the fields."""
        entries: dict[str, Any] = {}
        for name in files:
            file = folder / name
            sync(file)
            entries[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            if file.suffix == ".npy":
                array = map_array(file)
                entries[name] |= {"dtype": str(array.dtype), "shape": list(array.shape)}
        self._write_manifest(folder, fields, entries)

    def seal_version(self, folder: Path, work: Path, **fields: Any) -> None:
        """Move all files of a work folder into the folder as its new version, and delete those of the version before.

        ``words.npy`` becomes ``words-DIGEST.npy``, which stands beside the old version's until the manifest is
        replaced. So a process that is killed leaves one of the two versions, complete. Other files are not touched.

        Args:
            folder: it may hold a version already.
            work: a folder on the same disk, whose files have names of lower-case letters and a suffix; its marker of
                :mod:`hashgym.storage.owned` stays.
            **fields: of the manifest.

        Raises:
            ValueError: for another name in the work folder; nothing is moved then.
        """
        files = sorted(file for file in work.iterdir() if file.name != owned.MARKER)
        if invalid := [file.name for file in files if not re.fullmatch(r"[a-z]+\.[a-z]+", file.name)]:
            raise ValueError(f"sealed files have names like words.npy, in lower-case letters, got {', '.join(invalid)}")
        entries: dict[str, Any] = {}
        for file in files:
            checksum = sha256(file)
            stored = f"{file.stem}-{checksum[:16]}{file.suffix}"
            entries[file.name] = {"file": stored, "bytes": file.stat().st_size, "sha256": checksum}
            move(file, folder / stored)
        sync(folder)
        self._write_manifest(folder, fields, entries)
        current = {entry["file"] for entry in entries.values()}
        for file in folder.iterdir():
            if file.name not in current and is_named_by_digest(file):
                file.unlink()

    def matches(self, folder: str | Path) -> bool:
        """Return whether there is a manifest of this format, damaged or not."""
        try:
            with (Path(folder) / self.manifest).open("rb") as file:
                return f'"{self.name}"'.encode() in file.read(200)
        except OSError:
            return False

    def read(self, folder: str | Path) -> dict[str, Any]:
        """Return the manifest, checked against its own digest.

        Raises:
            DataError: if there is none, it is of another format or version, or it is damaged.
        """
        file = Path(folder) / self.manifest
        problem = f"{folder} is not {self.description}"
        if not file.is_file():
            raise DataError(f"{problem}: it has no {self.manifest}; `{self.command}` writes one")
        manifest = read_json(file, self.remedy)
        if not isinstance(manifest, dict) or manifest.get("format") != self.name:
            raise DataError(f"{problem}: its {self.manifest} is of another format; `{self.command}` writes one")
        if manifest.get("version") != self.version:
            raise DataError(
                f"{folder} is of version {manifest.get('version')!r}, this hashgym reads version {self.version}: "
                f"{self.remedy}, or use the hashgym that wrote it"
            )
        content = {key: value for key, value in manifest.items() if key != "digest"}
        if manifest.get("digest") != digest(content) or not self._is_valid(content):
            raise DataError(f"{file} is damaged or was edited; {self.remedy}")
        return manifest

    def verify(self, folder: str | Path, manifest: Mapping[str, Any], *, large_files: Verify = False) -> None:
        """Compare the files' sizes, and the checksums of files of up to 16 MB.

        Args:
            folder: the folder.
            manifest: as :meth:`read` returns it.
            large_files: True to compare the checksums of larger files too; ``"once"`` to do so unless that was done on
                this machine since they were written (see :func:`hashgym.storage.checksums.has_checksum`).

        Raises:
            DataError: naming every file that is missing or damaged.
        """
        large = sum(entry["bytes"] for entry in manifest["files"].values() if entry["bytes"] > SMALL)
        started, reported = time.monotonic(), False

        def tick() -> None:
            nonlocal reported
            if not reported and time.monotonic() - started > PATIENCE:
                reported = True
                once = ", once on this machine" if large_files == "once" else ""
                _log.warning("comparing %s with its checksums: %.1f GB%s", folder, large / 1e9, once)

        files = {entry.get("file", name): entry for name, entry in manifest["files"].items()}
        problems = {name: _problem(Path(folder) / name, entry, large_files, tick) for name, entry in files.items()}
        if found := [f"{name} {problem}" for name, problem in problems.items() if problem]:
            raise DataError(f"{folder} is damaged: {', '.join(found)}; {self.remedy}")

    def path(self, folder: str | Path, manifest: Mapping[str, Any], name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        stored: str = manifest["files"][name].get("file", name)
        return Path(folder) / stored

    def open_array(self, folder: str | Path, manifest: Mapping[str, Any], name: str) -> NDArray[Any]:
        """Map an array of the folder.

        Raises:
            DataError: if the file is missing, damaged, or of another type or shape than it was written with.
        """
        entry = manifest["files"].get(name)
        if entry is None:
            raise DataError(f"{folder} has no {name}; {self.remedy}")
        try:
            array = map_array(self.path(folder, manifest, name))
        except DataError as error:
            raise DataError(f"{error}; {self.remedy}") from error
        found = {"dtype": str(array.dtype), "shape": list(array.shape)}
        if any(value != entry.get(key, value) for key, value in found.items()):
            actual, written = f"{array.dtype} {list(array.shape)}", f"{entry['dtype']} {entry['shape']}"
            raise DataError(f"{name} in {folder} is {actual}, {written} was written; {self.remedy}")
        return array

    def _write_manifest(self, folder: Path, fields: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
        content = {"format": self.name, "version": self.version, **fields, "files": entries}
        write_json(folder / self.manifest, content | {"digest": digest(content)}, indent=1)

    def _is_valid(self, manifest: Mapping[str, Any]) -> bool:
        """Return whether all fields exist and no file is outside the folder; a correct digest does not imply this."""
        types = {"files": dict, **self.fields}
        return _has(manifest, types) and all(_is_valid_entry(*entry) for entry in manifest["files"].items())


def read_json(file: Path, remedy: str) -> Any:
    """Return the content of a JSON file.

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
    """Write a JSON file atomically."""
    write_text(file, json.dumps(content, indent=indent) + "\n")


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of a manifest, without its digest."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def is_named_by_digest(file: Path) -> bool:
    """Return whether :meth:`FolderFormat.seal_version` wrote a file: its name has the digest of its content."""
    name = _STORED.fullmatch(file.name)
    return bool(name and file.is_file() and not file.is_symlink() and sha256(file)[:16] == name[1])


def _has(entry: Any, types: Mapping[str, type]) -> bool:
    return isinstance(entry, Mapping) and all(type(entry.get(key)) is kind for key, kind in types.items())


def _is_valid_entry(name: str, entry: Any) -> bool:
    if not _has(entry, {"bytes": int, "sha256": str}):
        return False
    if "file" in entry:  # of seal_version
        return isinstance(entry["file"], str) and _STORED.fullmatch(entry["file"]) is not None
    inside = not (Path(name).is_absolute() or ".." in Path(name).parts)
    return inside and (not name.endswith(".npy") or _has(entry, {"dtype": str, "shape": list}))


def _problem(file: Path, entry: Mapping[str, Any], large_files: Verify, tick: Callable[[], None]) -> str:
    """Describe what is wrong with a file; empty if nothing is."""
    try:
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"has {size} of {entry['bytes']} bytes"
        if not file.is_file():  # reading a pipe or a device may never end
            return "is not a regular file"
        if size <= SMALL:
            is_unchanged = sha256(file) == entry["sha256"]
        else:
            is_unchanged = not large_files or has_checksum(file, entry["sha256"], again=large_files is True, tick=tick)
        return "" if is_unchanged else "has changed since it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


keep_old_names(__name__)
