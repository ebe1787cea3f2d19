"""How many threads training uses: one for small networks, whose threads wait for each other longer than they help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits
from torch import nn

__all__ = ["largest_product", "limit_threads"]

# Multiplications of the largest matrix product of an update. Below it a second thread gains little on idle cores, and
# on busy ones it costs many times what it gains: `python -m benchmarks.threads` measures both.
WORTH_THREADS = 1 << 29


@contextmanager
def limit_threads(multiplications: int) -> Iterator[None]:
    """Use one thread in torch, OpenMP and BLAS within the block, unless a matrix product is large enough for several.

    The number depends on the size alone, never on how busy the machine is, so that the same seed gives the same result.

    Args:
        multiplications: of the largest product, such as batch size x features x hidden units
            (:func:`largest_product` of a network).
    """
    if multiplications >= WORTH_THREADS:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def largest_product(network: nn.Module, batch_size: int) -> int:
    """Return the multiplications of a network's largest layer of weights for a batch."""
    return batch_size * max(parameter.numel() for parameter in network.parameters())
