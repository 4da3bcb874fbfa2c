#!/usr/bin/env bash
# An OPT may have words that are narrower than its states (word_embed_proj_dim below hidden_size, as facebook/opt-350m),
# and transformers' BLIP-2 takes such an OPT without a word. But it projects what the image says to the width of the
# states and fills it into the places of the image among the words, number after number (masked_scatter): narrow rows,
# wide values. So a query is spread over several places, and the last queries never arrive: what is written does not
# depend on them. With words as wide as the states it depends on all. Seen with transformers 4.57.1 and 5.24.0.
# prismer_jax neither writes nor reads such a folder (models/blip2/config_json.py; models/hugging_face_test.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==${TRANSFORMERS:-5.24.0}"
"$folder/venv/bin/python" - <<'P' 2>/dev/null
import torch
import transformers
from transformers import Blip2Config, Blip2ForConditionalGeneration

print("transformers", transformers.__version__, "torch", torch.__version__)
QUERIES, WIDTH, PLACE = 4, 32, 63  # PLACE is the id of the image's places
small = dict(num_hidden_layers=1, num_attention_heads=2)
vision = dict(hidden_size=WIDTH, intermediate_size=40, patch_size=7, image_size=14, **small)
reader = dict(hidden_size=24, intermediate_size=44, encoder_hidden_size=WIDTH, **small)
ids = torch.tensor([[PLACE] * QUERIES + [3, 5, 7]])


@torch.no_grad()
def seen(word_width):
    """Returns which queries change the logits when their features become others."""
    torch.manual_seed(0)
    text = dict(model_type="opt", hidden_size=WIDTH, ffn_dim=40, vocab_size=64, word_embed_proj_dim=word_width, **small)
    config = Blip2Config(
        vision_config=vision,
        qformer_config=reader,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=PLACE,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.4)
    photo, others = torch.randn(1, 3, 14, 14), torch.randn(QUERIES, WIDTH)

    def logits(query=None):
        def change(module, inputs, output):
            output = output.clone()
            if query is not None:
                output[:, query] += others[query]
            return output

        hook = model.language_projection.register_forward_hook(change)
        result = model(pixel_values=photo, input_ids=ids).logits[:, QUERIES:]
        hook.remove()
        return result

    unchanged = logits()
    return [query for query in range(QUERIES) if not torch.equal(logits(query), unchanged)]


wide, narrow = seen(WIDTH), seen(WIDTH // 2)
print(f"words as wide as states: queries {wide} of {QUERIES} are seen; half as wide: {narrow}")
assert wide == [0, 1, 2, 3] and narrow == [0, 1], "The behaviour has changed."
P
