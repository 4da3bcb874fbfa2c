"""The command line of all programs: flags, the config file that one of them names, and overrides of its keys."""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import inspect
import pathlib
import sys
import traceback
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from prismer_jax.config.durations import duration_keys
from prismer_jax.config.section import Section, leaves, unwrapped
from prismer_jax.errors import UserError, as_installed, nearest
from prismer_jax.files import storage
from prismer_jax.registry import literal

HERE = pathlib.Path(__file__).resolve().parents[1]
RECIPES = HERE / "recipes" if (HERE / "recipes").is_dir() else HERE.parent  # of a wheel (setup.py), or a checkout
# Keys that a file may leave out and a flag may give all the same, and what they begin with (docs/config.md).
DEFAULTS: dict[str, Any] = dict(accumulate=1, frozen_dtype="float32", init=None, init_fresh=(), max_bad_fraction=0.01)
DEFAULTS |= dict(num_workers=0, prng="rbg", freeze="none", sharding="replicated", distributed=None, mesh={"data": -1})
DEFAULTS |= dict(checkpoint={}, report={}, profile={}, wandb={})
DEFAULTS |= dict.fromkeys(key for name in ("total", "log", "evaluate", "save") for key in duration_keys(name))
NAMED = ("data", "evals", "tasks")  # to which a flag adds no section; whoever reads the other keys of any knows them


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
                if (value := next(rest, "--")).startswith("--"):
                    raise UserError(f"{word} needs a value: {word}=VALUE.")
                word = f"{word}={value}"
            overrides.append(word.removeprefix("--config."))
        args, unknown = self.parse_known_args(flags)
        if unknown:
            valid = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise UserError(f"Unknown argument {unknown[0]!r}. {nearest(unknown[0].split('=')[0], valid)}")
        return args, overrides

    def parse_flags(self, argv: Sequence[str] | None, why: str) -> argparse.Namespace:
        """Returns the flags of a program that has no config, and says `why` in the UserError for --config.KEY."""
        args, overrides = self.parse(argv)
        if overrides:
            raise UserError(f"Unknown argument --config.{overrides[0]}: {why}.")
        return args


def parse_arg(arg: str | None, **defaults: Any) -> SimpleNamespace:
    """Parses the part after the colon of FILE.py:arg, as in "z,smoke,steps=100,experts=depth+edge".

    A name alone is True; a value gets the type of its default (a default None takes any literal, or text).

    Raises:
      UserError: an unknown name, a value of another type, or a name without a value that is no switch.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        name, equals, text = part.partition("=")
        if (name := name.strip()) not in defaults:
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
    if not isinstance(unwrapped(config), dict):
        raise UserError(f"{file}: get_config returned a {type(config).__name__}; return an ml_collections.ConfigDict.")
    if hasattr(config, "unlock"):  # a ConfigDict, which takes no new key else
        config.unlock()
    for override in overrides:
        _override(config, override.removeprefix("--config."))
    return Section(unwrapped(config))


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
    first, node = key.split(".")[0], config
    if first in DEFAULTS and config.get(first) is None:  # a section is there only if something is set in it
        config[first] = copy.copy(DEFAULTS[first]) if parents or not isinstance(DEFAULTS[first], dict) else None
    for depth, part in enumerate([*parents, last]):
        is_list = isinstance(node, list | tuple)
        valid = [str(i) for i in range(len(node))] if is_list else list(node.keys()) if hasattr(node, "keys") else []
        field = depth == len(parents) > (first in NAMED) and hasattr(node, "keys")
        if part not in valid and not field:
            prefix = "".join(f"{p}." for p in key.split(".")[:depth])
            hint = nearest(key, [name for name, _ in leaves(unwrapped(config))])
            raise UserError(f"No config key {prefix}{part!r} for --config.{key}. {hint} All are in docs/config.md.")
        if depth < len(parents):
            node = node[int(part) if is_list else part]
    if isinstance(node, tuple):
        raise UserError(f"--config.{key}: a tuple cannot be changed in place; override {'.'.join(parents)} whole.")
    place = int(last) if isinstance(node, list) else last
    old = node[place] if last in valid else None
    if hasattr(old, "keys"):
        inside = ", ".join(f"{key}.{k}" for k in list(old.keys())[:3])
        raise UserError(f"--config.{key} is a section; set one of its keys ({inside} ...).")
    try:
        node[place] = _convert(text, old, f"--config.{key}")
        for rival in duration_keys(last.rpartition("_")[0]) if node[place] is not None else ():
            if rival != last and rival in valid:  # total_epochs=3 is in place of the file's total_steps
                del node[rival]
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
        value = literal(text)
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
