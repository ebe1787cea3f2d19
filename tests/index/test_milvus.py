"""The Milvus back end, embedded and at an address: the embedded server, started on a port, stands for a cluster."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from hypothesis import Phase, given, settings

if not (find_spec("pymilvus") and find_spec("milvus_lite")):
    pytest.skip("pymilvus or milvus-lite is not installed", allow_module_level=True)

from hashgym import index
from hashgym.codes import CodeSets
from hashgym.index import milvus
from hashgym.storage import owned
from tests.index.test_index import BITS, Naive, assert_same, exercise, filled, make_sets, shapes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a server on a port; servers are stopped at the end of the module."""
    started = []

    def start():
        port = free_port()
        server = milvus._milvus_lite()(str(tmp_path_factory.mktemp("server") / "all.db"), f"127.0.0.1:{port}")
        assert server.init()
        assert server.start()
        started.append(server)
        for _ in range(600):  # until it answers
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            sleep(0.1)
        return server, f"http://127.0.0.1:{port}"

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def address(start):
    return start()[1]


@settings(max_examples=2, phases=[Phase.generate])
@given(**shapes)
def test_embedded_milvus_equals_a_loop(tmp_path_factory, seed, n, bits, most, spread):
    with index.make("milvus", bits) as found:
        exercise(found, seed, n, bits, most, spread, tmp_path_factory.mktemp("index") / "made")


@settings(max_examples=4, phases=[Phase.generate])
@given(**shapes)
def test_milvus_at_an_address_equals_a_loop(address, tmp_path_factory, seed, n, bits, most, spread):
    folder = tmp_path_factory.mktemp("index")
    with index.make("milvus", bits, uri=address, collection=f"c{folder.name.replace('-', '_')}") as found:
        exercise(found, seed, n, bits, most, spread, folder / "made")
        found._call("drop_collection")


@pytest.mark.parametrize(("limit", "spread"), [(16, 0.02), (16, 0.5), (7, 0.0)])
def test_more_ties_than_an_answer_holds_are_all_found(address, monkeypatch, limit, spread):
    """With limits this low every search needs several answers; at Milvus' own limit as at these."""
    monkeypatch.setattr(milvus, "_LIMIT", limit)
    rng, naive = np.random.default_rng(limit), Naive()
    with index.make("milvus", 12, uri=address, collection="ties") as found:
        ids, sets = rng.permutation(1000)[:60], make_sets(rng, 60, 12, 3, spread)
        found.add(ids, sets)
        naive.add(ids, sets)
        assert_same(found, naive, rng.random((2, 12)) < 0.5, (1, 5, 60), (0, 3, 12))
        found._call("drop_collection")


def test_images_are_never_split_between_two_messages(address, monkeypatch):
    monkeypatch.setattr(milvus, "_BATCH", 4)
    rng, naive = np.random.default_rng(0), Naive()
    sent = []
    with index.make("milvus", 8, uri=address, collection="batches") as found:
        call = found._call
        monkeypatch.setattr(found, "_call", lambda *args, **kw: (sent.append(args), call(*args, **kw))[1])
        ids, sets = rng.permutation(60)[:30], make_sets(rng, 30, 8, 6, 0.5)
        found.add(ids, sets)
        naive.add(ids, sets)
        messages = [args[1] for args in sent if args[0] == "insert"]
        images = [{entity["image"] for entity in message} for message in messages]
        assert sum(map(len, images)) == len(set.union(*images)) == 30
        assert len(messages) > 5
        assert_same(found, naive, rng.random((2, 8)) < 0.5, (3,), (2,))
        with pytest.raises(ValueError, match="ids already"):
            found.add(ids[-1:], sets[-1:])
        found.remove(ids[:20])
        naive.remove(ids[:20])
        assert_same(found, naive, rng.random((2, 8)) < 0.5, (3,), (2,))
        call("drop_collection")


def test_empty_index_and_invalid_arguments_as_in_every_index(tmp_path):
    made = index.make("milvus", 3)
    try:
        assert [x.shape for x in made.search(BITS, 5)] == [(1, 0), (1, 0)]
        assert [x.tolist() for x in made.within(BITS, 2)] == [[0, 0], [], []]
        made.save(tmp_path / "empty")
        made.add([4, 7], CodeSets.of([[1, 0, 0], [0, 1, 1]]))
        for do, reason in (
            (lambda: made.add([7], CodeSets.of(BITS)), "ids already: 7"),
            (lambda: made.remove([5]), "no images with these ids: 5"),
            (lambda: made.search(BITS[:, :2], 1), "codes of 3 bits"),
            (lambda: made.search(BITS, 0), "at least 1"),
            (lambda: made.add([1 << 47], CodeSets.of(BITS)), "ids below"),
        ):
            with pytest.raises(ValueError, match=reason):
                do()
        assert made.ids.tolist() == [4, 7]
    finally:
        made.close()
    with index.load(tmp_path / "empty") as empty:
        assert len(empty) == 0


def test_a_saved_index_is_opened_twice_and_changed_only_by_saving(tmp_path):
    with filled("milvus") as made:
        made.save(tmp_path)
        made.remove([4])
        with index.load(tmp_path) as first, index.load(tmp_path) as second:
            first.remove([7])
            assert (first.ids.tolist(), second.ids.tolist()) == ([4], [4, 7])
            first.save(tmp_path)
        assert made.ids.tolist() == [7]
    with index.load(tmp_path) as again:
        assert again.ids.tolist() == [4]
        (file,) = tmp_path.glob("milvus-*.db")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="bytes; copy the index again"):
        index.load(tmp_path)


def test_no_process_or_file_is_left_after_close():
    made = filled("milvus")
    process, folder = made._server._process._p, made._server._file.parent
    assert made._server.running
    assert folder.is_dir()
    made.close()
    made.close()
    assert process.poll() is not None
    assert not folder.exists()
    assert not list(Path(tempfile.gettempdir()).glob(f"milvus*.{process.pid}"))  # its logs
    with pytest.raises(ValueError, match="the index is closed"):
        made.search(BITS, 1)


def test_the_server_of_a_killed_process_stops_and_the_next_one_removes_its_files():
    script = (
        "import os; from hashgym import index; made = index.make('milvus', 3);"
        "print(made._server._process._p.pid, made._server._file.parent, flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == -9
    process, folder = run.stdout.split()
    gone = subprocess.run(["tail", "-s0.1", f"--pid={process}", "-f", "/dev/null"], timeout=20, check=False)
    assert gone.returncode == 0
    assert Path(folder).is_dir()
    early, now = (Path(tempfile.mkdtemp(prefix=f"hashgym-milvus-{age}-")) for age in (0, 1))  # killed before they began
    other = Path(tempfile.mkdtemp(prefix="hashgym-milvus-"))  # not made by an index
    (other / "photo.jpg").write_bytes(b"mine")
    for folder_of_ours in (early, now):
        owned.mark(folder_of_ours)
    for old in (early, other):
        os.utime(old, (0, 0))
    with filled("milvus") as first, filled("milvus") as second:
        assert not Path(folder).exists()
        assert (early.exists(), now.exists()) == (False, True)
        assert (first._server._file.parent / ".cache").is_dir()  # no folder is shared with other embedded servers
        owned.remove(now)
        assert (other / "photo.jpg").read_bytes() == b"mine"
        shutil.rmtree(other)
        assert first.ids.tolist() == second.ids.tolist() == [4, 7]


def test_a_collection_is_shared_by_name_and_checked(address, tmp_path):
    with (
        filled("milvus", uri=address, collection="shared") as made,
        index.make("milvus", 3, uri=address, collection="shared") as other,
    ):
        assert other.ids.tolist() == [4, 7]
        other.remove([4])
        assert made.search(BITS, 5)[0].tolist() == [[7]]
        made.save(tmp_path)
        assert "token" not in (tmp_path / "index.json").read_text()
    with pytest.raises(
        ValueError, match=r"not that of an index with codes of 4 bits, its description is .*3 bits.*collection="
    ):
        index.make("milvus", 4, uri=address, collection="shared")
    with index.load(tmp_path) as again:
        assert again.search(BITS, 5)[1].tolist() == [[3]]
        again._call("drop_collection")
    with pytest.raises(ValueError, match="no collection 'shared'"):
        index.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"collection": "a b"}, "at most 254 letters, digits and _, got 'a b'"),
        ({"uri": "index.db"}, "uri must be a server's address like"),
        ({"uri": "http://me:secret@localhost:19530"}, "token='USER:PASSWORD'"),
        ({"uri": "milvus://me:secret@localhost"}, "token='USER:PASSWORD'"),
        ({"uri": "http://localhost:19530/?token=secret"}, "token='USER:PASSWORD'"),
        ({"uri": "http://localhost\x1b[2J"}, "alone, like http://HOST:19530"),
        ({"url": "x"}, "takes uri=, token=, collection=, timeout=, got url"),
    ],
)
def test_wrong_options_are_rejected(options, reason):
    for use in (lambda: index.make("milvus", 3, **options), lambda: index.check_options("milvus", options)):
        with pytest.raises(ValueError, match=reason) as error:
            use()
        assert "secret" not in str(error.value)


def test_a_server_that_is_not_there_or_stops_is_named(start, tmp_path):
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"Milvus at {nowhere}: .* is it running"):
        index.make("milvus", 3, uri=nowhere, timeout=2)
    server, address = start()
    made = filled("milvus", uri=address, timeout=2)
    made.save(tmp_path)
    server.stop()
    for do in (lambda: made.search(BITS, 1), lambda: made.add([9], CodeSets.of(BITS)), lambda: made.ids):
        with pytest.raises(ConnectionError, match=f"Milvus at {address}: .* is it running"):
            do()
    made.close()
    with pytest.raises(ConnectionError, match="is it running"):
        index.load(tmp_path, timeout=2)
    with pytest.raises(ConnectionError, match=f"Milvus at {nowhere}"):
        index.load(tmp_path, uri=nowhere, timeout=1)


def test_the_embedded_server_that_dies_is_named():
    made = filled("milvus")
    made._timeout = 1
    made._server._process._p.kill()
    with pytest.raises(ConnectionError, match=r"the embedded Milvus: request failed .* open the index again"):
        made.search(BITS, 1)
    made.close()
