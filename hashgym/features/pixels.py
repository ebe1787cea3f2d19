"""The values of the picture itself as features: a backbone without weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashgym.features.backbone import Backbone, Stretch, check_size
from hashgym.features.onnx_runtime import IR_VERSION, OPSET, require_runtime


def make(
    *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Return the backbone of RGB values in [0, 1], row by row, of the picture at size x size (32): 3 x size x size.

    Raises:
        ValueError: for weights, a device or a runtime, which pixels do not use.
    """
    if weights is not None or device not in ("auto", "cpu") or runtime != "auto":
        raise ValueError("the backbone `pixels` takes neither weights nor a device nor a runtime")
    side = check_size(size, 32)
    return Backbone(
        name="pixels",
        dim=3 * side * side,
        size=side,
        preprocessing=f"RGB, bicubic to {side} x {side}, / 255",
        weights="",
        digest="",
        runtime="numpy",
        preprocess=Stretch(side),
        network=_Rows(side),
    )


@dataclass(frozen=True)
class _Rows:
    """The values of each picture, row by row, divided by 255."""

    side: int

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return batch.reshape(len(batch), -1).astype(np.float32) / np.float32(255)

    def to_onnx(self) -> bytes:
        require_runtime("onnx")
        from onnx import TensorProto, helper, numpy_helper

        nodes = [
            helper.make_node("Flatten", ["pictures"], ["row"], axis=1),
            helper.make_node("Cast", ["row"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["values", "greatest"], ["features"]),
        ]
        side = self.side
        graph = helper.make_graph(
            nodes,
            "pixels",
            [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", side, side, 3])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3 * side * side])],
            [numpy_helper.from_array(np.array(255, np.float32), "greatest")],
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()
