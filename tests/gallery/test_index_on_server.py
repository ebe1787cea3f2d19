"""Indices on a Milvus server: who gets the token, and which collections are dropped."""

from __future__ import annotations

import base64
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not (find_spec("pymilvus") and find_spec("milvus_lite")):
    pytest.skip("pymilvus or milvus-lite is not installed", allow_module_level=True)

import grpc

from hashgym import cli, index
from hashgym.codes import CodeSets
from hashgym.gallery import build, encode_images, open_gallery, read_meta, remove
from hashgym.gallery.index import _collection, _former_collection
from hashgym.index import milvus
from hashgym.storage import owned, sealed
from tests.gallery.small import content, picture, write_encoder, write_pictures

TOKEN = "key-of-the-user"
SENT = base64.b64encode(TOKEN.encode()).decode()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server."""
    port = free_port()
    server = milvus._milvus_lite()(str(tmp_path_factory.mktemp("server") / "all.db"), f"127.0.0.1:{port}")
    assert server.init()
    assert server.start()
    uri = f"http://127.0.0.1:{port}"
    for _ in range(60):
        try:
            milvus.has(uri, "any", timeout=1)
            break
        except ConnectionError:
            continue
    yield uri
    server.stop()


class Recorder(grpc.GenericRpcHandler):
    """A server of somebody else: it writes down the headers of every request, and answers none."""

    def __init__(self) -> None:
        self.headers: list[tuple[str, str]] = []
        self.server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        self.uri = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, call: Any) -> None:
        self.headers += [(key, str(value)) for key, value in call.invocation_metadata]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    found = Recorder()
    yield found
    found.server.stop(None)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of the pictures in a and in b."""
    folder = tmp_path_factory.mktemp("inputs")
    encoder = write_encoder(folder / "encoder.onnx")
    for first, name in enumerate("ab"):
        write_pictures(folder / "photos" / name, [f"{i}.png" for i in range(4)], first=10 * first)
        encode_images(encoder, [folder / "photos" / name], folder / name, progress=False)
    return folder


def on(inputs: Path, out: Path, uri: str, **options: Any) -> Path:
    """An index of a on a server."""
    return build([inputs / "a"], out, "milvus", progress=False, options={"uri": uri, **options})


def collections(uri: str) -> set[str]:
    with milvus._connected(uri, "any", "", 30.0) as server:
        return {name for name in server._client.list_collections() if name.startswith("hashgym")}


def reseal(folder: Path, name: str, digest: Callable[[dict[str, Any]], str], **changed: Any) -> None:
    """Change what a file of an index says, with a digest that fits."""
    manifest = json.loads((folder / name).read_text()) | changed
    manifest.pop("digest")
    (folder / name).write_text(json.dumps(manifest | {"digest": digest(manifest)}))


def moved(folder: Path, uri: str) -> Path:
    """An index that says that it is on another server."""
    reseal(folder, "meta.json", sealed.digest, options={"uri": uri})
    engine = folder / read_meta(folder)["content"] / "engine"
    options = json.loads((engine / "index.json").read_text())["options"]
    reseal(engine, "index.json", sealed.digest, options={**options, "uri": uri})
    return folder


def test_the_token_goes_to_no_address_that_only_the_index_names(
    inputs: Path, address: str, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    crafted = moved(on(inputs, tmp_path / "index", address), recorder.uri)
    before = content(crafted)
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    photo = str(inputs / "photos" / "a" / "0.png")
    for words in (
        ["search", str(crafted), photo],
        ["serve", str(crafted), "--port", "0"],
        ["index", str(inputs / "b"), "--out", str(crafted), "--add"],
        ["index", "--out", str(crafted), "--remove", "0.png"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 2
        output = capsys.readouterr().err
        assert f"give --uri {recorder.uri} or set MILVUS_URI" in output
        assert "unset MILVUS_TOKEN" in output
        assert TOKEN not in output
    assert recorder.headers == []
    assert content(crafted) == before
    monkeypatch.delenv("MILVUS_TOKEN")
    with pytest.raises(ConnectionError):  # without a token there is nothing to lose
        open_gallery(crafted)
    assert recorder.headers
    assert "authorization" not in dict(recorder.headers)


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_the_token_goes_to_an_address_that_the_user_gave(
    inputs: Path, address: str, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    made = on(inputs, tmp_path / "index", address)
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    if way == "environment":
        monkeypatch.setenv("MILVUS_URI", recorder.uri)
    given = recorder.uri if way == "argument" else None
    with pytest.raises(ConnectionError) as error:
        open_gallery(made, uri=given)
    assert dict(recorder.headers)["authorization"] == SENT
    assert TOKEN not in str(error.value)
    with open_gallery(made, uri=address) as gallery:  # an argument counts more than the environment
        assert gallery.search(picture(2), 1)[0].name == "2.png"


def test_an_index_on_no_server_takes_no_address(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    monkeypatch.setenv("MILVUS_URI", "http://127.0.0.1:1")
    made = build([inputs / "a"], tmp_path / "index", "brute-force", progress=False)
    with open_gallery(made) as gallery:
        assert len(gallery) == 4
    with pytest.raises(ValueError, match="not on a server: leave out --uri"):
        open_gallery(made, uri="http://127.0.0.1:1")
    engine = made / "1" / "engine"
    reseal(engine, "index.json", sealed.digest, backend="milvus", options={"uri": "http://x", "collection": "c"})
    with pytest.raises(ValueError, match="do not fit together"):
        open_gallery(made)


def test_a_file_in_the_current_folder_names_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing pymilvus reads ``.env`` where Python is used interactively."""
    import subprocess
    import sys

    (tmp_path / ".env").write_text("MILVUS_URI=http://127.0.0.1:1\nMILVUS_TOKEN=x\n")
    program = (
        "import os; from hashgym.retrieval import milvus; milvus._pymilvus();"
        "print([name for name in os.environ if name in ('MILVUS_URI', 'MILVUS_TOKEN')])"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_token_is_written_to_no_file(inputs: Path, address: str, tmp_path: Path) -> None:
    made = on(inputs, tmp_path / "index", address, token=TOKEN)
    build([inputs / "b"], made, None, True, False, {"uri": address, "token": TOKEN})
    assert not [name for name, octets in content(made).items() if TOKEN.encode() in octets]


def test_contents_are_collections_and_only_an_index_drops_its_own(inputs: Path, address: str, tmp_path: Path) -> None:
    before = collections(address)
    made = on(inputs, tmp_path / "index", address)
    assert collections(address) - before == {_collection(made, "1")}
    build([inputs / "b"], made, None, True, False)
    assert collections(address) - before == {_collection(made, "2")}
    remove(made, ["a/0.png"], progress=False)
    assert collections(address) - before == {_collection(made, "3")}
    with open_gallery(made) as gallery:
        assert [match.name for match in gallery.search(picture(12), 1)] == ["b/2.png"]
        assert len(gallery) == 7


def test_the_same_build_with_an_address_moves_an_embedded_index_there(
    inputs: Path, address: str, tmp_path: Path
) -> None:
    made = build([inputs / "a"], tmp_path / "index", "milvus", progress=False)
    assert "uri" not in read_meta(made)["options"]
    before = collections(address)
    on(inputs, made, address)
    meta = read_meta(made)
    assert collections(address) - before == {_collection(made, meta["content"])}
    assert meta["options"]["uri"] == address
    assert read_meta(on(inputs, made, address)) == meta


@pytest.mark.parametrize("marked", [True, False])
def test_a_crafted_folder_in_an_index_drops_no_collection(
    inputs: Path, address: str, tmp_path: Path, marked: bool
) -> None:
    with index.make("milvus", 48, uri=address, collection=f"hashgym_of_others_{marked}") as others:
        others.add([0], CodeSets.of(np.zeros((1, 48), np.bool_)))
        made = on(inputs, tmp_path / "index", address)
        stale = owned.create(made / "7") if marked else made / "7"
        others.save(stale / "engine")
        build([inputs / "b"], made, None, True, False)
        assert others.ids.tolist() == [0]
        assert stale.exists() is not marked
        others._call("drop_collection")


def test_a_moved_index_keeps_its_collection(inputs: Path, address: str, tmp_path: Path) -> None:
    """Also when another is built where it was, whose collections would have the same names."""
    on(inputs, tmp_path / "index", address)
    was = (tmp_path / "index").rename(tmp_path / "moved")
    again = build([inputs / "b"], tmp_path / "index", "milvus", progress=False, options={"uri": address})
    assert read_meta(again)["content"] == "2"
    for folder, name in ((was, "2.png"), (again, "2.png")):
        with open_gallery(folder) as gallery:
            assert (len(gallery), gallery.names.at(2)) == (4, name)
            assert gallery.search(picture(2 if folder == was else 12), 1)[0].distance == 0
    held = collections(address)
    build([inputs / "b"], was, None, True, False)
    assert collections(address) - held == {_collection(was, "2")}


def test_what_a_killed_build_left_on_the_server_is_dropped(
    inputs: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    owned.create(folder)
    owned.create(folder / "1")
    with index.make("milvus", 48, uri=address, collection=_collection(folder, "1")) as left:
        left.add([0], CodeSets.of(np.zeros((1, 48), np.bool_)))
    on(inputs, folder, address)
    with open_gallery(folder) as gallery:
        assert (len(gallery), len(gallery.index)) == (4, 4)
    before = collections(address)
    monkeypatch.setattr(np, "save", lambda *args, **options: 1 / 0)
    for place in (tmp_path / "new", folder):
        with pytest.raises(ZeroDivisionError):
            build([inputs / "b"], place, "milvus", place == folder, False, {"uri": address})
    assert collections(address) == before
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in folder.iterdir()) == [".hashgym", "1", "meta.json"]


def test_indices_of_older_versions_drop_their_collections(inputs: Path, address: str, tmp_path: Path) -> None:
    folder, before = tmp_path / "index", collections(address)
    former = _former_collection(folder, 48, "1")
    made = on(inputs, folder, address)
    with index.make("milvus", 48, uri=address, collection=former) as old:
        sets = open_gallery(made).codes
        old.add(np.arange(4), sets)
        shutil.rmtree(made / "1" / "engine")
        old.save(made / "1" / "engine")
    milvus.drop(address, _collection(folder, "1"))
    for marker in made.rglob(owned.MARKER):
        marker.unlink()
    assert len(open_gallery(made)) == 4
    build([inputs / "b"], made, None, True, False)
    assert collections(address) - before == {_collection(made, "2")}
    assert len(open_gallery(made)) == 8


def test_only_collections_of_indices_are_dropped(address: str) -> None:
    with milvus._connected(address, "any", "", 30.0) as server:
        server._client.create_collection("letters", dimension=4)
        with pytest.raises(ValueError, match="not that of an index, so it is not dropped"):
            milvus.drop(address, "letters")
        assert milvus.has(address, "letters")
        server._client.drop_collection("letters")
    milvus.drop(address, "letters")
