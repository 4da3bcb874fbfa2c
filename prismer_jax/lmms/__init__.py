"""Checkpoints of this project as a model of lmms-eval, EvolvingLMMs-Lab's harness of benchmarks.

    pip install "prismer_jax[lmms]"
    python -m lmms_eval --model prismer_jax --model_args checkpoint=DIR,wording=nanovlm --tasks mmstar --batch_size 16

lmms-eval finds `manifest` by the entry point that setup.py names.
"""

from typing import Any


def manifest() -> Any:
    """Returns what lmms-eval registers. The model itself, and jax, are imported when they are asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="prismer_jax", simple_class_path="prismer_jax.lmms.adapter.PrismerJax")
