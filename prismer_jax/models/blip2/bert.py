"""What stage 1 begins with: a Q-Former that is a BERT, with queries, cross-attention and heads that are new.

BERT's embeddings, layers and head are taken over, each feed-forward network twice: for texts and for queries
(salesforce/LAVIS, models/blip2_models/blip2_qformer.py and Qformer.py). A Q-Former's texts have one segment, and no
embedding of it: BERT's segment embeddings are left out, as are its pooler and its head for the next sentence.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.blip2.table import EMBEDDINGS, HEAD, table
from prismer_jax.weights import modules, rules

WORDS, _BIAS = f"{EMBEDDINGS}.word_embeddings.weight", f"{HEAD}.bias"
_LAYER = "Qformer.bert.encoder.layer"
_FEED_FORWARD = re.compile(rf"({_LAYER}\.\d+\.(?:intermediate|output))\.")
_KEYS = rules.Table(  # transformers, models/bert/modeling_bert.py: BertForPreTraining; a BertModel's have no `bert.`
    rules=(),
    spellings=(*modules.OLD_NORMS, (r"^(?=(embeddings|encoder|pooler)\.)", "bert."), (r"^", "Qformer.")),
    ignored=(
        rf"{EMBEDDINGS}\.token_type_.*",
        r"Qformer\.(bert\.pooler|cls\.(seq_relationship|predictions\.decoder))\..*",
    ),
)
_FRESH = (
    r"params/(temperature|(norm_vision|project_image|project_text|match_head)/.*"
    r"|qformer/(query_tokens|blocks/.*/(cross_attention|norm_cross)/.*))"
)
_LONGER = {WORDS: "params/qformer/word_embedding", _BIAS: "params/qformer/head_bias"}  # by [DEC], the last word


def read(state: rules.State, where: str) -> dict[str, np.ndarray]:
    """Returns the state dict of a BERT under LAVIS's names; what a Q-Former has beside it is missing.

    Raises:
      UserError: it is no BERT, or one without the head that writes; `where` names the file.
    """
    spelled = _KEYS.spell(state, where)
    if WORDS not in spelled or spelled[WORDS].ndim != 2:
        raise UserError(
            f"{where}: holds no queries, nor a BERT: it is no file of BLIP-2's. Give one such as blip2_pretrained.pth, "
            "or a folder of bert-base-uncased, which stage 1 begins with."
        )
    if _BIAS not in spelled:
        raise UserError(
            f"{where}: is a BERT without cls.predictions, the head that writes: give a folder of bert-base-uncased as "
            "it was published."
        )
    queries = {_FEED_FORWARD.sub(r"\1_query.", key): x for key, x in spelled.items() if _FEED_FORWARD.match(key)}
    return spelled | queries


def completed(state: rules.State, model: Any, seed: int, where: str) -> dict[str, np.ndarray]:
    """Returns the state dict of a whole Q-Former and its heads: what `read` left missing has the model's first values.

    Raises:
      UserError: the BERT is of another size than the model's Q-Former; `where` names the file.
    """
    layers = [x for key, x in state.items() if re.fullmatch(rf"{_LAYER}\.\d+\.attention\.self\.query\.weight", key)]
    reader, width = model.qformer, next((x.shape[-1] for x in layers), 0)
    sizes = {"layers": (len(layers), reader["layers"]), "width": (width, reader["width"])}
    if WORDS in state:
        sizes["words"] = (len(state[WORDS]), reader["vocab_size"] - 1)
    if wrong := [f"{name} {own} instead of {expected}" for name, (own, expected) in sizes.items() if own != expected]:
        raise UserError(
            f"{where}: is a BERT of another size than the Q-Former ({', '.join(wrong)}): give a folder of "
            "bert-base-uncased."
        )
    names = [name for name in conversion.shapes_of(model) if re.fullmatch(_FRESH, name) or name in _LONGER.values()]
    values = conversion.initial_values(model, names, seed)
    longer = {
        key: np.concatenate([state[key], values.pop(name)[-1:]]) for key, name in _LONGER.items() if name in values
    }
    return {**state, **rules.to_torch(values, table(model)), **longer}
