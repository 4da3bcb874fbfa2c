#!/usr/bin/env bash
# Every other layer of PaliGemma 2, as of Gemma 2, sees no further back than sliding_window columns, 4,096 of the
# published ones, which photos of 896 pixels and their texts exceed. transformers 4.57.1 hands its language model a mask
# of its own that knows no window: a forward pass, as in training and in scoring a given text, gives the same logits
# whatever the window is. Yet generate with its cache drops the keys of what lies further back than the window, so that
# a model is trained on one network and writes with another. Without the cache it writes as a third one: there the words
# that are written already see each other's future, also where the window never ends. transformers 5.24.0 minds the
# window in all of them, and writes the same with the cache and without. So a model that was tuned with the one and is
# used with the other changes. Seen with PyTorch 2.13.0. prismer_jax's window is that of training, scoring and decoding
# alike (prismer_jax/towers/causal_lm.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==4.57.1
"$folder/venv/bin/pip" install -q --disable-pip-version-check --target "$folder/later" transformers==5.24.0
cat > "$folder/run.py" <<'P'
import sys

import torch
import transformers
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

print("transformers", transformers.__version__, "torch", torch.__version__)
PLACE, IMAGE, PROMPT, ANSWER, SHORT, LONG = 63, 9, 4, 5, 5, 1000  # PLACE is the id of the image's places


def built(window):
    """Returns the same small PaliGemma 2 with a window of so many columns."""
    small = dict(num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=24)
    vision = dict(model_type="siglip_vision_model", patch_size=14, image_size=42, **small)
    text = dict(model_type="gemma2", head_dim=8, num_key_value_heads=1, vocab_size=64, sliding_window=window, **small)
    ids = dict(image_token_index=PLACE, image_token_id=PLACE)
    config = PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=16, hidden_size=16, **ids)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4)
    return model


torch.manual_seed(1)
photo = torch.randn(1, 3, 42, 42)
prompt = [PLACE] * IMAGE + list(range(3, 3 + PROMPT))
answer = list(range(20, 20 + ANSWER))


@torch.no_grad()
def taught(window):
    """Returns the logits [t v] of a given answer, as in training."""
    ids = torch.tensor([prompt + answer])
    types = torch.tensor([[0] * len(prompt) + [1] * ANSWER])
    more = dict(attention_mask=torch.ones_like(ids), token_type_ids=types, labels=ids.where(types > 0, -100))
    return built(window)(pixel_values=photo, input_ids=ids, **more).logits[0, len(prompt) :]


def written(window, cache):
    """Returns the logits [t v] of what it writes itself."""
    ids = torch.tensor([prompt])
    more = dict(attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids), use_cache=cache)
    more |= dict(max_new_tokens=ANSWER, min_new_tokens=ANSWER, output_logits=True, return_dict_in_generate=True)
    return torch.stack(built(window).generate(pixel_values=photo, input_ids=ids, do_sample=False, **more).logits)[:, 0]


def differ(one, other):
    return bool((one - other).abs().max() > 1e-3)


seen = {
    "a given answer's logits depend on the window": differ(taught(SHORT), taught(LONG)),
    "so do those of what it writes, with the cache": differ(written(SHORT, True), written(LONG, True)),
    "without the cache they are others, window 5": differ(written(SHORT, True), written(SHORT, False)),
    "without the cache they are others, window 1000": differ(written(LONG, True), written(LONG, False)),
}
for what, answer_to_it in seen.items():
    print(f"  {what}: {'yes' if answer_to_it else 'no'}")
expected = [False, True, True, True] if transformers.__version__ == "4.57.1" else [True, True, False, False]
if list(seen.values()) != expected:
    sys.exit("The behaviour has changed.")
P
"$folder/venv/bin/python" "$folder/run.py" 2>/dev/null
PYTHONPATH="$folder/later" "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null
echo "as told: the earlier one trains without the window and writes with it; the later one has it in both"
