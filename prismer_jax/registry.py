"""What strings of configs name: "decode|resize(96)|caption(prefix='A picture of')" is a list of named calls."""

from __future__ import annotations

import ast
import importlib
import threading
from collections.abc import Mapping
from typing import Any

from prismer_jax.errors import UserError, choose

READING = threading.Lock()  # of what Python parses, NumPy's headers too: findings/numpy_load_threads_jax.sh
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def parse(spec: str) -> list[Call]:
    """Parses "op(a, k=1)|op2" into [(name, args, kwargs), ...]; arguments are Python literals, nothing is evaluated.

    Raises:
      UserError: the text is not of that form.
    """
    try:
        with READING:
            tree = ast.parse(str(spec).strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"Cannot parse {spec!r}: {error.msg}. Write it as \"op(1, key='x')|other_op\".") from None
    return [_call(node, spec) for node in _split(tree)]


def literal(text: str) -> Any:
    """Returns the Python literal that a text is; raises as ast.literal_eval does."""
    with READING:
        return ast.literal_eval(text)


def _split(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_split(node.left), *_split(node.right)]
    return [node]


def _call(node: ast.expr, spec: str) -> Call:
    function, args, keywords = (node.func, node.args, node.keywords) if isinstance(node, ast.Call) else (node, [], [])
    try:
        if not isinstance(function, ast.Name) or len({None, *(k.arg for k in keywords)}) <= len(keywords):
            raise ValueError
        kwargs = {k.arg: ast.literal_eval(k.value) for k in keywords}
        return function.id, tuple(ast.literal_eval(a) for a in args), kwargs
    except ValueError:
        raise UserError(f"{ast.unparse(node)!r} in {spec!r} is not a call with literal arguments, each once.") from None


def imported(kind: str, name: str, table: Mapping[str, str]) -> Any:
    """Returns what a table of 'module:attribute' has under a name; its module is imported when it is asked for.

    Raises:
      UserError: the table has no such name; the message says the nearest one, and that it is a `kind`.
    """
    module, _, attribute = choose(kind, name, table).partition(":")
    return getattr(importlib.import_module(module), attribute)
