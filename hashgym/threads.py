"""Number of threads in training: one for small networks, for which several cost more time than they save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from threadpoolctl import threadpool_limits
from torch import nn

__all__ = ["largest_product", "limit_threads", "use_threads"]

# Multiplications of the largest matrix product of an update. Below it a second thread saves little time on idle cores,
# and costs much more on busy ones: `python -m benchmarks.threads` measures both.
WORTH_THREADS = 1 << 29


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Use ``count`` threads in torch, OpenMP and BLAS within the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def limit_threads(multiplications: int) -> AbstractContextManager[None]:
    """Use one thread within the block, unless a matrix product is large enough for several.

    The number depends on the size alone, never on how busy the machine is, so that the same seed gives the same result.

    Args:
        multiplications: number of multiplications of the largest product, such as batch size x features x hidden units
            (:func:`largest_product` of a network).
    """
    return nullcontext() if multiplications >= WORTH_THREADS else use_threads(1)


def largest_product(network: nn.Module, batch_size: int) -> int:
    """Return the multiplications of a network's largest layer of weights for a batch."""
    return batch_size * max(parameter.numel() for parameter in network.parameters())
