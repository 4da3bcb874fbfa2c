"""How BLIP-2 is split over the axis tensor of a mesh: by heads, by columns of MLPs and by the words."""

from __future__ import annotations

from prismer_jax.models.blip2.base import Blip2Base


def tensor_rules(model: Blip2Base) -> list[tuple[str, str]]:
    """Returns rules of `sharding.presets`. ViT-g's 16 heads and OPT's 32 are even in number, the Q-Former's 12 too."""
    rules = []
    for part, tower in (("vision", model.vision), ("qformer", model.qformer), ("language", model.language)):
        if not tower:
            continue
        heads, groups = tower["heads"], tower.get("kv_heads", tower["heads"])
        # T5 has two stacks of blocks, whose layers are called self_query, cross_query ...
        blocks = f"{part}/(blocks|encoder|decoder)/"
        attention = f"{blocks}(.*attention/|self_|cross_)?"
        rules += [
            (f"{attention}query/(kernel|bias)", f"tensor(axis=-1, units={heads})"),
            (f"{attention}(key|value)/(kernel|bias)", f"tensor(axis=-1, units={groups})"),
            (f"{attention}out/kernel", f"tensor(axis=-2, units={heads})"),
            (rf"{blocks}(.*mlp\w*/up|gate|up)/(kernel|bias)", "tensor(axis=-1)"),
            (rf"{blocks}(.*mlp\w*/)?down/kernel", "tensor(axis=-2)"),
        ]
    head = [("language/head/kernel", "tensor(axis=-1)")] if "decoder_layers" in model.language else []
    return [*rules, *head, (f"{'language' if model.language else 'qformer'}/word_embedding", "tensor(axis=-2)")]
