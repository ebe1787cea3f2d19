"""Pickles of arrays are parsed, never run: values as pickle gives them, or an error."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hashgym.data import DataError
from hashgym.storage.array_pickles import parse

KERNELS = arrays(st.sampled_from([np.dtype(np.float32), np.dtype(np.uint8)]), array_shapes(max_dims=4, max_side=4))
LAYERS = st.dictionaries(st.text(max_size=5), KERNELS, max_size=3)


def written(folder: Path, content: Any, protocol: int = 2) -> Path:
    path = folder / "arrays.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@settings(max_examples=50, deadline=None)
@given(
    network=st.dictionaries(st.text(max_size=5), LAYERS, max_size=3),
    protocol=st.sampled_from([2, 3]),
    columns_first=st.booleans(),
)
def test_nested_dicts_of_arrays_are_what_pickle_gives(
    tmp_path_factory: pytest.TempPathFactory, network: dict[str, Any], protocol: int, columns_first: bool
) -> None:
    if columns_first:
        network = {key: {name: np.asfortranarray(a) for name, a in layer.items()} for key, layer in network.items()}
    found = parse(written(tmp_path_factory.getbasetemp(), {"network": network}, protocol))["network"]
    assert found.keys() == network.keys()
    for key, layer in network.items():
        assert found[key].keys() == layer.keys()
        for name, array in layer.items():
            assert (found[key][name].dtype, found[key][name].shape) == (array.dtype, array.shape)
            assert found[key][name].tobytes() == array.tobytes()  # also NaN, also -0.0


class Call:
    """What pickle would call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, subprocess.getoutput, eval, Path.touch, np.save, np.load])
def test_nothing_is_called(tmp_path: Path, function: Any, protocol: int) -> None:
    marker = tmp_path / "ran"
    argument: Any = {
        os.system: f"touch {marker}",
        subprocess.getoutput: f"touch {marker}",
        eval: f"open({str(marker)!r}, 'w')",
    }.get(function, marker)
    calls = Call(function, *((argument, np.zeros(1)) if function is np.save else (argument,)))
    for content in ({"a": calls}, {"layer": {"kernel": calls}}, [calls], calls):
        with pytest.raises(DataError, match=r"arrays\.pkl is damaged, or not a pickled dict of arrays"):
            parse(written(tmp_path, content, protocol))
    assert list(tmp_path.iterdir()) == [tmp_path / "arrays.pkl"]


def test_the_names_that_are_known_call_nothing_else(tmp_path: Path) -> None:
    """NumPy's own functions are emulated only with the arguments of an array."""
    for program in (
        b"\x80\x02}U\x01acnumpy\ndtype\nU\x02O8\x85Rs.",  # objects
        b"\x80\x02}U\x01acnumpy\ndtype\n(U\x01aU\x01bl\x85Rs.",
        b"\x80\x02}U\x01acnumpy\nndarray\n)Rs.",
        b"\x80\x02}U\x01ac_codecs\nencode\nU\x01aU\x06base64\x86Rs.",
        b"\x80\x02}U\x01acnumpy.core.multiarray\nscalar\n)Rs.",
        b"\x80\x02}U\x01acnumpy\nsave\nU\x01aK\x01\x86Rs.",
    ):
        with pytest.raises(DataError, match="unexpected"):
            parse(written(tmp_path, program))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3),
        np.zeros(3, np.int64),
        np.zeros(3, np.float16),
        np.array([None, {}]),
        np.zeros(2, "f4,u1"),
        np.zeros(3, ">f4"),
        np.array(["a"]),
    ],
)
def test_arrays_of_other_types_are_rejected(tmp_path: Path, array: Any) -> None:
    with pytest.raises(DataError, match="is damaged, or not a pickled dict of arrays"):
        parse(written(tmp_path, {"layer": {"kernel": array}}))


def test_a_file_that_is_cut_off_anywhere_is_rejected(tmp_path: Path) -> None:
    whole = pickle.dumps(
        {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, "f4")}}, 2
    )
    assert parse(written(tmp_path, whole))["layer"]["kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for length in range(len(whole)):
        with pytest.raises(DataError):
            parse(written(tmp_path, whole[:length]))


@pytest.mark.parametrize(
    "shape", [(2, 4), (7,), (-1, 6), (-2, -3), (1 << 40, 1 << 40), (), "23", (2.0, 3.0), ((2, 3),)]
)
def test_a_shape_that_the_bytes_do_not_have_is_rejected(tmp_path: Path, shape: Any) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    rebuild, arguments, state = array.__reduce__()

    class Other:
        def __reduce__(self) -> tuple[Any, ...]:
            return rebuild, arguments, (state[0], shape, *state[2:])

    with pytest.raises(DataError, match="is damaged, or not a pickled dict of arrays"):
        parse(written(tmp_path, {"kernel": Other()}))


def test_dicts_that_name_each_other_end(tmp_path: Path) -> None:
    """100 dicts, each twice in the next, and one in itself: 2**100 dicts if every occurrence were converted."""
    content: dict[str, Any] = {"kernel": np.ones(1, np.float32)}
    for _ in range(100):
        content = {"a": content, "b": content}
    content["self"] = content
    found = parse(written(tmp_path, content))
    assert found["self"] is found
    for _ in range(100):
        assert found["a"] is found["b"]
        found = found["a"]
    assert found["kernel"].tolist() == [1]


def test_a_name_of_a_type_that_takes_forever_to_hash_is_rejected(tmp_path: Path) -> None:
    nested: Any = ()
    for _ in range(100):
        nested = (nested, nested)

    class Type:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, (nested,)

    with pytest.raises(DataError, match="unexpected call: dtype"):
        parse(written(tmp_path, {"kernel": Type()}))
