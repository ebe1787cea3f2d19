"""Heads: torch modules from features to codes, which :func:`hashgym.encoders.write.write` writes.

A head maps features on the scale of training, float32 (n, D), to real values (n, q); a bit is 1 where its value is
above 0. If images have several codes it returns values (n, V, q) and the probabilities that the codes are kept, (n, V):
of views (n, V, D), the whole image first and then its regions, or of features (n, D), the code of a base first and then
further ones.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hashgym.hashers import Hasher

__all__ = ["Actor", "CodesHead", "GroupsHead", "Keeper", "RegionsHead", "Writer", "first_bit", "hasher_head", "signs"]

_TOLERANCE = 1e-3  # of a head's values, relative to the largest: NumPy and torch add in different orders


class Actor(Protocol):
    """A torch module that emits codes group by group, like an agent on BitGroupHashing-v0."""

    def act(self, image: Tensor, code: Tensor, group: int, state: Any) -> tuple[Tensor, Any]:
        """Return real values (n, k) of a group's bits (a shorter last group uses the first ones), and the next state.

        Args:
            image: float32 (n, D), or (n, C, H, W) with a backbone.
            code: float32 (n, q), -1 and +1, and 0 for bits not emitted.
            group: index of the group to emit.
            state: from the previous call; None at first.
        """


class Keeper(Protocol):
    """A torch module that keeps codes of regions, like an agent on RegionKeep-v0."""

    def keep(self, observation: dict[str, Tensor]) -> Tensor:
        """Return P(keep), (n,), for observations of the environment."""


class Writer(Protocol):
    """A torch module that writes further codes of an image, like an agent on MultiCodeHashing-v0."""

    group_bits: int

    def embed(self, image: Tensor) -> Tensor:
        """Return what the groups of an episode have in common, of features (n, D)."""

    def act(self, embedded: Tensor, code: Tensor, codes: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Return logits (n, k) of a group's bits, fewer in a code's last group, and (n,) of keeping the code.

        Args:
            embedded: of :meth:`embed`.
            code: float32 (n, q), the code so far, -1 and +1, and 0 for bits not emitted.
            codes: float32 (n, 1 + m, q), the codes before, 0 where there is none.
            group: the group to emit, counted over all codes.
        """


def hasher_head(hasher: Hasher) -> nn.Module:
    """Return :meth:`Hasher.head` of a fitted hasher, a torch module, after comparing it with ``transform``.

    Raises:
        NotFittedError: before ``fit``.
        ValueError: for a user's hasher that runs in NumPy only, or whose ``head`` returns other values.
    """
    head = hasher.head().eval()
    shape = getattr(hasher, "image_shape_", (hasher.n_features_in_,))
    rows = np.random.default_rng(0).standard_normal((16, *shape), np.float32)
    expected, name = hasher._transform(rows), type(hasher).__name__  # transform takes no real numbers as pixels
    try:
        # NumPy rejects tensors that require a gradient. It accepts others, but its results are not part of a graph.
        values = head(torch.from_numpy(rows).requires_grad_()).detach().numpy()
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{name} cannot be exported, because torch cannot run its _transform ({reason}): write it with operations "
            "that NumPy and torch share (see hashgym.hashers.base.namespace), or add a method head() that returns a "
            "torch module"
        ) from error
    if values.shape != expected.shape or np.abs(values - expected).max() > _TOLERANCE * np.abs(expected).max():
        raise ValueError(f"the head of {name} returns other values than its transform: fix its head()")
    return head


def signs(values: Tensor) -> Tensor:
    """Return the code of real values as -1 and +1; -1 at 0."""
    return (values > 0).to(values.dtype) * 2 - 1


def first_bit(group: int, bits: int, group_bits: int) -> int:
    """Return the first bit of a group in its code of ``bits`` bits; groups are counted over all codes."""
    return group % -(-bits // group_bits) * group_bits


class GroupsHead(nn.Module):
    """Groups of bits, each emitted from the image and the groups before it: :func:`hashgym.encode`, unrolled.

    Args:
        actor: emits one group.
        bits: q, length of the code.
        group_bits: k, length of a group; the last may be shorter.
    """

    def __init__(self, actor: Actor, bits: int, group_bits: int) -> None:
        super().__init__()
        self.actor, self.bits, self.group_bits = actor, bits, group_bits

    def forward(self, image: Tensor) -> Tensor:
        """Return real values (n, q) of images (n, D), or (n, C, H, W)."""
        values: list[Tensor] = []
        state = None
        for group, start in enumerate(range(0, self.bits, self.group_bits)):
            rest = image.new_zeros(image.shape[0], self.bits - start)
            code = torch.cat([*map(signs, values), rest], dim=1)
            emitted, state = self.actor.act(image, code, group, state)
            values.append(emitted[:, : self.bits - start])
        return torch.cat(values, dim=1)


class RegionsHead(nn.Module):
    """Codes of an image and its regions, and which of these are kept: :func:`hashgym.encode_regions` as a module.

    Args:
        base: head of the base hasher, see :func:`hasher_head`.
        keeper: decides which regions are kept.
        threshold: xi, if regions are offered in turn and observations have the nearest kept code, as with
            ``regions_per_episode`` above 1; None if each is offered independently.
        regions: R, the largest number of regions that are offered in turn.
    """

    def __init__(self, base: nn.Module, keeper: Keeper, *, threshold: float | None = None, regions: int = 5) -> None:
        super().__init__()
        self.base, self.keeper, self.threshold, self.regions = base, keeper, threshold, regions

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (n, V, q) and P(keep) (n, V), 1 for the image itself, of views (n, V, D)."""
        n, count, dim = views.shape
        values = self.base(views.reshape(-1, dim)).reshape(n, count, -1)
        codes = signs(values)
        threshold = self.threshold
        return values, self._independently(views, codes) if threshold is None else self._in_turn(
            views, codes, threshold
        )

    def _independently(self, views: Tensor, codes: Tensor) -> Tensor:
        image, own = views[:, :1].expand_as(views), codes[:, :1].expand_as(codes)
        shown = {"image": image, "region": views, "image_code": own, "region_code": codes}
        # The image is offered as well, so that no tensor is empty if there are no regions.
        p = self.keeper.keep({key: part.flatten(0, 1) for key, part in shown.items()}).reshape(views.shape[:2])
        return torch.cat([torch.ones_like(p[:, :1]), p[:, 1:]], dim=1)

    def _in_turn(self, views: Tensor, codes: Tensor, threshold: float) -> Tensor:
        count, bits = codes.shape[1:]
        missing = (0, 0, 0, self.regions + 1 - count)  # padding for missing regions comes last and has no effect
        views, codes = nn.functional.pad(views, missing), nn.functional.pad(codes, missing)
        p = torch.ones_like(codes[:, :1, 0])
        for r in range(1, self.regions + 1):
            agreement = (codes[:, :r] * codes[:, r : r + 1]).sum(2)  # q - 2 x the Hamming distance
            nearest = torch.where(p.double() >= threshold, agreement, -bits - 1.0).argmax(1)
            kept = codes[:, :r].gather(1, nearest[:, None, None].expand(-1, 1, bits))[:, 0]
            shown = {"image": views[:, 0], "region": views[:, r], "image_code": codes[:, 0]}
            decided = self.keeper.keep({**shown, "region_code": codes[:, r], "kept": kept})
            p = torch.cat([p, decided[:, None]], dim=1)
        return p[:, :count]


class CodesHead(nn.Module):
    """An image's code by a base and the further codes that a policy writes: :func:`hashgym.encode_codes` as a module.

    Args:
        base: head of the base hasher, see :func:`hasher_head`.
        writer: writes the further codes.
        codes: m, their number.
        threshold: xi, the least probability with which a code is kept; the next codes depend on which are.
    """

    def __init__(self, base: nn.Module, writer: Writer, codes: int, threshold: float) -> None:
        super().__init__()
        self.base, self.writer, self.codes, self.threshold = base, writer, codes, threshold

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (n, 1 + m, q) and P(keep) (n, 1 + m), 1 for the base's code, of features (n, D)."""
        values = self.base(image)[:, None]
        n, _, bits = values.shape
        codes, embedded, group = signs(values), self.writer.embed(image), 0
        p = torch.ones_like(values[:, :, 0])
        for number in range(1, 1 + self.codes):
            parts: list[Tensor] = []
            shown = torch.cat([codes, values.new_zeros(n, 1 + self.codes - number, bits)], dim=1)
            for start in range(0, bits, self.writer.group_bits):
                written = torch.cat([*map(signs, parts), values.new_zeros(n, bits - start)], dim=1)
                logits, keep = self.writer.act(embedded, written, shown, group)
                parts.append(logits)
                group += 1
            value, decided = torch.cat(parts, dim=1)[:, None], keep.sigmoid()[:, None]
            code = signs(value)
            is_new = (codes * code).sum(2).amax(1, keepdim=True) < bits  # equal to none that is kept
            kept = is_new & (decided.double() >= self.threshold)
            codes = torch.cat([codes, code * kept[..., None].to(code.dtype)], dim=1)
            values, p = torch.cat([values, value], dim=1), torch.cat([p, decided], dim=1)
        return values, p
