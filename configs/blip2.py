r"""BLIP-2 small, and from scratch: a language model that is not trained learns to see rendered scenes, on a laptop.

    python -m prismer_jax.train --config configs/blip2.py:scenes,stage=language --workdir runs/blip2_language
    python -m prismer_jax.train --config configs/blip2.py:scenes,stage=1 --workdir runs/blip2_stage1
    python -m tools.convert blip2 --qformer runs/blip2_stage1 --language runs/blip2_language --tokenizer scenes \
        --output weights/blip2_scenes
    python -m prismer_jax.train --config configs/blip2.py:scenes,stage=2 --workdir runs/blip2_stage2

Arguments, as in blip2.py:scenes,stage=1,smoke:
  stage: 'language' trains the language model alone, on captions, questions, answers; 1 trains queries, and the vision
    transformer, as there is none that is pre-trained; 2 trains the queries for that language model, and neither.
  init: the model that stage 2 starts from, as the third line above makes it.
  experts: whose label maps are added to the image's tokens, such as 'all'; none by default.
  smoke: all of it in a minute, to see that it works.

docs/blip2.md shows the curves of these runs; the recipes of the paper are configs/blip2_stage1.py and blip2_stage2.py.
"""

from configs import quickstart
from prismer_jax.config import parse_arg
from prismer_jax.datasets import scenes
from prismer_jax.errors import choose

WORDS = 640  # of the scenes' own tokenizer
LENGTH = 34  # tokens of a caption, with its start and its end
VISION = dict(image_size=quickstart.SIZE, patch_size=16, width=96, layers=3, heads=4, mlp_dim=384)
QUERIES = dict(width=96, layers=4, heads=4, mlp_dim=256, queries=8, max_positions=LENGTH, pad=1, dropout=0.0)
LANGUAGE = dict(tower="llama", width=96, layers=4, heads=4, kv_heads=4, mlp_dim=256, vocab_size=WORDS)
EMBED = 64  # channels in which images and texts are compared
STEPS = {"language": 500, "1": 600, "2": 600}
ALL_BUT_LANGUAGE = (r"(?!language/).*",)


def get_config(arg=None):
    arg = parse_arg(arg, scenes=True, stage="1", experts="none", init="weights/blip2_scenes", smoke=False)
    choose("stage", arg.stage, STEPS)
    config = quickstart.get_config(f"experts={arg.experts},places=False,smoke={arg.smoke}")
    if not arg.smoke:
        config.total_steps = STEPS[arg.stage]
    config.batch_size = batch = 16 if arg.smoke else 32
    look = f"labels_for('{arg.experts}')|decode|resize({quickstart.SIZE}, {quickstart.LABEL_SIZE})"
    config.model = dict(
        name="blip2",
        variant="tiny_stage1",
        vision=VISION,
        qformer=QUERIES | dict(vocab_size=WORDS + 1),  # [DEC] begins what is written
        embed_dim=EMBED,
        experts=arg.experts,
        stem_width=96,
        classes=dict(seg_coco=scenes.CLASSES, obj_detection=scenes.CLASSES),
    )
    config.loss = dict(name="blip2_stage1")
    held_out = config.evals.caption.data
    if arg.stage == "1":
        train = {key: value for key, value in config.data.captions.items() if key not in ("pp", "weight")}
        config.data = dict(captions=dict(**train, pp=f"{look}|caption()|tokenize({LENGTH})", weight=1.0))
        several = dict(k_test=16, style="plain", max_tokens=LENGTH, texts_at_once=16)
        config.evals = dict(retrieval=dict(type="retrieval", data=held_out, pp=look, batch_size=batch, **several))
        match = dict(pp=look, style="plain", max_tokens=LENGTH)
        config.tasks = dict(caption=config.tasks.caption, match=match)
        config.checkpoint = dict(keep=1)
        return config
    config.model.variant, config.model.qformer, config.model.language = "tiny", QUERIES, LANGUAGE
    del config.freeze  # the type of a value cannot change
    config.freeze = ALL_BUT_LANGUAGE if arg.stage == "language" else "freeze_lang_vision"
    config.init = None if arg.smoke or arg.stage == "language" else arg.init
    config.loss = dict(name="blip2_stage2")
    # Captions and questions, as the quickstart has them; its own way of counting tokens is Prismer's.
    config.evals = dict(config.evals) if arg.stage == "2" else {}
    for section in (*config.evals.values(), *(task.decode for task in config.tasks.values())):
        section.length = "new"
    config.checkpoint = dict(keep=1, **({"best_metric": "caption/cider"} if config.evals else {}))
    return config
