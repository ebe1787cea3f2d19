"""State of an algorithm of Stable-Baselines3 as plain tensors and numbers, so that killed runs continue to the bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from .checkpoint import as_arrays, as_tensors

__all__ = ["get_state", "set_state"]

COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")
BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def get_state(model: Any) -> dict[str, Any]:
    """Return everything that decides how an algorithm continues; called between an update and a rollout."""
    recurrent = getattr(model, "_last_lstm_states", None)
    buffer = getattr(model, "replay_buffer", None)
    return {
        "parameters": model.get_parameters(),
        "variables": {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]},
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "recurrent": None if recurrent is None else [list(pair) for pair in recurrent],
        "buffer": None if buffer is None else _buffer_state(buffer),
        "environment": as_tensors(model.get_env().get_state()),
        "starts": torch.from_numpy(model._last_episode_starts),
        "generators": _generator_states(model),
    }


def set_state(model: Any, state: dict[str, Any]) -> None:
    """Continue from a state that :func:`get_state` returned."""
    model.set_parameters(state["parameters"])
    for name, variable in state["variables"].items():
        getattr(model, name).data.copy_(variable)
    for name, count in state["counters"].items():
        setattr(model, name, count)
    if state["recurrent"] is not None:
        model._last_lstm_states = RNNStates(*(tuple(t.to(model.device) for t in pair) for pair in state["recurrent"]))
    if state["buffer"] is not None:
        _fill_buffer(model.replay_buffer, state["buffer"])
    model._last_obs = model.get_env().set_state(as_arrays(state["environment"]))
    model._last_episode_starts = state["starts"].numpy()
    generators = state["generators"]
    torch.set_rng_state(generators["torch"])
    legacy = ("MT19937", generators["numpy"].numpy(), *generators["numpy_rest"])
    np.random.set_state(legacy)  # noqa: NPY002
    model.action_space.np_random.bit_generator.state = json.loads(generators["actions"])
    if generators["device"] is not None and model.device.type == "cuda":
        torch.cuda.set_rng_state(generators["device"], model.device)


def _generator_states(model: Any) -> dict[str, Any]:
    """Return the states of Stable-Baselines3's generators: torch's, NumPy's global one, the action space's."""
    _, state, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
        "numpy": torch.from_numpy(state),
        "numpy_rest": rest,
        "actions": json.dumps(model.action_space.np_random.bit_generator.state),
    }


def _buffer_state(buffer: Any) -> dict[str, Any]:
    """Return the filled part of a replay buffer."""
    size = buffer.buffer_size if buffer.full else buffer.pos
    parts = {name: getattr(buffer, name) for name in BUFFER}
    arrays = {name: {"": part} if isinstance(part, np.ndarray) else part for name, part in parts.items()}
    return {
        "arrays": {name: {key: torch.from_numpy(a[:size]) for key, a in part.items()} for name, part in arrays.items()},
        "pos": buffer.pos,
        "full": buffer.full,
    }


def _fill_buffer(buffer: Any, state: dict[str, Any]) -> None:
    """Restore a replay buffer from a :func:`_buffer_state`."""
    for name, arrays in state["arrays"].items():
        for key, array in arrays.items():
            part = getattr(buffer, name)
            (part if key == "" else part[key])[: len(array)] = array.numpy()
    buffer.pos, buffer.full = state["pos"], state["full"]
