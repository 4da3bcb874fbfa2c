"""Preprocessing: what happens to one example between its files and the batch. NumPy only, so it runs in any worker."""

from prismer_jax.pp import image, labels, pack, text, tokenizer
from prismer_jax.pp.ops import OPS, Example, Op, Pipeline, register

__all__ = ["OPS", "Example", "Op", "Pipeline", "build", "image", "labels", "pack", "register", "text", "tokenizer"]


def build(spec: str, tokenizer=None) -> Pipeline:
    """Returns the ops that a string chains, such as "decode|resize(96)|caption(prefix='A picture of')|tokenize(32)".

    Raises:
      UserError: an op is unknown, or its arguments do not fit; the message says the nearest name or the signature.
    """
    return Pipeline(spec, tokenizer)
