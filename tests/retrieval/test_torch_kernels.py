"""The kernels for tensors against those for packed arrays: equal counts, equal averages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hashgym import codes
from hashgym.retrieval import kernels, torch_kernels

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def sets(seed: int, n: int, m: int, bits: int, labels: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Codes and labels of n queries and m items, and a row to leave out for each query, -1 for some."""
    rng = np.random.default_rng(seed)
    hot = [rng.random(shape) < share for shape, share in (((n, bits), 0.5), ((n, labels), 0.3))]
    hot += [rng.random(shape) < share for shape, share in (((m, bits), 0.5), ((m, labels), 0.3))]
    return hot, rng.integers(-1, m, size=n)


def both(hot: list[np.ndarray], device: str) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    return [codes.pack(x) for x in hot], [torch.tensor(x, device=device) for x in hot]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 9),
    m=st.integers(1, 40),
    bits=st.sampled_from([1, 3, 24, 70]),
    labels=st.sampled_from([1, 5, 80]),
    left_out=st.booleans(),
)
def test_equal_to_the_packed_kernels(
    device: str, backend: Any, seed: int, n: int, m: int, bits: int, labels: int, left_out: bool
) -> None:
    hot, rows = sets(seed, n, m, bits, labels)
    words, hot_tensors = both(hot, device)
    own = rows if left_out else None
    exclude = torch.tensor(rows, device=device) if left_out else None
    counts = kernels.distance_histograms(*words, bits, exclude=own)
    same = torch_kernels.distance_histograms(*hot_tensors, exclude=exclude, backend=backend)
    for one, other in zip(counts, same, strict=True):
        assert other.dtype == torch.int64
        assert other.device.type == device
        np.testing.assert_array_equal(one, other.cpu())
    ap = torch_kernels.average_precision(*same)
    assert ap.dtype == torch.float64
    np.testing.assert_allclose(ap.cpu(), kernels.average_precision(*counts), rtol=0, atol=1e-9)
    scores = kernels.average_precision_credit(*words, bits, exclude=own)
    again = torch_kernels.average_precision_credit(*hot_tensors, exclude=exclude, backend=backend)
    for one, other in zip(scores, again, strict=True):
        assert (other.dtype, other.shape) == (torch.float64, one.shape)
        np.testing.assert_allclose(other.cpu(), one, rtol=0, atol=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hot, rows = sets(0, 23, 30, 12, 4)
    _, hot_tensors = both(hot, "cpu")
    calls = [
        lambda function=function: function(*hot_tensors, exclude=torch.tensor(rows), backend="torch")
        for function in (torch_kernels.distance_histograms, torch_kernels.average_precision_credit)
    ]
    whole = [call() for call in calls]
    for numbers in (1, 30 * 26 * 5):  # one query at a time, and five
        monkeypatch.setattr(torch_kernels, "_BLOCK", numbers)
        for call, parts in zip(calls, whole, strict=True):
            for one, other in zip(call(), parts, strict=True):
                assert torch.equal(one, other)


def test_numbers_may_come_in_any_type() -> None:
    hot, _ = sets(1, 4, 9, 8, 3)
    _, hot_tensors = both(hot, "cpu")
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.bool):
        for backend in ("auto", "torch"):
            given_ = torch_kernels.average_precision_credit(*(x.to(dtype) for x in hot_tensors), backend=backend)  # type: ignore[arg-type]
            wanted = torch_kernels.average_precision_credit(*hot_tensors)
            for one, other in zip(given_, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_an_empty_histogram_has_no_precision() -> None:
    nothing = torch.zeros(2, 5, dtype=torch.int64)
    assert torch_kernels.average_precision(nothing, nothing).isnan().all()
    assert torch_kernels.average_precision(nothing[:0], nothing[:0]).shape == (0,)


def test_wrong_tensors() -> None:
    _, good = both(sets(0, 3, 4, 8, 2)[0], "cpu")
    for place, bad in ((0, good[0][:, 1:]), (1, good[1][:2]), (2, good[2][0]), (3, good[3][:, :1]), (2, good[2][:0])):
        with pytest.raises(ValueError, match=r"\(n, q\), \(n, L\), \(m, q\) and \(m, L\)"):
            torch_kernels.distance_histograms(*good[:place], bad, *good[place + 1 :])
    with pytest.raises(ValueError, match=r"exclude must be int64 \(3,\)"):
        torch_kernels.average_precision_credit(*good, exclude=torch.zeros(3))
    with pytest.raises(ValueError, match="one shape"):
        torch_kernels.average_precision(torch.zeros(2, 3), torch.zeros(3))
