"""nanoVLM: a ViT, a projector and a small language model.

    python -m prismer_jax.train --config configs/nanovlm.py:scenes --workdir runs/nanovlm_scenes
    python -m prismer_jax.train --config configs/nanovlm.py:variant=460m_8k,data=finevision --workdir runs/nanovlm

Arguments, as in nanovlm.py:scenes,experts=none:
  scenes: from scratch on rendered scenes, in minutes on a laptop, with the data and the evaluators of the quickstart.
  experts: whose label maps are added to the image's tokens; 'all' by default, 'none' for nanoVLM as it is.
  smoke: all of it in less than a minute, to see that it works.

On real photos, from weights that `tools.convert nanovlm --vision X.onnx --language Y.gguf --image-size 224 --shuffle 2
--extra-tokens 0 --match-words DATA/captions_train.json` has put together (docs/nanovlm.md):
  photos: learn to caption.
  stage: 'attention', the projector and the attention of the language model; or 'projector', it alone.
  data: a folder of captions_train.json, captions_test.json and images.

The published trainings: variant=222m (the Cauldron), 450m, 230m_8k or 460m_8k (FineVision); and with these:
  data, val: JSON lines or Parquet, files or folders, of conversations (datasets/conversations.py), and held-out ones.
  mmstar: a list of multiple-choice questions (datasets/choices.py), asked while it trains; the best at them is kept.
  init: what `tools.convert nanovlm --vision FOLDER --language FOLDER` has written, with its tokenizer.
  reference: rows, grids of tiles and positions as the original has them; by default rows are full, and the samples in
    one do not see each other.

Sources: huggingface/nanoVLM, models/config.py, data/datasets.py (MMStar's wording, at v0.1) and train.py.
"""

from ml_collections import ConfigDict

from configs import quickstart
from prismer_jax import checkpoint, models, registry
from prismer_jax.config import parse_arg
from prismer_jax.datasets import miniature, scenes
from prismer_jax.errors import UserError, choose
from prismer_jax.pp.tokenizer import load_from

# v0.1, v0.2 and HEAD: tile and longest side in pixels, tokens of a tile and of a row, tokenizer's words for images.
# The HEAD recipe has 8 parts of 2 rows; those before it have one sample a row.
_V01 = dict(tile=224, side=224, tokens=49, length=79, style="answer", extra=0)
_V02 = dict(tile=256, side=256, tokens=64, length=512, style="answer", extra=1)
_HEAD = dict(tile=512, side=2048, tokens=64, length=4096, style="chat", extra=66)
_STEPS = dict(lr=0.00512, backbones=5e-5, batch=16, accumulate=8, clip=1.0, total=dict(total_steps=40_000))
RECIPES = {
    "222m": dict(_V01, lr=2e-3, backbones=1e-4, batch=256, accumulate=1, clip=None, total=dict(total_epochs=5)),
    "450m": dict(_V02, lr=3e-3, backbones=5e-5, batch=128, accumulate=4, clip=1.0, total=dict(total_epochs=5)),
    "230m_8k": dict(_HEAD, **_STEPS),
    "460m_8k": dict(_HEAD, **_STEPS),
}
EVALUATE = {"222m": 250}  # steps between two evaluations; the others' are 500
LETTER = "Answer only with the letter!"
LONGEST = 512  # tokens of a question with its options, beside those of the photo


def get_config(arg=None):
    defaults = dict(scenes=True, variant="", data="data", val="", mmstar="", init="weights/start", reference=False)
    arg = parse_arg(arg, **defaults, photos=False, stage="attention", experts="all", smoke=False)
    return published(arg) if arg.variant else on_photos(arg) if arg.photos else on_scenes(arg)


def on_scenes(arg):
    config = quickstart.get_config(f"experts={arg.experts},places=False,smoke={arg.smoke}")
    config.model = dict(
        name="nanovlm",
        variant="tiny",
        vision=dict(image_size=quickstart.SIZE, patch_size=16, width=96, layers=3, heads=4, mlp_dim=384),
        language=dict(width=96, layers=4, heads=4, kv_heads=2, mlp_dim=256, vocab_size=640, initializer_range=0.06),
        shuffle=1,  # 36 tokens, one a patch: four times as many patches would take three times as long
        image_token=None,
        experts=arg.experts,
        stem_width=96,
        classes=dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES),
    )
    return config


# What is trained, at which rate, for how long.
STAGES = {
    "projector": dict(freeze="freeze_lang_vision", lr=1e-3, total_steps=100),
    "attention": dict(freeze="freeze_all_but_attention", lr=2e-4, total_steps=300),
}


def on_photos(arg):
    stage = choose("stage", arg.stage, STAGES)
    model = checkpoint.description(arg.init).get("model", {})
    if model.get("name") != "nanovlm" or (built := models.build(**model)).image_token is not None:
        raise UserError(f"{arg.init}: no nanoVLM with images in front of texts; convert with --extra-tokens 0.")

    config = ConfigDict()
    config.seed = 0
    config.num_workers = 0
    config.batch_size = 8
    config.total_steps = 2 if arg.smoke else stage["total_steps"]

    # ---------------------------------------------------------------- data: a photo and all its captions in a row
    few = dict(limit=8) if arg.smoke else {}
    train, test = (
        dict(name="lists", path=f"{arg.data}/captions_{split}.json", task="caption", **few)
        for split in ("train", "test")
    )
    look, texts = f"decode|tiles({built.image_size}, method='bilinear')", "pack(80, of='captions')"
    config.tokenizer = f"tokenizers:{arg.init}"
    config.data = dict(captions=dict(**train, features=look, pp=texts))  # what `look` shows the encoder is kept on disk

    # ---------------------------------------------------------------- model and training
    # 800 photos are learnt by heart: dropout and smoothing are worth a tenth of CIDEr, and a blank photo says less.
    config.model = {**model, "language": {**model["language"], "dropout": 0.1}}
    config.init = arg.init
    config.freeze = stage["freeze"]
    config.loss = dict(name="cross_entropy", label_smoothing=0.1, normalize="batch")
    config.optim = dict(name="adamw", lr=stage["lr"], b2=0.95, warmup_percent=5.0, weight_decay=0.0, clip_norm=1.0)
    config.mesh = dict(data=-1, fsdp=1)

    # ---------------------------------------------------------------- use, and what is watched and kept
    decode = dict(method="beam", num_beams=3, max_new=24)
    config.tasks = dict(caption=dict(pp=f"{look}|caption_prompt()|tokenize(3)", decode=decode))
    told = dict(type="caption", data=test, train_data=train, pp=config.tasks.caption.pp, batch_size=8, **decode)
    own = dict(type="own_photo", data=test, pp=f"{look}|{texts}", batch_size=8)
    config.evals = dict(caption=told, own_photo=own)
    config.log_steps = 1 if arg.smoke else 10
    config.save_steps = 25
    config.checkpoint = dict(keep=1)
    config.report = dict(samples=12)
    config.profile = dict(first=0)  # 10: of the tenth step and the next four, for TensorBoard
    return config


def published(arg):
    recipe = dict(choose("variant", arg.variant, RECIPES))
    model = dict(name="nanovlm", variant=arg.variant, dtype="bfloat16", remat="dots")
    if arg.smoke:
        arg.data, arg.init = miniature.talks(recipe["extra"])
        arg.val = arg.data
        recipe |= dict(tile=32, side=64 if recipe["side"] > recipe["tile"] else 32, tokens=4, length=400)
        recipe |= dict(batch=2 * recipe["accumulate"], total=dict(total_steps=2))
        model = dict(name="nanovlm", variant="tiny")
        if not recipe["extra"]:
            model["image_token"] = None

    config = ConfigDict(recipe["total"])
    config.seed = 42
    config.num_workers = 0 if arg.smoke else 8
    config.batch_size, config.accumulate = recipe["batch"], recipe["accumulate"]

    # ---------------------------------------------------------------- data
    packs, length, tile = recipe["extra"] == 66, recipe["length"], recipe["tile"]
    most = length // recipe["tokens"] if packs else 1  # a row of nothing but tiles
    method = "bicubic" if packs else "bilinear"
    look = f"decode|tiles({tile}, {recipe['side']}, {{most}}, method='{method}', reference={arg.reference})"
    text = f"chat({{length}}, {recipe['tokens']}, style='{recipe['style']}')"
    pp = f"{look}|turns()|{text}".format(most=most, length=length)
    config.tokenizer = f"tokenizers:{arg.init}"
    # Texts that do not fit are left out before training, and counted; so are texts of low ratings, where it is told to:
    # relevance=2, image_correspondence=2, visual_dependency=2, formatting=2.
    pack = dict(length=length, most=most, how="single")
    if packs:
        how = dict(how="reference", row_photos=18) if arg.reference else dict(how="filled", row_photos=None)
        pack |= dict(how, photos=4, seed=config.seed)
    talks = dict(name="conversations", path=arg.data, limit=None, relevance=1, formatting=1)
    config.data = dict(talks=dict(**talks, image_correspondence=1, visual_dependency=1, pp=pp, pack=pack))

    # ---------------------------------------------------------------- model and training
    config.model = dict(**model, positions="column" if arg.reference else "token")
    config.init = None if arg.smoke else arg.init
    config.freeze = "none"
    config.loss = dict(name="cross_entropy", label_smoothing=0.0, normalize="part")  # the mean of the parts' means
    share = recipe["backbones"] / recipe["lr"]
    config.optim = dict(
        name="adamw",
        lr=recipe["lr"],  # of the projector
        lr_mults=[("vision/.*", share), ("language/.*", share)],
        end_lr=0.1 * recipe["lr"],
        warmup_share=0.03,
        warmup_from=1,
        weight_decay=0.01,  # of everything, norms and embeddings too
        clip_norm=recipe["clip"],
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.distributed = None  # True: several processes, found through the cluster
    config.sharding = "replicated"

    # ---------------------------------------------------------------- use, and what is watched and kept
    one = 1 + (recipe["side"] // tile) ** 2 if packs else 1  # tiles of a photo
    prompt = text.format(length=min(length, one * (recipe["tokens"] + 20) + 128))
    show = look.format(most=one)
    decode = dict(method="greedy", max_new=4 if arg.smoke else 100, prompt_length=0)
    config.tasks = {task: dict(pp=f"{show}|ask()|{prompt}", decode=decode) for task in ("caption", "question")}
    config.evals = {}
    if arg.val:
        loss = dict(type="loss", loss_options=dict(label_smoothing=0.0, normalize="batch"), pp=pp, batch_size=2)
        config.evals.loss = dict(loss, data=dict(name="conversations", path=arg.val, limit=16 if arg.smoke else 2000))
    if arg.mmstar:
        method = "reference" if arg.reference else "greedy"
        config.evals.mmstar = multiple_choice(config.tasks.question.pp, arg.mmstar, method)
    config.log_steps = 1 if arg.smoke else 50
    config.evaluate_steps = config.save_steps = EVALUATE.get(arg.variant, 500)
    lowest = dict(best_metric="loss/loss", best_mode="min") if arg.val else {}
    best = dict(best_metric="mmstar/accuracy") if arg.mmstar else lowest
    config.checkpoint = dict(keep=1, **best)
    return config


def converted(folder):
    """Returns the sections `model`, `tokenizer` and `tasks` of a converted or trained model."""
    description = checkpoint.description(folder)
    if missing := {"model", "tokenizer", "tasks"} - description.keys():
        raise UserError(f"{folder}: its config.json says nothing of {', '.join(sorted(missing))}. Convert it again.")
    tokenizer = description["tokenizer"]
    if tokenizer != "scenes":  # its files lie beside the model
        tokenizer = load_from(description["folder"], tokenizer).spec
    return ConfigDict(dict(model=description["model"], tokenizer=tokenizer, tasks=description["tasks"]))


def multiple_choice(pp, path, method="greedy"):
    """Returns an evaluator's section that asks questions with options as the original (v0.1) asks those of MMStar.

    `pp` is the chain of ops with which the model is asked a question, `path` the list, `method` that of
    evaluators/choice.py.
    """
    args, options = next((args, options) for name, args, options in registry.parse(pp) if name == "chat")
    wording = f"{{question}}\n{LETTER}"
    if options.get("style") == "answer":
        options, wording = options | dict(style="plain"), f"Question: {{question}} \n{LETTER} \nAnswer:"
    chat = spelled("chat", (args[0] + LONGEST, *args[1:]), options)
    pp = other_ops(pp, ask=f"ask(wording={wording!r})", chat=chat)
    data = dict(name="choices", path=path, letters="ABCD")  # letters of questions that do not list theirs
    return dict(type="choice", data=data, pp=pp, batch_size=8, method=method)


def other_ops(pp, **ops):
    """Returns a chain of ops in which other calls stand for those named, {name: call}; '' leaves one out."""
    return "|".join(filter(None, (ops.get(call[0], spelled(*call)) for call in registry.parse(pp))))


def spelled(name, args, options):
    """Returns the call of an op as it is written in a chain."""
    return f"{name}({', '.join([*map(repr, args), *(f'{key}={value!r}' for key, value in options.items())])})"
