"""BitGroupHashing-v0 in torch: ``gym.make_vec("BitGroupHashing-v0", num_envs=N, backend="torch", device="cuda")``.

For agents that train on a device, where features, codes, the codebook, labels, rewards and credit stay. The NumPy
generator draws the next images and their partners on the host, once an episode, so that equal seeds give the episodes
of the NumPy back end. Only flags are copied to the host: whether actions are in the action space, and rewards finite.
Imports torch; ``import hashgym`` does not import this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from hashgym import codes
from hashgym.data import HashingDataset
from hashgym.device import resolve_device
from hashgym.envs.base import Info, LockstepVectorEnv, Observation
from hashgym.envs.bit_group_hashing import BitGroupHashingCore, BitGroupHashingMixin, HashingTask
from hashgym.envs.partners import PartnerSampler
from hashgym.moved import keep_old_names
from hashgym.rewards import torch_view
from hashgym.rewards.view import Scope

__all__ = ["BitGroupHashingTorchVectorEnv", "TorchBitGroupHashingCore", "TorchPartnerSampler"]

keep_old_names(__name__)


class BitGroupHashingTorchVectorEnv(BitGroupHashingMixin, LockstepVectorEnv):
    """``BitGroupHashingVectorEnv`` with tensors on a device in place of arrays: the same episodes and numbers.

    Observations are ``image`` (n, D) float32, or (n, C, H, W) float32 or uint8, ``code`` (n, q) float32 and ``group``
    (n,) int64; rewards are float64 (n,), as the NumPy back end's (agents call ``.float()``): on a CPU ``triplet`` is
    equal in every digit, the others up to the rounding of float32. ``terminated`` and ``truncated`` are bool (n,).
    Infos have the same keys and masks; all keys of a step share one mask tensor. At the end of an episode
    ``info["final_obs"]`` is a dict of tensors (n, ...), not an array of dicts, because episodes end together. Actions
    are tensors, or NumPy arrays, which are copied to the device; the spaces are NumPy's.

    Rewards get a :class:`~hashgym.rewards.torch_view.TensorView`. States of ``get_state`` are NumPy arrays and can be
    set in either back end.

    Args:
        num_envs: number of environments.
        dataset: as for ``BitGroupHashingEnv``.
        device: "auto" (CUDA if available, else the CPU), "cpu", "cuda" or "cuda:1".
        render_mode: as for ``BitGroupHashingEnv``; only the content of a picture is copied to the host.
        flat, info, autoreset_mode: as for ``BitGroupHashingVectorEnv``.
        task: the other arguments of ``BitGroupHashingEnv``.

    Raises:
        ValueError: for invalid arguments, or a device that is not there.
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
        """The device of the tensors."""
        return self._core.device

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment, as the NumPy environment."""
        with self._own_mode():
            return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Run one step in every environment, as the NumPy environment."""
        with self._own_mode():
            return super().step(actions)

    def set_state(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Restore a state of ``get_state`` of either back end, as the NumPy environment."""
        with self._own_mode():
            return super().set_state(state)

    def action_masks(self) -> Any:
        """Return which actions are valid now, bool (num_envs, m), as the NumPy environment."""
        return torch.from_numpy(super().action_masks()).to(self.device)

    @contextmanager
    def _own_mode(self) -> Iterator[None]:
        """Compute independently of the caller's context: no gradients, no autocast, no inference tensors."""
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def _check_mask(self, mask: Any) -> None:
        super()._check_mask(self._core.host(mask))

    def _full(self, value: float | bool) -> Any:
        dtype = torch.bool if isinstance(value, bool) else torch.float64
        return torch.full((self.num_envs,), value, dtype=dtype, device=self.device)

    def _split(self, observation: Any) -> Any:
        """Return the batch unchanged."""
        return observation

    def _with_masks(self, info: dict[str, Any]) -> dict[str, Any]:
        mask, masked = torch.ones(self.num_envs, dtype=torch.bool, device=self.device), {}
        for key, part in info.items():
            masked[key] = self._with_masks(part) if isinstance(part, dict) and key != "final_obs" else part
            masked[f"_{key}"] = mask
        return masked


class TorchBitGroupHashingCore(BitGroupHashingCore):
    """The core with tensors. It draws the same random numbers in the same order as the NumPy core."""

    xp: ClassVar[Any] = torch

    rows: Any
    image: Any
    reward_parts: Any
    sampler: Any

    def __init__(
        self, num_envs: int, dataset: str | Path | HashingDataset, task: HashingTask, device: torch.device
    ) -> None:
        self.array_kind = f"torch {device}"
        super().__init__(num_envs, dataset, task)
        self.device, train = device, self.dataset.train
        self.features = self.tensor(self.dataset.training_images)  # float16 stays so, to fit in the device's memory
        self.labels = self.tensor(self.dataset.labels[train])
        self.images = self.tensor(train)
        self.sampler = TorchPartnerSampler(self.sampler, self.labels)

    @property
    def book(self) -> Any:
        """The codebook in the form that rewards read."""
        return torch_view.TensorCodebook(self.codebook, self.labels, self.label_words)

    def reset_run(self, rng: np.random.Generator) -> None:
        """Start a new codebook, computed by NumPy as a device may round to other bits, and shuffle the images."""
        super().reset_run(rng)
        self.codebook = self.tensor(codes.unpack(self.codebook, self.task.bits)).float()

    def set_images(self, rows: NDArray[np.int64]) -> None:
        """Assign an image, a row of ``dataset.train``, to every environment."""
        self.rows = self.tensor(rows)
        image = self.features[self.rows] if self.views is None else self.features[self.rows, self.tensor(self.views)]
        self.image = image if image.dtype == torch.uint8 else image.float()

    def observe(self) -> Observation:
        """Return the observations of all environments."""
        code = 2 * (self.code > 0.5).float() - 1
        code[:, self.emitted :] = 0
        return {"image": self.image, "code": code, "group": torch.full_like(self.rows, self.group)}

    def flatten(self, observation: Observation) -> Tensor:
        """Return observations as one tensor, float32 (n, width)."""
        parts = []
        for key, space in self.spaces()[0].items():
            part = observation[key]
            if isinstance(space, spaces.Discrete):
                part = part[:, None] == torch.arange(int(space.n), device=self.device)
            parts.append(part.flatten(1))
        return torch.cat([part.float() for part in parts], dim=1)

    def info(self) -> dict[str, Any]:
        """Return the info of an observation: ``index``, its images' rows of the dataset."""
        return {"index": self.images[self.rows]}

    def get_state(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the state of the NumPy core, in NumPy arrays."""
        state = {key: self.host(part) for key, part in super().get_state(rng).items()}
        return state | {"codebook": codes.pack(state["codebook"] > 0.5)}

    def set_state(self, state: dict[str, Any], rng: np.random.Generator) -> None:
        """Restore a state of :meth:`get_state` of either core."""
        super().set_state(state, rng)
        self.codebook = codes.unpack(self.codebook, self.task.bits).astype(np.float32)
        for key in {"codebook", "positive_rows", "negative_rows", "code"} & self.state_shapes.keys():
            setattr(self, key, self.tensor(getattr(self, key)))
        self.reward_parts = {name: self.tensor(part) for name, part in self.reward_parts.items()}

    @staticmethod
    def host(array: Any) -> Any:
        """Return a tensor as a new NumPy array, and anything else unchanged."""
        return array.cpu().numpy().copy() if isinstance(array, Tensor) else array

    def _find_sample(self) -> None:
        super()._find_sample()
        self.sampled_places = self.tensor(self.sampled_rows)

    def array(self, array: NDArray[Any]) -> Any:
        """Return a NumPy array as a tensor on the device."""
        return self.tensor(array)

    def compared(self) -> tuple[Any, Any]:
        """Return the codebook that rewards compare with, and the images' own rows in it, (n,)."""
        if not self.samples:
            return self.book, self.rows
        return self.book.take(self.sampled_places, self.sampled_rows), self.own_places

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Return a NumPy array as a new tensor on the device."""
        return torch.tensor(array, device=self.device)

    def zeros(self, *shape: int, dtype: str = "float64") -> Tensor:
        """Return zeros (n, *shape)."""
        return torch.zeros((self.num_envs, *shape), dtype=getattr(torch, dtype), device=self.device)

    def read_action(self, action: Any) -> Tensor:
        """Return the actions as relaxed bits, float32 (n, group_bits)."""
        return super().read_action(torch.as_tensor(action, device=self.device).detach())

    def view(self, start: int, stop: int, scope: Scope, last: bool) -> torch_view.TensorView:
        """Return the view of a span of bits, the argument of rewards."""
        positive_rows, negative_rows = self.partner_rows()
        book, rows = self.compared()
        return torch_view.TensorView(
            code=self.code[:, start:stop],
            codebook=book.span(start, stop),
            rows=rows,
            positive_rows=positive_rows,
            negative_rows=negative_rows,
            labels=self.labels[self.rows],
            start=start,
            scope=scope,
            last=last,
        )


class TorchPartnerSampler(PartnerSampler):
    """Draws the same partners as a NumPy sampler with the same generator, on the device of ``labels``."""

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
        """Draw for each row, with replacement; return (positives, negatives), int64 (n, partners) each."""
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
