"""Devices by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hashgym import hashers
from hashgym.device import computes_bfloat16, explain_out_of_memory, resolve_device


def test_names_become_devices():
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("found", "expected"), [({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)]
)
def test_a_cpu_computes_bfloat16_if_it_has_instructions_for_it(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert computes_bfloat16(torch.device("cpu")) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not computes_bfloat16(torch.device("cpu"))


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


def test_too_little_memory_of_a_gpu_names_the_setting_to_lower():
    torchs_own = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8.00 GiB."
    message = r"^CUDA out of memory: lower num_envs \(now 512\), or use a smaller picture or a later cut$"
    with pytest.raises(MemoryError, match=message) as raised, explain_out_of_memory("num_envs", 512):
        raise torch.OutOfMemoryError(torchs_own)
    assert str(raised.value.__cause__) == torchs_own


def test_other_errors_are_not_changed():
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$"), explain_out_of_memory("batch_size", 4):
        raise RuntimeError("mat1 and mat2")
    with explain_out_of_memory("batch_size", 4):
        pass


def test_a_hasher_that_needs_too_much_memory_names_its_batch_size(monkeypatch):
    def objective(self, labels):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    hasher = hashers.make("csq", bits=4, batch_size=24, device="cpu")
    monkeypatch.setattr(type(hasher), "objective", objective)
    threads = torch.get_num_threads()
    with pytest.raises(MemoryError, match=r"lower batch_size \(now 24\)"):
        hasher.fit(np.eye(6, dtype=np.float32), np.arange(6) % 2)
    assert torch.get_num_threads() == threads
