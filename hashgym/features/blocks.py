"""Networks as sequences of blocks, which can be cut after any block.

The part before a cut can run once, into a cache of activations; the part after it can be trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashgym.checks import is_integer
from hashgym.features.backbone import Backbone, Network, Preprocess, check_size
from hashgym.features.runtimes import check_runtime, compile_network, pictures_to_features

__all__ = ["BlockNetwork", "Pretrained", "Quarters"]

_UNTRAINED = "has no pretrained weights, so it can only be trained from pixels: give the cut 0"


class BlockNetwork(nn.Module):
    """Blocks one after another, and features pooled from the maps after some of them.

    Args:
        blocks: by number, in order; each takes the map (n, C, H, W) of the one before. Block 1 takes scaled pictures.
        pool: map (n, C, H, W) -> features (n, D).
        pooled: the numbers of the blocks after which the map is pooled, in ascending order, the last block among
            them; the features are joined.
    """

    def __init__(self, blocks: Mapping[int, nn.Module], pool: nn.Module, pooled: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(number): block for number, block in blocks.items()})
        self.pool, self.pooled = pool, tuple(pooled)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the blocks."""
        return [int(number) for number in self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """Return features (n, D) of a map (n, C, H, W), the input of the first block."""
        first = min(self.numbers)
        features = [self.pool(x)] if first - 1 in self.pooled else []
        for number, block in zip(self.numbers, self.blocks.values(), strict=True):
            x = block(x)
            if number in self.pooled:
                features.append(self.pool(x))
        return torch.cat(features, dim=1)

    def until(self, cut: int) -> nn.Sequential:
        """Return the blocks up to number ``cut``: pictures -> map; it shares their weights."""
        return nn.Sequential(*[self.blocks[str(number)] for number in self.numbers if number <= cut])

    def after(self, cut: int) -> BlockNetwork:
        """Return the rest of the network after block number ``cut``; it shares the weights.

        Features of maps before the cut are left out.
        """
        rest = {number: self.blocks[str(number)] for number in self.numbers if number > cut}
        return BlockNetwork(rest, self.pool, [number for number in self.pooled if number >= cut])


class Quarters(nn.Module):
    """Means over the four quarters of a map, (n, C, H, W) -> (n, 4 C): AdaptiveAvgPool2d(2), flattened.

    Quarters of an odd side share its middle row or column; for these the exporter to ONNX has no AdaptiveAvgPool2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the means of the quarters: top left, top right, bottom left, bottom right of each channel."""
        h, w = (int(side) for side in x.shape[2:])
        rows, columns = (slice(0, (h + 1) // 2), slice(h // 2, h)), (slice(0, (w + 1) // 2), slice(w // 2, w))
        means = [x[:, :, row, column].mean((2, 3)) for row in rows for column in columns]
        return torch.stack(means, dim=2).flatten(1)


@dataclass(frozen=True)
class Pretrained:
    """A network with its weights, and the preprocessing that they expect.

    Attributes:
        name: its name for :func:`hashgym.features.make`.
        network: in evaluation mode, without gradients.
        mean: per channel, subtracted from values 0 to 255.
        std: per channel, divided by.
        size: side in pixels of the pictures that the weights were trained on.
        preprocess: size -> preprocessing of pictures to this side.
        describe: size -> the preprocessing in words, for the provenance.
        weights: name of the file of weights; empty for weights that are drawn at random.
        digest: SHA-256 of that file, or empty.
    """

    name: str
    network: BlockNetwork
    mean: Sequence[float]
    std: Sequence[float]
    size: int
    preprocess: Callable[[int], Preprocess]
    describe: Callable[[int], str]
    weights: str
    digest: str

    def backbone(
        self, *, size: int | None = None, device: str = "auto", runtime: str = "auto", cut: int | None = None
    ) -> Backbone:
        """Return the network, frozen, as a backbone. Arguments as for :func:`hashgym.features.make`.

        Raises:
            ValueError: for a size that is too small for the network, a wrong device, runtime or cut, or a network
                without pretrained weights, which has nothing to extract but pixels.
        """
        side = check_size(size, self.size)
        body: nn.Module = self.network
        if cut is not None:
            cut = self.check_cut(cut)
            body = self.network.until(cut)
        elif not self.digest:
            raise ValueError(f"{self.name} {_UNTRAINED}")
        shape = self._check_shape(body, side, cut)
        run: Network
        if cut == 0:
            check_runtime(runtime, device)
            run, chosen = _Pixels(side), "numpy"
        else:
            run, chosen = compile_network(body, mean=self.mean, std=self.std, size=side, device=device, runtime=runtime)
        return Backbone(
            name=self.name,
            dim=math.prod(shape),
            size=side,
            preprocessing=self.describe(side),
            weights=self.weights,
            digest=self.digest,
            runtime=chosen,
            preprocess=self.preprocess(side),
            network=run,
            cut=cut,
            map_shape=None if cut is None else (shape[0], shape[1], shape[2]),
        )

    def _check_shape(self, body: nn.Module, side: int, cut: int | None) -> tuple[int, ...]:
        """Return the shape of the result for a picture of side x side, once the blocks after the cut could take it.

        Pixels may be of any size, as they can be resized on the way to the network.

        Raises:
            ValueError: for a size that is too small.
        """
        if cut == 0:
            return 3, side, side
        with torch.inference_mode():
            try:
                result = body(torch.zeros(1, 3, side, side))
                if cut is not None:
                    self.network.after(cut)(result)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"{self.name} does not take pictures of {side} x {side} pixels, give a larger size: {reason}"
                ) from error
        return tuple(result.shape[1:])

    def check_cut(self, cut: int) -> int:
        """Return the number of a block, after which other blocks come, or 0.

        Raises:
            ValueError: for any other number, or for one above 0 where there are no pretrained weights.
        """
        last = self.network.numbers[-1]
        if not is_integer(cut) or not 0 <= cut < last:
            raise ValueError(f"{self.name} can be cut at 0 (pixels) to {last - 1}, before its last block, got {cut!r}")
        if cut and not self.digest:
            raise ValueError(f"{self.name} {_UNTRAINED}")
        return int(cut)


@dataclass(frozen=True)
class _Pixels:
    """The pictures themselves, as networks in torch take them: uint8 (n, size, size, 3) -> uint8 (n, 3, size, size)."""

    size: int

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))

    def to_onnx(self) -> bytes:
        example = torch.zeros(2, self.size, self.size, 3, dtype=torch.uint8)
        return pictures_to_features(_Permuted(), example)


class _Permuted(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.permute(0, 3, 1, 2).flatten(1).float()
