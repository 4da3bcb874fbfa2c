"""Files of published models are told by the shapes of their arrays, without weights."""

import argparse
import pathlib

import numpy as np
import pytest

from prismer_jax import models
from prismer_jax.models import conversion
from prismer_jax.models.blip2 import file_sizes
from prismer_jax.models.nanovlm import config_json
from prismer_jax.models.paligemma import conversion as paligemma
from prismer_jax.models.prismer import table as prismer
from prismer_jax.weights import rules, shapes


def state_of(name, variant, table=conversion.table_of):
    """Returns a state dict of a model whose arrays take no memory."""
    model = models.build(name, variant=variant)
    keys = rules.key_shapes(table(name, model), conversion.shapes_of(model))
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("pretrained_vitL", {"variant": "pretrained_vitL"}),
        ("caption_flant5xl", {"variant": "pretrained_flant5xl", "vision": {"image_size": 364}}),
        ("pretrained_opt6.7b", {"variant": "pretrained_opt6.7b"}),
    ],
)
def test_a_published_blip2_is_told_from_others(variant, fields):
    assert file_sizes.fields_of(state_of("blip2", variant), {}, "file") == fields


@pytest.mark.parametrize("variant", ["pt_448", "28b_pt_224"])
def test_a_published_paligemma_is_told_in_both_layouts(variant):
    args = argparse.Namespace(input=pathlib.Path("nowhere/file"), model={})
    official = state_of("paligemma", variant, lambda name, model: paligemma.official_table(model))
    assert paligemma._fields(official, args, official=True) == {"variant": variant}
    assert paligemma._fields(state_of("paligemma", variant), args, official=False) == {"variant": variant}


def test_a_published_nanovlm_and_prismer_are_told():
    known = shapes.here(state_of("nanovlm", "450m"), conversion.table_of("nanovlm", None))
    fields = config_json.fields_by_shapes(known, {}, pathlib.Path("file"))
    assert models.build("nanovlm", **fields).image_token == 49152
    assert (fields["shuffle"], fields["vision"]["heads"], fields["language"]["kv_heads"]) == (2, 12, 5)
    told = prismer.fields_by_shapes(state_of("prismer", "large"), {}, "file")
    assert told == {"variant": "large", "image_size": 34 * 14}
