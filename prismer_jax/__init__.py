"""Vision-language models that learn from expert models, in JAX: `prismer_jax.load(checkpoint).caption("photo.jpg")`."""

import importlib

from prismer_jax import programs

programs.prepare()

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> object:  # PEP 562: a program waits for no more than it needs; __init__.pyi has the types
    if name not in ("Captioner", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("prismer_jax.captioner"), name)
