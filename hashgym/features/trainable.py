"""TrainableBackbone: a pretrained network, or its blocks after a cut, that is trained together with a hash function."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashgym.checks import check_choice
from hashgym.data import HashingDataset
from hashgym.device import computes_bfloat16
from hashgym.features import load_network
from hashgym.features.torchvision_compat import import_torchvision

__all__ = ["AUGMENTATIONS", "TrainableBackbone", "augmentation", "check_cut", "check_kind", "parse", "spec_of"]

AUGMENTATIONS = ("crop-flip", "none")
"""Names of augmentations of pixels, see :func:`augmentation`."""

_AT_ONCE = 64  # most images in a pass without a gradient; more take memory and are no faster
_NUMBERS = 1 << 18  # of the images of a pass on a CPU: larger passes leave its caches and are slower


def parse(spec: str) -> tuple[str, int, int | None]:
    """Return the network's name, the cut and the side in pixels of ``NAME``, ``NAME:CUT`` or ``NAME@SIZE``.

    Without a cut it is 0, pixels; without a size they are taken as they are.

    Raises:
        ValueError: for another text.
    """
    matched = re.fullmatch(r"([^:@]+)(?::([0-9]+))?(?:@([0-9]+))?", spec) if isinstance(spec, str) else None
    if matched is None or (matched[2] and int(matched[2]) and matched[3]) or matched[3] == "0":
        raise ValueError(
            "a backbone is NAME or NAME:CUT, such as efficientnet_lite0:11, or NAME@SIZE for pixels that are resized, "
            f"such as alexnet_conv@224, got {spec!r}"
        )
    return matched[1], int(matched[2] or 0), int(matched[3]) if matched[3] else None


class TrainableBackbone(nn.Module):
    """Pixels or activations of images -> features (n, D) with mean 0 and deviation 1 over the batches.

    Pixels are augmented in training, and scaled as the weights expect. Depthwise filters keep their weights. On devices
    that compute in bfloat16 the network is trained in mixed precision; it encodes in float32 everywhere.

    Args:
        spec: ``NAME:CUT`` for images that are activations after block CUT, ``NAME`` for pixels, ``NAME@SIZE`` for
            pixels that are resized to SIZE x SIZE first (bicubic), so that small pictures are stored small.
        image_shape: (C, H, W) of the images.
        augment: one of AUGMENTATIONS, for pixels.
        weights: a file of pretrained weights; None for the network's own.
        pretrained: False to read no weights, for :meth:`fill` or ``load_state_dict``.

    Attributes:
        dim: D.
        digest: SHA-256 of the file of pretrained weights; empty without one.

    Raises:
        ValueError: for an unknown network or augmentation, images that are not activations of it at this cut, or
            pixels that are larger than SIZE.
        DataError: for weights that cannot be used.
    """

    def __init__(
        self,
        spec: str,
        image_shape: tuple[int, ...],
        *,
        augment: str = "crop-flip",
        weights: str | None = None,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        name, cut, self.size = parse(spec)
        self.spec, self.cut, self.image_shape = spec, cut, tuple(image_shape)
        if self.size is not None and max(self.image_shape[-2:]) > self.size:
            raise ValueError(  # shrinking here would alias; extraction filters first
                f"{spec} makes images smaller, from {' x '.join(map(str, self.image_shape[-2:]))} pixels: extract them "
                f"with `hashgym features --cut 0 --size {self.size}` instead, and give {name}"
            )
        augmented = augmentation(augment, self.image_shape)
        self.augment = augmented if cut == 0 else nn.Identity()
        if len(self.image_shape) != 3:
            raise ValueError(
                f"the backbone {spec} takes images as maps (C, H, W), got vectors of shape {self.image_shape}: extract "
                f"them with `hashgym features --backbone {name} --cut {cut}`"
            )
        loaded = load_network(name, weights, pretrained=pretrained)
        if pretrained:
            loaded.check_cut(cut)
        self.network, self.digest = loaded.network.after(cut), loaded.digest
        for key, values in (("mean", loaded.mean), ("std", loaded.std)):
            scaling = torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(key, scaling, persistent=False)
        try:
            with torch.no_grad():
                self.dim = self.network.eval()(self._resized(torch.zeros(1, *self.image_shape))).shape[1]
        except RuntimeError as error:
            where, remedy = f"after block {cut}", "give the backbone and the cut that they were extracted with"
            if not cut:
                where, remedy = "as pixels, or are too small for it", f"give {name}@{loaded.size}, which resizes them"
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the images, maps of shape {self.image_shape}, are not what {name} takes {where}: {remedy} ({reason})"
            ) from error
        self.requires_grad_(True)
        for module in self.network.modules():
            # The gradient of depthwise filters costs as much as all else in a block on a CPU, for 5% of the parameters.
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.weight.requires_grad_(False)
        self.normalize = nn.BatchNorm1d(self.dim, affine=False, momentum=0.05)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Return features, float32 (n, D), of images (n, C, H, W): uint8 pixels, or activations."""
        if self.cut == 0:
            if self.training:
                images = self.augment(images)
            images = (self._resized(images.float()) - self.get_buffer("mean")) / self.get_buffer("std")
        images = images.float().contiguous(memory_format=torch.channels_last)
        mixed = self.training and torch.is_grad_enabled() and computes_bfloat16(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            features = self.network(images)
        return self.normalize(features.float())

    def _resized(self, pixels: Tensor) -> Tensor:
        if self.size is None:
            return pixels
        sides = (self.size, self.size)
        return nn.functional.interpolate(pixels, sides, mode="bicubic", align_corners=False).clamp(0, 255)

    def features_of(self, images: NDArray[Any], rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return features, float32 (n, D), of images (N, C, H, W) in an array, in evaluation mode without a gradient.

        Args:
            images: they are read a few at a time, so that they may be in a file that is larger than the memory.
            rows: int64 (n,), the images to take; None for all N.
        """
        rows = np.arange(len(images)) if rows is None else rows
        device, size = self.get_buffer("mean").device, self.size
        numbers = images[0].size if size is None else 3 * size * size
        count = max(16, min(_AT_ONCE, _NUMBERS // numbers)) if device.type == "cpu" else _AT_ONCE
        mode, parts = self.training, [torch.empty(0, self.dim)]
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(rows), count):
                    batch = torch.from_numpy(np.array(images[rows[start : start + count]])).to(device)
                    parts.append(self(batch).cpu())
        finally:
            self.train(mode)
        return torch.cat(parts).numpy()

    def start_from(self, images: NDArray[Any], rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Normalise by the mean and deviation of the features of these images, and return their features.

        Arguments are those of :meth:`features_of`.

        On such features a head can be trained before the backbone is trained as well: linear probing, then fine-tuning
        (Kumar et al., ICLR 2022).
        """
        normalize = self.normalize
        normalize.reset_running_stats()  # mean 0 and variance 1
        features = self.features_of(images, rows) * (1 + normalize.eps) ** 0.5
        mean, variance = features.mean(0, dtype=np.float64), features.var(0, dtype=np.float64)
        for own, value in ((normalize.running_mean, mean), (normalize.running_var, variance)):
            assert own is not None
            own.copy_(torch.from_numpy(value))
        return ((features - mean) / np.sqrt(variance + normalize.eps)).astype(np.float32)

    def numbers(self) -> NDArray[np.float32]:
        """Return all weights and running averages in one array, in the order of the state_dict."""
        return np.concatenate([tensor.detach().float().cpu().numpy().ravel() for tensor in self.state_dict().values()])

    def fill(self, numbers: NDArray[np.float32]) -> None:
        """Restore :meth:`numbers`.

        Raises:
            ValueError: if there are more or fewer than the network has.
        """
        state = self.state_dict()
        sizes = [tensor.numel() for tensor in state.values()]
        if numbers.shape != (sum(sizes),):
            raise ValueError(
                f"{self.spec} has {sum(sizes):,} numbers, got {numbers.size:,}: they are of another network"
            )
        parts = np.split(numbers, np.cumsum(sizes)[:-1])
        with torch.no_grad():
            for tensor, part in zip(state.values(), parts, strict=True):
                tensor.copy_(torch.from_numpy(part).reshape(tensor.shape))


def check_kind(images: NDArray[Any], spec: str) -> None:
    """Raise ValueError for images (n, ..., C, H, W) that are not pixels for a whole network, or activations for a cut.

    Pixels that are floats would be scaled as if they were numbers from 0 to 255.
    """
    _, cut, _ = parse(spec)
    if (images.dtype == np.uint8) != (cut == 0):
        wanted = f"activations after block {cut}, float16 or float32" if cut else "pixels, uint8 (n, 3, H, W)"
        raise ValueError(f"the backbone {spec} takes {wanted}; got {images.dtype} {images.shape}")


def check_cut(dataset: HashingDataset, spec: str) -> None:
    """Raise ValueError for a backbone that is not the one that a dataset's activations name."""
    backbone = dataset.provenance.get("backbone") or {}
    if backbone.get("cut") and spec != (own := f"{backbone['name']}:{backbone['cut']}"):
        raise ValueError(f"the images of {dataset.name!r} are activations for the backbone {own}, got {spec!r}")


def spec_of(dataset: HashingDataset, given: str | None = None, weights: str | None = None) -> str | None:
    """Return the backbone that takes the images of a dataset, as :func:`parse` reads it; None for vectors.

    Args:
        dataset: its provenance names the network and the cut that its activations or pixels were extracted with.
        given: the backbone that the user gives, which is returned: a network for pixels, or the dataset's own.
        weights: the file of weights that the user gives; None for the network's own.

    Raises:
        ValueError: if no backbone is given and the dataset does not name it; for a backbone and vectors; if activations
            are of another network or cut than ``given``, or were computed with other weights.
        DataError: for weights that cannot be used.
    """
    if not dataset.has_maps:
        if given is not None:
            name, cut, _ = parse(given)
            raise ValueError(
                f"the images of {dataset.name!r} are feature vectors, which no backbone takes: leave backbone out, or "
                f"extract them with `hashgym features --backbone {name} --cut {cut}`"
            )
        return None
    backbone = dataset.provenance.get("backbone") or {}
    if backbone.get("cut"):
        if given is not None:
            check_cut(dataset, given)
        loaded = load_network(backbone["name"], weights)
        digest = backbone.get("digest", loaded.digest)
        if digest != loaded.digest:
            raise ValueError(
                f"the activations of {dataset.name!r} were computed with other weights of {backbone['name']} "
                f"({backbone.get('weights')}, SHA-256 {digest[:12]}) than those given here ({loaded.weights}, "
                f"{loaded.digest[:12]}): give their file as backbone_weights"
            )
        return f"{backbone['name']}:{backbone['cut']}"
    if given is not None:
        if parse(given)[1] == 0:
            check_kind(dataset.features, given)
        return given
    if "name" not in backbone or "cut" not in backbone:
        raise ValueError(
            f"the images of {dataset.name!r} are maps of shape {dataset.image_shape}, and the dataset does not name "
            "the network that takes them: give backbone='NAME:CUT' for activations, or 'NAME' for pixels, such as "
            "'convnet' for small pictures"
        )
    check_kind(dataset.features, backbone["name"])
    return str(backbone["name"])


def augmentation(name: str, image_shape: tuple[int, ...]) -> nn.Module:
    """Return an augmentation of batches of pixels, uint8 (n, 3, H, W), in torchvision's transforms.

    ``crop-flip`` crops each image at random, of at least half its area, and resizes it; half of them are mirrored.

    Raises:
        ValueError: for an unknown name.
    """
    check_choice("augment", name, AUGMENTATIONS)
    if name == "none":
        return nn.Identity()
    return _EachImage(tuple(image_shape[-2:]))


class _EachImage(nn.Module):
    """Applies a transform with random numbers of its own to every image of a batch, not the same to all."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.transforms import v2

        self.transform = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1)), v2.RandomHorizontalFlip()])

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.transform(image) for image in images])
