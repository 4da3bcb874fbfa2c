"""How Prismer is split over the axis tensor of a mesh: by heads, by columns of MLPs and by the decoder's words."""

from __future__ import annotations

from prismer_jax.models.prismer.model import Prismer


def tensor_rules(model: Prismer) -> list[tuple[str, str]]:
    """Returns rules of `prismer_jax.sharding.presets`: query, key, value, `up` by outputs, what follows by its inputs.

    Stems, norms and tables stay whole. RoBERTa's 50265 words are odd in number: 5 and 3 divide them, but 2 does not.
    """
    rules = []
    for part, heads in (
        ("encoder/blocks", model.heads),
        ("encoder/resampler", model.resampler_heads),
        ("decoder", model.decoder["heads"]),
    ):
        if part.startswith("encoder/resampler") and not model.experts:
            continue
        rules += [
            (rf"{part}/.*(query|key|value)/(kernel|bias)", f"tensor(axis=-1, units={heads})"),
            (rf"{part}/.*attention/out/kernel", f"tensor(axis=-2, units={heads})"),
            (rf"{part}/.*up/(kernel|bias)", "tensor(axis=-1)"),
            (rf"{part}/.*down/kernel", "tensor(axis=-2)"),
        ]
    return [*rules, ("decoder/word_embedding", "tensor(axis=-2)"), ("decoder/head_bias", "tensor(axis=-1)")]
