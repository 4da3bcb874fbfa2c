"""Files of published models are told by the shapes of their arrays, without weights."""

import argparse
import json
import pathlib

import numpy as np
import pytest

from prismer_jax import models
from prismer_jax.errors import UserError
from prismer_jax.models import conversion, sizes
from prismer_jax.models.blip2 import file_sizes
from prismer_jax.models.nanovlm import config_json
from prismer_jax.models.paligemma import VARIANTS as PALIGEMMAS
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
    assert paligemma._fields(official, args, True, 257152) == {"variant": variant}
    theirs = state_of("paligemma", variant)
    assert paligemma._fields(theirs, args, False, 257152) == {"variant": variant}
    args.model = {"vision": {"heads": 16}, "language": {"heads": 8 if variant == "pt_448" else 32}}  # as it is
    assert paligemma._fields(theirs, args, False, 257152) == {"variant": variant}


def test_words_that_pad_a_published_table_make_no_other_model(tmp_path):
    """transformers has 257,216 rows, the last 64 of which no word has: the converter cuts them."""
    eyes = dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=27, patch_size=14)
    text = dict(model_type="gemma", hidden_size=2048, intermediate_size=16384, num_attention_heads=8)
    text |= dict(num_hidden_layers=18, num_key_value_heads=1, vocab_size=257216)
    config = dict(model_type="paligemma", vision_config=eyes, text_config=text)
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = argparse.Namespace(input=tmp_path, model={})
    assert paligemma._fields({}, args, False, 257152) == {"variant": "pt_224"}


def test_heads_that_are_read_or_given_keep_a_published_towers_other_settings():
    """28B's queries are not scaled by the channels of a head."""
    known = shapes.here(state_of("paligemma", "28b_pt_224"), conversion.table_of("paligemma", None))
    published = sizes.published(PALIGEMMAS, "language")
    read = sizes.of_part(sizes.causal_lm, known, "language", {"heads": 32}, published, "file")
    assert read["query_scale"] == PALIGEMMAS["28b_pt_224"]["language"]["query_scale"]
    other = sizes.of_part(sizes.causal_lm, known, "language", {"heads": 16}, published, "file")
    assert (other["heads"], other["head_dim"], "query_scale" in other) == (16, 256, False)


@pytest.mark.parametrize("read", [sizes.vit, sizes.causal_lm])
def test_heads_that_do_not_share_the_channels_are_refused(read):
    known = shapes.here(state_of("paligemma", "tiny"), conversion.table_of("paligemma", None))
    part = "vision" if read is sizes.vit else "language"
    for heads in (5, 0, True, "3"):
        with pytest.raises(UserError, match=f"has not {heads!r} heads"):
            sizes.of_part(read, known, part, {"heads": heads}, [], "file")


def test_a_published_nanovlm_and_prismer_are_told():
    known = shapes.here(state_of("nanovlm", "450m"), conversion.table_of("nanovlm", None))
    fields = config_json.fields_by_shapes(known, {}, pathlib.Path("file"))
    assert models.build("nanovlm", **fields).image_token == 49152
    assert (fields["shuffle"], fields["vision"]["heads"], fields["language"]["kv_heads"]) == (2, 12, 5)
    told = prismer.fields_by_shapes(state_of("prismer", "large"), {}, "file")
    assert told == {"variant": "large", "image_size": 34 * 14}
