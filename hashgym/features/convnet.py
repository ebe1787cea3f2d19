"""A small convolutional network without pretrained weights, for small pictures such as the digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hashgym.features.backbone import Backbone, Stretch
from hashgym.storage.errors import DataError

if TYPE_CHECKING:
    from hashgym.features.blocks import Pretrained

__all__ = ["load", "make"]

WIDTHS = (32, 64, 128)


def make(
    *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Raise ValueError: without a cut there is nothing to extract, as the weights are not trained."""
    return load(weights=weights).backbone(size=size, device=device, runtime=runtime)


def load(name: str = "convnet", weights: str | None = None, pretrained: bool = True) -> Pretrained:
    """Return the network: three convolutions 3 x 3 with batch normalisation and ReLU; all but the first halve the size.

    Its weights are drawn from torch's generator, or with ``pretrained=False`` arbitrary.

    Raises:
        DataError: if weights are given.
    """
    import torch
    from torch import nn

    from hashgym.features.blocks import BlockNetwork, Pretrained, Quarters
    from hashgym.features.weights import empty

    if weights is not None:
        raise DataError(f"{name} has no pretrained weights: leave out --weights")
    blocks: dict[int, nn.Module] = {}
    with torch.device("cpu" if pretrained else "meta"):
        for number, (before, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False), start=1):
            convolution = nn.Conv2d(before, width, 3, stride=1 if number == 1 else 2, padding=1, bias=False)
            blocks[number] = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
    network = BlockNetwork(blocks, Quarters(), [len(blocks)]).eval()
    if not pretrained:
        empty(network)
    return Pretrained(
        name=name,
        network=network,
        mean=[127.5] * 3,
        std=[127.5] * 3,
        size=32,
        preprocess=Stretch,
        describe=lambda side: f"RGB, bicubic to {side} x {side}, (x - 127.5) / 127.5",
        weights="",
        digest="",
    )
