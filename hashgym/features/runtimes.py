"""The runtime of a network: ONNX Runtime or torch.

On a CPU, ONNX Runtime is three times as fast for networks of many small layers such as EfficientNet-Lite0, so ``auto``
chooses it if it is installed. For a few large layers, as in VGG, the two are within a tenth, and converting hundreds
of megabytes of weights takes several times their memory: there, and on a GPU, ``auto`` chooses torch.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hashgym.checks import closest
from hashgym.device import resolve_device
from hashgym.features.backbone import Network
from hashgym.features.onnx_runtime import OPSET, PICTURES_AT_ONCE, TOLERANCE, open_session, require_runtime

__all__ = ["RUNTIMES", "check_runtime", "compile_network", "pictures_to_features", "to_onnx"]

Axes = Mapping[int, str]

RUNTIMES = ("auto", "onnx", "torch")
AT_ONCE = {"cpu": PICTURES_AT_ONCE, "cuda": 256}
LARGE = 400_000_000  # bytes of weights that `auto` leaves to torch on a CPU too: more than AlexNet's, less than VGG's


class _FromBytes(torch.nn.Module):
    """The network with its scaling in front: uint8 (n, size, size, 3) -> float32 (n, D); maps are flattened."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: torch.nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        scaled = (pictures.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.body(scaled).flatten(1)


def check_runtime(runtime: str, device: str) -> torch.device:
    """Return the device.

    Raises:
        ValueError: for an unknown runtime or device.
    """
    if runtime not in RUNTIMES:
        raise ValueError(
            f"unknown runtime {runtime!r}{closest(runtime, RUNTIMES)}: choose one of {', '.join(RUNTIMES)}"
        )
    return resolve_device(device)


def compile_network(
    body: torch.nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    device: str = "auto",
    runtime: str = "auto",
) -> tuple[Network, str]:
    """Return a network as a function of arrays of bytes.

    Args:
        body: takes float32 (n, 3, size, size), scaled, and gives (n, D), or a map (n, C, H, W), which is flattened.
        mean: per channel, subtracted from values 0 to 255.
        std: per channel, divided by.
        size: side of the pictures in pixels.
        device: ``auto`` (a GPU if there is one), or a torch device.
        runtime: ``auto``, ``onnx`` or ``torch``.

    Returns:
        The function from uint8 (n, size, size, 3) to float32 (n, D), and the runtime: ``onnx`` or ``torch:DEVICE``.

    Raises:
        ValueError: for an unknown, missing or impossible runtime, device or size.
    """
    place = check_runtime(runtime, device)
    installed = all(importlib.util.find_spec(module) is not None for module in ("onnx", "onnxruntime"))
    if runtime == "onnx":
        require_runtime("onnx")
    if runtime == "onnx" and place.type != "cpu":
        raise ValueError(f"the runtime onnx runs on the CPU; use device='cpu', or runtime='torch' on {place}")
    network = _FromBytes(body, mean, std).eval()
    example = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8))
    with torch.inference_mode():
        try:
            expected = network(example).numpy()
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"the network does not take pictures of {size} x {size} pixels: {reason}") from error
    large = sum(p.numel() * p.element_size() for p in network.parameters()) > LARGE
    if runtime == "onnx" or (runtime == "auto" and installed and place.type == "cpu" and not large):
        try:
            run = _InBatches(_Session(pictures_to_features(network, example)), AT_ONCE["cpu"])
            worst = float(np.abs(run(example.numpy()) - expected).max() / max(float(np.abs(expected).max()), 1e-12))
            if worst > TOLERANCE:
                raise ValueError(f"its features differ from torch's by {worst:.1e} of the largest")
            return run, "onnx"
        except Exception as error:  # exporters and runtimes raise many types; torch can always run it
            if runtime == "onnx":
                raise ValueError(f"ONNX Runtime cannot run this network, use runtime='torch': {error}") from error
    network = network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _InBatches(_Torch(network, place, size), AT_ONCE.get(place.type, AT_ONCE["cuda"])), f"torch:{place}"


def to_onnx(
    module: torch.nn.Module, example: torch.Tensor, inputs: Mapping[str, Axes], outputs: Mapping[str, Axes]
) -> bytes:
    """Return a module of one argument as an ONNX model; inputs and outputs map names to the names of variable axes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),  # the exporter prints the graph of a network that has no such form
    ):
        warnings.simplefilter("ignore")
        path = Path(folder) / "network.onnx"
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.WARNING))
        attention = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # its operator has no ONNX form
        try:
            torch.onnx.export(
                module,
                (example,),
                str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: dict(axes) for name, axes in {**inputs, **outputs}.items()},
                opset_version=OPSET,
                dynamo=False,  # the newer exporter fixes the number of pictures in some networks
            )
        finally:
            torch.backends.mha.set_fastpath_enabled(attention)
            logging.disable(disabled)
        return path.read_bytes()


def pictures_to_features(network: torch.nn.Module, example: torch.Tensor) -> bytes:
    """Return a network as the ONNX model of :meth:`hashgym.features.Backbone.to_onnx`."""
    return to_onnx(network, example, {"pictures": {0: "n"}}, {"features": {0: "n"}})


@dataclass(frozen=True)
class _Torch:
    """A network in torch."""

    network: torch.nn.Module
    place: torch.device
    size: int

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.network(torch.from_numpy(np.ascontiguousarray(batch)).to(self.place)).cpu().numpy()

    def to_onnx(self) -> bytes:
        network = copy.deepcopy(self.network).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        try:
            return pictures_to_features(network, torch.zeros(2, self.size, self.size, 3, dtype=torch.uint8))
        except Exception as error:  # exporters raise many types
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"this network cannot be written as ONNX, so its encoders take features, not pictures ({reason}): "
                "extract them with `hashgym features`, or use another backbone"
            ) from error


class _Session:
    """A network in ONNX Runtime. Unpickled in another process, it opens a session with that process's threads."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.session = open_session(model, torch.get_num_threads())  # which torch takes from OMP_NUM_THREADS

    def __reduce__(self) -> tuple[type[_Session], tuple[bytes]]:
        return _Session, (self.model,)

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.session.run(None, {"pictures": np.ascontiguousarray(batch)})[0]

    def to_onnx(self) -> bytes:
        return self.model


@dataclass(frozen=True)
class _InBatches:
    """A network that is run on ``count`` pictures at a time."""

    run: _Torch | _Session
    count: int

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        starts = range(0, len(batch), self.count)
        return np.concatenate([self.run(batch[start : start + self.count]) for start in starts])

    def to_onnx(self) -> bytes:
        return self.run.to_onnx()
