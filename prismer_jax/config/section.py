"""Reading a config strictly: a section does not guess at missing keys, and knows which nobody has read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prismer_jax.config import values
from prismer_jax.errors import UserError, nearest


class Section(Mapping[str, Any]):
    """A config, or a part of it, that remembers which keys were read and does not guess at missing ones.

    `section.lr`, `section["lr"]`, `section.get("lr", 1e-3)` and `**section` read; nested dicts (in lists too) are
    sections themselves. `call` and `assert_read` work on it.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "", read: set[str] | None = None) -> None:
        """Wraps a config, or its part at `path`, such as 'optim.'; `read` are the full names of what was read of it."""
        read = set() if read is None else read

        def wrap(value: Any, name: str) -> Any:
            if isinstance(value, Mapping):
                return Section(value, f"{name}.", read)
            if isinstance(value, list | tuple):
                return type(value)(wrap(item, f"{name}.{i}") for i, item in enumerate(value))
            return value

        vars(self).update(_path=path, _values={str(k): wrap(v, f"{path}{k}") for k, v in values.items()}, _read=read)

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise UserError(f"The config has no key '{self._path}{key}'. {nearest(key, self._values)}")
        self._read.add(f"{self._path}{key}")
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # copy, pickle and friends ask for these
            raise AttributeError(key)
        return self[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise TypeError(f"The config is read-only: set {self._path}{key} in the config file.")

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value, or `default` if the config leaves the key out or sets it to None."""
        value = self[key] if key in self._values else None
        return default if value is None else value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Section({unwrapped(self)})"


def strict(config: Any) -> Section:
    """Returns a ConfigDict or dict as a Section, on which every read is recorded; raises UserError for wrong types."""
    keys = unwrapped(config)
    values.check_keys(keys)
    return Section(keys)


def plain(section: Any) -> Any:
    """Returns nested plain dicts and lists, and counts all of it as read."""
    if isinstance(section, Section):
        return {key: plain(section[key]) for key in section}
    if type(section) in (list, tuple):  # and no class of someone's own, such as a source
        return type(section)(plain(item) for item in section)
    return section


def unwrapped(value: Any) -> Any:
    """Returns nested plain dicts of a Section, ConfigDict or dict, without counting anything as read."""
    if isinstance(value, Section):
        value = value._values
    elif hasattr(value, "to_dict"):  # ConfigDict: references and placeholders become values
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: unwrapped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(unwrapped(item) for item in value)
    return value


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (full name, value) of everything in unwrapped dicts that is no section: ('optim.lr', 3e-4)."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}{key}.")
    elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from leaves(item, f"{prefix}{i}.")
    else:
        yield prefix.rstrip("."), value


def assert_read(section: Section) -> None:
    """Raises a UserError that names the keys nobody has read ('optim.warmup_stesp'), with the nearest that was read."""
    names = [name for name, _ in leaves(unwrapped(section), section._path)]
    if left := [name for name in names if name not in section._read]:
        others = f" (and {len(left) - 1} more: {', '.join(left[1:4])})" if len(left) > 1 else ""
        hint = nearest(left[0], {*names} - {*left})
        hint = hint if hint.startswith("Did") else "Remove it, or spell it as the code that should read it does."
        raise UserError(f"Config key '{left[0]}' is never read{others}. {hint}")


def call(
    fn: Callable[..., Any], section: Mapping[str, Any], where: str, /, *, skip: Sequence[str] = (), **extra: Any
) -> Any:
    """Returns fn(**section, **extra); nested sections arrive as plain dicts.

    Args:
      fn: a function or class whose signature says which keys are legal.
      section: the part of the config; all of it counts as read, but for the keys in `skip`.
      where: what the section is called in messages, such as 'config.optim'.
      skip: keys of the section that somebody else reads.
      extra: arguments that the program gives; a key of the section must not repeat them.

    Raises:
      UserError: a key that fn does not take (with the nearest), one that is missing, or a value of another type.
    """
    given = arguments(fn, section, where, skip=skip, extra=extra)
    try:
        return fn(**given, **extra)
    except TypeError as error:  # of what takes any key and hands it on to what does not
        wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if wrong is None or wrong[1] not in {*given} - {*values.parameters(fn)}:
            raise
        raise UserError(f"{where}: unknown key {wrong[1]!r}.") from None


def arguments(
    fn: Callable[..., Any], section: Mapping[str, Any], where: str, *, skip: Sequence[str] = (), extra: Iterable[str]
) -> dict[str, Any]:
    """Returns the arguments of `call`, checked, for a function that is called later; `extra` names the program's."""
    given = {key: section[key] for key in section if key not in skip}
    parameters = values.parameters(fn)
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n not in extra]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key in extra or (key not in names and not takes_any):
            raise UserError(f"{where}: unknown key {key!r}. {nearest(key, names)}")
    defaults = {n for n in names if n in given and given[n] is parameters[n].default}
    values.check(given, {n: kind for n, kind in values.kinds(fn).items() if n not in defaults}, where)
    if missing := [n for n in names if n not in given and parameters[n].default is parameters[n].empty]:
        raise UserError(f"{where}: key {missing[0]!r} is missing.")
    return {key: plain(value) for key, value in given.items()}
