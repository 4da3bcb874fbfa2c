"""Pretraining as in the paper: captions of CC12M, CC3M + SBU, COCO and Visual Genome, at 224 pixels.

    python -m prismer_jax.train --config configs/pretrain.py:size=base,init=models/start --workdir runs/pretrain

Arguments, as in pretrain.py:size=large,experts=depth+edge, are those of configs/common.py, and:
  sets: those of the four that are there, as in coco+vg.
  init: an untrained model of this size with CLIP's and RoBERTa's weights in it, made by python -m tools.convert
    backbone --variant prismer_base --resolution 224 --vision FILE --text FILE --output models/start

Sources: NVlabs/prismer, configs/pretrain.yaml, train_pretrain.py, dataset/pretrain_dataset.py. docs/reproduce.md has
the whole way to the paper's numbers, and lists what differs from the reference.
"""

from configs import common
from prismer_jax.datasets import paper

LENGTH = 30  # tokens of a caption, <s> and </s> among them


def get_config(arg=None):
    arg = common.arguments(arg, res=224, init="models/start", sets="cc12m+cc3m_sgu+coco+vg")
    # Adaptors, cross-attention, stems, resampler, embeddings and norms are trained.
    config = common.training(arg, batch_size=1024, epochs=20, freeze="freeze_lang_vision")

    # ---------------------------------------------------------------- data
    # No prefix; prefix=None keeps a caption's capital, as in pretraining only.
    text = f"caption(prefix=None, style='reference')|tokenize({60 if arg.smoke else LENGTH})"
    names = paper.choose_sets(arg.data, arg.sets)
    config.data = common.mixture(arg, names, pp=f"{common.augment(arg, largest=1.5)}|{text}")

    # ---------------------------------------------------------------- training
    config.optim = dict(
        name="adamw",  # decays biases and norms too; wd_mults=[('.*(bias|scale)', 0.0)] would spare them
        lr=3e-4 if arg.size in ("base", "tiny") else 1e-4,  # huge: nothing published, large's
        weight_decay=0.05,
        schedule="cosine",
        stairs=20,  # set once an epoch; 0 decays with every step, from the end of the warm-up on
        start_lr=1e-6,
        end_lr=1e-6,
        warmup_steps=1 if arg.smoke else 2000,
    )

    # ---------------------------------------------------------------- use: zero-shot captions, without a prefix
    decode = dict(method="beam", num_beams=3, max_new=19, min_new=7)  # 20 and 8 with <s>
    prompt = f"{common.look(arg)}|caption_prompt()|tokenize(3)"
    config.tasks = dict(caption=dict(pp=prompt, style="reference", decode=decode))
    config.evals = dict()
    if "coco" in config.data:
        config.evals.zeroshot = common.evaluator(arg, "coco_test", type="caption", pp=prompt, **decode)

    if not arg.smoke:
        config.save_epochs = 1
        config.evaluate_epochs = 5
    return config
