"""TrainableBackbone: a pretrained network, or its blocks after a cut, that is trained together with a hash function."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashgym.checks import closest
from hashgym.data import HashingDataset
from hashgym.features import load_network
from hashgym.features.torchvision_compat import import_torchvision

__all__ = ["AUGMENTATIONS", "TrainableBackbone", "augmentation", "parse", "spec_of"]

AUGMENTATIONS = ("crop-flip", "none")
"""Names of augmentations of pixels, see :func:`augmentation`."""


def parse(spec: str) -> tuple[str, int]:
    """Return the network's name and the cut of ``NAME`` or ``NAME:CUT``; without a cut it is 0, pixels.

    Raises:
        ValueError: for a cut that is not a number.
    """
    name, _, cut = spec.partition(":")
    if cut and not cut.isdecimal():
        raise ValueError(f"a backbone is NAME or NAME:CUT, such as efficientnet_lite0:11, got {spec!r}")
    return name, int(cut or 0)


class TrainableBackbone(nn.Module):
    """Pixels or activations of images -> features (n, D) with mean 0 and deviation 1 over the batches.

    Pixels are augmented in training, and scaled as the weights expect. Depthwise filters keep their weights. On CUDA
    devices that have bfloat16 the network is trained in mixed precision.

    Args:
        spec: ``NAME:CUT`` for images that are activations after block CUT, ``NAME`` for pixels.
        image_shape: (C, H, W) of the images.
        augment: one of AUGMENTATIONS, for pixels.

    Attributes:
        dim: D.

    Raises:
        ValueError: for an unknown network or augmentation, or images that are not activations of it at this cut.
        DataError: for weights that cannot be used.
    """

    def __init__(self, spec: str, image_shape: tuple[int, ...], *, augment: str = "crop-flip") -> None:
        super().__init__()
        name, cut = parse(spec)
        loaded = load_network(name)
        loaded.check_cut(cut)
        self.spec, self.cut, self.image_shape = spec, cut, tuple(image_shape)
        self.network = loaded.network.after(cut)
        augmented = augmentation(augment, self.image_shape)
        self.augment = augmented if cut == 0 else nn.Identity()
        for key, values in (("mean", loaded.mean), ("std", loaded.std)):
            scaling = torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(key, scaling, persistent=False)
        if len(self.image_shape) != 3:
            raise ValueError(
                f"the backbone {spec} takes images as maps (C, H, W), got vectors of shape {self.image_shape}: extract "
                f"them with `hashgym features --backbone {name} --cut {cut or 'BLOCK'}`"
            )
        try:
            with torch.no_grad():
                self.dim = self.network.eval()(torch.zeros(1, *self.image_shape)).shape[1]
        except RuntimeError as error:
            raise ValueError(
                f"the images, maps of shape {self.image_shape}, are not what {name} takes "
                f"{f'after block {cut}' if cut else 'as pixels, or are too small for it'}: give the backbone and the "
                f"cut that they were extracted with ({str(error).partition(chr(10))[0]})"
            ) from error
        self.requires_grad_(True)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:  # the gradient of a depthwise filter costs as much
                module.weight.requires_grad_(False)  # as all else in its block on a CPU, for 2% of the parameters
        self.normalize = nn.BatchNorm1d(self.dim, affine=False, momentum=0.05)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Return features, float32 (n, D), of images (n, C, H, W): uint8 pixels, or activations."""
        if self.cut == 0:
            if self.training:
                images = self.augment(images)
            images = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")
        images = images.float().contiguous(memory_format=torch.channels_last)
        mixed = self.training and images.is_cuda and torch.cuda.is_bf16_supported()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            features = self.network(images)
        return self.normalize(features.float())

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


def spec_of(dataset: HashingDataset) -> str | None:
    """Return the backbone whose activations or pixels a dataset holds, as :func:`parse` reads it; None for vectors.

    Raises:
        ValueError: if the dataset does not name it, or its activations are of other weights than the network's own.
    """
    if not dataset.has_maps:
        return None
    backbone = dataset.provenance.get("backbone", {})
    if "name" not in backbone or "cut" not in backbone:
        raise ValueError(
            f"the images of {dataset.name!r} are maps of shape {dataset.image_shape}, and the dataset does not name "
            "the network that takes them: give backbone='NAME:CUT' for activations, or 'NAME' for pixels, such as "
            "'convnet' for small pictures"
        )
    name, cut = str(backbone["name"]), backbone["cut"]
    if not cut:
        return name
    own = load_network(name)
    if backbone.get("digest", own.digest) != own.digest:
        raise ValueError(
            f"the activations of {dataset.name!r} were extracted with --weights {backbone.get('weights')}, and the "
            f"blocks after the cut would get other ones, {own.weights}: extract them without --weights"
        )
    return f"{name}:{cut}"


def augmentation(name: str, image_shape: tuple[int, ...]) -> nn.Module:
    """Return an augmentation of batches of pixels, uint8 (n, 3, H, W), in torchvision's transforms.

    ``crop-flip`` crops each image at random, of at least half its area, and resizes it; half of them are mirrored.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"augment must be one of {', '.join(AUGMENTATIONS)}, got {name!r}{closest(name, AUGMENTATIONS)}"
        )
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
