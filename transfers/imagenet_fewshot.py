"""Few-shot ImageNet as in the paper: fine-tuned on k photos of each class, classified by ranking the classes' names.

    python -m prismer_jax.train --config transfers/imagenet_fewshot.py:shots=4,init=runs/pretrain --workdir runs/shots4

Arguments, as in imagenet_fewshot.py:size=large,shots=16,seed=1, are those of configs/common.py, and:
  shots: photos of each class to learn from: 1, 2, 4, 8, 16, 20 ...
  seed: of the draw of these photos, and of the training. The photos of fewer shots are among those of more.
  data: folder with imagenet_train/<wnid>/*.JPEG to learn from, imagenet/<wnid>/*.JPEG to be classified,
    imagenet/imagenet_answer.json (the names), imagenet/imagenet_class.json ({wnid: index}), and labels.

Sources: NVlabs/prismer, configs/classification.yaml, train_classification.py, dataset/classification_dataset.py. See
docs/reproduce.md.
"""

import os

from configs import common
from prismer_jax.datasets import paper

LENGTH = 30  # tokens of a prompt and a name, <s> and </s> among them
PREFIX, PREFIX_TOKENS = "A photo of a", 5  # RoBERTa's, with <s>


def get_config(arg=None):
    arg = common.arguments(arg, res=384, shots=1, seed=42)
    # The vision transformer is frozen but for its adaptors; the language model is trained.
    config = common.training(arg, batch_size=64, epochs=20, freeze="freeze_vision", seed=arg.seed)

    # ---------------------------------------------------------------- data
    names = f"{arg.data}/imagenet/imagenet_answer.json"

    def photos(folder, **options):
        labels = paper.labels_of(arg.data, folder, arg.experts, needed=os.path.isdir(f"{arg.data}/{folder}"))
        indices = f"{arg.data}/imagenet/imagenet_class.json"
        return dict(name="fewshot", path=f"{arg.data}/{folder}", names=names, indices=indices, **labels, **options)

    text = f"caption('{PREFIX}')|tokenize({LENGTH})"
    train = photos("imagenet_train", shots=arg.shots, seed=arg.seed)
    config.data = dict(imagenet=dict(**train, pp=f"{common.augment(arg)}|{text}"))

    # ---------------------------------------------------------------- training
    config.optim = dict(name="adamw", lr=5e-5, weight_decay=0.05, schedule="cosine", end_lr=0.0)  # no warm-up

    # ---------------------------------------------------------------- use
    prompt = f"{common.look(arg)}|caption_prompt('{PREFIX}')|tokenize({16 if arg.smoke else PREFIX_TOKENS})"
    decode = dict(method="beam", num_beams=3, max_new=15)
    config.tasks = dict(caption=dict(pp=prompt, style="reference", decode=decode))
    config.evals = dict(
        imagenet=dict(
            type="classification",
            # The reference augments the photos that it classifies (scale_size, train=True); here they are resized only.
            data=photos("imagenet"),
            pp=prompt,
            classes=names,
            k=32,
            style="reference",
            batch_size=8 if arg.smoke else 256,
        )
    )

    # ---------------------------------------------------------------- what is watched and kept
    config.log_steps = 1 if arg.smoke else 10
    if not arg.smoke:
        config.save_epochs = config.evaluate_epochs = 5  # the best of these is kept, as in the reference
    config.checkpoint.best_metric = "imagenet/accuracy"
    return config
