"""Networks as sequences of blocks, which can be cut after any block.

The part before a cut can run once, into a cache of activations; the part after it can be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hashgym.features.backbone import Backbone, Preprocess, check_size
from hashgym.features.runtimes import compile_network

__all__ = ["BlockNetwork", "Pretrained"]


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
        weights: name of the file of weights.
        digest: SHA-256 of that file.
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

    def backbone(self, *, size: int | None = None, device: str = "auto", runtime: str = "auto") -> Backbone:
        """Return the whole network, frozen, as a backbone. Arguments as for :func:`hashgym.features.make`.

        Raises:
            ValueError: for a wrong size, device or runtime.
        """
        side = check_size(size, self.size)
        run, chosen = compile_network(
            self.network, mean=self.mean, std=self.std, size=side, device=device, runtime=runtime
        )
        with torch.inference_mode():
            (features,) = self.network(torch.zeros(1, 3, side, side))
        return Backbone(
            name=self.name,
            dim=len(features),
            size=side,
            preprocessing=self.describe(side),
            weights=self.weights,
            digest=self.digest,
            runtime=chosen,
            preprocess=self.preprocess(side),
            network=run,
        )
