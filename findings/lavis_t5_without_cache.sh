#!/usr/bin/env bash
# LAVIS 1.0.2 takes transformers 4.25 and 4.26, and brings a T5 of its own for BLIP-2 with FlanT5. With 4.25.1 it writes
# as is expected: each step reads the newest token and what is kept of those before. With 4.26.1, which pip chooses,
# generation hands the kept keys and values over by another name, which LAVIS's T5 takes for something unknown and
# ignores: they are still made and returned at each step, use_cache is still true, the tokens are the same, and nothing
# is said, but every step reads the whole text again. The T5 of transformers itself, with the same weights, does not.
# So a time that is measured of LAVIS's captions is of a decoder without a cache (docs/blip2.md). Python 3.11 is the
# newest that these tokenizers have wheels for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -q --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==1.26.4 tokenizers==0.13.3 transformers==4.26.1
"${pip[@]}" --no-deps salesforce-lavis==1.0.2
"${pip[@]}" --no-deps --target "$folder/older" transformers==4.25.1
cat > "$folder/steps.py" <<'P'
import importlib.metadata
import importlib.util
import sys

import torch
import transformers

# The file alone: the rest of LAVIS needs many packages that its T5 does not.
(path,) = (f.locate() for f in importlib.metadata.files("salesforce-lavis") if f.name == "modeling_t5.py")
spec = importlib.util.spec_from_file_location("modeling_t5", path)
lavis = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lavis)
config = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
config.decoder_start_token_id, config.eos_token_id = 0, 99
torch.manual_seed(0)
models = {"LAVIS": lavis.T5ForConditionalGeneration(config), "transformers": transformers.T5ForConditionalGeneration(config)}
models["transformers"].load_state_dict(models["LAVIS"].state_dict())
print(f"salesforce-lavis 1.0.2, transformers {transformers.__version__}, torch {torch.__version__}")
tokens, texts = {}, {}
for name, model in models.items():
    read = tokens[name] = []
    hook = lambda module, args, kwargs, read=read: read.append(kwargs["input_ids"].shape[1])
    model.eval().decoder.register_forward_pre_hook(hook, with_kwargs=True)
    texts[name] = model.generate(torch.arange(2, 8)[None], max_length=8, min_length=8, use_cache=True).tolist()
    print(f"tokens that the T5 of {name} reads, step by step: {read}")
alone, whole = [1] * 7, [1, 2, 3, 4, 5, 6, 7]
expected = whole if transformers.__version__ == "4.26.1" else alone
same = texts["LAVIS"] == texts["transformers"]
sys.exit(0 if same and tokens == {"LAVIS": expected, "transformers": alone} else "The behaviour has changed.")
P
PYTHONPATH="$folder/older" "$folder/venv/bin/python" "$folder/steps.py"
"$folder/venv/bin/python" "$folder/steps.py"
