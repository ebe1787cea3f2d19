"""Write encoders: a trained head as an ONNX file, to which its backbone can be added."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, unpack
from hashgym.data.pictures import BACKGROUND
from hashgym.encoders.encoder import FORMAT, KEY, Encoder, is_sealed, load_encoder, seal
from hashgym.features.backbone import Backbone, describe_preprocess
from hashgym.features.libraries import packages_of
from hashgym.features.onnx_runtime import TOLERANCE, open_session, require_runtime, thread_count
from hashgym.storage import owned
from hashgym.storage.atomic import atomic_write
from hashgym.storage.errors import DataError
from hashgym.versions import versions

if TYPE_CHECKING:
    import torch
    from onnx import GraphProto, ModelProto

__all__ = ["TIE", "Agreement", "add_backbone", "compare", "without_backbone", "write"]

# Relative to the mean size of a bit's margins: below, the order of float32 sums may decide the bit, more of them in an
# encoder with a trained backbone.
TIE, NETWORK_TIE = 1e-5, 1e-4
_GREATEST = (1 << 31) - (1 << 20)  # bytes of a file: Protocol Buffers' own bound, with room for metadata
# Entries of a backbone's provenance that determine its features.
_DECIDING = ("name", "size", "preprocessing", "digest")
_PACKAGES = ("hashgym", "numpy", "onnx", "onnxruntime", "torch")


def write(
    path: str | Path,
    head: torch.nn.Module,
    *,
    dim: int,
    image_shape: tuple[int, ...] | None = None,
    bits: int,
    group_bits: int | None = None,
    lengths: Sequence[int] = (),
    regions: int = 0,
    codes: int = 0,
    sigma: float | None = None,
    threshold: float | None = None,
    source: Mapping[str, Any],
    center: NDArray[np.float32] | None = None,
    scale: NDArray[np.float32] | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> None:
    """Write an encoder of features: standardisation and head in one ONNX file, atomically.

    Args:
        path: the file to write; one that exists is replaced.
        head: maps standardised features, float32 (n, D), to margins (n, q), above 0 where a bit is 1; with regions
            (n, V, D), the whole image first, V from 1 to 1 + regions, to margins (n, V, q) and probabilities to keep
            (n, V), 1 for the whole image. With further codes it maps (n, D) to margins (n, 1 + codes, q), the image's
            code by the base first, and probabilities to keep. With a backbone that is trained it maps activations or
            pixels (n, C, H, W).
        dim: D, the number of features; C x H x W for activations or pixels.
        image_shape: (C, H, W) of activations or pixels, which the network takes in a row; None or (D,) for features.
        bits: q, the length of a code.
        group_bits: k, the group length of a policy that acts on groups.
        lengths: lengths to which codes were trained to be cut, ascending, the last one ``bits``; empty for ``bits``
            alone.
        regions: number of an image's regions besides the whole: 0 or 5.
        codes: number of further codes, m; 0 for none.
        sigma: ratio of a region's side to the image's, in (0, 1], with regions.
        threshold: xi, in [0, 1]: the least probability at which a code is kept, with regions or further codes.
        source: origin of the head (method, settings, data), as plain JSON.
        center: float32 (D,), subtracted from the features; None if the head takes them as extracted.
        scale: float32 (D,), divisor of the features, above 0.
        backbone: the provenance of the backbone that extracted the features, if it is known.

    Raises:
        ValueError: for arguments that contradict each other or the head, or if onnx is not installed.
        DataError: if the file exists and is not an encoder.
    """
    require_runtime("onnx")
    owned.require_replaceable(path, "an encoder", is_sealed)
    shape = (dim,) if image_shape is None else image_shape
    if math.prod(shape) != dim:
        raise ValueError(f"images of shape {shape} have {math.prod(shape)} numbers, got dim={dim}")
    if dim < 1 or bits < 1:
        raise ValueError(f"bits and dim must be at least 1, got {bits} and {dim}")
    if lengths and (list(lengths) != sorted(set(lengths)) or lengths[0] < 1 or lengths[-1] != bits):
        raise ValueError(f"lengths must ascend from 1 or more to bits={bits}, got {lengths}")
    if regions not in (0, 5):
        raise ValueError(f"regions must be 5 (corners and centre) or 0, got {regions}")
    if regions and len(shape) > 1:
        raise ValueError(f"regions are of feature vectors, got images of shape {shape}")
    if codes < 0 or (codes and (regions or len(shape) > 1)):
        raise ValueError(f"further codes are of feature vectors without regions: got {codes=}, {regions=}, {shape=}")
    if (regions > 0) != (sigma is not None):
        raise ValueError(f"sigma belongs to regions: got {regions=}, {sigma=}")
    if (regions + codes > 0) != (threshold is not None):
        raise ValueError(f"a threshold belongs to regions or further codes: got {regions=}, {codes=}, {threshold=}")
    if sigma is not None and not 0 < sigma <= 1:
        raise ValueError(f"sigma must be in (0, 1], got {sigma}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    description = _json(
        {
            "format": FORMAT,
            "takes": "features",
            "bits": int(bits),
            "group_bits": group_bits,
            **({"lengths": list(map(int, lengths))} if len(lengths) > 1 else {}),
            "dim": int(dim),
            **({} if len(shape) == 1 else {"image_shape": list(shape)}),
            "regions": regions,
            **({"codes": int(codes)} if codes else {}),
            "sigma": sigma,
            "threshold": threshold,
            "backbone": None if backbone is None else dict(backbone),
            "preprocess": None,
            "source": dict(source),
            "versions": versions(_PACKAGES),
        }
    )
    _save(path, _head_model(head, shape, bits, regions, codes, center, scale), description)


def add_backbone(source: str | Path, out: str | Path, backbone: Backbone) -> None:
    """Write an encoder of pictures: a backbone in front of an encoder of its features, in one file.

    Args:
        source: an encoder of features, which is not changed.
        out: the file to write, atomically; an existing encoder is replaced.
        backbone: extracted the features that the encoder was trained on.

    Raises:
        ValueError: for a backbone that has no ONNX form or extracts other features than the encoder was trained on, an
            encoder that takes pictures already, or if onnx is not installed.
        DataError: if ``source`` is missing, damaged or not an encoder, or ``out`` exists and is something else.
    """
    require_runtime("onnx")
    owned.require_replaceable(out, "an encoder", is_sealed)
    import onnx

    encoder = load_encoder(source)
    if encoder.takes != "features":
        raise ValueError(f"{source} has its backbone already: give the encoder of features that it was built from")
    _check_backbone(encoder, backbone)
    preprocess, network = describe_preprocess(backbone.preprocess), backbone.to_onnx()
    if len(network) + Path(source).stat().st_size > _GREATEST:
        raise ValueError(f"{backbone.name} is too large for one ONNX file of {_GREATEST:,} bytes at most")
    pictures = np.random.default_rng(0).integers(0, 256, (2, backbone.size, backbone.size, 3), np.uint8)
    expected = backbone(pictures).reshape(len(pictures), -1)
    found = open_session(network, thread_count()).run(["features"], {"pictures": pictures})[0]
    if not np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max():
        raise ValueError(f"the features from ONNX Runtime differ from those of {backbone.name} ({backbone.runtime})")
    model = _join(onnx.load_from_string(network), onnx.load(source), backbone, views=encoder.regions > 0)
    added = {"takes": "pictures", "backbone": backbone.provenance, "preprocess": preprocess, "background": BACKGROUND}
    added |= {"versions": versions((*_PACKAGES, *packages_of(backbone.name)))}
    _save(out, model, _json(encoder.metadata | added))


def without_backbone(path: str | Path, threads: int | None = None) -> Encoder:
    """Open an encoder of pictures as an encoder of features, without what :func:`add_backbone` added.

    Args:
        path: the encoder, which is not changed; one that takes features is opened as it is.
        threads: see :func:`load_encoder`.

    Returns:
        The encoder of features. Its digest is that of the file.

    Raises:
        MissingPackageError: if onnx is not installed.
        DataError: as :func:`load_encoder`, or if the file was not written by :func:`add_backbone`.
    """
    encoder = load_encoder(path, threads)
    if encoder.takes == "features":
        return encoder
    require_runtime("onnx")
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph, views = model.graph, encoder.regions > 0
    features = "views/features" if views else "backbone/features"
    shape: list[str | int | None] = ["n", "V", encoder.dim] if views else ["n", encoder.dim]
    nodes, tensors = _behind(graph, features)
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend([helper.make_node("Identity", ["features"], [features]), *nodes])
    graph.initializer.extend(tensors)
    graph.input.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, shape))
    try:
        onnx.checker.check_model(model)
        session = open_session(model.SerializeToString(), threads or thread_count())
    except Exception as error:  # onnx and ONNX Runtime raise many types
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{path} cannot be separated from its backbone ({reason}): export it again") from error
    return Encoder(session, encoder.metadata | {"takes": "features", "preprocess": None}, encoder.digest)


def _behind(graph: GraphProto, value: str) -> tuple[list[Any], list[Any]]:
    """Return the nodes and initializers that compute a graph's outputs from an intermediate value, given by name."""
    makers = {name: node for node in graph.node for name in node.output}
    needed, waiting = {value}, [output.name for output in graph.output]
    while waiting:
        if (name := waiting.pop()) in needed:
            continue
        needed.add(name)
        if name in makers:
            waiting += _reads(makers[name])
    nodes = [node for node in graph.node if needed.intersection(node.output) and value not in node.output]
    return nodes, [tensor for tensor in graph.initializer if tensor.name in needed]


def _reads(node: Any) -> list[str]:
    """Return the names of the values that a node reads, those of the graphs inside it too."""
    inside = [name for attribute in node.attribute for inner in attribute.g.node for name in _reads(inner)]
    outputs = [output.name for attribute in node.attribute for output in attribute.g.output]
    return [name for name in (*node.input, *inside, *outputs) if name]


@dataclass(frozen=True)
class Agreement:
    """Comparison of an encoder's codes with the expected ones.

    Attributes:
        images: number of images.
        bits: number of bits that were compared, over all codes of all images.
        different: number of bits that differ.
        ties: number of bits that float32 rounding may decide either way: the size of their margin is at most TIE times
            the mean size of that bit's margins; NETWORK_TIE times of an encoder with a trained backbone.
        different_ties: number of differing bits that rounding explains: ties, and bits in groups after the first group
            that differs (a policy observes earlier groups).
        different_keeps: number of codes that only one of the two keeps, in images whose codes are equal.
    """

    images: int
    bits: int
    different: int
    ties: int
    different_ties: int = 0
    different_keeps: int = 0

    @property
    def exact(self) -> bool:
        """Whether only ties differ."""
        return self.different == self.different_ties and not self.different_keeps


def compare(
    path: str | Path, expected: NDArray[np.bool_] | CodeSets, x: NDArray[Any], threads: int | None = None
) -> Agreement:
    """Compare an encoder's codes with those of its source.

    Args:
        path: the encoder.
        expected: bool (n, q), or with regions n code sets of V codes.
        x: features or pictures of the n images, as the encoder takes them.
        threads: see :func:`load_encoder`.

    Raises:
        ValueError: for codes of another length or number than the encoder's.
        DataError: as :func:`load_encoder`.
    """
    encoder = load_encoder(path, threads)
    wanted = expected if isinstance(expected, CodeSets) else CodeSets.of(expected)
    margin = encoder.margins(x)
    if (wanted.bits, wanted.kept.shape) != (encoder.bits, margin.shape[:2]):
        raise ValueError(
            f"expected has {len(wanted)} images with {wanted.kept.shape[1]} codes of {wanted.bits} bits, but the "
            f"encoder gives {len(margin)} images with {margin.shape[1]} codes of {encoder.bits} bits"
        )
    different = unpack(wanted.words, wanted.bits) != (margin > 0)
    tie = TIE if encoder.image_shape is None else NETWORK_TIE
    ties = np.abs(margin) <= tie * np.abs(margin).mean(axis=(0, 1))
    group = np.arange(encoder.bits) // (encoder.metadata["group_bits"] or encoder.bits)
    first = np.where(different, group, encoder.bits).min(axis=2, keepdims=True)  # the first group in which bits differ
    keeps = 0
    if encoder.threshold is not None:
        keep = encoder.outputs(x, "keep")[0].astype(np.float64) >= encoder.threshold
        found = CodeSets.of(margin > 0, keep)
        keeps = int((found.kept != wanted.kept)[~different.any(axis=(1, 2))].sum())
    return Agreement(
        images=len(margin),
        bits=margin.size,
        different=int(different.sum()),
        ties=int(ties.sum()),
        different_ties=int((different & (ties | (group > first))).sum()),
        different_keeps=keeps,
    )


def deciding(backbone: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what decides the features in the description of a backbone; not where they were computed."""
    return {key: (backbone or {}).get(key) for key in (*_DECIDING, "cut")}


def _check_backbone(encoder: Encoder, backbone: Backbone) -> None:
    """Raise ValueError for a backbone that extracts other features than the encoder was trained on."""
    if encoder.dim != backbone.dim:
        raise ValueError(f"the encoder takes {encoder.dim} features, {backbone.name} extracts {backbone.dim}")
    trained, given = encoder.metadata["backbone"] or {}, backbone.provenance
    other = [key for key in _DECIDING if trained.get(key, given[key]) != given[key]]
    if trained and trained.get("cut") != given.get("cut"):  # only a network that is cut has an entry
        other.append("cut")
    if other:
        wanted = ", ".join(f"{key} {trained.get(key)!r}, not {given.get(key)!r}" for key in other)
        raise ValueError(f"the encoder was trained on features of another backbone, with {wanted}")


def _join(network: ModelProto, head: ModelProto, backbone: Backbone, *, views: bool) -> ModelProto:
    """Join two models; with views, pictures (n, V, size, size, 3) go through the network as (n V, size, size, 3)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    network = onnx.compose.add_prefix(network, "backbone/", rename_inputs=views)
    head = onnx.compose.add_prefix(head, "head/", rename_outputs=False)
    flow = ("backbone/features", "head/features")
    if views:
        size, dim = backbone.size, backbone.dim
        constants = {"dim": [dim], "each": [-1, size, size, 3]}
        before = [
            helper.make_node("Shape", ["pictures"], ["views/shape"], start=0, end=2),
            helper.make_node("Reshape", ["pictures", "views/each"], ["backbone/pictures"]),
        ]
        after = [
            helper.make_node("Concat", ["views/shape", "views/dim"], ["views/wanted"], axis=0),
            helper.make_node("Reshape", ["backbone/features", "views/wanted"], ["views/features"]),
        ]
        nodes = [*before, *network.graph.node, *after]
        del network.graph.node[:], network.graph.input[:], network.graph.output[:]
        network.graph.node.extend(nodes)
        network.graph.initializer.extend(
            numpy_helper.from_array(np.array(value, np.int64), f"views/{name}") for name, value in constants.items()
        )
        shape: list[str | int | None] = ["n", "V", size, size, 3]
        network.graph.input.append(helper.make_tensor_value_info("pictures", TensorProto.UINT8, shape))
        network.graph.output.append(helper.make_tensor_value_info("views/features", TensorProto.FLOAT, ["n", "V", dim]))
        flow = ("views/features", "head/features")
    return onnx.compose.merge_models(network, head, io_map=[flow])


def _head_model(
    head: torch.nn.Module,
    image_shape: tuple[int, ...],
    bits: int,
    regions: int,
    codes: int,
    center: NDArray[np.float32] | None,
    scale: NDArray[np.float32] | None,
) -> ModelProto:
    import onnx
    import torch

    from hashgym.features.runtimes import to_onnx

    dim = math.prod(image_shape)
    if (center is None) != (scale is None):
        raise ValueError("center and scale belong together: give both or neither")
    for name, values in (("center", center), ("scale", scale)):
        if values is not None and (np.shape(values) != (dim,) or not np.isfinite(values).all()):
            raise ValueError(f"{name} must be {dim} finite numbers, float32 ({dim},), got shape {np.shape(values)}")
    if scale is not None and not (np.asarray(scale) > 0).all():
        raise ValueError("scale must be above 0")

    class Whole(torch.nn.Module):
        """From features as extracted to bits, margins, and with regions keep probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.head = copy.deepcopy(head).cpu()
            if center is not None:
                self.register_buffer("center", torch.tensor(np.asarray(center, np.float32)))
                self.register_buffer("scale", torch.tensor(np.asarray(scale, np.float32)))

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if center is not None:
                features = (features - self.get_buffer("center")) / self.get_buffer("scale")
            if len(image_shape) > 1:
                # With -1 the exporter does not know the sides, after unflatten it fixes the number of images.
                features = features.reshape(features.shape[0], *image_shape)
            result = self.head(features)
            margin, *keep = result if several else (result,)
            margin = margin.float()
            return margin > 0, margin, *(p.float() for p in keep)

    several = regions + codes > 0
    whole = Whole().eval()
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 1 + regions), (1, 1), (2, regions)] if regions else [(3,), (1,)]
    examples = [torch.randn(*shape, dim, generator=generator) for shape in shapes]
    outputs, axes = ("bits", "margin", "keep")[: 3 if several else 2], {0: "n", 1: "V"} if regions else {0: "n"}
    try:
        model = to_onnx(whole, examples[0], {"features": axes}, dict.fromkeys(outputs, axes))
        session = open_session(model, 1)
        for example in examples:
            with torch.inference_mode():
                expected = [y.numpy() for y in whole(example)]
            found = session.run(None, {"features": example.numpy()})
            lead = tuple(example.shape[:-1]) + ((1 + codes,) if codes else ())
            _compare_outputs(expected[1:], found[1:], lead, bits)
    except Exception as error:  # exporters and runtimes raise many types
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{type(head).__name__} cannot be exported: {reason}") from error
    return onnx.load_from_string(model)


def _compare_outputs(
    expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]], shape: tuple[int, ...], bits: int
) -> None:
    """Validate the outputs of a head, for codes of this shape, and compare torch's with ONNX Runtime's."""
    for name, wanted, x, y in zip(("margin", "keep"), ((*shape, bits), shape), expected, found, strict=False):
        if x.shape != wanted:
            raise ValueError(f"its {name} has shape {x.shape}, expected {wanted}")
        if not np.isfinite(x).all():
            raise ValueError(f"its {name} is NaN or infinite")
        if y.shape != wanted or np.abs(x - y).max() > TOLERANCE * max(np.abs(x).max(), 1e-6):
            raise ValueError(f"its {name} of shape {wanted} from ONNX Runtime differs from torch's")
    if len(expected) > 1 and not (expected[1][:, 0] == 1).all():
        raise ValueError("its keep is not 1 for the whole image")


def _json(description: Mapping[str, Any]) -> str:
    try:
        return json.dumps(description, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the description of an encoder must be plain JSON: {error}") from error


def _save(path: str | Path, model: ModelProto, description: str) -> None:
    """Clean up a model, seal it with its description, and write it atomically."""
    import onnx

    _tidy(model.graph)
    del model.metadata_props[:], model.opset_import[1:]
    model.graph.name, model.producer_name, model.producer_version = "encoder", "hashgym", ""
    onnx.helper.set_model_props(model, {KEY: description})
    onnx.checker.check_model(model)
    with atomic_write(path) as file:
        file.write(seal(model.SerializeToString(deterministic=True)))


def _tidy(graph: GraphProto) -> None:
    """Use single slashes in names, and drop the shapes of inner values, which ONNX Runtime infers."""
    del graph.value_info[:]
    for named in (*graph.input, *graph.initializer, *graph.node, *graph.output):
        named.name = named.name.replace("//", "/")
    for node in graph.node:
        node.input[:] = [name.replace("//", "/") for name in node.input]
        node.output[:] = [name.replace("//", "/") for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _tidy(attribute.g)
