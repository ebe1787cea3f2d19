"""Sessions of ONNX Runtime on the CPU, without torch."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from hashgym.optional import MissingPackageError, install_command

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["IR_VERSION", "OPSET", "PICTURES_AT_ONCE", "TOLERANCE", "open_session", "require_runtime", "thread_count"]

OPSET, IR_VERSION = 20, 9  # of every model that is written, so that models can be joined
PICTURES_AT_ONCE = 16  # more is no faster on a CPU, and takes its memory
TOLERANCE = 1e-3  # greatest difference between the runtimes, relative to the largest value


def require_runtime(*modules: str) -> None:
    """Check that ONNX Runtime and these modules are installed.

    Raises:
        MissingPackageError: with the command that installs them.
    """
    if absent := [name for name in (*modules, "onnxruntime") if importlib.util.find_spec(name) is None]:
        command = install_command("onnx")
        raise MissingPackageError(f"ONNX models need {' and '.join(absent)}: {command}", name=absent[0])


def open_session(model: bytes, threads: int) -> InferenceSession:
    """Return a session of a model that uses this number of threads."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it sends usage to its makers, and keeps a file of it
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never ORT's own format
    options.intra_op_num_threads = threads  # ONNX Runtime does not read OMP_NUM_THREADS by itself
    # Leaves the cores to the threads that read pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def thread_count() -> int:
    """Return OMP_NUM_THREADS if it is set, else the number of cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
