"""ONNX Runtime on the CPU, without torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["PICTURES_AT_ONCE", "TOLERANCE", "open_session", "thread_count"]

PICTURES_AT_ONCE = 16  # more is no faster on a CPU, and takes its memory
TOLERANCE = 1e-3  # greatest difference between the engines, relative to the largest value


def open_session(model: bytes, threads: int) -> InferenceSession:
    """A model, ready to run with that many threads.

    Raises:
        ValueError: where ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: ONNX models need pip install 'hashgym[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads  # ONNX Runtime does not heed OMP_NUM_THREADS by itself
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to the readers
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def thread_count() -> int:
    """OMP_NUM_THREADS where it is set, else the cores that this process may use."""
    wished = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wished.isdecimal() and int(wished):
        return int(wished)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
