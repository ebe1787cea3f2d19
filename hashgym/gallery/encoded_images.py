"""The folder of codes: its contents, and opening it; :mod:`hashgym.gallery.encode` writes it.

It has ``words.npy`` (uint64 (n, V, W), packed codes of an image, its own and those of its regions, or further ones),
``kept.npy`` (bool (n, V), which of them it has), ``sizes.npy`` (int32 (n, 2), width and height of the upright picture),
``stamps.npy`` (int64 (n, 2), the file's size in bytes and its modification time in ns), ``digests.npy`` (uint8 (n, 16),
BLAKE2b of the file), ``names.json`` (n names relative to the root, with forward slashes), ``encoder.onnx`` and
``meta.json``. After an update the arrays and names lie in a numbered folder, which ``meta.json`` names. Folders of
older versions have no stamps and digests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, Words, word_count
from hashgym.storage.errors import DataError
from hashgym.storage.sealed import FolderFormat, Verify, read_json

__all__ = ["ARRAYS", "CODES", "ENCODER", "NAMES", "RECORD", "EncodedImages", "content_files", "open_codes"]

CODES = FolderFormat(
    "hashgym-codes",
    1,
    description="a folder of codes",
    command="hashgym encode",
    remedy="encode the pictures again to another --out",
    fields={
        **dict.fromkeys(("images", "bits", "views"), int),
        **{"root": str, "encoder": str, "job": dict, "left_out": dict},
    },
)
ENCODER, NAMES = "encoder.onnx", "names.json"
ARRAYS, RECORD = ("words", "kept", "sizes"), ("stamps", "digests")


@dataclass(frozen=True)
class EncodedImages:
    """An open folder of codes; arrays are mapped.

    Attributes:
        folder: the folder.
        root: the folder that the names are relative to.
        names: n names.
        words: uint64 (n, V, W).
        kept: bool (n, V).
        sizes: int32 (n, 2), width and height in pixels.
        bits: q.
        encoder: digest of the encoder.
        digest: of the whole folder.
        left_out: names of images that could not be read -> reason.
        stamps: int64 (n, 2), size in bytes and modification time in ns of the files; None in folders of older versions.
        digests: uint8 (n, 16), BLAKE2b of the files; None in folders of older versions.
        left_out_stamps: stamps of the images that could not be read.
        is_renamed: whether names and root are not those in the folder.
    """

    folder: Path
    root: Path
    names: list[str]
    words: Words
    kept: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    bits: int
    encoder: str
    digest: str
    left_out: dict[str, str]
    stamps: NDArray[np.int64] | None = None
    digests: NDArray[np.uint8] | None = None
    left_out_stamps: dict[str, list[int]] = field(default_factory=dict)
    is_renamed: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def sets(self, rows: slice = slice(None)) -> CodeSets:
        """Return the code sets of some images."""
        return CodeSets(np.array(self.words[rows]), np.array(self.kept[rows]), self.bits)


def open_codes(folder: str | Path, *, verify: Verify = "once") -> EncodedImages:
    """Open a folder of codes.

    Args:
        folder: a folder that :func:`hashgym.gallery.encode_images` wrote.
        verify: whether files of more than 16 MB are compared with their checksums too: ``"once"`` on this machine, and
            again when a file has changed; True each time; False never.

    Raises:
        DataError: if it is not a folder of codes, or damaged.
    """
    path = Path(folder)
    if not path.exists() and path.with_name(path.name + ".partial").exists():
        raise DataError(
            f"{folder} is not finished: run its `hashgym encode` again, which continues from {folder}.partial"
        )
    while True:
        meta = CODES.read(path)
        try:
            return _opened(path, meta, verify)
        except DataError:
            if CODES.read(path) == meta:  # otherwise it was replaced in the meantime
                raise


def _opened(path: Path, meta: dict[str, Any], verify: Verify) -> EncodedImages:
    CODES.verify(path, meta, large_files=verify)
    content = meta.get("content", "")
    if content and not (isinstance(content, str) and content.isdecimal()):
        raise DataError(f"{path} is damaged: its content is {content!r}; {CODES.remedy}")
    below = f"{content}/" if content else ""
    words, kept, sizes = (CODES.open_array(path, meta, f"{below}{key}.npy") for key in ARRAYS)
    stamps = digests = None
    if all(f"{below}{key}.npy" in meta["files"] for key in RECORD):
        stamps, digests = (CODES.open_array(path, meta, f"{below}{key}.npy") for key in RECORD)
    names = read_json(path / below / NAMES, CODES.remedy)
    left_out_stamps = meta.get("left_out_stamps", {})
    n, views, bits = meta["images"], meta["views"], meta["bits"]
    shapes = [array.shape for array in (words, kept, sizes, stamps, digests) if array is not None]
    if (
        shapes != [(n, views, word_count(bits)), (n, views), (n, 2), (n, 2), (n, 16)][: len(shapes)]
        or not isinstance(names, list)
        or len(names) != n
        or not isinstance(left_out_stamps, dict)
    ):
        raise DataError(f"{path} is damaged: its arrays and names do not fit together; {CODES.remedy}")
    return EncodedImages(
        folder=path,
        root=Path(meta["root"]),
        names=names,
        words=words,
        kept=kept,
        sizes=sizes,
        bits=bits,
        encoder=meta["encoder"],
        digest=meta["digest"],
        left_out=meta["left_out"],
        stamps=stamps,
        digests=digests,
        left_out_stamps=left_out_stamps,
    )


def content_files(content: str = "") -> list[str]:
    """Return the files of a folder of codes that change with its pictures."""
    below = f"{content}/" if content else ""
    return [*(f"{below}{key}.npy" for key in (*ARRAYS, *RECORD)), f"{below}{NAMES}"]
