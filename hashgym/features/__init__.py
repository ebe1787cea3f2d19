"""Image features: frozen backbones, regions, and the job that extracts them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING

from hashgym.checks import closest
from hashgym.features.backbone import Backbone
from hashgym.features.extraction import extract
from hashgym.features.libraries import LIBRARIES, is_library_model
from hashgym.moved import renamed
from hashgym.registry import Registry

if TYPE_CHECKING:
    from hashgym.features.blocks import Pretrained

__all__ = ["LIBRARIES", "NETWORKS", "Backbone", "backbones", "extract", "load_network", "make", "register"]

Maker = Callable[..., Backbone]

BACKBONES: Registry[Maker] = Registry(
    "backbone",
    {
        "pixels": (
            "hashgym.features.pixels:make",
            "RGB values of the picture at 32 x 32, no weights: 3,072 features",
        ),
        "gist": ("hashgym.features.gist:make", "GIST of the grey picture at 64 x 64, no weights: 512 features"),
        "bow": (
            "hashgym.features.bow:make",
            "bag of visual words over dense SIFT, words of `hashgym words`: as many features as words, 500",
        ),
        "efficientnet_lite0": (
            "hashgym.features.efficientnet_lite:lite0",
            "EfficientNet-Lite0, ImageNet weights that need no internet: 1,280 features",
        ),
        "efficientnet_lite2": (
            "hashgym.features.efficientnet_lite:lite2",
            "EfficientNet-Lite2, more accurate at 1.5 times the cost of Lite0: 1,280 features",
        ),
        "alexnet_conv": (
            "hashgym.features.convolutions:alexnet_conv",
            "convolutions of AlexNet, ImageNet weights that need no internet, relu5 averaged: 256 features",
        ),
        "alexnet_conv_pool5": (
            "hashgym.features.convolutions:alexnet_conv_pool5",
            "the same, the map pool5 flattened: 9,216 features at 224 pixels",
        ),
        "vgg16_conv": (
            "hashgym.features.convolutions:vgg16_conv",
            "convolutions of VGG-16, weights that need no internet, relu4_3 and relu5_3 averaged: 1,024 features",
        ),
        "vgg16_conv_pool5": (
            "hashgym.features.convolutions:vgg16_conv_pool5",
            "the same, the map pool5 flattened: 25,088 features at 224 pixels",
        ),
        "convnet": (
            "hashgym.features.convnet:make",
            "three convolutions without pretrained weights, to be trained from small pixels, --cut 0: 512 features",
        ),
        "alexnet": (
            "hashgym.features.torchvision_classifiers:alexnet",
            "AlexNet, fc7, as MCH uses it: 4,096 features",
        ),
        "vgg19": (
            "hashgym.features.torchvision_classifiers:vgg19",
            "VGG-19, fc7, as DRLIH uses it: 4,096 features",
        ),
    },
)

Loader = Callable[..., "Pretrained"]

NETWORKS: Registry[Loader] = Registry(
    "network",
    {
        "efficientnet_lite0": ("hashgym.features.efficientnet_lite:load", "0 to 16"),
        "efficientnet_lite2": ("hashgym.features.efficientnet_lite:load", "0 to 21"),
        "alexnet_conv": ("hashgym.features.convolutions:load", "0 to 4"),
        "alexnet_conv_pool5": ("hashgym.features.convolutions:load", "0 to 4"),
        "vgg16_conv": ("hashgym.features.convolutions:load", "0 to 12"),
        "vgg16_conv_pool5": ("hashgym.features.convolutions:load", "0 to 12"),
        "convnet": ("hashgym.features.convnet:load", "0"),
        "alexnet": ("hashgym.features.torchvision_classifiers:load", "0 to 12"),
        "vgg19": ("hashgym.features.torchvision_classifiers:load", "0 to 36"),
    },
)
"""Networks that can be cut and trained, each a function of its name, a file of weights and ``pretrained``; described by
their cuts."""


def backbones() -> dict[str, str]:
    """Return the name and a one-line description of every registered backbone; any torchvision classifier works too."""
    return dict(BACKBONES.descriptions)


def register(name: str, maker: Maker | str) -> None:
    """Register a backbone: ``maker(size=, weights=, device=, runtime=)`` returns a :class:`Backbone`.

    Args:
        name: its name; it can be registered once.
        maker: the function, or where it is, as "package.module:make".

    Raises:
        ValueError: if the name is taken by another backbone.
    """
    BACKBONES.register(name, maker)


@renamed(engine="runtime")
def make(
    name: str,
    *,
    size: int | None = None,
    weights: str | None = None,
    device: str = "auto",
    runtime: str = "auto",
    cut: int | None = None,
) -> Backbone:
    """Build a backbone.

    Args:
        name: one of :func:`backbones`, any classifier of ``torchvision.models``, ``timm:NAME``, ``open_clip:NAME/TAG``,
            ``hf:NAME_OR_PATH``, or "package.module:make".
        size: side of the picture that the network sees, in pixels; None for the size that its weights were trained on.
        weights: a file of weights, for ``hf:`` a folder; None for the backbone's own.
        device: ``auto`` (a GPU if there is one), or a torch device.
        runtime: ``auto`` (ONNX Runtime on a CPU if it is installed, else torch), ``onnx`` or ``torch``.
        cut: the block of the network after which it ends, so that the result is the activations there, which
            :class:`hashgym.features.trainable.TrainableBackbone` takes; 0 for the preprocessed pixels; None for the
            whole network.

    Raises:
        ValueError: for an unknown name, a package that is not installed, a size, device or runtime that does not work,
            or a cut that the network does not have.
        DataError: for weights that are missing, damaged or of another network.
    """
    if cut is not None:
        return load_network(name, weights).backbone(size=size, device=device, runtime=runtime, cut=cut)
    if is_library_model(name):
        from hashgym.features import library_models

        return library_models.make(name, size=size, weights=weights, device=device, runtime=runtime)
    if name in BACKBONES:
        maker = BACKBONES.find(name)
        parameters = signature(maker).parameters
        if "engine" in parameters and "runtime" not in parameters:
            warnings.warn(f"the argument engine= of backbone {name!r} is called runtime= now", DeprecationWarning, 3)
            return maker(size=size, weights=weights, device=device, engine=runtime)
        return maker(size=size, weights=weights, device=device, runtime=runtime)
    from hashgym.features import torchvision_classifiers

    if name not in torchvision_classifiers.names():
        close = closest(name, [*backbones(), *torchvision_classifiers.names()])
        raise ValueError(
            f"unknown backbone {name!r}{close}: choose {', '.join(backbones())}, a torchvision classifier, timm:NAME, "
            "open_clip:NAME/TAG or hf:NAME"
        )
    return torchvision_classifiers.make(name, size=size, weights=weights, device=device, runtime=runtime)


def load_network(name: str, weights: str | None = None, *, pretrained: bool = True) -> Pretrained:
    """Load a network as a sequence of blocks, which can be cut and trained.

    Args:
        name: one of ``NETWORKS``, or a classifier of ``torchvision.models`` that is one sequence of blocks, such as
            resnet18, mobilenet_v2 or efficientnet_b0.
        weights: a file of weights; None for the network's own.
        pretrained: False for the architecture alone, with uninitialised weights, to be loaded later.

    Raises:
        ValueError: for a name of another backbone or none, or a package that is not installed.
        DataError: for weights that are missing, damaged or of another network.
    """
    if is_library_model(name):
        raise ValueError(
            f"{name} is the network of another library, which gives features and cannot be cut or trained here: leave "
            f"out the cut, or choose {', '.join(NETWORKS.entries)} or a classifier of torchvision such as resnet18"
        )
    if name in NETWORKS:
        return NETWORKS.find(name)(name, weights, pretrained)
    from hashgym.features import torchvision_classifiers

    if name not in torchvision_classifiers.names():
        known = [*NETWORKS.entries, *torchvision_classifiers.names()]
        raise ValueError(
            f"{name!r} is not a network that can be cut or trained{closest(name, known)}: choose "
            f"{', '.join(NETWORKS.entries)}, or a classifier of torchvision such as resnet18"
        )
    return torchvision_classifiers.load(name, weights, pretrained)
