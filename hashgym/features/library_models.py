"""Networks of other libraries as backbones: ``timm:NAME``, ``open_clip:NAME/TAG`` and ``hf:NAME_OR_PATH``.

Models and weights are loaded by the libraries themselves. Their preprocessing becomes a :class:`Stretch` or a
:class:`Fit`, so that encoders run without the library.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashgym.features.backbone import Backbone, Fit, Stretch, check_size
from hashgym.features.libraries import LIBRARIES
from hashgym.features.runtimes import compile_network
from hashgym.features.torchvision_compat import import_torchvision
from hashgym.storage.errors import DataError

__all__ = ["LibraryModel", "explained", "frozen", "load", "make", "state_digest"]

TEXTS_AT_ONCE = 64
Texts = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class LibraryModel:
    """A network of another library, with the preprocessing that its weights expect.

    Attributes:
        name: its name for :func:`hashgym.features.make`.
        images: scaled pictures, float32 (n, 3, size, size) -> float32 (n, D); of an image-text model L2-normalised.
        preprocess: the preprocessing of pictures.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        weights: name of the weights.
        digest: SHA-256 of all weights, of the text's network too, see :func:`state_digest`.
        texts: texts -> float32 (n, D), not normalised; None for a network of pictures alone.
    """

    name: str
    images: nn.Module
    preprocess: Stretch | Fit
    mean: Sequence[float]
    std: Sequence[float]
    weights: str
    digest: str
    texts: Texts | None = None

    @property
    def preprocessing(self) -> str:
        """The preprocessing in words, for the provenance."""
        resize, size = self.preprocess, self.preprocess.size
        to = f"to {size} x {size}"
        if isinstance(resize, Fit):
            to = f"until the shorter side is {resize.short_side}, centre {size} x {size}"
        return f"RGB, {resize.interpolation} {to}, mean {[*self.mean]} and deviation {[*self.std]} of values in [0, 1]"

    def backbone(self, *, device: str = "auto", runtime: str = "auto") -> Backbone:
        """Return the network as a backbone. Arguments as for :func:`hashgym.features.make`.

        Raises:
            ValueError: for a device, runtime or size that does not work, or a network that does not give every picture
                one vector, always the same.
        """
        size = self.preprocess.size
        run, chosen = compile_network(
            copy.deepcopy(self.images),  # it moves to the device, and this one stays
            mean=[255 * x for x in self.mean],
            std=[255 * x for x in self.std],
            size=size,
            device=device,
            runtime=runtime,
        )
        return Backbone(
            name=self.name,
            dim=self._dim(),
            size=size,
            preprocessing=self.preprocessing,
            weights=self.weights,
            digest=self.digest,
            runtime=chosen,
            preprocess=self.preprocess,
            network=run,
            texts=self.texts is not None,
        )

    def _dim(self) -> int:
        """Return the number of features.

        Raises:
            ValueError: if they are no vectors, or differ from call to call, as with networks that mask parts at random.
        """
        size = self.preprocess.size
        pictures = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            first, again = self.images(pictures), self.images(pictures)
        if first.ndim != 2:
            raise ValueError(f"{self.name} gives a picture features of shape {tuple(first.shape[1:])}, not one vector")
        if not torch.allclose(first, again, rtol=1e-3, atol=1e-5):
            raise ValueError(f"{self.name} gives a picture other features at each call: choose a model without masking")
        return int(first.shape[1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the L2-normalised embeddings of texts, float32 (n, D), comparable with those of pictures.

        Raises:
            ValueError: for no text, one that is empty, or a network of pictures alone.
        """
        if self.texts is None:
            raise ValueError(f"the backbone {self.name} has no network for texts: {NEEDS_TEXT}")
        if (
            isinstance(texts, str)
            or not len(texts)
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise ValueError(f"give one or more texts, none of them empty, got {texts!r:.60}")
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        with torch.inference_mode():
            parts = [nn.functional.normalize(self.texts(texts[i : i + TEXTS_AT_ONCE]).float()) for i in starts]
        return torch.cat(parts).numpy()


NEEDS_TEXT = (
    "make an index with `hashgym index --backbone open_clip:NAME/TAG`, or hf:NAME of a CLIP or SigLIP model, to search "
    "it by texts"
)


def load(name: str, *, size: int | None = None, weights: str | None = None) -> LibraryModel:
    """Load a network of another library.

    Args:
        name: ``timm:NAME``, ``open_clip:NAME/TAG`` or ``hf:NAME_OR_PATH``.
        size: side of the picture in pixels; None for the network's own.
        weights: a file of weights, or with ``hf:`` a folder that save_pretrained wrote; None for those of the name.

    Raises:
        ValueError: for a wrong name or size, a library that is not installed, or preprocessing that is neither
            :class:`Stretch` nor :class:`Fit`.
        DataError: for weights that cannot be loaded.
    """
    library, _, what = name.partition(":")
    if not what:
        raise ValueError(f"the backbone {name} names no model: {LIBRARIES.descriptions[library]}")
    if size is not None:
        check_size(size, size)
    import_torchvision()  # which all of them import
    return LIBRARIES.find(library)(what, size, weights)


def make(
    name: str, *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Return a network of another library as a backbone, see :func:`load` and :meth:`LibraryModel.backbone`."""
    return load(name, size=size, weights=weights).backbone(device=device, runtime=runtime)


def frozen(model: Any) -> Any:
    """Return a model on the CPU in evaluation mode and float32, without gradients."""
    return model.to("cpu").float().eval().requires_grad_(False)


def state_digest(state: Mapping[str, Tensor], name: str) -> str:
    """Return the SHA-256, hexadecimal, of weights: of name, type, shape and bytes of each, by ascending name.

    Raises:
        DataError: if some are not finite.
    """
    sha256 = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"the weights {key} of {name} hold NaN or infinity: get them again")
        sha256.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


@contextmanager
def explained(name: str, remedy: str) -> Iterator[None]:
    """Raise DataError, with what to do, for any error of a library that loads weights: they raise many types.

    What libraries log meanwhile is not shown, as the error says it.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{name} could not be loaded ({reason}). {remedy}") from error
    finally:
        logging.disable(before)
