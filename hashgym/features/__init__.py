"""Image features: frozen backbones, regions, and the job that extracts them."""

from __future__ import annotations

from collections.abc import Callable

from hashgym.checks import closest
from hashgym.features.backbone import Backbone
from hashgym.features.extraction import extract

__all__ = ["Backbone", "backbones", "extract", "make", "register"]

Maker = Callable[..., Backbone]

_DESCRIPTIONS = {
    "pixels": "RGB values of the picture at 32 x 32, no weights: 3,072 features",
    "gist": "GIST of the grey picture at 64 x 64, no weights: 512 features",
    "bow": "bag of visual words over dense SIFT, words of `hashgym words`: as many features as words, 500",
    "efficientnet_lite0": "EfficientNet-Lite0, ImageNet weights that need no internet: 1,280 features",
    "alexnet": "AlexNet, fc7, as MCH uses it: 4,096 features",
    "vgg19": "VGG-19, fc7, as DRLIH uses it: 4,096 features",
}
_registered: dict[str, Maker] = {}


def backbones() -> dict[str, str]:
    """Name and one-line description of every backbone that is listed; any torchvision classifier's name works too."""
    return _DESCRIPTIONS | {name: (maker.__doc__ or "").partition("\n")[0] for name, maker in _registered.items()}


def register(name: str, maker: Maker) -> None:
    """Add a backbone: ``maker(size=, weights=, device=, engine=)`` returns a :class:`Backbone`.

    Raises:
        ValueError: where the name is taken.
    """
    if name in backbones():
        raise ValueError(f"there is a backbone {name!r} already")
    _registered[name] = maker


def make(
    name: str, *, size: int | None = None, weights: str | None = None, device: str = "auto", engine: str = "auto"
) -> Backbone:
    """Build a backbone.

    Args:
        name: one of :func:`backbones`, or any classifier of ``torchvision.models``.
        size: side of the picture that the network sees, in pixels; None for what its weights were trained on.
        weights: a file of weights; None for the backbone's own.
        device: ``auto`` (a GPU where there is one), or a torch device.
        engine: ``auto`` (ONNX Runtime on a CPU where it is installed, else torch), ``onnx`` or ``torch``.

    Raises:
        ValueError: for an unknown name, or a size, device or engine that does not work.
        DataError: for weights that cannot be had or used.
    """
    maker: Maker
    if name in _registered:
        maker = _registered[name]
    elif name == "pixels":
        from hashgym.features.pixels import make as maker
    elif name == "gist":
        from hashgym.features.gist import make as maker
    elif name == "bow":
        from hashgym.features.bow import make as maker
    elif name == "efficientnet_lite0":
        from hashgym.features.efficientnet_lite0 import make as maker
    else:
        from hashgym.features import torchvision_classifiers

        if name not in torchvision_classifiers.names():
            close = closest(name, [*backbones(), *torchvision_classifiers.names()])
            raise ValueError(
                f"no backbone {name!r}{close}: choose {', '.join(backbones())} or a torchvision classifier"
            )
        return torchvision_classifiers.make(name, size=size, weights=weights, device=device, engine=engine)
    return maker(size=size, weights=weights, device=device, engine=engine)
