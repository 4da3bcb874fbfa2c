"""Trees of arrays in folders, through Orbax: written without the devices that they lay on, read onto any others."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from prismer_jax import tree
from prismer_jax.errors import UserError

_CLIENTS = ("aiohttp", "gcsfs", "google")  # of buckets, which raise errors of their own
Shapes = Mapping[str, jax.ShapeDtypeStruct]  # '/'-joined name -> shape, type and perhaps sharding


@functools.cache
def orbax() -> ModuleType:
    """Imports Orbax at first use, which takes a second. Its logs are dropped: its errors are raised here."""
    import orbax.checkpoint

    logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tells again, at length, which of its writes have failed
    return orbax.checkpoint


def handler(alone: bool = False) -> Any:
    """Returns Orbax's writer of nested dicts, for which every array is NumPy's.

    Of an array of JAX's, Orbax also notes the devices, and a reader who names no others can have it only on these.
    Where nothing else runs meanwhile (`alone`), NumPy's arrays are not copied first, so that they may be mapped files.
    Nor are they compressed: weights lose a tenth, in ten times the time and with all of it in memory once more.
    """
    ocp = orbax()
    handlers = ocp.type_handlers

    class ArrayHandler(handlers.ArrayHandler):
        def typestr(self) -> str:
            return "np.ndarray"

    arrays, host = ArrayHandler(enable_write_sharding_file=False), handlers.NumpyHandler(deepcopy_host_arrays=not alone)
    registry = handlers.create_type_handler_registry((jax.Array, arrays), (np.ndarray, host))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=not alone)


def shapes_in(folder: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {name: shape and type} of the arrays in a folder, without reading them. Raises as `read`."""
    ocp = orbax()
    metadata = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).metadata(folder).item_metadata
    if metadata is None:
        raise ValueError("the shapes of its arrays cannot be read")
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tree.flatten(metadata.tree).items()}


def read(folder: pathlib.Path, expected: Shapes) -> dict[str, Any]:
    """Returns {name: array} of the arrays in a folder: with a sharding where one is expected, NumPy's elsewhere.

    Raises:
      OSError, ValueError, KeyError: they cannot be read; see `readable`.
    """
    ocp = orbax()

    def how(x: jax.ShapeDtypeStruct) -> Any:
        if x.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)

    args = ocp.args.PyTreeRestore(
        item=tree.unflatten(expected),
        restore_args=tree.unflatten({name: how(x) for name, x in expected.items()}),
        partial_restore=True,
    )
    with jax.transfer_guard("allow"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return tree.flatten(reader.restore(folder, args=args))


def compare(folder: pathlib.Path, saved: Shapes, expected: Shapes, start: bool = False) -> None:
    """Raises a UserError that lists in what the arrays of a folder differ from those that are expected.

    Where a run is to `start` from it, numbers with a fraction may be of another type, and the error names init_fresh.
    """

    def listed(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def kind(x: Any) -> str:
        return f"{np.dtype(x.dtype).name}{list(x.shape)}"

    def same(a: Any, b: Any) -> bool:
        fractions = all(jax.numpy.issubdtype(x.dtype, np.inexact) for x in (a, b))
        return a.shape == b.shape and (np.dtype(a.dtype) == np.dtype(b.dtype) or (fractions and start))

    missing = [name for name in expected if name not in saved]
    extra = [name for name in saved if name not in expected]
    other = [
        f"{name} ({kind(saved[name])} instead of {kind(expected[name])})"
        for name in expected
        if name in saved and not same(saved[name], expected[name])
    ]
    groups = {"missing in it": missing, "not expected": extra, "of another shape or type": other}
    if differences := [f"{len(names)} {what}: {listed(names)}" for what, names in groups.items() if names]:
        remedy = " Name what starts from scratch, or is left out, by --config.init_fresh=REGEX." if start else ""
        raise UserError(f"The checkpoint {folder} is of another model or optimiser. {'; '.join(differences)}.{remedy}")


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape, type and sharding of an array or a number."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def nested(state: Any) -> dict[str, Any]:
    """Returns any tree as nested dicts of arrays by the names of its leaves."""
    arrays = {k: v if isinstance(v, jax.Array) else np.asarray(v) for k, v in tree.flatten(state).items()}
    return tree.unflatten(arrays)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns errors of the file system and of buckets into UserErrors."""
    try:
        yield
    except Exception as error:
        if not (reason := _reason(error)):
            raise
        raise UserError(f"{what}: {reason}. Make space, or choose another folder; older ones stay valid.") from error


@contextlib.contextmanager
def readable(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turns errors of reading a folder into UserErrors."""
    try:
        yield
    except Exception as error:
        expected = type(error) is Exception or isinstance(error, OSError | ValueError | KeyError) or _reason(error)
        if not expected:  # of these, Orbax 0.12.8 raises an Exception of no type for what tensorstore says
            raise
        cause = error.__cause__ or error if type(error) is Exception else error
        reason = f"{cause}".splitlines()[0][:300] if str(cause) else type(cause).__name__
        raise UserError(
            f"Cannot read {folder}: {reason}. Is it damaged? Copy it again, or delete it to go on from an older one."
        ) from error


def _reason(error: Exception) -> str | None:
    """Returns why files cannot be had, None of another error; tensorstore's are ValueErrors with a code in the text."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__module__.partition(".")[0] in _CLIENTS or "[http_response_code=" in str(error):
        return str(error).partition("\n")[0][:300]
    in_text = isinstance(error, ValueError) and re.search(r"([^:]+?) \[os_error_code=", str(error))
    return in_text[1].strip() if in_text else None
