from __future__ import annotations

import pytest
import torch

from hashgym import threads
from hashgym.threads import limit_threads


@pytest.fixture(autouse=True)
def several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_products_get_one_thread_and_large_ones_all() -> None:
    with limit_threads(threads.WORTH_THREADS - 1):
        assert torch.get_num_threads() == 1
        with limit_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with limit_threads(threads.WORTH_THREADS):
        assert torch.get_num_threads() == 2


def test_the_number_is_restored_after_an_error() -> None:
    with pytest.raises(KeyError), limit_threads(1):
        raise KeyError
    assert torch.get_num_threads() == 2
