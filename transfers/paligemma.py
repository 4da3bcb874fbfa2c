"""PaliGemma 1 and 2 fine-tuned to the tasks of its paper, with the published settings.

    python -m prismer_jax.train --config transfers/paligemma.py:task=cococap,res=448 --workdir runs/cococap
    python -m prismer_jax.train --config transfers/paligemma.py:task=docvqa,res=896,size=3b --workdir runs/docvqa
    python -m prismer_jax.train --config transfers/paligemma.py:t4,data=my_photos --workdir runs/mine
    python -m prismer_jax.evaluate --config transfers/paligemma.py:task=pope --checkpoint runs/vqav2

Arguments:
  task: a row of the table below.
  res: pixels of a photo's side: 224, 448, 896, or another multiple of 14, to which positions are interpolated.
  size: '1' is PaliGemma 1; '3b', '10b' and '28b' are PaliGemma 2, for which no settings are published.
  data: the folder of TASK_train.jsonl and TASK_val.jsonl, rows of {image, prefix, suffix} or what the prefix is made
    of, or of TASK_train.json and TASK_val.json, lists of any layout (prismer_jax/datasets/pairs.py); of refcoco_seg
    these are lists of objects (prismer_jax/datasets/formats/objects.py).
  on: another NAME of files NAME_SPLIT to evaluate on, as on=nocaps with task=cococap.
  split: which of them, 'val' by default.
  prefix: another template than the table's.
  init: what tools.convert paligemma has written, models/pt_448 or models/3b_pt_448 by default; its tokenizer, too,
    and for refcoco_seg the codec of masks, mask_codec.npz.
  experts: whose label maps are added to the image's tokens, 'none' by default; they change nothing at first.
  labels: the folder of these maps, LABELS/<expert>/<photo>.png; refcoco_seg has none.
  freeze: what is not trained, instead of the table's: 'experts_only' trains what reads the maps alone.
  t4: captions on a GPU of 16 GB: the attention of Gemma alone is trained, in float32, all else is float16.
  l4: captions, the published recipe for a GPU of 24 GB: everything is trained, by gradient descent without a memory. It
    takes 29 GiB by XLA's count on a CPU; t4 and lora fit.
  lora: adapters of Gemma and of SigLIP's queries, keys and values alone are trained, beside bfloat16 (docs/lora.md).
  qlora: the same beside kernels in four bits.
  smoke: two steps of a tiny model on rendered scenes, to see that it works.

Sources: google-research/big_vision at 0127fb6, configs/proj/paligemma/transfers/*.py (`sweep_best`, what the released
transfers were trained with) and finetune_paligemma.ipynb (t4). See docs/paligemma.md.
"""

from ml_collections import ConfigDict

from prismer_jax.config import parse_arg
from prismer_jax.datasets import conversations, lists, miniature
from prismer_jax.errors import UserError, choose
from prismer_jax.models.paligemma import NOT_DECAYED
from prismer_jax.models.paligemma.model import VOCABULARY
from prismer_jax.pp import location_tokens

# `decay` is not multiplied by the rate; `epochs` may be examples (x) or steps (s); `tokens` are those of a text. Photos
# that are not `smooth` are made smaller without averaging. What a `score` counts, prismer_jax/scores/answers.py says.
TABLE = """
task            res         rate decay epochs   batch smoothing dropout frozen tokens prefix   photos score
activitynet_cap 224         1e-5 1e-6  1        128   0         0       vision 64     caption  video  caption
activitynet_qa  224         1e-5 1e-6  1        128   0         0       none   64     answer   video  exact
ai2d            224+448     1e-5 1e-6  10       256   0         0       none   128    choose   smooth exact
aokvqa_da       224+448     5e-6 0     10       128   0         0       none   32     answer   smooth agreed
aokvqa_mc       224+448     5e-6 0     15       128   0         0       none   128    choose   smooth exact
chartqa         224+448     1e-5 1e-6  30       256   0.2       0.1     none   48     plain    smooth relaxed
coco35l         224+448     1e-5 1e-6  2832175x 256   0         0       none   32     language sharp  caption
cococap         224+448     1e-5 1e-6  5        256   0         0       none   32     caption  sharp  caption
docvqa          224+448+896 1e-5 1e-6  10       256   0         0       none   32     plain    smooth anls
gqa             224         1e-5 0     1        256   0         0       none   32     answer   sharp  exact
gqa             448         1e-5 0     1        256   0         0       vision 32     answer   sharp  exact
infovqa         224         1e-5 1e-6  3        256   0.4       0       none   48     answer   smooth anls
infovqa         448         1e-5 1e-6  3        128   0.4       0       none   48     answer   smooth anls
infovqa         896         3e-6 3e-7  3        32    0.4       0       none   48     answer   smooth anls
msrvtt_cap      224         1e-5 0     20       128   0         0       vision 32     caption  video  caption
msrvtt_qa       224         1e-5 0     1        128   0         0       vision 64     answer   video  exact
msvd_qa         224         3e-6 3e-7  1        128   0         0       none   64     answer   video  exact
nlvr2           224         1e-5 1e-6  3        256   0         0       none   64     answer   sharp  exact
nlvr2           448         3e-6 3e-7  10       256   0         0       none   64     answer   sharp  exact
ocrvqa          224+448     3e-6 0     3        128   0         0       none   32     answer   smooth exact
ocrvqa          896         1e-5 0     3        128   0         0       none   32     answer   smooth exact
okvqa           224+448     5e-6 0     10       128   0         0       none   32     answer   smooth agreed
refcoco_seg     224         3e-5 0     100      256   0.3       0.1     none   48     plain    sharp  masks
refcoco_seg     448         1e-5 0     100      256   0.3       0       none   48     plain    sharp  masks
refcoco_seg     896         1e-5 0     100      64    0.3       0       none   48     plain    sharp  masks
rsvqa_hr        224+448     1e-5 0     1        256   0         0       none   32     answer   smooth exact
rsvqa_lr        224+448     3e-6 0     3        256   0.2       0       none   32     answer   smooth exact
scicap          224+448     3e-5 0     80       256   0.1       0.1     none   96     caption  sharp  caption
science_qa      224+448     1e-5 0     20       128   0         0       vision 512    science  sharp  letter
screen2words    224+448     1e-5 0     10       256   0.2       0.3     none   24     caption  sharp  caption
stvqa           224         1e-5 1e-6  3        256   0.1       0       none   48     answer   smooth anls
stvqa           448         1e-5 1e-6  3        128   0.1       0       none   48     answer   smooth anls
stvqa           896         3e-6 3e-7  3        32    0.1       0       none   48     answer   smooth anls
tallyqa         224         1e-5 0     2        256   0         0       none   32     answer   smooth count
tallyqa         448         1e-5 1e-6  2        256   0         0       none   32     answer   smooth count
tallyqa         896         7e-6 7e-7  2        256   0         0       none   32     answer   smooth count
textcaps        224+448     1e-5 1e-6  5        256   0         0       none   32     caption  sharp  caption
textvqa         224         3e-6 0     5        256   0         0       none   32     answer   smooth vqa
textvqa         448         3e-6 3e-7  10       256   0         0       none   32     answer   smooth vqa
textvqa         896         3e-6 0     10       256   0         0       none   32     answer   smooth vqa
vatex_cap       224         3e-6 3e-7  10       128   0         0       none   64     caption  video  caption
vizwizvqa       224+448     1e-5 0     10       256   0         0       none   48     answer   smooth agreed
vqav2           224         1e-5 1e-6  10       256   0         0       none   32     answer   smooth vqa
vqav2           448         1e-5 0     10       256   0         0       none   32     answer   smooth vqa
widgetcap       224+448     3e-6 3e-7  4        64    0.1       0.1     none   32     caption  smooth caption
forkme          224         1e-5 3e-7  15       32    0         0       none   128    caption  smooth caption
t4              224         3e-2 0     64s      8     0         0       attend 127    caption  smooth caption
l4              224         1e-1 0     1        4     0         0       none   128    caption  smooth caption
mmvp            224         0    0     0s       256   0         0       none   128    answer   smooth pairs
pope            224         0    0     0s       256   0         0       none   48     plain    sharp  yes_no
"""
PREFIXES = dict(
    answer="answer en {question}",
    caption="caption en",
    choose="answer en  {question} choose from: {choices}",
    language="caption {language}",
    plain="{question}",
    science="Question: {question}\nContext: {hint}\nOptions: {choices}\nAnswer:",
)
FROZEN = dict(none="none", vision="freeze_vision", attend="attention_only")
ADAPTED = "language/blocks/.*|vision/blocks/attention/(query|key|value)/.*"
FRAMES = dict(nlvr2=2, msvd_qa=8)  # those of other videos are 16
BEAMS = dict(cococap=2, textcaps=3)  # other texts are written greedily
OUTLINED = ("widgetcap",)  # `bbox` of a row is drawn on the photo
LEARN_LOWER = ("infovqa", "rsvqa_hr", "rsvqa_lr", "stvqa", "t4", "textcaps")
SCORE_LOWER = ("chartqa", "docvqa", "infovqa", "ocrvqa", "rsvqa_hr", "rsvqa_lr", "stvqa")
SIZES = {"1": "", "3b": "3b_", "10b": "10b_", "28b": "28b_"}
RELEASED = (224, 448, 896)
LABELS = 64  # pixels of a label map's side


def settings(task, res):
    """Returns the row of a task at a resolution: as published, or that of the nearest one below, or the lowest."""
    names, *rows = (line.split() for line in TABLE.strip().splitlines())
    rows = [dict(zip(names, row, strict=True)) for row in rows]
    mine = choose("task", task, {row["task"]: [one for one in rows if one["task"] == row["task"]] for row in rows})
    by_size = {int(size): row for row in mine for size in row["res"].split("+")}
    row = by_size[max((size for size in by_size if size <= res), default=min(by_size))]
    texts = {key: row[key] for key in ("task", "epochs", "frozen", "prefix", "photos", "score")}
    whole = {key: int(row[key]) for key in ("batch", "tokens")}
    return texts | whole | {key: float(row[key]) for key in ("rate", "decay", "smoothing", "dropout")}


def get_config(arg=None):
    own = dict(task="cococap", res=224, size="1", data="datasets", on="", split="val", prefix="", init="")
    own |= dict(experts="none", labels="", freeze="")
    arg = parse_arg(arg, **own, t4=False, l4=False, lora=False, qlora=False, smoke=False)
    if recipe := [name for name in ("t4", "l4") if getattr(arg, name)]:
        arg.task = recipe[0]
    if arg.res % 14:
        raise UserError(f"res={arg.res}: patches of 14 pixels do not divide it. Take 224, 448 or 896.")
    row = settings(arg.task, arg.res)
    captions = row["score"] == "caption"
    if arg.labels and row["score"] == "masks":
        raise UserError(f"labels={arg.labels}: lists of objects have no label maps. Leave labels and experts out.")
    if arg.smoke:
        arg.data, arg.res = miniature.pairs(frames_of(row), captions), 56

    config = ConfigDict()
    config.seed = 0
    config.num_workers = 0 if arg.smoke else 8
    config.batch_size = 4 if arg.smoke else row["batch"]
    unit = {"x": "total_examples", "s": "total_steps"}.get(row["epochs"][-1], "total_epochs")
    config.update({"total_steps": 2} if arg.smoke else {unit: int(row["epochs"].rstrip("xs"))})

    # ---------------------------------------------------------------- model
    size = choose("size", arg.size, SIZES)
    released = max((side for side in RELEASED if side <= arg.res), default=RELEASED[0])
    variant = "tiny" if arg.smoke else f"{size}pt_{released}"
    language = dict(branch_dropout=row["dropout"], logit_cap=0.0)  # better for transfer, says big_vision's forkme.py
    config.model = dict(name="paligemma", variant=variant, vision=dict(image_size=arg.res), language=language)
    config.model.remat = "none" if arg.smoke else "full"
    config.init = None if arg.smoke else arg.init or f"models/{variant}"
    config.tokenizer = "scenes" if arg.smoke else f"sentencepiece:{config.init}/tokenizer.model"
    if arg.smoke:
        config.model.language.vocab_size = 640
    config.model.experts = arg.experts
    if arg.experts != "none" and not arg.smoke:
        config.init_fresh = ("(params|batch_stats|tables)/labels/.*",)  # those that start with zeros

    # ---------------------------------------------------------------- data
    lettered = row["score"] == "letter"
    prefix = arg.prefix or PREFIXES[row["prefix"]]
    stretch = f"stretch({arg.res}, antialias={row['photos'] == 'smooth'}, frames={frames_of(row)}, label_size={LABELS})"
    look = f"labels_for('{arg.experts}')|decode|{stretch}"
    look += "|outline()" if arg.task in OUTLINED else ""
    asked = f"affix({prefix!r}, lettered={lettered}, lower={arg.task in LEARN_LOWER})|prefix_lm({row['tokens'] + 1})"
    prompt = f"{look}|affix({prefix!r}, lettered={lettered}, learn=False)|prefix_lm({row['tokens']})"
    data = "captions" if row["task"] in ("t4", "l4") else arg.task
    labels = dict(labels=arg.labels) if arg.labels else {}
    train = dict(**listed(arg, data, "train", captions), **labels)
    config.data = {data: dict(**train, pp=f"{look}|{asked}")}

    # ---------------------------------------------------------------- training
    reference(config, row)
    config.freeze = arg.freeze or config.freeze
    if arg.lora or arg.qlora:
        adapters(config, arg)
    if arg.t4:
        config.frozen_dtype = config.model.vision.dtype = "float16"  # which a T4 has units for, and none for bfloat16
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.sharding = "zero3"
    config.distributed = None  # True: several processes, found through the cluster

    # ---------------------------------------------------------------- use, and what is watched and kept
    beams = dict(method="big_vision_beam", num_beams=BEAMS[arg.task]) if arg.task in BEAMS else dict(method="greedy")
    decode = dict(**beams, max_new=4 if arg.smoke else row["tokens"])
    config.tasks = {"caption" if captions else "question": dict(pp=prompt, decode=decode)}
    held_out = dict(**listed(arg, arg.on or data, arg.split, captions), **labels)
    shared = dict(data=held_out, batch_size=config.batch_size)
    scored = dict(**shared, train_data=train, pp=prompt, **decode)
    how = dict(type="answers", score=row["score"], lower=arg.task in SCORE_LOWER)
    config.evals = dict(perplexity=dict(type="perplexity", **shared, pp=f"{look}|{asked}"))
    if row["score"] == "masks":
        segment(config, arg, look, row)
    else:
        config.evals[arg.on or data] = dict(**(dict(type="caption") if captions else how), **scored)
    config.log_steps = 1 if arg.smoke else 50
    config.evaluate_percent = config.save_percent = 50.0 if arg.smoke else 10.0
    config.checkpoint = dict(keep=1)
    config.report = dict(samples=4 if arg.smoke else 12)
    config.profile = dict(first=0)  # 10: of the tenth step and the next four, for TensorBoard
    return config


def reference(config, row):
    """Writes the sections of freezing, loss and optimiser as big_vision has them (train.py, optax.py).

    Its decay is multiplied by the schedule and not by the rate, and clipping counts what is trained.
    """
    config.freeze = FROZEN[row["frozen"]]
    # A share of the smoothing goes to all words but the right one there, to all words here.
    smoothing = row["smoothing"] * VOCABULARY / (VOCABULARY - 1)
    config.loss = dict(name="cross_entropy", label_smoothing=smoothing, normalize="example", chunk=64)
    sgd = row["task"] in ("t4", "l4")
    config.optim = dict(
        **(dict(name="sgd", momentum=0.0) if sgd else dict(name="adamw", b1=0.9, b2=0.999)),
        lr=row["rate"],
        schedule="cosine",
        warmup_percent=10.0 if row["task"] == "t4" else 5.0,  # from 0, so that the first step changes nothing
        weight_decay=row["decay"] / row["rate"] if row["decay"] else 0.0,
        wd_mults=[(NOT_DECAYED, 0.0)],
        clip_norm=None if row["task"] == "t4" else 1.0,
    )


def adapters(config, arg):
    """Writes the sections of LoRA or QLoRA over those of full tuning; what reads experts' labels is trained, too.

    The rate is that of arXiv 2305.14314, table 9; names and rank are those of PaliGemma's announcement.
    """
    config.model.lora = dict(match=ADAPTED, rank=8, alpha=16.0, dropout=0.0)
    if arg.qlora:
        config.model.quantize = dict(match="(language|vision)/blocks/.*", kind="nf4")
    config.model.dtype = config.frozen_dtype = "bfloat16"
    if not arg.freeze:
        del config.freeze  # of another type
        config.freeze = "none" if arg.experts == "none" else (r"(?!labels/|.*/lora/).*",)
    config.optim.lr, config.optim.weight_decay = 2e-4, 0.0


def segment(config, arg, look, row):
    """Writes data and evaluator of masks, whose words are those of a codec, over those of texts."""
    codec = f"{config.init}/mask_codec.npz"
    if arg.smoke:
        arg.data, codec = miniature.masks()
        config.tokenizer = location_tokens.of_scenes()
        config.model.language.vocab_size += len(location_tokens.PIECES)
    asked = f"segment({codec!r}, prompt='{{name}}', named=False"

    def part(name, split):
        listed = f"{arg.data}/{split}.json" if arg.smoke else f"{arg.data}/{name}_{split}.json"
        return dict(name="objects", path=listed, task="name")

    learn = f"{look}|{asked})|prefix_lm({row['tokens'] + 1})"
    prompt = f"{look}|{asked}, answer=False)|prefix_lm({row['tokens']})"
    shared = dict(data=part(arg.on or arg.task, arg.split), batch_size=config.batch_size)
    config.files = [codec]
    config.data = {arg.task: dict(**part(arg.task, "train"), pp=learn)}
    config.evals = dict(perplexity=dict(type="perplexity", **shared, pp=learn))
    decode = config.tasks.question.decode
    config.evals[arg.on or arg.task] = dict(type="refcoco", codec=codec, **shared, pp=prompt, **decode)


def frames_of(row):
    """Returns how many photos an example has; None for a single one."""
    return FRAMES.get(row["task"], 16) if row["photos"] == "video" or row["task"] in FRAMES else None


def listed(arg, name, split, captions):
    """Returns the section of a data set: NAME_SPLIT in the folder, JSON lines or Parquet of pairs, or another list."""
    path = lists.in_folder(arg.data, split if arg.smoke else f"{name}_{split}", ".jsonl")
    if path.endswith(conversations.ENDS):
        return dict(name="pairs", path=path)
    return dict(name="pairs", path=path, task="caption" if captions else "question")
