"""Questions of VQAv2, with those of Visual Genome at a weight of 0.2, fine-tuned as in the paper at 480 pixels.

    python -m prismer_jax.train --config transfers/vqav2.py:size=base,init=runs/pretrain --workdir runs/vqa
    python -m prismer_jax.evaluate --config transfers/vqav2.py:padding=reference --checkpoint models/vqa_base

leave predictions/vqa.json, what the benchmark's server takes (both test-dev and test-std are in it). Arguments, as in
vqav2.py:size=large,split=val:
  size: base, large or huge.
  experts: all, none (PrismerZ), or some, such as depth+edge.
  res: pixels of a photo's side.
  data: folder of lists, photos and labels, or of finished data sets; see prismer_jax/datasets/paper.py.
  init: the pretrained model: a workdir, or a converted checkpoint. Its positions are resized to `res`.
  split: 'test' trains on VQAv2's training and validation questions and answers those of the test; 'val' trains on the
    training questions and scores the validation ones here, from the benchmark's own files.
  inference: 'rank' chooses among the 3,128 answers of answer_list.json, 'generate' writes freely.
  padding: 'own': an answer depends on its question alone, as in this file's training; 'reference': also on the longest
    question of its batch, as official checkpoints were trained.
  tokenizer: folder of RoBERTa's vocab.json and merges.txt.
  smoke: all of it in less than a minute, on a dozen rendered scenes, to see that it works.

Sources: NVlabs/prismer, configs/vqa.yaml, train_vqa.py, dataset/vqa_dataset.py, model/prismer_vqa.py. See
docs/reproduce.md.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, paper
from prismer_jax.errors import choose

QUESTION, LENGTH = 35, 50  # tokens of a question with <s>; of it with its answer and </s>


def get_config(arg=None):
    arg = parse_arg(
        arg,
        size="base",
        experts="all",
        res=480,
        data="datasets",
        init="runs/pretrain",
        split="test",
        inference="rank",
        padding="own",
        tokenizer="weights/tokenizer",
        smoke=False,
    )
    if arg.smoke:
        arg.size, arg.res, arg.data = "tiny", 64, miniature.folder()
    labels = 64 if arg.smoke else 224  # pixels of label maps, whatever the photo's
    train, held_out = choose(
        "split", arg.split, dict(test=("vqav2", "vqav2_test"), val=("vqav2_train2014", "vqav2_val2014"))
    )

    config = ConfigDict()
    config.seed = 42
    config.num_workers = 0 if arg.smoke else 8
    config.batch_size = 8 if arg.smoke else 512
    if arg.smoke:
        config.total_steps = 2
    else:
        config.total_epochs = 10

    # ---------------------------------------------------------------- data: both sets as if they were one
    config.tokenizer = "scenes" if arg.smoke else f"roberta:{arg.tokenizer}"
    look = f"labels_for('{arg.experts}')|decode|resize({arg.res}, {labels})"
    # flip(normals='reference') mirrors normals without turning them, as the reference does.
    augment = (
        f"labels_for('{arg.experts}')|decode|random_resized_crop({arg.res}, {labels}, scale=(0.5, 1.0))"
        "|flip()|randaugment(2, 5)"
    )
    # The official list has one item an answer, whose loss weighs by how many annotators gave it; VQAv2's own files one
    # item a question, of which an answer is drawn as often. Visual Genome's items weigh 0.2.
    text = f"question(style='reference')|tokenize({60 if arg.smoke else LENGTH})"
    config.data = {
        name: dict(**paper.find(arg.data, name, arg.experts), pp=f"{augment}|{text}", weight="size")
        for name in (train, "vg_qa")
    }

    # ---------------------------------------------------------------- model
    config.model = dict(name="prismer", variant=arg.size, experts=arg.experts, image_size=arg.res)
    config.init = None if arg.smoke else arg.init
    if arg.smoke:
        config.model.decoder = dict(vocab_size=640)
    else:
        config.model.dtype = "bfloat16"  # the reference: fp16 with a scaled loss
        config.model.remat = "dots"
    config.freeze = "freeze_vision"  # but for its adaptors; the language model is trained

    # ---------------------------------------------------------------- training
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, per_token=False)  # summed over an answer's tokens
    config.optim = dict(
        name="adamw",
        lr=5e-5,
        weight_decay=0.05,
        schedule="cosine",
        stairs=10,  # set once an epoch; 0 decays with every step
        end_lr=0.0,
    )
    config.accumulate = 1  # parts of a batch one after the other, where memory is short
    config.mesh = dict(data=-1, fsdp=1)  # --config.mesh.fsdp=8 shares parameters among 8 devices
    config.sharding = [(".*", "fsdp")]

    # ---------------------------------------------------------------- use
    generate = dict(method="beam", num_beams=3, length_penalty=-1.0, max_new=10, min_new=2, padding=arg.padding)
    rank = dict(method="rank", answers=f"{arg.data}/answer_list.json", k=16, padding=arg.padding)
    prompt = f"{look}|question_prompt(style='reference')|tokenize({QUESTION})"
    config.tasks = dict(question=dict(pp=prompt, style="reference", decode=generate))
    config.evals = dict(
        vqa=dict(
            type="vqa",
            data=paper.find(arg.data, held_out, arg.experts),
            pp=prompt,
            style="reference",
            batch_size=8 if arg.smoke else 512,
            blank=arg.split == "val",  # what it answers blindly costs as much again
            **choose("inference", arg.inference, dict(rank=rank, generate=generate)),
        )
    )

    # ---------------------------------------------------------------- what is watched and kept
    config.log_steps = 1 if arg.smoke else 50
    if not arg.smoke:
        config.save_epochs = 1
    config.checkpoint = dict(keep=1)
    config.report = dict(samples=4 if arg.smoke else 12)
    return config
