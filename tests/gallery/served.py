"""A small index of made-up pictures, and its web page served by a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOKEN = "a-token-of-the-tests"
HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>.png",
    "\"'&amp;{{7*7}}.png",
    "sub/javascript:alert(1).png",
    "sub/\u202egnp.exe.png",
    "sub/" + "long" * 40 + ".png",
)


def picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Sixteen fields of loud colours: each bit of its code is a field's red, green or blue."""
    fields = np.random.default_rng(seed).integers(0, 2, (4, 4, 3)).astype(np.uint8) * 200 + 20
    return Image.fromarray(fields).resize((width, height), Image.Resampling.NEAREST)


def write_pictures(folder: Path) -> None:
    """Twenty pictures, some with hostile names; 20.png has number 3 as its top right quarter."""
    names = [*(f"{i}.png" for i in range(15)), *HOSTILE_NAMES]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    collage = picture(1000, 320, 240)
    collage.paste(picture(3), (160, 0))
    collage.save(folder / "20.png")
    with open(os.fsencode(folder) + b"/not-utf8-\xff.png", "wb") as file:
        picture(21).save(file, "PNG")


def write_index(folder: Path) -> Path:
    """Pictures in ``folder/pictures``, and their index."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from hashgym.encoders import write
    from hashgym.features import make
    from hashgym.gallery import build, encode_images

    class Fields(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 1, torch.ones_like(x[..., 0])

    write_pictures(folder / "pictures")
    backbone = make("pixels", size=4)
    options = {"regions": 5, "sigma": 0.5, "threshold": 0.5, "backbone": backbone.provenance, "source": {}}
    center, scale = np.full(48, 0.5, np.float32), np.ones(48, np.float32)
    write.write(folder / "features.onnx", Fields(), dim=48, bits=48, center=center, scale=scale, **options)
    write.add_backbone(folder / "features.onnx", folder / "encoder.onnx", backbone)
    encode_images(folder / "encoder.onnx", [folder / "pictures"], folder / "codes", progress=False)
    build([folder / "codes"], folder / "index", "brute-force", progress=False)
    return folder / "index"


@contextmanager
def serving(index: Path, torch: bool = False, **options: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process that serves an index at a free port with ``TOKEN``: the page's address, and the process.

    At its end it has not imported torch, unless it may.
    """
    with_options = f"from hashgym.gallery.server import serve; serve(sys.argv[1], 0, **{options})\n"
    as_command = "from hashgym.cli import main; main(['serve', sys.argv[1], '--port', '0'])\n"
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as background jobs of a shell ignore it
        + (with_options if options else as_command)
        + ("" if torch else "assert 'torch' not in sys.modules\n")
    )
    command = [sys.executable, "-c", program, str(index)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env={**os.environ, "HASHGYM_TOKEN": TOKEN})
    try:
        assert process.stdout is not None
        output = process.stdout.readline()
        address = re.search(rf"(http://127\.0\.0\.1:\d+)/\?token={TOKEN} ", output)
        assert address, output + process.communicate(timeout=300)[1]
        yield address[1], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
