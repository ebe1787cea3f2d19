"""Check an encoder's ONNX file for forbidden content before ONNX Runtime parses it, without the package onnx.

An encoder is one file, and its digest covers everything that determines its codes. But ONNX lets a tensor name another
file, in many places, and ONNX Runtime reads it, below the working directory even for a model that is given as bytes. So
the file is parsed as Protocol Buffers, and every field that can name a file is rejected; so are kinds of tensors and
nodes that hashgym never writes. Field numbers are those of onnx.proto, whose meaning never changes.
"""

from __future__ import annotations

__all__ = ["check_self_contained"]

MAX_FIELDS = 1_000_000  # of a model; a large network has some ten thousand
# Message -> number of a field -> the message that it holds.
_INSIDE = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
# Message -> number of a field -> its forbidden content.
_FORBIDDEN = {
    "model": {20: "training information", 25: "functions"},
    "graph": {15: "sparse tensors"},
    "attribute": {22: "sparse tensors", 23: "sparse tensors"},
    "tensor": {13: "data outside the file"},
}
_DATA_LOCATION = ("tensor", 14)  # 0 inside the file, 1 outside
_DOMAIN = ("node", 7)  # of a node's operator


def check_self_contained(model: bytes) -> None:
    """Raise ValueError for an ONNX model that needs other files, or has content that hashgym does not write.

    Raises:
        ValueError: if a tensor, anywhere in the model, has its data outside the file; if a node is not one of ONNX's
            own operators; for functions, sparse tensors and training information; and if it cannot be parsed.
    """
    waiting, left = [("model", 0, len(model))], MAX_FIELDS
    while waiting:
        message, at, end = waiting.pop()
        while at < end:
            if not (left := left - 1):
                raise ValueError(f"has more than {MAX_FIELDS:,} fields")
            key, at = _varint(model, at, end)
            number, kind = key >> 3, key & 7
            value = 0
            if kind == 0:
                value, at = _varint(model, at, end)
                start = at
            elif kind == 2:
                length, start = _varint(model, at, end)
                at = start + length
            elif kind in (1, 5):
                start = at
                at += 8 if kind == 1 else 4
            else:
                raise ValueError("is not an ONNX model")
            if at > end or not number or key >> 32:
                raise ValueError("is not an ONNX model")
            if what := _FORBIDDEN.get(message, {}).get(number):
                raise ValueError(f"has {what}, which encoders never have")
            if (message, number) == _DATA_LOCATION and (kind != 0 or value):
                raise ValueError("has data outside the file, which encoders never have")
            if (message, number) == _DOMAIN and model[start:at] not in (b"", b"ai.onnx"):
                raise ValueError(f"has operators of {bytes(model[start:at])[:80]!r}, not only those of ONNX")
            if kind == 2 and (inside := _INSIDE[message].get(number)):
                waiting.append((inside, start, at))


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number of up to ten bytes of seven bits each, and the position after it."""
    value = 0
    for i, byte in enumerate(data[at : min(at + 10, end)]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError("is not an ONNX model")
