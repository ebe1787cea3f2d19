"""BitGroupHashing-v0 in torch: ``gym.make_vec("BitGroupHashing-v0", num_envs=N, backend="torch", device="cuda")``.

For agents that live on a device. Features, codes, the codebook, labels, rewards and credit stay there; what comes from
the host is what the NumPy generator draws, once an episode: the next images and their partners, so that equal seeds
give the episodes of the NumPy back end. What goes to the host is a flag now and then: whether actions are in the action
space and rewards finite. Imports torch, so ``import hashgym`` leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from hashgym import codes
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.envs.base import Info, LockstepVectorEnv, Observation
from hashgym.envs.bit_group_hashing import BINARY, BitGroupHashingCore, BitGroupHashingMixin, HashingTask
from hashgym.envs.partners import PartnerSampler
from hashgym.rewards.view import described, drawn

__all__ = ["BitGroupHashingTorchVectorEnv", "TensorCodebook", "TensorView", "action_bits"]


def _plainly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method the same way in every context of its caller: no gradients, no autocast, no inference tensors."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


class BitGroupHashingTorchVectorEnv(BitGroupHashingMixin, LockstepVectorEnv):
    """``BitGroupHashingVectorEnv`` with tensors on a device in place of arrays: the same episodes, equal numbers.

    Observations are ``image`` (n, D) float32, ``code`` (n, q) float32 and ``group`` (n,) int64; rewards are float64
    (n,), as the NumPy back end's, so that the two agree in every digit (``.float()`` is the agent's to call);
    ``terminated`` and ``truncated`` are bool (n,). Infos have the same keys and masks; one mask tensor serves all keys
    of a step. At the end of an episode ``info["final_obs"]`` is a dict of tensors (n, ...), not an array of dicts: all
    lanes end together, and nothing is done lane by lane. Actions are tensors, or NumPy arrays, which are sent to the
    device; their spaces are NumPy's.

    Rewards get a :class:`TensorView`. A state of ``get_state`` is in NumPy arrays and may be set in either back end.

    Args:
        num_envs: number of lanes.
        dataset: as for ``BitGroupHashingEnv``.
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:1".
        render_mode: as for ``BitGroupHashingEnv``; only what a picture shows goes to the host.
        flat, info, autoreset_mode: as for ``BitGroupHashingVectorEnv``.
        task: the other arguments of ``BitGroupHashingEnv``.

    Raises:
        ValueError: for wrong arguments, or a device that is not there.
    """

    _core: TorchBitGroupHashingCore

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Path | HashingDataset = "digits",
        *,
        device: str | torch.device = "auto",
        render_mode: str | None = None,
        flat: bool = False,
        info: Info = "nested",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        **task: Any,
    ) -> None:
        place = resolve_device(device, ("cpu", "cuda"))  # rewards and partners need float64
        core = TorchBitGroupHashingCore(num_envs, dataset, HashingTask(**task), place)
        super().__init__(core, render_mode, flat, info, autoreset_mode)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._core.device

    reset = _plainly(LockstepVectorEnv.reset)
    set_state = _plainly(LockstepVectorEnv.set_state)

    step = _plainly(LockstepVectorEnv.step)

    def action_masks(self) -> Any:
        """Which actions count now, bool (num_envs, m), as the NumPy environment's."""
        return torch.from_numpy(super().action_masks()).to(self.device)

    def _check_mask(self, mask: Any) -> None:
        super()._check_mask(self._core.host(mask))

    def _full(self, value: float | bool) -> Any:
        dtype = torch.bool if isinstance(value, bool) else torch.float64
        return torch.full((self.num_envs,), value, dtype=dtype, device=self.device)

    def _split(self, observation: Any) -> Any:
        """As they are: episodes end together, so that nothing need be done for each environment."""
        return observation

    def _with_masks(self, info: dict[str, Any]) -> dict[str, Any]:
        mask, masked = torch.ones(self.num_envs, dtype=torch.bool, device=self.device), {}
        for key, part in info.items():
            masked[key] = self._with_masks(part) if isinstance(part, dict) and key != "final_obs" else part
            masked[f"_{key}"] = mask
        return masked


class TensorCodebook:
    """The freshest code of every training image, as :class:`hashgym.rewards.Codebook`, but unpacked and on a device.

    Attributes:
        code: float32 (N, q) of 0.0 and 1.0, one row for each training image, in the order of ``dataset.train``.
        labels: uint8 (N, L), their multi-hot labels.
        label_words: uint64 (N, ceil(L / 64)), the same packed, in NumPy on the host: labels never change.
        bits: q, the length of a code.
    """

    def __init__(self, code: Tensor, labels: Tensor, label_words: codes.Words) -> None:
        self.code, self.labels, self.label_words, self.bits = code, labels, label_words, code.shape[1]

    def __len__(self) -> int:
        return len(self.code)

    @property
    def signs(self) -> Tensor:
        """All codes, float32 (N, q) of -1.0 and +1.0."""
        return 2 * self.code - 1

    def write(self, rows: Tensor | NDArray[np.int64], bits: Tensor | NDArray[np.bool_], start: int = 0) -> None:
        """Replace bits ``start`` to ``start + k - 1`` of the given rows by ``bits``, bool (n, k)."""
        rows, bits = (torch.as_tensor(x, device=self.code.device) for x in (rows, bits))
        # Of equal rows the last counts. On a device the order of writes is open, so all of them write its bits.
        lanes = torch.arange(len(rows), device=rows.device)
        last = torch.zeros(len(self), dtype=torch.int64, device=rows.device).scatter_reduce_(0, rows, lanes, "amax")
        self.code[rows, start : start + bits.shape[1]] = bits[last[rows]].to(self.code.dtype)

    def read(self, rows: Tensor | NDArray[np.int64]) -> Tensor:
        """Codes of the given rows: rows (...,) gives bool (..., q)."""
        return self.code[torch.as_tensor(rows, device=self.code.device)] > 0.5

    def span(self, start: int, stop: int) -> TensorCodebook:
        """The codebook of bits ``start`` to ``stop - 1`` alone."""
        return TensorCodebook(self.code[:, start:stop].contiguous(), self.labels, self.label_words)


@dataclass(frozen=True)
class TensorView:
    """What a reward sees: :class:`hashgym.rewards.RewardView` with tensors on one device. Not to be written.

    Names, shapes and dtypes are those of ``RewardView``; only packed codes (``words``, ``label_words``) there are none.
    """

    xp: ClassVar[Any] = torch

    code: Tensor
    codebook: TensorCodebook
    rows: Tensor
    positive_rows: Tensor
    negative_rows: Tensor
    labels: Tensor
    start: int = 0
    scope: Literal["group", "global"] = "global"
    last: bool = True

    @cached_property
    def bits(self) -> Tensor:
        """The lanes' bits, bool (n, s): 1 where the code is above 0.5."""
        return self.code > 0.5

    @cached_property
    def signs(self) -> Tensor:
        """The lanes' code as 2 code - 1, float32 (n, s): -1.0 and +1.0, or between them for probabilities."""
        return 2 * self.code - 1

    @cached_property
    def positives(self) -> Tensor:
        """The positive partners' bits, float32 (n, P, s) of 0.0 and 1.0."""
        return embedding(drawn(self.positive_rows), self.codebook.code)  # by index it takes four times as long on a CPU

    @cached_property
    def negatives(self) -> Tensor:
        """The negative partners' bits, float32 (n, P, s) of 0.0 and 1.0."""
        return embedding(drawn(self.negative_rows), self.codebook.code)

    @cached_property
    def positive_distances(self) -> Tensor:
        """Squared distances to the positive partners, float32 (n, P); on bits the Hamming distance."""
        return self._distances(self.positives)

    @cached_property
    def negative_distances(self) -> Tensor:
        """Squared distances to the negative partners, float32 (n, P); on bits the Hamming distance."""
        return self._distances(self.negatives)

    @cached_property
    def similar(self) -> Tensor:
        """Which training images share a label with the lane's, bool (n, N), in the order of the codebook."""
        return self.labels.float() @ self.codebook.labels.float().T > 0

    @cached_property
    def others(self) -> Tensor:
        """All training images but the lane's own, bool (n, N)."""
        return torch.arange(len(self.codebook), device=self.rows.device) != self.rows[:, None]

    @cached_property
    def distances(self) -> Tensor:
        """Hamming distances of the lanes' bits to all codes of the codebook, int32 (n, N)."""
        inner = (2 * self.bits.float() - 1) @ self.codebook.signs.T  # exact: see hashgym.retrieval.torch_kernels
        return ((self.codebook.bits - inner) / 2).int()

    def asarray(self, x: NDArray[Any]) -> Tensor:
        """A NumPy array as a tensor on the view's device."""
        return torch.as_tensor(x, device=self.code.device)

    def numbers(self, x: Any, shape: tuple[int, ...]) -> Tensor:
        """What a reward returned as float64 on the view's device; raises TypeError as ``RewardView.numbers``."""
        device, real = self.code.device, isinstance(x, Tensor) and not x.is_complex() and x.dtype != torch.bool
        if not real or x.shape != shape or x.device != device:
            where = f"on {x.device}" if isinstance(x, Tensor) else "that is no tensor"
            wanted = f"a tensor of real numbers of shape {(*shape,)} on {device}"
            raise TypeError(f"{wanted}, got {described(x)} {where}")
        return x.double()

    def with_code(self, code: Tensor) -> TensorView:
        """The same view with other bits or probabilities in place of the lanes'."""
        return replace(self, code=code)

    def with_bit(self, bit: int, value: float) -> TensorView:
        """The same view with this value at one place of every lane's code."""
        code = self.code.clone()
        code[:, bit] = value
        return self.with_code(code)

    def _distances(self, partners: Tensor) -> Tensor:
        """|x - p|^2 as |x|^2 + p (1 - 2 x), because p^2 = p: a product, which makes no (n, P, s) of its own."""
        x = self.code
        return (partners @ (1 - 2 * x)[..., None])[..., 0] + (x * x).sum(-1, keepdim=True)


class TorchBitGroupHashingCore(BitGroupHashingCore):
    """The game with tensors. What the generator draws, and the order it is drawn in, is the NumPy game's."""

    rows: Any
    image: Any
    reward_parts: Any
    sampler: Any

    def __init__(
        self, num_envs: int, dataset: str | Path | HashingDataset, task: HashingTask, device: torch.device
    ) -> None:
        self.arrays = f"torch {device}"
        super().__init__(num_envs, dataset, task)
        self.device, train = device, self.dataset.train
        self.features, self.labels = (self.tensor(x[train]) for x in (self.dataset.features, self.dataset.labels))
        self.images = self.tensor(train)
        self.sampler = TorchPartnerSampler(self.sampler, self.labels)

    @property
    def book(self) -> Any:
        """The codebook, a :class:`TensorCodebook`."""
        return TensorCodebook(self.codebook, self.labels, self.label_words)

    def reset_run(self, rng: np.random.Generator) -> None:
        """Begin anew, with the codebook that NumPy computes: on a device other bits may come of rounding."""
        super().reset_run(rng)
        self.codebook = self.tensor(codes.unpack(self.codebook, self.task.bits)).float()

    def set_images(self, rows: NDArray[np.int64]) -> None:
        """Give the lanes these images."""
        self.rows = self.tensor(rows)
        self.image = self.features[self.rows]

    def observe(self) -> Observation:
        """Observations of all lanes."""
        code = 2 * (self.code > 0.5).float() - 1
        code[:, self.emitted :] = 0
        return {"image": self.image, "code": code, "group": torch.full_like(self.rows, self.group)}

    def flatten(self, observation: Observation) -> Tensor:
        """Observations in one tensor float32 (n, width)."""
        parts = []
        for key, space in self.spaces()[0].items():
            part = observation[key]
            if isinstance(space, spaces.Discrete):
                part = part[:, None] == torch.arange(int(space.n), device=self.device)
            parts.append(part)
        return torch.cat([part.float() for part in parts], dim=1)

    def info(self) -> dict[str, Any]:
        """Which images the lanes have."""
        return {"index": self.images[self.rows]}

    def get_state(self, rng: np.random.Generator) -> dict[str, Any]:
        """As the NumPy game's, in NumPy arrays."""
        state = {key: self.host(part) for key, part in super().get_state(rng).items()}
        return state | {"codebook": codes.pack(state["codebook"] > 0.5)}

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Take up where either game's :meth:`get_state` was called."""
        super().set_state(state, rng)
        self.codebook = codes.unpack(self.codebook, self.task.bits).astype(np.float32)
        for key in {"codebook", "positive_rows", "negative_rows", "code"} & self.state_shapes.keys():
            setattr(self, key, self.tensor(getattr(self, key)))
        self.reward_parts = {name: self.tensor(part) for name, part in self.reward_parts.items()}

    @staticmethod
    def host(array: Any) -> Any:
        """A tensor as a NumPy array of its own; anything else as it is."""
        return array.cpu().numpy().copy() if isinstance(array, Tensor) else array

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A NumPy array as a tensor of its own on the device."""
        return torch.tensor(array, device=self.device)

    def zeros(self, *shape: int, dtype: str = "float64") -> Tensor:
        """Zeros, (n, *shape)."""
        return torch.zeros((self.num_envs, *shape), dtype=getattr(torch, dtype), device=self.device)

    def read_action(self, action: Any) -> Tensor:
        """Actions of all lanes as relaxed bits, float32 (n, group_bits)."""
        return action_bits(torch.as_tensor(action, device=self.device).detach(), self.task, self.num_envs)

    def view(self, start: int, stop: int, scope: Literal["group", "global"], last: bool) -> TensorView:
        """What a reward sees of a span of bits."""
        positive_rows, negative_rows = self.partner_rows()
        return TensorView(
            code=self.code[:, start:stop],
            codebook=self.book.span(start, stop),
            rows=self.rows,
            positive_rows=positive_rows,
            negative_rows=negative_rows,
            labels=self.labels[self.rows],
            start=start,
            scope=scope,
            last=last,
        )


class TorchPartnerSampler(PartnerSampler):
    """Draws the partners that a NumPy sampler draws from the same generator, on the device of ``labels``."""

    _counts: Any
    _members: Any
    _pattern_of: Any
    _starts: Any
    _place: Any

    def __init__(self, sampler: PartnerSampler, labels: Tensor) -> None:
        self.eligible, self._device = sampler.eligible, labels.device
        for key in ("_pattern_of", "_counts", "_members", "_starts", "_place"):
            setattr(self, key, torch.as_tensor(getattr(sampler, key), device=self._device))
        self._labels = labels[self._members[self._starts]].float()  # of each pattern, (U, L)

    def draw(self, rows: Any, partners: int, rng: np.random.Generator) -> Any:
        """Draw for each row, with replacement: (positives, negatives), int64 (n, partners) each."""
        uniform = torch.as_tensor(self.skip(len(rows), partners, rng), device=self._device)
        similar = self._labels[self._pattern_of[rows]] @ self._labels.T > 0
        return self._pick(similar, uniform[0], rows), self._pick(~similar, uniform[1], None)

    def _pick(self, allowed: Any, uniform: Any, own: Any) -> Any:
        ends = torch.where(allowed, self._counts, 0).cumsum(1)
        rank = (uniform * (ends[:, -1:] - int(own is not None))).long()
        if own is not None:
            pattern = self._pattern_of[own, None]
            own_rank = ends.gather(1, pattern) - self._counts[pattern] + self._place[own, None] - self._starts[pattern]
            rank += rank >= own_rank
        pattern = torch.searchsorted(ends, rank, right=True)
        before = ends.gather(1, pattern) - self._counts[pattern]
        return self._members[self._starts[pattern] + rank - before]


def action_bits(action: Tensor, task: HashingTask, num_envs: int) -> Tensor:
    """What :func:`hashgym.envs.bit_group_hashing.action_bits` does, for tensors."""
    wanted = (num_envs,) if task.action == "index" else (num_envs, task.group_bits)
    if action.shape != wanted:
        raise ValueError(f"actions must have shape {wanted} for action={task.action!r}, got {(*action.shape,)}")
    if task.action == "index":
        whole = not action.is_floating_point() and action.dtype != torch.bool
        if not whole or not ((action >= 0) & (action < 2**task.group_bits)).all():
            raise ValueError(f"an index action must be an integer from 0 to {2**task.group_bits - 1}")
        return (action[:, None] >> torch.arange(task.group_bits, device=action.device) & 1).float()
    relaxed = action.float()
    if task.action in BINARY and not ((relaxed == 0) | (relaxed == 1)).all():
        raise ValueError("bit actions must be 0 or 1; for probabilities make the environment with action='probability'")
    if task.action == "probability" and not ((relaxed >= 0) & (relaxed <= 1)).all():
        raise ValueError("probability actions must be numbers from 0 to 1")
    return relaxed
