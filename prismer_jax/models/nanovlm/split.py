"""How nanoVLM is split over the axis tensor of a mesh: by heads, by columns of MLPs and by the words."""

from __future__ import annotations

from prismer_jax.models.nanovlm.model import NanoVLM


def tensor_rules(model: NanoVLM) -> list[tuple[str, str]]:
    """Returns rules of `sharding.presets`. SmolLM2-135M has 9 heads of queries, 3 of keys: tensor=3 fits it."""
    heads, groups = model.language["heads"], model.language["kv_heads"]
    vision = model.vision["heads"]
    return [
        ("vision/blocks/attention/(query|key|value)/(kernel|bias)", f"tensor(axis=-1, units={vision})"),
        ("vision/blocks/attention/out/kernel", f"tensor(axis=-2, units={vision})"),
        ("vision/blocks/mlp/up/(kernel|bias)", "tensor(axis=-1)"),
        ("vision/blocks/mlp/down/kernel", "tensor(axis=-2)"),
        ("language/blocks/(key|value)/kernel", f"tensor(axis=-1, units={groups})"),
        ("language/blocks/query/kernel", f"tensor(axis=-1, units={heads})"),
        ("language/blocks/out/kernel", f"tensor(axis=-2, units={heads})"),
        ("language/blocks/(gate|up)/kernel", "tensor(axis=-1)"),
        ("language/blocks/down/kernel", "tensor(axis=-2)"),
        ("language/word_embedding", "tensor(axis=-2)"),
    ]
