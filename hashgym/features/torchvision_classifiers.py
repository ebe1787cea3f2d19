"""torchvision's classifiers without their last layer: AlexNet and VGG-19 as DRLIH and MCH use them, and the others."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgym.checks import closest
from hashgym.features.backbone import Backbone, Fit, check_size
from hashgym.features.torchvision_compat import import_torchvision
from hashgym.storage.checksums import sha256
from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    from hashgym.features.blocks import Pretrained

_TRANSFORM_INPUT = ("googlenet", "inception_v3")  # whose weights were trained on another scale

SEQUENTIAL = re.compile(r"alexnet|vgg\d+(_bn)?|(wide_)?resnet\d+(_2)?|resnext.*|mobilenet_v[23].*|efficientnet_.*")
"""Names of the classifiers whose layers are one sequence, so that they can be cut."""


def names() -> list[str]:
    """Return the names of all classifiers that torchvision can build."""
    models = import_torchvision().models
    return models.list_models(module=models)


def make(
    name: str, *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Return a classifier as a backbone: the input of its last linear layer; for ``alexnet`` and ``vgg19`` fc7, 4,096.

    Args:
        name: a classifier of ``torchvision.models``.
        size: side of the picture in pixels; None for that of torchvision's preset.
        weights: a file of the network's state_dict; None for torchvision's default weights, downloaded once.
        device: ``auto``, or a torch device.
        runtime: ``auto``, ``onnx`` or ``torch``.

    Raises:
        ValueError: for an unknown classifier, one that does not end in a linear layer, or a size it cannot read.
        DataError: for weights that cannot be downloaded or used.
    """
    if name not in names():
        raise ValueError(f"unknown classifier {name!r}{closest(name, names())}: give one of torchvision.models")
    preset = _preset(name)
    side = check_size(size, preset.size)
    path = Path(weights) if weights is not None else _download(preset.url, name)

    from hashgym.features.runtimes import compile_network
    from hashgym.features.weights import read

    network, dim = _headless(name, read(path), path)
    run, runtime = compile_network(
        network,
        mean=preset.mean,
        std=preset.std,
        size=side,
        device=device,
        runtime=runtime,
    )
    return Backbone(
        name=name,
        dim=dim,
        size=side,
        preprocessing=preset.describe(side),
        weights=path.name,
        digest=sha256(path),
        runtime=runtime,
        preprocess=preset.preprocess(side),
        network=run,
    )


alexnet, vgg19 = partial(make, "alexnet"), partial(make, "vgg19")


def load(name: str, weights: str | None = None, pretrained: bool = True) -> Pretrained:
    """Return a classifier without its last layer as a sequence of blocks.

    Blocks are the layers of ``network.features``, or of a ResNet the stem and its residual blocks; what comes after the
    last map (fc6 and fc7 of AlexNet and VGG) pools it. With ``pretrained=False`` its numbers are arbitrary, and no
    weights are read.

    Raises:
        ValueError: for a classifier whose layers are not one sequence.
        DataError: for weights that cannot be downloaded or used.
    """
    if not SEQUENTIAL.fullmatch(name):
        raise ValueError(
            f"{name} is not one sequence of blocks, so it cannot be cut or trained here: choose alexnet, vgg19, "
            "resnet18, mobilenet_v2, efficientnet_b0 or another of these families"
        )
    from torch import nn

    from hashgym.features.blocks import BlockNetwork, Pretrained
    from hashgym.features.weights import read

    preset = _preset(name)
    path = None
    if pretrained:
        path = Path(weights) if weights is not None else _download(preset.url, name)
        network, _ = _headless(name, read(path), path)
    else:
        network, _ = _headless(name)
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # a block must not change the map that it is given: it may be a cached one
    if hasattr(network, "features"):
        layers = list(network.features)
    else:
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        layers = [stem, *network.layer1, *network.layer2, *network.layer3, *network.layer4]
    pool = nn.Sequential(getattr(network, "avgpool", nn.AdaptiveAvgPool2d(1)), nn.Flatten())
    pool.extend(getattr(network, "classifier", []))
    return Pretrained(
        name=name,
        network=BlockNetwork(dict(enumerate(layers, start=1)), pool, [len(layers)]).eval(),
        mean=preset.mean,
        std=preset.std,
        size=preset.size,
        preprocess=preset.preprocess,
        describe=preset.describe,
        weights="" if path is None else path.name,
        digest="" if path is None else sha256(path),
    )


@dataclass(frozen=True)
class _Preset:
    """The preprocessing of torchvision's default weights of a classifier, and their address."""

    size: int
    resize: int
    interpolation: str
    values: tuple[Sequence[float], Sequence[float]]
    url: str

    @property
    def mean(self) -> list[float]:
        return [255 * x for x in self.values[0]]

    @property
    def std(self) -> list[float]:
        return [255 * x for x in self.values[1]]

    def short_side(self, size: int) -> int:
        return round(size * self.resize / self.size)

    def preprocess(self, size: int) -> Fit:
        return Fit(size, self.short_side(size), self.interpolation)

    def describe(self, size: int) -> str:
        mean, std = self.values
        return (
            f"RGB, {self.interpolation} until the shorter side is {self.short_side(size)}, centre {size} x {size}, "
            f"mean {mean} and deviation {std} of values in [0, 1]"
        )


def _preset(name: str) -> _Preset:
    default = import_torchvision().models.get_model_weights(name).DEFAULT
    preset = default.transforms()
    values = preset.mean, preset.std
    return _Preset(preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, values, default.url)


def head(network: Any, name: str) -> str:
    """Return the name of a classifier's last linear layer.

    Raises:
        ValueError: if there is none.
    """
    import torch

    linear = [key for key, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    if not linear:
        raise ValueError(f"{name} does not end in a linear layer, so it has no penultimate features; choose another")
    return linear[-1]


def _headless(name: str, state: dict[str, Any] | None = None, path: Path | None = None) -> tuple[Any, int]:
    """Return the classifier with its weights and an identity for its last linear layer, and that layer's input width.

    A head of any number of classes is dropped, so fine-tuned weights work as well. Without weights its numbers are
    arbitrary.
    """
    import torch

    from hashgym.features.weights import empty, fill

    network = build(name)
    last = head(network, name)
    dim = network.get_submodule(last).in_features
    parent, _, leaf = last.rpartition(".")
    setattr(network.get_submodule(parent), leaf, torch.nn.Identity())
    if state is None or path is None:
        return empty(network), dim
    for suffix in ("weight", "bias"):
        state.pop(f"{last}.{suffix}", None)
    if name.startswith("densenet"):  # its published weights have names with dots that modules may no longer have
        for key in [key for key in state if re.search(r"denselayer\d+\.(norm|conv)\.\d\.", key)]:
            state[re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key)] = state.pop(key)
    return fill(network, state, path, name), dim


def build(name: str) -> Any:
    """Return a classifier without weights: on the meta device where possible, as drawing random ones takes long."""
    import torch

    models = import_torchvision().models
    options = {"transform_input": True} if name in _TRANSFORM_INPUT else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initial values that are never used
        try:
            with torch.device("meta"):
                return models.get_model(name, weights=None, **options)
        except (NotImplementedError, RuntimeError):  # some compute their layers' widths with tensors
            return models.get_model(name, weights=None, **options)


def _download(url: str, name: str) -> Path:
    """Return the path of torchvision's weights in torch's cache, downloaded if they are not there yet."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1])
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"the weights of {name} could not be downloaded ({error}). Without internet access, get {url} on "
                f"another machine, and copy it to {path.parent} or pass the file: --weights {path.name}"
            ) from error
    return path
