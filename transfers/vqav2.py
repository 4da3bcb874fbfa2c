"""Questions of VQAv2, with those of Visual Genome at a weight of 0.2, fine-tuned as in the paper at 480 pixels.

    python -m prismer_jax.train --config transfers/vqav2.py:size=base,init=runs/pretrain --workdir runs/vqa
    python -m prismer_jax.evaluate --config transfers/vqav2.py:padding=reference --checkpoint models/vqa_base

leave predictions/vqa.json, what the benchmark's server takes (both test-dev and test-std are in it). Arguments, as in
vqav2.py:size=large,split=val, are those of configs/common.py, and:
  split: 'test' trains on VQAv2's training and validation questions and answers those of the test; 'val' trains on the
    training questions and scores the validation ones here, from the benchmark's own files.
  inference: 'rank' chooses among the 3,128 answers of answer_list.json, 'generate' writes freely.
  padding: 'own': an answer depends on its question alone, as in this file's training; 'reference': also on the longest
    question of its batch, as official checkpoints were trained.

Sources: NVlabs/prismer, configs/vqa.yaml, train_vqa.py, dataset/vqa_dataset.py, model/prismer_vqa.py. See
docs/reproduce.md.
"""

from configs import common
from prismer_jax.errors import choose

QUESTION, LENGTH = 35, 50  # tokens of a question with <s>; of it with its answer and </s>
SPLITS = dict(test=("vqav2", "vqav2_test"), val=("vqav2_train2014", "vqav2_val2014"))  # to train on, to evaluate


def get_config(arg=None):
    arg = common.arguments(arg, split="test", inference="rank", padding="own")
    train, held_out = choose("split", arg.split, SPLITS)
    # The vision transformer is frozen but for its adaptors; the language model is trained.
    config = common.training(arg, batch_size=512, epochs=10, freeze="freeze_vision")

    # ---------------------------------------------------------------- data
    # The official list has one item an answer, whose loss weighs by how many annotators gave it; VQAv2's own files one
    # item a question, of which an answer is drawn as often. Visual Genome's items weigh 0.2.
    text = f"question(style='reference')|tokenize({60 if arg.smoke else LENGTH})"
    config.data = common.mixture(arg, (train, "vg_qa"), pp=f"{common.augment(arg)}|{text}")

    # ---------------------------------------------------------------- training
    config.optim = dict(
        name="adamw",
        lr=5e-5,
        weight_decay=0.05,
        schedule="cosine",
        stairs=10,  # set once an epoch; 0 decays with every step
        end_lr=0.0,
    )

    # ---------------------------------------------------------------- use
    generate = dict(method="beam", num_beams=3, length_penalty=-1.0, max_new=10, min_new=2, padding=arg.padding)
    rank = dict(method="rank", answers=f"{arg.data}/answer_list.json", k=16, padding=arg.padding)
    prompt = f"{common.look(arg)}|question_prompt(style='reference')|tokenize({QUESTION})"
    config.tasks = dict(question=dict(pp=prompt, style="reference", decode=generate))
    config.evals = dict(
        vqa=common.evaluator(
            arg,
            held_out,
            type="vqa",
            batch_size=512,
            pp=prompt,
            predict_only=arg.split == "test",
            blank=arg.split == "val",  # what it answers blindly costs as much again
            **choose("inference", arg.inference, dict(rank=rank, generate=generate)),
        )
    )

    if not arg.smoke:
        config.save_epochs = 1
    return config
