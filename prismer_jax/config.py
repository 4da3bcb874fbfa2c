"""Config files are programs, `get_config(arg)`; here they are run, overridden, read strictly and kept with the results.

    python -m prismer_jax.train --config configs/quickstart.py:z,steps=100 --config.optim.lr=3e-4 --workdir runs/z

A key that is misspelt, of another type, or that nobody reads is a UserError before the first step.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import inspect
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import prismer_jax
from prismer_jax.errors import UserError, as_installed, nearest
from prismer_jax.files import storage

HERE = pathlib.Path(__file__).resolve().parent
RECIPES = HERE / "recipes" if (HERE / "recipes").is_dir() else HERE.parent  # of a wheel (setup.py), or a checkout

# ---------------------------------------------------------------- The command line


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, with the nearest valid flag."""

    def __init__(self, **kwargs: Any) -> None:
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=36)  # one line a flag
        super().__init__(allow_abbrev=False, usage="%(prog)s FLAGS", formatter_class=formatter, **kwargs)

    def format_help(self) -> str:
        return as_installed(super().format_help())

    def error(self, message: str) -> Any:
        raise UserError(f"{message[0].upper()}{message[1:]}. Try --help.")

    def parse(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
        """Returns (the flags, ['optim.lr=3e-4', ...] from --config.optim.lr=3e-4 or --config.optim.lr 3e-4)."""
        flags, overrides = [], []
        rest = iter(sys.argv[1:] if argv is None else argv)
        for word in rest:
            if not word.startswith("--config."):
                flags.append(word)
                continue
            if "=" not in word:
                value = next(rest, "--")
                if value.startswith("--"):
                    raise UserError(f"{word} needs a value: {word}=VALUE.")
                word = f"{word}={value}"
            overrides.append(word.removeprefix("--config."))
        args, unknown = self.parse_known_args(flags)
        if unknown:
            valid = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise UserError(f"Unknown argument {unknown[0]!r}. {nearest(unknown[0].split('=')[0], valid)}")
        return args, overrides


def parse_arg(arg: str | None, **defaults: Any) -> SimpleNamespace:
    """Parses the part after the colon of FILE.py:arg, as in "z,smoke,steps=100,experts=depth+edge".

    A name alone is True; a value gets the type of its default (a default None takes any literal, or text).

    Raises:
      UserError: an unknown name, a value of another type, or a name without a value that is no switch.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        name, equals, text = part.partition("=")
        name = name.strip()
        if name not in defaults:
            raise UserError(f"Unknown config argument {name!r}. {nearest(name, defaults)}")
        if not equals and not isinstance(defaults[name], bool):
            raise UserError(f"Config argument {name!r} needs a value: {name}={defaults[name]}.")
        values[name] = _convert(text, defaults[name], f"config argument {name!r}") if equals else True
    return SimpleNamespace(**values)


def load(spec: str, overrides: Sequence[str] = ()) -> Section:
    """Runs get_config(arg) of the file in 'FILE.py' or 'FILE.py:arg', applies 'a.b=value' overrides.

    A file is looked for here, then in RECIPES. Configs import helpers by folder and name: `from configs import common`.

    Raises:
      UserError: no such file, no get_config in it, an error while it runs, or an override that names no key, a whole
        section, or a value of another type.
    """
    file, _, arg = spec.partition(":")
    path = storage.on_disk(spec if arg.startswith("/") else file)
    path = path if path.is_file() else RECIPES / path
    if not path.is_file():
        beside = [str(pathlib.Path(file).with_name(p.name)) for p in path.parent.glob("*.py")]
        raise UserError(f"No config file {file}. {nearest(file, beside)}")
    config = _run_config_file(path, arg)
    plain = _plain(config)
    if not isinstance(plain, dict):
        raise UserError(f"{file}: get_config returned a {type(config).__name__}; return an ml_collections.ConfigDict.")
    if overrides:
        for override in overrides:
            _override(config, override.removeprefix("--config."))
        plain = _plain(config)
    return Section(plain)


def _run_config_file(path: pathlib.Path, arg: str) -> Any:
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    before = list(sys.path)
    sys.path[:0] = [str(path.resolve().parent.parent), str(RECIPES)]
    try:
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no function get_config(arg); a config file must define it.")
        if inspect.signature(module.get_config).parameters:
            return module.get_config(arg)
        if arg:
            raise UserError(f"{path}: get_config() takes no argument, but ':{arg}' was given.")
        return module.get_config()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}.") from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        raise UserError(f"{path}:{lines[-1] if lines else 1}: {type(error).__name__}: {error}.") from error
    finally:
        sys.path[:] = before


def _override(config: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE.")
    *parents, last = key.split(".")
    node = config
    for depth, part in enumerate([*parents, last]):
        is_list = isinstance(node, list | tuple)
        valid = [str(i) for i in range(len(node))] if is_list else list(node.keys()) if hasattr(node, "keys") else []
        if part not in valid:
            prefix = "".join(f"{p}." for p in key.split(".")[:depth])
            leaves = [name for name, _ in _leaves(_plain(config))]
            raise UserError(f"No config key {prefix}{part!r} for --config.{key}. {nearest(key, leaves)}")
        if depth < len(parents):
            node = node[int(part) if is_list else part]
    if isinstance(node, tuple):
        raise UserError(f"--config.{key}: a tuple cannot be changed in place; override {'.'.join(parents)} whole.")
    place = int(last) if isinstance(node, list) else last
    if hasattr(node[place], "keys"):
        inside = ", ".join(f"{key}.{k}" for k in list(node[place].keys())[:3])
        raise UserError(f"--config.{key} is a section; set one of its keys ({inside} ...).")
    try:
        node[place] = _convert(text, node[place], f"--config.{key}")
    except TypeError:  # a placeholder, which has a type but no value yet
        raise UserError(f"--config.{key} is of another type than {text!r}.") from None


def _convert(text: str, like: Any, what: str) -> Any:
    """Returns the text as a value of the same type as `like`, or None for 'None'; 'None' in quotes is that text."""
    if text == "None":
        return None
    if isinstance(like, str):
        return "None" if text in ("'None'", '"None"') else text
    if isinstance(like, bool):
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off"):
            return False
        raise UserError(f"{what} is true or false, not {text!r}.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if like is None:
        return {"true": True, "false": False}.get(text.lower(), value)
    if isinstance(like, int) and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e6 examples
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(like, list | tuple):
        if not isinstance(value, list | tuple):  # "a,b" for ("a", "b")
            value = [_convert(item, like[0] if like else None, what) for item in text.split(",")]
        value = type(like)(value)
    if type(value) is not type(like):
        raise UserError(f"{what} is of type {type(like).__name__}, not {text!r}.")
    return value


# ---------------------------------------------------------------- Reading strictly


class Section(Mapping[str, Any]):
    """A config, or a part of it, that remembers which keys were read and does not guess at missing ones.

    `section.lr`, `section["lr"]`, `section.get("lr", 1e-3)` and `**section` read; nested dicts (in lists too) are
    sections themselves. `call` and `unread` work on it.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        def wrap(value: Any, name: str) -> Any:
            if isinstance(value, Mapping):
                return Section(value, f"{name}.")
            if isinstance(value, list | tuple):
                return type(value)(wrap(item, f"{name}.{i}") for i, item in enumerate(value))
            return value

        vars(self).update(_path=path, _values={str(k): wrap(v, f"{path}{k}") for k, v in values.items()}, _read=set())

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise UserError(f"The config has no key '{self._path}{key}'. {nearest(key, self._values)}")
        self._read.add(key)
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # copy, pickle and friends ask for these
            raise AttributeError(key)
        return self[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise TypeError(f"The config is read-only: set {self._path}{key} in the config file.")

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value, or `default` if the config leaves the key out."""
        return self[key] if key in self._values else default

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Section({_plain(self)})"


def strict(config: Any) -> Section:
    """Returns a ConfigDict or dict as a Section, on which every read is recorded."""
    return Section(_plain(config))


def plain(section: Any) -> Any:
    """Returns nested plain dicts and lists, and counts all of it as read."""
    if isinstance(section, Section):
        return {key: plain(section[key]) for key in section}
    if isinstance(section, list | tuple):
        return type(section)(plain(item) for item in section)
    return section


def unread(section: Section) -> list[str]:
    """Returns the full names of the leaf keys that nobody has read so far ('optim.warmup_stesp')."""

    def visit(value: Any, name: str, read: bool) -> Iterator[str]:
        if isinstance(value, Section) and len(value):
            for key, item in value._values.items():
                yield from visit(item, f"{value._path}{key}", key in value._read)
        elif isinstance(value, list | tuple) and any(isinstance(item, Section) for item in value):
            for i, item in enumerate(value):
                yield from visit(item, f"{name}.{i}", read)
        elif not read:
            yield name

    return list(visit(section, "", True))


def assert_read(section: Section) -> None:
    """Raises a UserError that names the keys nobody has read, with the nearest one that was read."""
    left = unread(section)
    if left:
        read = [name for name, _ in _leaves(_plain(section)) if name not in left]
        others = f" (and {len(left) - 1} more: {', '.join(left[1:4])})" if len(left) > 1 else ""
        hint = nearest(left[0], read)
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
      UserError: a key that fn does not take (with the nearest that it does), or a required one that is missing.
    """
    return fn(**arguments(fn, section, where, skip=skip, extra=extra), **extra)


def arguments(
    fn: Callable[..., Any], section: Mapping[str, Any], where: str, *, skip: Sequence[str] = (), extra: Iterable[str]
) -> dict[str, Any]:
    """Returns the arguments of `call`, checked, for a function that is called later; `extra` names the program's."""
    given = {key: section[key] for key in section if key not in skip}
    parameters = inspect.signature(fn).parameters
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n not in extra]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key in extra or (key not in names and not takes_any):
            raise UserError(f"{where}: unknown key {key!r}. {nearest(key, names)}")
    missing = [n for n in names if n not in given and parameters[n].default is inspect.Parameter.empty]
    if missing:
        raise UserError(f"{where}: key {missing[0]!r} is missing.")
    return {key: plain(value) for key, value in given.items()}


UNITS = ("steps", "epochs", "examples", "percent")


def duration_keys(name: str) -> tuple[str, ...]:
    """Returns the keys in which `steps` looks a duration up: ('warmup_steps', 'warmup_epochs', ...)."""
    return tuple(f"{name}_{unit}" for unit in UNITS)


def steps(
    section: Mapping[str, Any],
    name: str,
    *,
    batch_size: int,
    num_examples: int | None = None,
    total_steps: int | None = None,
    default: int | None = None,
) -> int:
    """Returns a duration in steps, from exactly one of NAME_steps, NAME_epochs, NAME_examples, NAME_percent.

    Args:
      section: where the keys are looked up.
      name: 'total', 'warmup', 'evaluate', ...
      batch_size: examples a step.
      num_examples: examples an epoch; needed for epochs.
      total_steps: what percent refers to.
      default: the answer when no key is given; without it that is an error.

    Raises:
      UserError: none or several of the keys are given, or the value is negative or cannot be converted.
    """
    given = [key for key in duration_keys(name) if section.get(key) is not None]
    if not given and default is not None:
        return default
    if len(given) != 1:
        raise UserError(f"Give exactly one of {', '.join(duration_keys(name))}; the config has {given or 'none'}.")
    value, unit = section[given[0]], given[0].rpartition("_")[2]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"Config key {given[0]!r} must be a number, at least 0, not {value!r}.")
    if (unit == "epochs" and num_examples is None) or (unit == "percent" and total_steps is None):
        raise UserError(f"Config key {given[0]!r} cannot be used here; use {name}_steps.")
    match unit:
        case "epochs":
            value = value * num_examples / batch_size
        case "examples":
            value = value / batch_size
        case "percent":
            value = value / 100 * total_steps
    return max(round(value), 1 if value > 0 else 0)


# ---------------------------------------------------------------- Keeping it


def to_json(config: Any) -> str:
    """Returns the config as indented JSON; functions appear by name, other things that JSON lacks as text."""
    return json.dumps(_plain(config), indent=2, default=lambda x: getattr(x, "__qualname__", None) or str(x))


def save_resolved(workdir: str | os.PathLike[str], config: Any, may_change: Sequence[str] = ()) -> None:
    """Writes WORKDIR/config.json, the resolved config, and WORKDIR/versions.json, the `provenance`.

    Args:
      workdir: a folder, made if need be.
      config: the config of this start.
      may_change: regexes of full key names ('log_.*') that may differ from what an earlier start saved.

    A workdir without a checkpoint, of a run that failed before its first, belongs to nobody and takes any config.

    Raises:
      UserError: the workdir holds the results of another config.
    """
    workdir = storage.on_disk(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):  # found now, and not when the first checkpoint is due
            pass
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}). Choose another --workdir.") from None
    file = workdir / "config.json"
    new = dict(_leaves(json.loads(to_json(config))))
    if file.exists() and any((workdir / "checkpoints").glob("*")):
        try:
            old = dict(_leaves(json.loads(file.read_text())))
        except ValueError:
            raise UserError(f"{file} is damaged. Delete it to continue with this config.") from None
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key) or (key in old) != (key in new)]
        changed = [key for key in changed if not any(re.fullmatch(pattern, key) for pattern in may_change)]
        if changed:
            what = ", ".join(f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}" for k in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(f"{workdir} belongs to another config ({what}{more}). Use another --workdir or delete it.")
    storage.write(file, to_json(config) + "\n")
    storage.write_json(workdir / "versions.json", provenance())


def provenance() -> dict[str, Any]:
    """Returns what results depend on besides the config: package versions, Python, the machine, the git commit."""
    versions = {"prismer_jax": prismer_jax.__version__}
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    facts = dict(packages=versions, python=platform.python_version(), platform=platform.platform(), command=sys.argv)
    if (RECIPES / ".git").exists():  # not some other repository in which this package is merely installed
        commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
        if commit is not None:
            facts["git"] = {"commit": commit, "dirty": bool(status)}
    return facts


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(RECIPES), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _plain(value: Any) -> Any:
    """Plain nested dicts of a Section, ConfigDict or dict, without counting anything as read."""
    if isinstance(value, Section):
        value = value._values
    elif hasattr(value, "to_dict"):  # ConfigDict: references and placeholders become values
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}{key}.")
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{prefix}{i}.")
    else:
        yield prefix.rstrip("."), value
