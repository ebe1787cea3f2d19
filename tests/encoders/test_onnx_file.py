"""Encoders that would read other files, in every field of ONNX that can name one."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashgym import load_encoder
from hashgym.data import DataError
from hashgym.encoders import onnx_file
from hashgym.encoders.encoder import seal
from hashgym.encoders.onnx_file import check_self_contained
from tests.gallery.small import write_encoder
from tests.reliability.damage import damaged

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
VALUES = np.arange(4, dtype=np.float32)


def inside(name="w"):
    return numpy_helper.from_array(VALUES, name)


def outside(location="secret.bin", name="w"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(nodes, initializers=(), sparse=(), inputs=("x",), outputs=("y",)):
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names] for names in (inputs, outputs)
    ]
    return helper.make_graph(nodes, "g", *values, list(initializers), sparse_initializer=list(sparse))


def model(nodes, initializers=(), sparse=(), functions=()):
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1), helper.make_opsetid("com.microsoft", 1)]
    made = graph(nodes, initializers, sparse)
    return helper.make_model(made, opset_imports=opsets, ir_version=9, functions=list(functions))


ADD = helper.make_node("Add", ["x", "w"], ["y"])


def constant(tensor):
    return helper.make_node("Constant", [], ["w"], value=tensor)


def branch(tensor=None, nodes=()):
    add = helper.make_node("Add", ["x", "w"], ["z"])
    within = graph([*nodes, add], [tensor] if tensor is not None else [], inputs=(), outputs=("z",))
    return helper.make_node("If", ["c"], ["y"], then_branch=within, else_branch=within)


def conditional(node):
    return model([node], [numpy_helper.from_array(np.array(True), "c")])


def nested(tensor):
    """In a branch of a branch."""
    within = branch(tensor)
    within.output[0] = "z"
    outer = graph([within], inputs=(), outputs=("z",))
    return conditional(helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer))


def with_function(tensor):
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function("f", "F", ["x"], ["y"], [constant(tensor), ADD], opsets)
    return model([helper.make_node("F", ["x"], ["y"], domain="f")], functions=[function])


def sparse(tensor):
    return helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.arange(4), "at"), [4])


def with_list(tensor):
    node = helper.make_node("Add", ["x", "w"], ["y"])
    node.attribute.append(helper.make_attribute("more", [tensor]))
    return model([node], [inside()])


def training(tensor):
    made = model([ADD], [inside()])
    made.training_info.add().initialization.CopyFrom(graph([], [tensor]))
    return made


PLACES = {
    "initializer": lambda tensor: model([ADD], [tensor]),
    "constant": lambda tensor: model([constant(tensor), ADD]),
    "initializer of a branch": lambda tensor: conditional(branch(tensor)),
    "constant of a branch": lambda tensor: conditional(branch(nodes=[constant(tensor)])),
    "branch of a branch": nested,
    "function": with_function,
    "sparse initializer": lambda tensor: model([ADD], sparse=[sparse(tensor)]),
    "sparse constant": lambda tensor: model(
        [helper.make_node("Constant", [], ["w"], sparse_value=sparse(tensor)), ADD]
    ),
    "list of tensors": with_list,
    "training": training,
}
NEVER = {"function", "sparse initializer", "sparse constant", "training"}  # rejected whatever is in them


def run(content):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros(4, np.float32)})[0]


@pytest.mark.parametrize("place", PLACES)
def test_data_outside_the_file_are_rejected_wherever_they_are(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    content = PLACES[place](inside()).SerializeToString()
    if place != "list of tensors":  # no operator of ONNX has such an attribute
        assert np.array_equal(run(content), VALUES)  # a sound model, but for the place of its data
    if place in NEVER:
        with pytest.raises(ValueError, match=r"has (functions|sparse tensors|training information)"):
            check_self_contained(content)
    else:
        check_self_contained(content)
    for location in ("secret.bin", "../secret.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", ""):
        content = PLACES[place](outside(location)).SerializeToString()
        with pytest.raises(ValueError, match="which encoders never have"):
            check_self_contained(content)
        (tmp_path / "encoder.onnx").write_bytes(seal(content))
        with pytest.raises(DataError, match=r"encoder\.onnx cannot be run: it has .*, which encoders never have"):
            load_encoder(tmp_path / "encoder.onnx")


def test_onnx_runtime_would_read_them(tmp_path, monkeypatch):
    """Why they are rejected: a file of the working directory determines the result."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    read = False
    for place in PLACES:
        with contextlib.suppress(Exception):  # some places every version rejects by itself
            read |= np.array_equal(run(PLACES[place](outside()).SerializeToString()), VALUES)
    if not read:
        pytest.skip("this ONNX Runtime reads no external data of a model in memory")


def test_either_sign_of_data_outside_is_enough():
    for field in ("external_data", "data_location"):
        tensor = outside()
        tensor.ClearField(field)
        with pytest.raises(ValueError, match="outside the file"):
            check_self_contained(model([ADD], [tensor]).SerializeToString())


def test_other_operators_than_those_of_onnx_are_rejected():
    for domain in ("com.microsoft", "f", "com.microsoft.nchwc", "ai.onnx.contrib"):
        for made in (
            model([helper.make_node("EPContext", ["x"], ["y"], domain=domain)]),
            conditional(branch(inside(), [helper.make_node("Read", [], ["w"], domain=domain)])),
        ):
            with pytest.raises(ValueError, match=f"operators of b'{domain}'"):
                check_self_contained(made.SerializeToString())
    check_self_contained(model([helper.make_node("Neg", ["x"], ["y"], domain="ai.onnx")]).SerializeToString())


def test_models_in_the_format_of_onnx_runtime_are_rejected(tmp_path):
    """Files that begin with ORTM would be parsed in a way that is not checked."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model([ADD], [inside()]).SerializeToString(), options)
    content = (tmp_path / "model.ort").read_bytes()
    assert content[4:8] == b"ORTM"
    assert np.array_equal(run(content), VALUES)
    (tmp_path / "encoder.onnx").write_bytes(seal(content))
    with pytest.raises(DataError, match=r"encoder\.onnx cannot be run"):
        load_encoder(tmp_path / "encoder.onnx")


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph longer than the file
        b"\x3a\x05",
        b"\x3b\x3c",  # a group
        b"\x00\x00",  # field 0
        b"\xff" * 11,
        b"\xba\x80\x80\x80\x80\x80\x80\x80\x80\x01\x00",  # a field number beyond 32 bits
        b"\x3f\x00",
        b"\x08\x01" * 11_000,
        b"\x3a\x00" * 11_000,
    ],
)
def test_other_content_than_a_model_is_rejected(content, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 10_000)
    with pytest.raises(ValueError, match=r"is not an ONNX model|has more than 10,000 fields"):
        check_self_contained(content)


def externals(message):
    """Whether a parsed message has, anywhere, a tensor with data outside the file."""
    if isinstance(message, TensorProto) and (message.external_data or message.data_location):
        return True
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            parts = value if hasattr(value, "__len__") else [value]
            if any(externals(part) for part in parts):
                return True
    return False


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.onnx", regions=True).read_bytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_models_that_pass_the_check_have_no_data_outside(sound, data):
    check_self_contained(sound)
    base = data.draw(st.sampled_from([sound, *(PLACES[place](outside()).SerializeToString() for place in PLACES)]))
    content = data.draw(st.one_of(damaged(base), st.just(base), st.binary(max_size=60)))
    try:
        check_self_contained(content)
    except ValueError:
        return
    parsed = onnx.ModelProto()
    try:
        parsed.ParseFromString(content)
    except Exception:  # DecodeError: ONNX Runtime rejects it too
        return
    assert not externals(parsed)
