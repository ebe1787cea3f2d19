"""DeepHasher: a linear head or one with a hidden layer, on features or on a trained backbone, and its training."""

from __future__ import annotations

import copy
import dataclasses
import os
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from hashgym.codes import prefix_lengths
from hashgym.device import explain_out_of_memory, resolve_device
from hashgym.hashers.base import Features, Hasher, Labels, as_maps
from hashgym.hashers.module import Transform
from hashgym.threads import limit_threads

if TYPE_CHECKING:
    from hashgym.features.trainable import TrainableBackbone

__all__ = ["DeepHasher", "Objective"]

Objective: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(kw_only=True, eq=False)
class DeepHasher(Hasher):
    """features -> hidden layer, ReLU, dropout -> q logits, trained in batches by an objective (AdamW, cosine).

    With ``hidden=0`` there is no hidden layer: the logits are linear in the features.

    Features are standardised by the training set's mean and deviation first, which is folded into the first layer, so
    raw and standardised features give equal codes. The weights are NumPy arrays: encoding needs no accelerator.

    With ``backbone`` images are activations or pixels, and the network below the head is trained as well. ``fit`` then
    takes images (n, C, H, W), or V views of each (n, V, C, H, W), of which each batch draws one at random, and
    ``transform`` takes images (n, C, H, W): ``dataset.training_images`` and ``dataset.features``.

    Attributes:
        hidden: width of the hidden layer; 0 for a linear head, without ``hidden_weight_`` and ``hidden_bias_``.
        dropout: share of the hidden units left out at each update.
        input_dropout: share of the features left out at each update.
        updates: number of gradient steps.
        nested: interval of the prefix lengths that are trained as codes: 12 for 12, 24, ... bits. The loss is the sum
            over all lengths, after "Nested Hash Layer" (arXiv 2412.08922). 0 for none.
        batch_size: number of images in a step.
        learning_rate: initial learning rate; it falls to 0 along a cosine.
        weight_decay: weight decay of AdamW.
        backbone: the network that is trained with the head: ``NAME:CUT`` for activations after block CUT, ``NAME`` or
            ``NAME@SIZE`` for pixels (see :class:`hashgym.features.trainable.TrainableBackbone`); None for feature
            vectors.
        backbone_learning_rate: its initial learning rate.
        backbone_weights: a file of its pretrained weights; None for the network's own.
        head_updates: number of gradient steps of the head alone, on features of the frozen backbone, before both are
            trained; 0 for none.
        augment: how pixels are augmented in training, one of :data:`hashgym.features.trainable.AUGMENTATIONS`.
        device: "cpu", "cuda", ..., or "auto": a GPU if there is one.
        verbose: whether to show a progress bar.
        hidden_weight_: float32 (D, hidden).
        hidden_bias_: float32 (hidden,).
        code_weight_: float32 (hidden, q), or (D, q) of a linear head.
        code_bias_: float32 (q,).
        losses_: float32 (updates,), the training loss.
        image_shape_: int64 (3,), shape of the images, with a backbone.
        backbone_state_: float32, all numbers of the trained backbone in the order of its state_dict, with a backbone.
    """

    hidden: int = 512
    dropout: float = 0.5
    input_dropout: float = 0.5
    updates: int = 1500
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    backbone: str | None = None
    backbone_learning_rate: float = 5e-4
    backbone_weights: str | None = None
    head_updates: int = 0
    nested: int = 0
    augment: str = "crop-flip"
    device: str = "auto"
    verbose: bool = False

    supervised = True
    views: ClassVar[int] = 1  # times that each image is in a batch, under different dropout
    least_batch: ClassVar[int] = 1  # images that the loss of a batch compares

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 0:
            raise ValueError(f"hidden must be at least 0 (0 for a linear head), got {self.hidden}")
        for name in ("updates", "batch_size", "learning_rate", "backbone_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("head_updates", "nested"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if isinstance(self.backbone_weights, os.PathLike):
            self.backbone_weights = os.fspath(self.backbone_weights)  # JSON, in which settings are saved, has no paths
        if self.batch_size < self.least_batch:
            raise ValueError(
                f"batch_size must be at least {self.least_batch}, since the loss compares the images of a batch; got "
                f"{self.batch_size}"
            )
        if self.backbone is not None and self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, since a backbone normalises batches; got {self.batch_size}"
            )

    @abstractmethod
    def objective(self, labels: Tensor) -> Objective:
        """Return the loss: a function of a batch's logits (b, q), its rows (b,) and the number of the update.

        Args:
            labels: float32 (n, L), multi-hot labels of all training images, on the device that trains.
        """

    def hash_layer(self, width: int) -> nn.Linear:
        """Return the output layer (width -> bits); ``width`` counts hidden units, or features where ``hidden`` is 0.

        Only its weight and bias are kept, so a subclass's own layer must be the linear function that they define.
        """
        return nn.Linear(width, self.bits)

    def _fit(self, X: Features, y: Labels | None) -> None:
        device = resolve_device(self.device)
        labels = torch.from_numpy(np.asarray(y, np.float32)).to(device)
        # Restores the global generators, which dropout draws from.
        forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with forked, explain_out_of_memory("batch_size", self.batch_size), self._limited_threads(X):
            torch.manual_seed(self.seed)
            images: _Vectors | _Maps = _Vectors(X, device) if self.backbone is None else _Maps(X, device)
            backbone = None if self.backbone is None else self._new_backbone(X.shape[-3:], pretrained=True).to(device)
            width = X.shape[1] if backbone is None else backbone.dim
            layers: list[nn.Module] = [nn.Dropout(self.input_dropout)]
            if self.hidden:
                layers += [nn.Linear(width, self.hidden), nn.ReLU(), nn.Dropout(self.dropout)]
            head = nn.Sequential(*layers, self.hash_layer(self.hidden or width)).to(device)
            network = head if backbone is None else nn.Sequential(backbone, head)
            parameters = [{"params": list(head.parameters()), "lr": self.learning_rate}]
            objective = self._nested_objective(labels) if self.nested else self.objective(labels)
            if backbone is not None:
                if self.head_updates:
                    features = _Maps(backbone.start_from(X[:, 0] if X.ndim == 5 else X), device)
                    self._descend(head, parameters[:1], features, objective, self.head_updates)
                trained = [p for p in backbone.parameters() if p.requires_grad]
                parameters.append({"params": trained, "lr": self.backbone_learning_rate})
            losses = self._descend(network, parameters, images, objective, self.updates)

        linear = [layer for layer in head.cpu() if isinstance(layer, nn.Linear)]
        rates = f"{self.learning_rate}" + (f", or the backbone's of {self.backbone_learning_rate}" if backbone else "")
        if not torch.isfinite(linear[-1].weight).all():
            raise ValueError(f"training diverged: lower the learning rate of {rates}")
        parts = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy().copy()) for layer in linear]
        if isinstance(images, _Vectors):
            parts[0] = images.unscaled(*parts[0])
        if self.hidden:
            self.hidden_weight_, self.hidden_bias_ = parts[0]
        self.code_weight_, self.code_bias_ = np.ascontiguousarray(parts[-1][0]), parts[-1][1]
        self.losses_ = losses.cpu().numpy()
        vars(self).pop("_backbone", None)  # of an earlier fit
        if backbone is not None:
            self.image_shape_ = np.array(backbone.image_shape)
            self.backbone_state_ = backbone.numbers()
            self._backbone = backbone.cpu().eval()

    def _nested_objective(self, labels: Tensor) -> Objective:
        """Return the sum of the losses of the code and of its prefixes, each that of a hasher of its length."""
        *prefixes, _ = prefix_lengths(self.bits, self.nested)
        parts = [(length, dataclasses.replace(self, bits=length).objective(labels)) for length in prefixes]
        parts.append((self.bits, self.objective(labels)))
        return lambda logits, rows, update: torch.stack([part(logits[:, :p], rows, update) for p, part in parts]).sum()

    def _descend(
        self,
        network: nn.Module,
        parameters: list[dict[str, Any]],
        images: _Vectors | _Maps,
        objective: Objective,
        updates: int,
    ) -> Tensor:
        """Minimise the objective by AdamW with a cosine schedule; return the losses (updates,)."""
        from hashgym.console import track

        device, batch_size = images.device, self.batch_size
        optimizer = torch.optim.AdamW(parameters, weight_decay=self.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        order, losses = torch.empty(0, dtype=torch.int64), torch.empty(updates, device=device)
        for step in track(range(updates), type(self).__name__, total=updates, show=self.verbose):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(images))])
            batch, order = order[:batch_size].repeat(self.views), order[batch_size:]
            progress = step * self.updates // updates  # in the updates of the objective's own schedule
            loss = objective(network(images.batch(batch)), batch.to(device), progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses[step] = loss.detach()
        return losses

    def _transform(self, X: Features) -> Features:
        features = X if self.backbone is None else self._features_of(X)
        hidden = (features @ self.hidden_weight_ + self.hidden_bias_).clip(0) if self.hidden else features
        return hidden @ self.code_weight_ + self.code_bias_

    def head(self) -> nn.Module:
        """Return :meth:`transform` as a torch module, of features (n, D) or of images (n, C, H, W), to (n, q)."""
        if self.backbone is None:
            return super().head()
        self._check_fitted()
        backbone = copy.deepcopy(self._trained_backbone()).cpu()
        layers = copy.copy(self)
        layers.backbone = None
        del layers.backbone_state_
        return nn.Sequential(backbone, Transform(layers))

    def _check_images(self, X: ArrayLike, *, views: bool) -> Features:
        if self.backbone is None:
            return super()._check_images(X, views=views)
        from hashgym.features.trainable import check_kind

        images = as_maps(X, views=views)
        check_kind(images, self.backbone)
        fitted = getattr(self, "image_shape_", None)
        if not views and fitted is not None and images.shape[1:] != tuple(fitted):
            raise ValueError(
                f"{type(self).__name__} was fitted on images of shape {tuple(fitted.tolist())}, got {images.shape[1:]}"
            )
        return images

    def _features_of(self, X: NDArray[Any]) -> Features:
        """Return the features (n, D) of images (n, C, H, W)."""
        return self._trained_backbone().to(resolve_device(self.device)).features_of(X)

    def _new_backbone(self, image_shape: tuple[int, ...], *, pretrained: bool) -> TrainableBackbone:
        from hashgym.features.trainable import TrainableBackbone

        assert self.backbone is not None
        options: dict[str, Any] = {"weights": self.backbone_weights, "pretrained": pretrained}
        return TrainableBackbone(self.backbone, image_shape, augment=self.augment, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for copies and pickles, in which the network is rebuilt: it may be on a GPU."""
        return {name: value for name, value in vars(self).items() if name != "_backbone"}

    def _trained_backbone(self) -> TrainableBackbone:
        """Return the trained backbone in evaluation mode; it is rebuilt from its weights where they were loaded."""
        if getattr(self, "_backbone", None) is None:
            backbone = self._new_backbone(tuple(self.image_shape_.tolist()), pretrained=False)
            backbone.fill(self.backbone_state_)
            self._backbone = backbone.eval()
        return self._backbone

    def _limited_threads(self, X: Features) -> AbstractContextManager[None]:
        if self.backbone is not None:  # convolutions always gain by threads
            return nullcontext()
        return limit_threads(self.batch_size * X.shape[1] * (self.hidden or self.bits))


class _Vectors:
    """Feature vectors on a device, standardised by their mean and deviation."""

    def __init__(self, X: Features, device: torch.device) -> None:
        self.center, scale = X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)
        self.scale = np.where(scale > 1e-6, scale, 1.0)
        self.x = torch.from_numpy(((X - self.center) / self.scale).astype(np.float32)).to(device)
        self.device = device

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> Tensor:
        """Return images (b, D) by their rows."""
        return self.x[rows.to(self.device)]

    def unscaled(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> tuple[Features, Features]:
        """Return the weight (D, m) and bias (m,) of a layer for features before standardisation."""
        unscaled = weight / self.scale[:, None]
        return unscaled.astype(np.float32), (bias - self.center @ unscaled).astype(np.float32)


class _Maps:
    """Images or views, left unscaled where they are (perhaps in a file); only batches are moved to a device."""

    def __init__(self, X: NDArray[Any], device: torch.device) -> None:
        self.X, self.device = X, device

    def __len__(self) -> int:
        return len(self.X)

    def batch(self, rows: Tensor) -> Tensor:
        """Return images by their rows, of views (n, V, C, H, W) one of each at random."""
        if self.X.ndim == 5:
            images = self.X[rows.numpy(), torch.randint(self.X.shape[1], rows.shape).numpy()]
        else:
            images = self.X[rows.numpy()]
        return torch.from_numpy(images).to(self.device)
