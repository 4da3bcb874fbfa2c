"""METEOR and SPICE, computed by the official Java programs that the package pycocoevalcap brings (extra `eval`).

Both are slow and optional. METEOR (meteor-1.5.jar) reads a table of paraphrases first and takes about 2 GB of memory;
SPICE (spice-1.0.jar) parses every caption, takes up to 8 GB, and on its first use the package fetches Stanford CoreNLP
3.6.0 from Stanford's server (384 MB). METEOR was run with Java 17. SPICE opens java.lang by reflection, which Java has
refused since version 16 unless it is told otherwise; so it is told.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from prismer_jax.errors import UserError

OPENED = ("java.lang", "java.math", "java.net", "java.text", "java.util", "java.util.concurrent")


def _meteor() -> Any:
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _spice() -> Any:
    from pycocoevalcap.spice.spice import Spice

    opened = " ".join(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED)
    os.environ.setdefault("JDK_JAVA_OPTIONS", opened)  # Java 8, which needs none of it, does not read this
    return Spice()


class Jar:
    """A score that one of the programs computes."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name, self._make = name.upper(), make

    def check(self) -> None:
        """Raises a UserError where Java or pycocoevalcap is not installed."""
        if not shutil.which("java"):
            raise UserError(f"{self._name} needs Java, which is not found: install a Java runtime, or leave it out.")
        if importlib.util.find_spec("pycocoevalcap") is None:
            raise UserError(f"{self._name} needs the extra `eval`: pip install pycocoevalcap, or leave it out.")

    def __call__(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
        """Returns the score of a set in [0, 1], of token lists as `scores` takes them.

        Raises:
          UserError: what `check` finds, or the program failed.
        """
        self.check()
        guesses = {i: [" ".join(tokens)] for i, tokens in enumerate(predictions)}
        targets = {i: [" ".join(tokens) for tokens in captions] for i, captions in enumerate(references)}
        try:
            return float(self._make().compute_score(targets, guesses)[0])
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            hint = " It fetches Stanford CoreNLP on its first use: is there a network?" if self is spice else ""
            raise UserError(f"{self._name}: the official program failed ({error}).{hint}") from None


meteor, spice = Jar("meteor", _meteor), Jar("spice", _spice)
