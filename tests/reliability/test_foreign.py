"""Commands never change or delete files that hashgym did not write."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashgym import cli
from hashgym.data import DataError, cache
from hashgym.storage import owned
from tests.data.test_cache import dataset

pytest.importorskip("onnxruntime")

# Names of users, and names that are like ours: of contents, of work folders, of files.
NAMES = (
    *("photo.jpg", "2023/a.jpg", "2024/a.jpg", "0/a.png", "1/a.png", "2/a.png", "3/deep/er/a.png", "42/a.png"),
    *("1/engine/notes.txt", "1/engine/.saving/notes.txt", "2/engine/index.json", "1/words.npy", "engine/x"),
    *(
        "index.json",
        "meta.json",
        "meta.json.new",
        "names.json",
        "words.npy",
        "words-0123456789abcdef.npy",
        "journal.jsonl",
    ),
    *(".saving/x", ".hashgym/x", ".hashgym.txt", "photos.partial/a.jpg", "policy.onnx", "page.html"),
)
BESIDE = (
    ".out.partial.1a2b3c4d1a2b3c4d.new/a.jpg",
    "out.partial/a.jpg",
    ".out.partial/a.jpg",
    ".out.partial.new/a.jpg",
    ".out.1a2b3c4d.partial/a.jpg",
    ".out.1a2b3c4d.old/a.jpg",
)
LINK = "7"  # in the folder, to a folder elsewhere
STATES = ("missing", "empty", "begun", "index", "codes", "features", "file")
OURS = {"begun": ("1/words.npy",), "codes": ("journal.jsonl",), "features": ("journal.jsonl",)}  # by name and place
COMMANDS: dict[str, tuple[str, ...]] = {
    "index": ("index", "codes", "--out", "work/out", "--backend", "brute-force"),
    "index more": ("index", "more", "--out", "work/out", "--add"),
    "index less": ("index", "--out", "work/out", "--remove", "red/3.png"),
    "index wrongly": ("index", "codes", "--out", "work/out", "--backend", "typo"),
    "index nowhere": ("index", "codes", "--out", "work/out", "--backend", "milvus", "--uri", "nonsense"),
    "encode": ("encode", "encoder.onnx", "pictures/red", "--out", "work/out"),
    "features": (
        *("features", "--dataset", "folder:pictures", "--backbone", "pixels", "--size", "4"),
        *("--thumbnail", "0", "--out", "work/out"),
    ),
    "export": ("export", "lsh", "--bits", "4", "--features", "features", "--out", "work/out"),
    "search": ("search", "index", "pictures/red/1.png", "--html", "work/out"),
    "search into it": ("search", "index", "pictures/red/1.png", "--html", "work/out/page.html"),
    "save": (),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pictures, features, an encoder, codes and an index, in the current folder."""
    from hashgym import gallery
    from tests.reliability import jobs

    folder = tmp_path_factory.mktemp("foreign") / "inputs"
    jobs.make_inputs(folder)
    (folder / "all").rename(folder / "codes")
    (folder / "index-brute-force").rename(folder / "index")
    gallery.encode_images(folder / "encoder.onnx", [folder / "pictures" / "blue"], folder / "more", progress=False)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def prepare(inputs: Path, place: Path, state: str, names: list[str]) -> None:
    """The state before the commands: perhaps a folder of hashgym, and beside it files of other origin."""
    out = place / "out"
    if state in ("index", "codes", "features"):
        shutil.copytree(inputs / state, out)
    elif state == "begun":
        owned.create(owned.create(out) / "1")
    elif state == "empty":
        out.mkdir()
    elif state == "file":
        out.write_bytes(b"mine")
    for name in names:
        if name in OURS.get(state, ()):
            continue
        file = place / name if name in BESIDE else out / name
        with contextlib.suppress(
            FileExistsError, NotADirectoryError
        ):  # a file of ours has that name, or ``out`` is one
            if name == LINK:
                (place / "elsewhere").mkdir()
                (place / "elsewhere" / "photo.jpg").write_bytes(b"mine")
                out.mkdir(exist_ok=True)
                file.symlink_to(place / "elsewhere")
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("xb") as stream:
                    stream.write(f"mine: {name}".encode())


def foreign(place: Path) -> dict[str, bytes]:
    """All files below a folder that hashgym did not write."""
    files = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return {name: octets for name, octets in files.items() if octets.startswith(b"mine")}


def run(words: tuple[str, ...], place: Path) -> None:
    """Run a command, which may succeed or fail with a message."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        if not words:
            with contextlib.suppress(DataError):
                cache.save(dataset(), place / "out", overwrite=True)
        else:
            with contextlib.suppress(SystemExit):
                cli.main(words)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    state=st.sampled_from(STATES),
    names=st.lists(st.sampled_from([*NAMES, *BESIDE, LINK]), min_size=1, max_size=5, unique=True),
    commands=st.lists(st.sampled_from(list(COMMANDS)), min_size=1, max_size=3),
)
def test_no_command_loses_files_of_others(inputs: Path, state: str, names: list[str], commands: list[str]) -> None:
    place = Path("work")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    prepare(inputs, place, state, names)
    before = foreign(place)
    for command in commands:
        run(COMMANDS[command], place)
        assert foreign(place) == before, command
