"""Fine-tune on your own photos: copy this file and change what the comments point at.

    python -m prismer_jax.train --config transfers/forkme.py:data=my_photos --workdir runs/mine
    python -m prismer_jax.train --config transfers/forkme.py:data=my_photos,model=nanovlm,init=DIR --workdir runs/mine
    python -m prismer_jax.train --config transfers/forkme.py:data=my_photos,model=paligemma,init=DIR --workdir runs/mine
    python -m prismer_jax.train --config transfers/forkme.py:data=my_photos,model=blip2,init=DIR --workdir runs/mine

start from the quickstart's checkpoint, or a converted nanoVLM, PaliGemma or BLIP-2, and learn to caption photos of
a folder.
Arguments, as in forkme.py:data=my_photos,task=questions,init=runs/other:
  data: folder with captions_train.json (or .csv, .jsonl ...), captions_val.json and images/.
  task: captions, or questions: then of questions_train.json and questions_val.json.
  model: prismer, nanovlm, paligemma or blip2, the family of what is named in `init`.
  init: what to start from: a workdir, an export or what tools.convert has written.
  experts: whose label maps the model sees, by default those that it knows. What reads others starts from scratch.
  labels: folder of their label maps, LABELS/<expert>/<photo>.png; without them the experts see an empty map.
  smoke: a few steps from scratch on rendered scenes, to see that it works.
"""

import os

import jax
from ml_collections import ConfigDict

from configs import nanovlm, quickstart
from configs.blip2_stage1 import NO_DECAY
from prismer_jax import models, registry, tree
from prismer_jax.config import parse_arg
from prismer_jax.datasets import lists, miniature
from prismer_jax.errors import UserError, choose
from prismer_jax.models.blip2.conversion import tasks
from transfers import blip2_caption, paligemma

LENGTH, LABEL_SIZE = 48, 64  # tokens of a text that Prismer learns; pixels of a label map that PaliGemma sees
PROMPT = "Describe the image."  # what nanoVLM is asked for a caption


def get_config(arg=None):
    defaults = dict(data="my_photos", task="captions", model="prismer", init="", experts="", labels="")
    arg = parse_arg(arg, **defaults, smoke=False)
    captions = choose("task", arg.task, dict(captions=True, questions=False))

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 16 if arg.smoke else 32
    config.total_steps = 2 if arg.smoke else 200

    # The data. `lists` reads COCO captions, the official Prismer lists (captions or questions), VQAv2's files (with
    # annotations="...": their answers), JSON lines, and folders of photos with a .txt beside each: see
    # prismer_jax/datasets/formats/; `tars` and `records` are for more photos than a folder holds.
    of_lists = dict(name="lists", max_missing=0.01)  # of rows, those that may be left out; why is said
    splits = ("train", "val")
    train, held_out = (dict(of_lists, path=lists.in_folder(arg.data, f"{arg.task}_{split}")) for split in splits)
    if arg.model == "paligemma":  # or JSON lines of {image, prefix, suffix}, captions_train.jsonl
        train, held_out = (paligemma.listed(arg, arg.task, split, captions) for split in splits)
    if arg.labels:
        train["labels"] = held_out["labels"] = arg.labels
    if arg.smoke:
        train["path"], held_out["path"] = miniature.own(arg.task)

    # 'freeze_vision' keeps the vision transformer, but for the adaptors of Prismer's, 'freeze_lang' the language model,
    # as the paper does with pre-trained ones; regexes of your own work too.
    config.freeze = "freeze_lang_vision" if arg.model == "blip2" else "none"

    # What the model is, what it learns of an example (`learn`) and how it is asked (`pp`), how fast it learns.
    family = choose(
        "model", arg.model, dict(prismer=of_prismer, nanovlm=of_nanovlm, paligemma=of_paligemma, blip2=of_blip2)
    )
    learn, how = family(config, arg, captions)
    config.data = dict(mine=dict(**train, pp=learn))

    # How the result is used, by `python -m prismer_jax.caption` and by the evaluation.
    task, evaluator, metric = ("caption", "caption", "cider") if captions else ("question", "vqa", "accuracy")
    config.tasks = {task: dict(how)}
    shared = dict(data=held_out, train_data=train, batch_size=16)
    config.evals = {evaluator: dict(type=evaluator, **shared, **how.pop("decode"), **how)}
    config.log_steps = 1 if arg.smoke else 10
    config.save_steps = 50
    config.checkpoint = dict(keep=1, best_metric=f"{evaluator}/{metric}")
    config.report = dict(samples=12)
    config.profile = dict(first=0)  # 10: of the tenth step and the next four, for TensorBoard
    return config


def take(config, arg, start):
    """Takes the model and the tokenizer of a checkpoint; what reads experts that are new to it starts from scratch.

    Raises:
      UserError: it is of another family than `model` says.
    """
    if (family := models.name_of(start.model)) != arg.model:
        raise UserError(f"{config.init} is of the family {family}, not {arg.model}: say model={family}.")
    config.model, config.tokenizer = start.model, start.tokenizer
    if arg.experts:
        config.model = {**start.model.to_dict(), "experts": arg.experts}
        config.init_fresh = differences(start.model, config.model) if config.init else ()


def differences(old, new):
    """Returns regexes of the parameters that one of two models lacks or has otherwise, where their experts differ."""
    old, new = (
        tree.flatten(jax.eval_shape(models.build(**fields.to_dict()).init_variables, jax.random.key(0)))
        for fields in (old, new)
    )
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:  # these have rows of every expert
        names += [name for name in new if name in ("params/encoder/places/kernel", "params/labels/out/kernel")]
    modules = {"/".join(name.split("/")[:3]) for name in names}  # such as params/encoder/stem_depth
    return tuple(f"{module}(/.*)?" for module in sorted(modules))


def of_prismer(config, arg, captions):
    # Model, tokenizer and the way to look and to ask are those of the checkpoint.
    config.init = None if arg.smoke else arg.init or "runs/quickstart"
    trained = config.init is not None and os.path.exists(config.init)
    start = nanovlm.converted(config.init) if trained else quickstart.get_config()
    take(config, arg, start)
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, normalize="example")
    config.optim = dict(lr=1e-3, weight_decay=0.05, clip_norm=1.0, warmup_percent=10.0)
    config.accumulate = 1  # parts of a batch one after the other, where memory is short

    how = asked_for("caption" if captions else "question", config.init, start)
    if arg.experts:
        how["pp"] = nanovlm.other_ops(how["pp"], labels_for=f"labels_for({arg.experts!r})")
    # Augmentation sees the labels too. Leave `flip` out where texts say left or right.
    if "resize" not in ops_of(how["pp"]):
        raise UserError(
            f"{config.init}: its task looks by {how['pp']!r}, without `resize`: say in of_prismer how to crop."
        )
    crop = f"{nanovlm.spelled('random_resized_crop', *ops_of(how['pp'])['resize'])}|flip()"
    return nanovlm.other_ops(how["pp"], resize=crop, **texts(how, captions)), how


def asked_for(task, folder, start):
    """Returns how a checkpoint is asked for a caption, or a question; raises UserError where it does not say."""
    if task not in start.tasks:
        named = ", ".join(start.tasks) or "none"
        raise UserError(f"{folder}: its tasks are {named}, not {task}: say another task=, or init=.")
    return start.tasks[task].to_dict()


def ops_of(pp):
    return {name: (args, options) for name, args, options in registry.parse(pp)}


def texts(how, captions):
    """Returns the ops of whole texts, by the names of those with which a checkpoint is given the prompt alone."""
    args, options = ops_of(how["pp"]).get("caption_prompt", ((), {}))
    prefix, style = (*args, options.get("prefix", ""))[0], how.get("style", "plain")
    text = f"caption({prefix!r}, style={style!r})" if captions else f"question(style={style!r})"
    return dict(caption_prompt=text, question_prompt=text, tokenize=f"tokenize({LENGTH})")


def of_nanovlm(config, arg, captions):
    # Model, tokenizer and the way to look at a photo are those of the checkpoint.
    config.init = None if arg.smoke else arg.init or "models/nanovlm_222m"
    start = nanovlm.get_config("variant=460m_8k,smoke") if arg.smoke else nanovlm.converted(config.init)
    take(config, arg, start)
    config.model.experts = config.model.get("experts", "none")
    config.loss = dict(name="cross_entropy", label_smoothing=0.0, normalize="batch")
    config.optim = dict(lr=5e-5, weight_decay=0.01, clip_norm=1.0, warmup_percent=3.0)
    config.accumulate = 4  # parts of a batch one after the other; more where memory is short

    how = asked_for("caption" if captions else "question", config.init, start)
    asked = f"labels_for('{config.model.experts}')|{nanovlm.other_ops(how['pp'], labels_for='')}"
    if "ask" not in ops_of(asked):  # trained here from scratch, or on photos: it is asked as Prismer is
        return nanovlm.other_ops(asked, **texts(how, captions)), {**how, "pp": asked}
    learn = nanovlm.other_ops(asked, ask=f"turns({PROMPT!r})")
    decode = dict(method="greedy", max_new=40, prompt_length=0)
    return learn, dict(pp=nanovlm.other_ops(asked, ask=f"ask({PROMPT!r})"), decode=decode)


def of_paligemma(config, arg, captions):
    # Model, tokenizer and the way to look at a photo are those of the checkpoint; the settings are big_vision's for it.
    config.init = None if arg.smoke else arg.init or "models/3b_pt_224"
    start = paligemma.get_config("task=forkme,smoke") if arg.smoke else nanovlm.converted(config.init)
    take(config, arg, start)
    config.model.language = {**config.model.get("language", {}), "logit_cap": 0.0}
    config.model.remat = "full"
    config.model.experts = config.model.get("experts", "none")
    row = paligemma.settings("forkme", 224)
    paligemma.reference(config, row)
    if not arg.smoke:
        del config.total_steps
        config.total_epochs, config.batch_size = int(row["epochs"]), row["batch"]
    config.accumulate = 1  # parts of a batch one after the other, where memory is short

    size = models.build(**config.model.to_dict()).image_size
    look = f"labels_for('{config.model.experts}')|decode|stretch({size}, antialias=True, label_size={LABEL_SIZE})"
    affix = f"affix({paligemma.PREFIXES['caption' if captions else 'answer']!r}"  # a row's own prefix goes before it
    learn = f"{look}|{affix})|prefix_lm({row['tokens'] + 1})"
    asked = f"{look}|{affix}, learn=False)|prefix_lm({row['tokens']})"
    return learn, dict(pp=asked, decode=dict(method="greedy", max_new=row["tokens"]))


def of_blip2(config, arg, captions):
    # Model, tokenizer and the way to look and to ask are those of the checkpoint; the settings are LAVIS's for captions
    # at ten times its rate, as the queries alone train.
    config.init = None if arg.smoke else arg.init or "weights/blip2_opt2.7b"
    start = blip2_caption.get_config("smoke") if arg.smoke else nanovlm.converted(config.init)
    take(config, arg, start)
    model = models.build(**config.model.to_dict())
    if not model.language:
        raise UserError(
            f"{config.init}: is a BLIP-2 of stage 1, without a language model. Convert one with --language."
        )
    config.loss = dict(name="blip2_stage2")
    config.optim = dict(lr=1e-4, weight_decay=0.05, wd_mults=NO_DECAY, warmup_percent=10.0)
    config.frozen_dtype = "float32" if arg.smoke else "bfloat16"
    config.accumulate = 1  # parts of a batch one after the other, where memory is short

    how = tasks(model)["caption" if captions else "question"] | dict(style="blip")
    if arg.experts:
        how["pp"] = nanovlm.other_ops(how["pp"], labels_for=f"labels_for({arg.experts!r})")
    text = f"caption({blip2_caption.PROMPT!r}, style='blip')" if captions else "question(style='blip')"
    crop = f"random_resized_crop({model.image_size}, scale=(0.5, 1.0))|flip()"
    write = dict(tokenize=f"tokenize({LENGTH + 16})", seq2seq=f"seq2seq(32, {LENGTH})")
    return nanovlm.other_ops(how["pp"], resize=crop, caption_prompt=text, question_prompt=text, **write), how
