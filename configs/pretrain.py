"""Pretraining as in the paper: captions of CC12M, CC3M + SBU, COCO and Visual Genome, at 224 pixels.

    python -m prismer_jax.train --config configs/pretrain.py:size=base,init=models/start --workdir runs/pretrain

Arguments, as in pretrain.py:size=large,experts=depth+edge:
  size: base, large or huge.
  experts: all, none (PrismerZ), or some, such as depth+edge.
  res: pixels of a photo's side.
  data: folder of lists, photos and labels, or of finished data sets; see prismer_jax/datasets/paper.py.
  sets: those of the four that are there, as in coco+vg.
  init: an untrained model of this size with CLIP's and RoBERTa's weights in it, made by python -m tools.convert
    backbone --variant prismer_base --resolution 224 --vision FILE --text FILE --output models/start
  tokenizer: folder of RoBERTa's vocab.json and merges.txt.
  smoke: all of it in less than a minute, on a dozen rendered scenes, to see that it works.

Sources: NVlabs/prismer, configs/pretrain.yaml, train_pretrain.py, dataset/pretrain_dataset.py. docs/reproduce.md has
the whole way to the paper's numbers, and lists what differs from the reference.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, paper

LENGTH = 30  # tokens of a caption, <s> and </s> among them


def get_config(arg=None):
    arg = parse_arg(
        arg,
        size="base",
        experts="all",
        res=224,
        data="datasets",
        sets="cc12m+cc3m_sgu+coco+vg",
        init="models/start",
        tokenizer="weights/tokenizer",
        smoke=False,
    )
    if arg.smoke:
        arg.size, arg.res, arg.data = "tiny", 64, miniature.folder()
    labels = 64 if arg.smoke else 224  # pixels of label maps, whatever the photo's

    config = ConfigDict()
    config.seed = 42
    config.num_workers = 0 if arg.smoke else 8
    config.batch_size = 8 if arg.smoke else 1024
    if arg.smoke:
        config.total_steps = 2
    else:
        config.total_epochs = 20  # an epoch has every caption once, not every photo

    # ---------------------------------------------------------------- data: the sets as if they were one
    config.tokenizer = "scenes" if arg.smoke else f"roberta:{arg.tokenizer}"
    look = f"labels_for('{arg.experts}')|decode|resize({arg.res}, {labels})"
    # flip(normals='reference') mirrors normals without turning them, as the reference does.
    augment = (
        f"labels_for('{arg.experts}')|decode|random_resized_crop({arg.res}, {labels}, scale=(0.5, 1.5))"
        "|flip()|randaugment(2, 5)"
    )
    # No prefix; prefix=None keeps a caption's capital, as in pretraining only.
    text = f"caption(prefix=None, style='reference')|tokenize({60 if arg.smoke else LENGTH})"
    config.data = {
        name: dict(**paper.find(arg.data, name, arg.experts), pp=f"{augment}|{text}", weight="size")
        for name in paper.choose_sets(arg.data, arg.sets)
    }

    # ---------------------------------------------------------------- model
    config.model = dict(name="prismer", variant=arg.size, experts=arg.experts, image_size=arg.res)
    config.init = None if arg.smoke else arg.init
    if arg.smoke:
        config.model.decoder = dict(vocab_size=640)
    else:
        config.model.dtype = "bfloat16"  # the reference: fp16 with a scaled loss; float32 is slower and safe anywhere
        config.model.remat = "dots"
    config.freeze = (
        "freeze_lang_vision"  # adaptors, cross-attention, stems, resampler, embeddings and norms are trained
    )

    # ---------------------------------------------------------------- training
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, per_token=False)  # summed over a caption's tokens
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
    config.accumulate = 1  # parts of a batch one after the other; BatchNorm of the stems sees each part alone
    # Data-parallel; --config.mesh.fsdp=8 shares parameters and optimiser state among 8 devices.
    config.mesh = dict(data=-1, fsdp=1)
    config.sharding = [(".*", "fsdp")]

    # ---------------------------------------------------------------- use: zero-shot captions, without a prefix
    decode = dict(method="beam", num_beams=3, max_new=19, min_new=7)  # 20 and 8 with <s>
    prompt = f"{look}|caption_prompt()|tokenize(3)"
    config.tasks = dict(caption=dict(pp=prompt, style="reference", decode=decode))
    config.evals = dict()
    if "coco" in config.data:
        config.evals.zeroshot = dict(
            type="caption",
            data=paper.find(arg.data, "coco_test", arg.experts),
            pp=prompt,
            style="reference",
            batch_size=8 if arg.smoke else 256,
            **decode,
        )

    # ---------------------------------------------------------------- what is watched and kept
    config.log_steps = 1 if arg.smoke else 50
    if not arg.smoke:
        config.save_epochs = 1
        config.evaluate_epochs = 5
    config.checkpoint = dict(keep=1)
    config.report = dict(samples=4 if arg.smoke else 12)
    return config
