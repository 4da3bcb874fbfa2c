"""config.json of transformers' models becomes the fields of ours, also of sizes that nobody published."""

import pathlib

import pytest

from prismer_jax.errors import UserError
from prismer_jax.models import blip2, hugging_face, paligemma
from prismer_jax.models.blip2 import config_json as of_blip2
from prismer_jax.models.paligemma import config_json as of_paligemma

HERE = pathlib.Path("config.json")
EYES = dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=27, patch_size=14)
GEMMA = dict(model_type="gemma", hidden_size=2048, intermediate_size=16384, num_attention_heads=8)
GEMMA |= dict(num_hidden_layers=18, num_key_value_heads=1, vocab_size=257152)
GEMMA2 = dict(model_type="gemma2", hidden_size=4608, num_hidden_layers=46, num_attention_heads=32, head_dim=128)
GEMMA2 |= dict(num_key_value_heads=16, intermediate_size=36864, query_pre_attn_scalar=144, vocab_size=257152)


@pytest.mark.parametrize(
    ("text", "size", "variant"),
    [(GEMMA, {}, "pt_224"), (GEMMA, dict(image_size=448), "pt_448"), (GEMMA2, {}, "28b_pt_224")],
)
def test_a_published_paligemma_is_its_variant(text, size, variant):
    """Their files leave out transformers' defaults."""
    fields = of_paligemma.fields_of(dict(vision_config=EYES | size, text_config=text), HERE)
    assert fields == {"variant": variant}


def test_a_scale_of_queries_by_a_heads_channels_is_not_the_variants():
    fields = of_paligemma.fields_of(
        dict(vision_config=EYES, text_config=GEMMA2 | dict(query_pre_attn_scalar=128)), HERE
    )
    model = paligemma.build(**fields)
    assert (model.language["layers"], model.language.get("query_scale")) == (46, None)


def test_a_paligemma_of_other_sizes_is_another_model_with_the_settings_of_its_gemma():
    own = dict(hidden_size=96, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=24)
    own |= dict(model_type="gemma2", intermediate_size=100, vocab_size=99, sliding_window=512)
    own |= dict(final_logit_softcapping=None, rope_parameters=dict(rope_theta=5000.0, rope_type="default"))
    eyes = dict(hidden_size=48, intermediate_size=50, num_attention_heads=3, num_hidden_layers=4)
    model = paligemma.build(**of_paligemma.fields_of(dict(vision_config=eyes, text_config=own), HERE))
    expected = dict(width=96, heads=6, kv_heads=2, head_dim=24, window=512, logit_cap=0.0, attention_cap=50.0)
    assert dict(model.language).items() >= (expected | dict(rope_base=5000.0, post_norms=True, norm_offset=1.0)).items()
    assert model.language["query_scale"] == 256**-0.5  # transformers' default, not of this head's channels
    assert (model.vision["patch_size"], model.vision["heads"], model.image_size) == (16, 3, 224)
    assert of_paligemma.fields_of(of_paligemma.of(model), HERE) == of_paligemma.fields_of(
        dict(vision_config=eyes, text_config=own), HERE
    )


def test_a_blip2_is_its_variant_or_of_its_own_sizes():
    opt = dict(model_type="opt", hidden_size=2560, num_hidden_layers=32, num_attention_heads=32, ffn_dim=10240)
    assert of_blip2.fields_of(dict(text_config=opt | dict(word_embed_proj_dim=2560)), HERE) == {
        "variant": "pretrained_opt2.7b"
    }
    t5 = dict(model_type="t5", d_model=40, d_kv=8, num_heads=5, num_layers=3, d_ff=72, vocab_size=96)
    t5 |= dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    reader = dict(hidden_size=28, num_hidden_layers=6, num_attention_heads=7, cross_attention_frequency=3)
    config = dict(vision_config=dict(image_size=364), qformer_config=reader, text_config=t5, num_query_tokens=5)
    model = blip2.build(**of_blip2.fields_of(config, HERE))
    expected = dict(tower="t5", width=40, heads=5, head_dim=8, decoder_layers=3, activation="gelu_tanh")
    assert dict(model.language).items() >= expected.items()
    assert (
        dict(model.qformer).items() >= dict(width=28, layers=6, heads=7, cross_every=3, queries=5, mlp_dim=3072).items()
    )
    assert dict(model.vision).items() >= dict(image_size=364, width=1408, key_bias=False).items()


T5 = dict(model_type="t5", d_model=40, feed_forward_proj="gated-gelu", tie_word_embeddings=False)


@pytest.mark.parametrize(("given", "gate"), [({}, "gelu_tanh"), (dict(dense_act_fn="gelu"), "gelu")])
def test_the_gate_of_a_t5_is_what_its_config_says_and_comes_back(given, gate):
    """FlanT5 alone has gelu_new, BLIP-2's files have gelu: T5Config of transformers 4.57.1, configuration_t5.py."""
    fields = of_blip2.fields_of(dict(text_config=T5 | given), HERE)
    model = blip2.build(**fields)
    assert model.language.get("activation", "gelu") == gate
    config = of_blip2.of(model)
    assert config["text_config"]["dense_act_fn"] == {"gelu_tanh": "gelu_new"}.get(gate, gate)
    assert of_blip2.fields_of(config, HERE) == fields
    with pytest.raises(UserError, match="dense_act_fn is 'relu'; only models with 'gelu' or 'gelu_new' are"):
        of_blip2.fields_of(dict(text_config=T5 | dict(dense_act_fn="relu")), HERE)


def test_a_t5_whose_head_is_its_own_is_told_as_both_versions_of_transformers_say_it():
    """T5Config of transformers 5.24.0 writes tie_word_embeddings=True always, and scale_decoder_outputs beside it."""
    for tied, scaled in ((False, None), (True, False)):
        told = dict(tie_word_embeddings=tied) | ({} if scaled is None else dict(scale_decoder_outputs=scaled))
        assert hugging_face.language(T5 | told, ("t5",), HERE)["tower"] == "t5"
    for told in (dict(tie_word_embeddings=True), dict(tie_word_embeddings=True, scale_decoder_outputs=True)):
        with pytest.raises(UserError, match="tie_word_embeddings is True; only models with False"):
            hugging_face.language(T5 | told, ("t5",), HERE)


@pytest.mark.parametrize(
    ("variant", "image", "text"),
    [
        ("pretrained_opt2.7b", 50265, dict(word_embed_proj_dim=2560, eos_token_id=50118)),
        ("pretrained_flant5xl", 32100, dict(dense_act_fn="gelu", bos_token_id=1, decoder_start_token_id=0)),
        ("tiny", 95, dict(vocab_size=96)),
    ],
)
def test_a_blip2_says_which_token_stands_for_a_query_and_what_begins_and_ends_texts(variant, image, text):
    """Without image_token_index, Blip2ForConditionalGeneration of transformers 4.57.1 fails on every input."""
    config = of_blip2.of(blip2.build(variant))
    assert config["image_token_index"] == image
    assert config["text_config"].items() >= text.items()


def test_what_a_config_of_a_blip2_does_not_say_is_named():
    words = dict(tower="llama", width=24, layers=1, heads=4, kv_heads=2, mlp_dim=48, vocab_size=50)
    assert of_blip2.lost(blip2.build("tiny", language=words)) == []
    gemma = words | dict(activation="gelu_tanh", norm_offset=1.0, word_scale=5.0)
    names = of_blip2.lost(blip2.build("tiny", language=gemma, vision=dict(activation="gelu_tanh")))
    assert names == ["vision.activation", "language.activation", "language.norm_offset", "language.word_scale"]


OPT = dict(model_type="opt", hidden_size=32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(model_type="llama", hidden_act="gelu"), "hidden_act is 'gelu'; only models with 'silu'"),
        (GEMMA | dict(hidden_act="gelu"), "hidden_act is 'gelu'; only models with 'gelu_pytorch_tanh'"),
        (OPT | dict(layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine is False"),
        (OPT | dict(_remove_final_layer_norm=True), "_remove_final_layer_norm is True"),
        (OPT | dict(tie_word_embeddings=False), "tie_word_embeddings is False"),
    ],
)
def test_a_language_model_that_computes_something_else_is_refused(config, message):
    """Settings that modeling_{llama,gemma,opt}.py of transformers 4.57.1 read, and towers have not."""
    with pytest.raises(UserError, match=f"^config.json: {message}"):
        hugging_face.language(config, (config["model_type"],), HERE)


def test_an_older_name_of_gemmas_activation_gives_way_to_the_newer():
    new = dict(hidden_act="gelu", hidden_activation="gelu_pytorch_tanh")
    assert hugging_face.language(GEMMA | new, ("gemma",), HERE) == hugging_face.language(GEMMA, ("gemma",), HERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(text_config=OPT | dict(word_embed_proj_dim=16)), "word_embed_proj_dim is 16; only models with 32"),
        (dict(qformer_config=dict(position_embedding_type="relative_key")), "only models with 'absolute'"),
    ],
)
def test_a_blip2_that_transformers_misreads_or_has_not_here_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        of_blip2.fields_of(change, HERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_size="96"), "hidden_size is '96', which is no size"),
        (dict(hidden_size=True), "hidden_size is True, which is no size"),
        (dict(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, which is no size"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
        (dict(head_dim=2.5), "head_dim is 2.5"),
        (dict(rope_parameters=[1]), r"rope_parameters is \[1\], which is no table of settings"),
        (dict(model_type="mamba"), "holds a model of type 'mamba'; one of gemma, gemma2 may be used"),
        (dict(model_type=["gemma"]), r"holds a model of type \['gemma'\]"),
        (dict(attention_bias=True), "attention_bias is True; only models with False are converted"),
        (dict(rope_scaling={"factor": 8}), "rope_scaling is .*; only models with null are converted"),
    ],
)
def test_what_is_no_setting_is_one_line(change, message):
    with pytest.raises(UserError, match=f"^config.json: .*{message}"):
        hugging_face.language(GEMMA | change, ("gemma", "gemma2"), HERE)


@pytest.mark.parametrize(("window", "expected"), [(None, 0), (4096, 0), (16, 16)])
def test_a_window_is_read_where_it_is_narrower_than_the_published(window, expected):
    config = GEMMA2 | dict(sliding_window=window, query_pre_attn_scalar=144.0)
    assert hugging_face.language(config, ("gemma2",), HERE).get("window", 0) == expected
    if expected:
        with pytest.raises(UserError, match="layer_types is"):
            hugging_face.language(config | dict(layer_types=["full_attention"] * 46), ("gemma2",), HERE)


def test_a_config_of_something_else_beside_a_file_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert hugging_face.beside(tmp_path / "model.safetensors", "paligemma")[0] == {}
    for text, message in (("[1]", "is no table of settings"), ("{", "is not JSON"), ("[" * 9999, "is not JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            hugging_face.beside(tmp_path)
