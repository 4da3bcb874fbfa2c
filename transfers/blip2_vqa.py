"""Questions to a BLIP-2: VQAv2, OK-VQA and GQA as it comes from pretraining, and trained on VQAv2 and Visual Genome.

    python -m prismer_jax.evaluate --config transfers/blip2_vqa.py:lm=flant5xl --checkpoint weights/flant5xl
    python -m prismer_jax.evaluate --config transfers/blip2_vqa.py:lm=flant5xl,task=okvqa --checkpoint weights/flant5xl
    python -m prismer_jax.train --config transfers/blip2_vqa.py:lm=opt2.7b --workdir runs/blip2_vqa

Arguments, as in blip2_vqa.py:lm=opt2.7b,task=gqa, are those of configs/blip2_stage2.py, and:
  task: what is evaluated: vqav2, its validation questions; okvqa, DATA/OpenEnded_mscoco_val2014_questions.json with
    mscoco_val2014_annotations.json; gqa, DATA/gqa_testdev_balanced.json of [{"image", "question", "answer",
    "question_id"}] and photos in DATA/gqa.
  lemmas: how OK-VQA's answers are brought to their base forms: 'spacy' as LAVIS does, 'simplemma', or 'none'.
  layer_decay: as in transfers/blip2_caption.py.
  lora, bits: likewise.

Sources: salesforce/LAVIS, lavis/projects/blip2/eval/*_zeroshot_*.yaml. It has no recipe of training on questions; the
one here is that of its captions. arXiv 2301.12597 (section 4.3) lets the Q-Former read the question there, too.
"""

from configs.blip2_stage1 import LORA, LORA_FREEZE, arguments, fine_tuning
from configs.blip2_stage2 import language_model
from prismer_jax.datasets import paper
from prismer_jax.errors import choose
from prismer_jax.models.blip2.conversion import tasks
from prismer_jax.pp.blip import VQA_PROMPT

QUESTION, ANSWER = 32, 16  # tokens
STYLES = dict(none="blip", spacy="blip_spacy", simplemma="blip_simplemma")


def get_config(arg=None):
    own = dict(
        lm="flant5xl", init="weights/blip2_stage2", tokenizer="sentencepiece:weights/blip2/flan-t5-xl/spiece.model"
    )
    own |= dict(batch=16, task="vqav2", lemmas="spacy", layer_decay=1.0, lora=False, bits="bfloat16")
    arg = arguments(arg, **own)
    model, section, t5 = language_model(arg, "pretrained")
    asked, said = (60, 20) if arg.smoke else (QUESTION, ANSWER)
    write = f"seq2seq({asked}, {said})" if t5 else f"tokenize({asked + said})"
    text = f"question(style='blip')|prompt_template({VQA_PROMPT!r})|{write}"
    config = fine_tuning(
        arg, names=("vqav2_train2014", "vg_qa"), text=text, layers=model.vision["layers"], layer_decay=arg.layer_decay
    )
    config.model = section
    config.freeze = LORA_FREEZE if arg.lora else "freeze_lang"
    config.loss = dict(name="blip2_stage2")  # of the answer, and not of its question
    if arg.lora:
        config.model.lora = LORA

    task = tasks(model)["question"]
    if arg.smoke:
        task["decode"].update(max_new=4)
    config.tasks = dict(question=task | dict(style="blip"))
    own = dict(type="answers", score="exact", lower=True) if arg.task == "gqa" else dict(type="vqa")
    style = choose("lemmas", arg.lemmas, STYLES) if arg.task == "okvqa" else "blip"
    shared = dict(data=found(arg), batch_size=8 if arg.smoke else 64, style=style)
    config.evals = {arg.task: dict(**own, **shared, pp=task["pp"], **task["decode"])}
    if not arg.smoke:
        config.checkpoint.best_metric = f"{arg.task}/accuracy"
    return config


def found(arg):
    """Returns the section of the questions to be answered."""
    lists = dict(name="lists", task="question")
    okvqa = dict(path="OpenEnded_mscoco_val2014_questions.json", annotations="mscoco_val2014_annotations.json")
    gqa = dict(lists, path=f"{arg.data}/gqa_testdev_balanced.json", images=f"{arg.data}/gqa")
    ok = lists | {key: f"{arg.data}/{file}" for key, file in okvqa.items()} | dict(images=f"{arg.data}/vqav2")
    own = choose("task", arg.task, dict(vqav2=None, okvqa=ok, gqa=gqa))
    return own if own and not arg.smoke else paper.find(arg.data, "vqav2_val2014", "none")
