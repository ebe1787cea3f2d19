"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from hashgym.device import resolve_device


def test_names_become_devices():
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("device", "kinds", "message"),
    [
        ("abacus", (), "device must be 'auto' or a device of torch, such as 'cpu' or 'cuda:1', got 'abacus'"),
        (3.5, (), "device must be 'auto' or a device of torch"),
        ("cpu", ("cuda", "xpu"), "device must be 'auto' or cuda or xpu, got 'cpu'"),
        ("cuda:99", (), r"device='cuda:99' cannot be used here \(.+\): use 'auto' or 'cpu'"),
    ],
)
def test_other_devices_are_rejected(device, kinds, message):
    with pytest.raises(ValueError, match=message):
        resolve_device(device, kinds)
