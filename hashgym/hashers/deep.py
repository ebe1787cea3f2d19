"""DeepHasher: a linear head or one with a hidden layer, trained by the objective of a subclass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from hashgym.device import resolve_device
from hashgym.hashers.base import Features, Hasher, Labels
from hashgym.hashers.threads import limit_threads

__all__ = ["DeepHasher", "Objective"]

Objective: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(kw_only=True, eq=False)
class DeepHasher(Hasher):
    """features -> hidden layer, ReLU, dropout -> q logits, trained in batches by an objective (AdamW, cosine).

    With ``hidden=0`` there is no hidden layer: the logits are linear in the features.

    Features are standardised by the training set's mean and deviation first, which is folded into the first layer, so
    raw and standardised features give equal codes. The weights are NumPy arrays: encoding needs no accelerator.

    Attributes:
        hidden: width of the hidden layer; 0 for a linear head, without ``hidden_weight_`` and ``hidden_bias_``.
        dropout: share of the hidden units left out at each update.
        input_dropout: share of the features left out at each update.
        updates: number of gradient steps.
        batch_size: number of images in a step.
        learning_rate: initial learning rate; it falls to 0 along a cosine.
        weight_decay: weight decay of AdamW.
        device: "cpu", "cuda", ..., or "auto": a GPU if there is one.
        verbose: whether to show a progress bar.
        hidden_weight_: float32 (D, hidden).
        hidden_bias_: float32 (hidden,).
        code_weight_: float32 (hidden, q), or (D, q) of a linear head.
        code_bias_: float32 (q,).
        losses_: float32 (updates,), the training loss.
    """

    hidden: int = 512
    dropout: float = 0.5
    input_dropout: float = 0.5
    updates: int = 1500
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    device: str = "auto"
    verbose: bool = False

    supervised = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 0:
            raise ValueError(f"hidden must be at least 0 (0 for a linear head), got {self.hidden}")
        for name in ("updates", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")

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
        from hashgym.console import track

        device = resolve_device(self.device)
        center, scale = X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)
        scale = np.where(scale > 1e-6, scale, 1.0)
        x = torch.from_numpy(((X - center) / scale).astype(np.float32)).to(device)
        labels = torch.from_numpy(np.asarray(y, np.float32)).to(device)

        # Restores the global generators, which dropout draws from.
        forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with forked, limit_threads(self.batch_size * x.shape[1] * (self.hidden or self.bits)):
            torch.manual_seed(self.seed)
            layers: list[nn.Module] = [nn.Dropout(self.input_dropout)]
            if self.hidden:
                layers += [nn.Linear(x.shape[1], self.hidden), nn.ReLU(), nn.Dropout(self.dropout)]
            network = nn.Sequential(*layers, self.hash_layer(self.hidden or x.shape[1])).to(device)
            optimizer = torch.optim.AdamW(
                network.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=True
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.updates)
            objective = self.objective(labels)
            order, losses = torch.empty(0, dtype=torch.int64), torch.empty(self.updates, device=device)
            for step in track(range(self.updates), type(self).__name__, total=self.updates, show=self.verbose):
                while len(order) < self.batch_size:
                    order = torch.cat([order, torch.randperm(len(x))])
                batch, order = order[: self.batch_size].to(device), order[self.batch_size :]
                loss = objective(network(x[batch]), batch, step)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses[step] = loss.detach()

        linear = [layer for layer in network.cpu() if isinstance(layer, nn.Linear)]
        if not torch.isfinite(linear[-1].weight).all():
            raise ValueError(f"training diverged: lower the learning rate of {self.learning_rate}")
        parts = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy().copy()) for layer in linear]
        weight, bias = parts[0]
        weight = weight / scale[:, None]
        parts[0] = weight.astype(np.float32), (bias - center @ weight).astype(np.float32)
        if self.hidden:
            self.hidden_weight_, self.hidden_bias_ = parts[0]
        self.code_weight_, self.code_bias_ = np.ascontiguousarray(parts[-1][0]), parts[-1][1]
        self.losses_ = losses.cpu().numpy()

    def _transform(self, X: Features) -> Features:
        hidden = (X @ self.hidden_weight_ + self.hidden_bias_).clip(0) if self.hidden else X
        return hidden @ self.code_weight_ + self.code_bias_
