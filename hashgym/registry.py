"""Objects found by name, to which users add their own: rewards, hashers, backbones, datasets, index back ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from importlib import import_module
from typing import Any, Generic, TypeVar, overload

from hashgym.checks import closest
from hashgym.optional import install_command

__all__ = ["Registry", "named_settings", "named_settings_of"]

T = TypeVar("T")
Object = TypeVar("Object")
Check = Callable[[str, Any], Any]


class Registry(Generic[T]):
    """Objects by name. One that is registered as "package.module:Name" is imported at first use.

    >>> greetings = Registry("greeting", {"dump": ("json:dumps", "any object as JSON")})
    >>> @greetings.register("hello")
    ... def hello(name):
    ...     "Greet by name."
    >>> greetings.descriptions
    {'dump': 'any object as JSON', 'hello': 'Greet by name.'}
    >>> greetings.find("dump")([1])
    '[1]'

    Args:
        kind: what the objects are, for error messages: "reward".
        own: the initial entries: where each object is, as "package.module:Name", and one line on it.

    Attributes:
        entries: the registered objects, or where they are, as "package.module:Name".
        descriptions: one line on each.
    """

    def __init__(self, kind: str, own: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.kind = kind
        self.entries: dict[str, T | str] = {}
        self.descriptions: dict[str, str] = {}
        for name, (place, description) in (own or {}).items():
            self.register(name, place, description)

    @overload
    def register(
        self, name: str, target: None = None, description: str = "", *, check: Check | None = None
    ) -> Callable[[Object], Object]: ...
    @overload
    def register(self, name: str, target: T | str, description: str = "", *, check: Check | None = None) -> None: ...
    def register(
        self, name: str, target: Any = None, description: str = "", *, check: Check | None = None
    ) -> Callable[[Object], Object] | None:
        """Add an object; the same one again does nothing. Without a target it is a decorator.

        Args:
            name: its name.
            target: the object, or where it is, as "package.module:Name".
            description: one line; by default the first line of the object's docstring.
            check: called with the name and the object before it is added; raises ValueError for a wrong one.

        Raises:
            ValueError: if the name is taken by another object or is not a string, or a text is not of the form
                "package.module:Name".
        """
        if target is None:

            def decorate(target: Object) -> Object:
                self.register(name, target, description, check=check)  # type: ignore[arg-type]
                return target

            return decorate
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a {self.kind} must be a string that is not empty, got {name!r:.60}")
        if isinstance(target, str) and not all(target.partition(":")):
            raise ValueError(f"target must look like 'package.module:Name', got {target!r}")
        if check is not None and not isinstance(target, str):
            check(name, target)
        taken = self.entries.get(name, target)
        if not _same(taken, target):
            raise ValueError(f"a {self.kind} {name!r} is registered already, {_address(taken)}: choose another name")
        if name not in self.entries or not isinstance(target, str):
            self.entries[name] = target  # also when a notebook cell defines the object again
        if not description:
            lines = "" if isinstance(target, str) else target.__doc__ or ""
            description = self.descriptions.get(name) or lines.partition("\n")[0]
        self.descriptions[name] = description
        return None

    def __contains__(self, name: str) -> bool:
        """Return whether a name is registered, or has the form "package.module:Name"."""
        return isinstance(name, str) and (name in self.entries or re.fullmatch(r"\w+(\.\w+)*:\w+", name) is not None)

    def find(self, name: str) -> T:
        """Return the object of that name, or the object at "package.module:Name".

        The second form works in every process, such as workers of vector environments and clusters: the module is
        imported, and Name is an attribute of it, or a name that it registers.

        Raises:
            ValueError: for an unknown name, and a module that cannot be imported.
        """
        if not isinstance(name, str):
            raise ValueError(
                f"the name of a {self.kind} is a string, one of {', '.join(sorted(self.entries))}; got {name!r:.60}"
            )
        found = self.entries.get(name, name)
        if isinstance(found, str):
            found = self._imported(found)
            if name in self.entries:
                self.entries[name] = found
        return found

    def name_of(self, target: T) -> str:
        """Return the registered name of an object, or where it is, as "package.module:Name"."""
        return next((name for name, known in self.entries.items() if _same(known, target)), _address(target))

    def _imported(self, target: str) -> T:
        module, _, attribute = target.partition(":")
        alike = [name for name in self.entries if (":" in name) == (":" in target)]
        known = f"there are {', '.join(sorted(self.entries))}"
        close = closest(target, alike)
        if re.fullmatch(r"\w+(\.\w+)+", target):  # written with dots only
            close = f" (did you mean {':'.join(target.rsplit('.', 1))!r}?)"
        unknown = f"unknown {self.kind} {target!r}{close}; {known}"
        if not module or not attribute:
            raise ValueError(
                f"{unknown}. Name one of your own as 'package.module:Name', which worker processes find too"
            )
        try:
            loaded = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):  # a package that the module imports
                hint = f": {install_command(error.name)}" if error.name and module.startswith("hashgym.") else ""
                raise ValueError(f"{self.kind} {target!r}: importing {module} failed: {error}{hint}") from error
            raise ValueError(f"{unknown}; and there is no module {module} on the Python path") from None
        except Exception as error:
            raise ValueError(
                f"{self.kind} {target!r}: importing {module} failed with {type(error).__name__}: {error}"
            ) from error
        if hasattr(loaded, attribute):
            found: T = getattr(loaded, attribute)
            return found
        if self.entries.get(attribute, target) != target:  # registered, by the import at the latest
            return self.find(attribute)
        raise ValueError(
            f"the module {module} has no {self.kind} {attribute!r} and registers none of that name; it was read from "
            f"{getattr(loaded, '__file__', None)}"
        )


def named_settings(what: str, given: Any, known: Any) -> None:
    """Raise ValueError for unknown settings; the message is one line and lists the known ones.

    Args:
        what: name of the object that has the settings.
        given: names of the given settings.
        known: names of the settings that exist.
    """
    if unknown := [name for name in given if name not in set(known)]:
        close = closest(str(unknown[0]), known)
        raise ValueError(f"{what} has no setting {', '.join(map(str, unknown))}{close}: it has {', '.join(known)}")


def named_settings_of(what: str, *others: str) -> Callable[[type[T]], type[T]]:
    """Decorate a dataclass to check its settings by :func:`named_settings`; ``others`` are valid settings too."""

    def decorate(cls: type[T]) -> type[T]:
        init: Any = cls.__init__
        known = [*(field.name for field in fields(cls)), *others]  # type: ignore[arg-type]

        @wraps(init)
        def checked(self: T, **settings: Any) -> None:
            named_settings(what, settings, known)
            init(self, **settings)

        cls.__init__ = checked  # type: ignore[method-assign,assignment]
        return cls

    return decorate


def _address(target: Any) -> str:
    """Return where an object is, as "package.module:Name"."""
    if isinstance(target, str):
        return target
    return f"{target.__module__}:{target.__qualname__}" if hasattr(target, "__qualname__") else repr(target)


def _same(one: Any, other: Any) -> bool:
    """Return whether two objects are the same, or defined at the same place; local functions have no such place."""
    address = _address(one)
    return one is other or ("<" not in address and address == _address(other))
