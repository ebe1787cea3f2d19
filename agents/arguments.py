"""Arguments that all agents share, their former names, and reading of a command line."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

import tyro

from hashgym.checks import check_integer, closest, is_integer, plain_numbers
from hashgym.terminal import arguments, wants_version

__all__ = ["RENAMED", "CommonArgs", "Name", "RunArgs", "as_json", "current_names", "read_arguments", "read_command"]

RENAMED = {"lanes": "num_envs", "history": "rnn_hidden"}
"""Names that arguments had in earlier versions, also in checkpoints and policies of that time, and their names now."""

Name: TypeAlias = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")]
"""A variant, preset or algorithm, the first word of a command line."""
T = TypeVar("T")


class _FormerNames(type):
    """Metaclass of arguments that also accepts keywords by their former names, with a DeprecationWarning."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        for former in RENAMED.keys() & kwargs.keys():
            warnings.warn(f"{former}= is now called {RENAMED[former]}=", DeprecationWarning, stacklevel=2)
        return super().__call__(*args, **current_names(kwargs))


@dataclass(frozen=True, kw_only=True)
class CommonArgs(metaclass=_FormerNames):
    """Arguments of any training run."""

    agent: ClassVar[str]  # name of the agent's module, whose __name__ is __main__ when it is run

    holdout: float = 0.05
    """fraction of the training images kept out of training, on which progress is evaluated; 0 for none"""
    seed: int = 0
    """seed: equal seeds give bit-identical runs on one machine with one number of threads"""
    device: str = "auto"
    """cpu, cuda, ..., or auto: an accelerator where there is one"""

    def __post_init__(self) -> None:
        plain_numbers(self)  # checkpoints hold arguments as JSON
        check_integer("seed", self.seed, 0)
        self.check_fraction("holdout")

    def check_positive(self, *names: str) -> None:
        """Raise ValueError for the first of these that is not above 0 and finite, or not an integer as declared."""
        for name in names:
            value = getattr(self, name)
            if type(self).__dataclass_fields__[name].type == "int" and not is_integer(value):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
            if value == math.inf:
                raise ValueError(f"{name} must be finite, got {value}")

    def check_fraction(self, *names: str) -> None:
        """Raise ValueError for the first of these arguments that is not in [0, 1)."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunArgs(CommonArgs):
    """Arguments of a run of this package's own agents."""

    updates: int = 1000
    """gradient steps, each on one batch of episodes"""
    num_envs: int = 256
    """environments that are stepped together, each with one image of the batch"""
    evaluate_every: int = 500
    """updates between evaluations on the held-out images"""
    log_every: int = 50
    """updates between points of the TensorBoard curves"""
    checkpoint_every: int = 500
    """updates between checkpoints, where there is a folder for them"""

    def __post_init__(self) -> None:
        self.check_positive("updates", "num_envs", "evaluate_every", "log_every", "checkpoint_every")
        super().__post_init__()


def as_json(args: CommonArgs) -> str:
    """Return arguments as text."""
    return json.dumps(dataclasses.asdict(args))


def current_names(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments under the names they have now, where an earlier version wrote others."""
    return {RENAMED.get(name, name): value for name, value in args.items()}


def read_command(
    main: type[T],
    agent: str,
    option: str,
    default: str,
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    presets: Mapping[str, T] | None = None,
) -> T:
    """Read a command line ``[NAME] [OPTIONS]`` of an agent, or print its help or version and exit.

    Args:
        main: dataclass of all arguments; one of its fields is positional, the name.
        agent: name of the agent's module.
        option: another way to give the name, at any place: ``--variant NAME``.
        default: the name if none is given.
        argv: the arguments; those of this process by default.
        prog: the command that is run, for help and messages; ``python -m`` with the agent's module by default.
        presets: default values by name; those of ``main`` where there are none.

    Raises:
        ValueError: for a name without preset.
        SystemExit: with 2 for arguments that cannot be read, 0 after help or version.
    """
    argv = sys.argv[1:] if argv is None else argv
    wants_version(argv)  # before the name is put in front
    argv = _name_first([_current_option(word) for word in argv], option, default)
    if presets is not None and argv[0] not in presets:
        known, close = ", ".join(presets), closest(argv[0], presets)
        raise ValueError(f"{option.lstrip('-')} must be one of {known}, got {argv[0]!r}{close}")
    preset: dict[str, Any] = {} if presets is None else {"default": presets[argv[0]]}
    if {"-h", "--help"} & set(argv):
        argv = argv[1:]  # otherwise the help would not list the name
    return read_arguments(main, agent, argv, prog=prog, **preset)


def read_arguments(main: type[T], agent: str, argv: Sequence[str], *, prog: str | None = None, **preset: Any) -> T:
    """Read a command line of options alone, as :func:`read_command` does; ``default=`` is a preset."""
    wants_version(argv)
    with arguments(argv):
        return tyro.cli(main, prog=prog or f"python -m {__package__}.{agent}", args=argv, **preset)


def _current_option(word: str) -> str:
    """Return an option by its current name, ``--num-envs=8`` for ``--lanes=8``; any other word unchanged."""
    name, equals, value = word.partition("=")
    former = name.removeprefix("--")
    return f"--{RENAMED[former].replace('_', '-')}{equals}{value}" if name != former and former in RENAMED else word


def _name_first(argv: list[str], option: str, default: str) -> list[str]:
    """Return the arguments with the name in front: that of the option, wherever it stands, or else the default."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == option and equals:
            return [value, *argv[:i], *argv[i + 1 :]]
        if word == option and i + 1 < len(argv):
            return [argv[i + 1], *argv[:i], *argv[i + 2 :]]
    return argv if argv and not argv[0].startswith("-") else [default, *argv]
