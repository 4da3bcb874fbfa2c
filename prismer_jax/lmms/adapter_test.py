"""The adapter for lmms-eval: with the package where it is installed, otherwise with a stand-in for its interface."""

import dataclasses
import importlib.util
import io
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from prismer_jax.caption_prompt_test import converted
from prismer_jax.errors import UserError
from prismer_jax.lmms import manifest
from prismer_jax.lmms.wording import worded

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
QUESTIONS = ["Who is it?", "What colour\nis it?", "How many?"]


@dataclasses.dataclass
class Instance:
    """What lmms_eval.api.instance.Instance is to a model."""

    request_type: str
    arguments: tuple
    idx: int
    metadata: dict

    @property
    def args(self):
        return self.arguments


@dataclasses.dataclass
class GenerationResult:
    """What lmms_eval.api.instance.GenerationResult is to a model."""

    text: object


class Lmms:
    """What lmms_eval.api.model.lmms is to a model."""

    def __init__(self):
        self.task_dict = {}


@pytest.fixture(scope="module")
def package():
    """Stands in for lmms-eval where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            parts = {
                "lmms_eval": {},
                "lmms_eval.api": {},
                "lmms_eval.api.instance": {"Instance": Instance, "GenerationResult": GenerationResult},
                "lmms_eval.api.model": {"lmms": Lmms},
                "lmms_eval.models": {},
                "lmms_eval.models.registry_v2": {"ModelManifest": types.SimpleNamespace},
            }
            for name, content in parts.items():
                module = types.ModuleType(name)
                vars(module).update(content)
                patch.setitem(sys.modules, name, module)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("nanovlm"))


@pytest.fixture(scope="module")
def model(package, checkpoint):
    from prismer_jax.lmms.adapter import PrismerJax

    made = PrismerJax(checkpoint=str(checkpoint), batch_size=2, device="cpu")
    photos = [np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8) for number in range(3)]
    made.task_dict = {"mmstar": {"val": [{"photo": Image.fromarray(photo), "answer": "B"} for photo in photos]}}
    return made


def requests(model, settings, questions=QUESTIONS):
    """Returns requests about the photos, the last of which is asked about first."""
    instance = sys.modules["lmms_eval.api.instance"].Instance
    made = []
    for number in reversed(range(len(questions))):
        arguments = (questions[number], settings, lambda doc: [doc["photo"]], number, "mmstar", "val")
        about = {"task": "mmstar", "doc_id": number, "repeats": 1}
        made.append(instance("generate_until", arguments, 0, about))
    return made


def answers(model, tmp_path, **settings):
    """Returns what the Captioner says about the same photos."""
    made = []
    for number in reversed(range(3)):
        path = tmp_path / f"{number}.png"
        model.task_dict["mmstar"]["val"][number]["photo"].save(path)
        made.append(model.captioner.answer(path, QUESTIONS[number], **settings)[0]["answers"][0])
    return made


def test_questions_are_answered_in_their_order(model, tmp_path):
    said = model.generate_until(requests(model, {"max_new_tokens": 8, "do_sample": False, "temperature": 0}))
    assert said == answers(model, tmp_path, max_new=8)
    assert len(set(said)) == 3
    beams = model.generate_until(requests(model, {"max_new_tokens": 8, "num_beams": 3}))
    assert beams == answers(model, tmp_path, method="beam", num_beams=3, max_new=8)


def test_an_answer_ends_where_a_task_says(model):
    settings = {"max_new_tokens": 8, "until": ["\n\n"]}
    whole = model.generate_until(requests(model, settings))[0]
    end = whole[3]
    assert model.generate_until(requests(model, settings | {"until": ["\n\n", end]}))[0] == whole.split(end)[0]


def test_a_question_without_a_photo_is_answered_and_a_bad_one_left_empty(model):
    first, second, third = requests(model, {"max_new_tokens": 4})
    first.arguments = (*first.args[:2], lambda doc: [], *first.args[3:])
    second.arguments = (*second.args[:2], lambda doc: ["nowhere.jpg"], *second.args[3:])
    said = model.generate_until([first, second, third])
    assert said[0]
    assert said[2]
    assert said[1] == ""
    assert "nowhere.jpg" in model.captioner.left_out[0]["error"]
    assert model.generate_until([second]) == [""]
    second.arguments = (second.args[0], "yes", *second.args[2:])
    assert [cost.text for cost in model.loglikelihood([second])] == [(float("inf"), False)]
    first.arguments = (*first.args[:2], lambda doc: [b"a video"], *first.args[3:])
    with pytest.raises(UserError, match="a bytes; photos alone"):
        model.generate_until([first])


def test_the_likeliest_continuation_costs_least(model, monkeypatch):
    asked = requests(model, {})[0]
    made = []
    for target in ("A", lambda doc: doc["answer"], " A"):
        made.append(dataclasses.replace(asked, arguments=(asked.args[0], target, *asked.args[2:])))
    costs = [cost.text for cost in model.loglikelihood(made)]
    assert costs[0] == costs[2]
    assert costs[0][0] != costs[1][0]
    assert all(cost > 0 and not greedy for cost, greedy in costs)
    example = model._example("0", asked.args[0], *asked.args[2:])
    (ranked,) = model.captioner.rank([example], ["A", "B"])
    assert dict(zip(ranked["choices"], ranked["scores"], strict=True)) == {"A": -costs[0][0], "B": -costs[1][0]}
    assert (costs[0][0] < costs[1][0]) == (ranked["choices"][0] == "A")
    monkeypatch.setattr(model.captioner, "ask", lambda examples, **_: [{"answers": ["B"]}])
    assert [cost.text[1] for cost in model.loglikelihood(made)] == [False, True, False]


def test_a_continuation_may_be_shorter_than_what_the_checkpoint_writes(model, monkeypatch):
    asked = requests(model, {})[0]
    made = [dataclasses.replace(asked, arguments=(asked.args[0], "A", *asked.args[2:]))]
    costs = model.loglikelihood(made)
    task = model.captioner.tasks["question"]
    monkeypatch.setitem(task, "decode", task["decode"] | {"min_new": 6})
    assert model.loglikelihood(made) == costs


@pytest.mark.parametrize(("most", "least"), [(2, 2), (8, 6)])
def test_a_task_may_ask_for_fewer_tokens_than_the_checkpoint_writes(model, monkeypatch, most, least):
    asked, task = requests(model, {"max_new_tokens": most}), model.captioner.tasks["question"]
    examples = [model._example(str(n), one.args[0], *one.args[2:]) for n, one in enumerate(asked)]
    expected = model.captioner.ask(examples, method="greedy", max_new=most, min_new=least)
    monkeypatch.setitem(task, "decode", task["decode"] | {"min_new": 6})
    assert model.generate_until(asked) == [result["answers"][0] for result in expected]


def test_an_empty_continuation_is_the_least_likely(model, caplog):
    asked = requests(model, {})[0]
    targets = ("A", "", " \n", "\ud800")
    made = [dataclasses.replace(asked, arguments=(asked.args[0], one, *asked.args[2:])) for one in targets]
    alone, worst = model.loglikelihood(made[:1])[0].text, (float("inf"), False)
    assert [cost.text for cost in model.loglikelihood(made[:3])] == [alone, worst, worst]
    assert "Document 2 of mmstar: a continuation is empty" in caplog.text
    assert [cost.text for cost in model.loglikelihood(made[1:2])] == [worst]
    assert [cost.text for cost in model.loglikelihood(made[3:])] == [worst]


def test_a_damaged_photo_has_an_empty_answer(model):
    first, second, third = requests(model, {"max_new_tokens": 4})
    data = io.BytesIO()
    model.task_dict["mmstar"]["val"][0]["photo"].save(data, "PNG")
    cut = Image.open(io.BytesIO(data.getvalue()[:600]))
    second.arguments = (*second.args[:2], lambda doc: [cut], *second.args[3:])
    third.arguments = ("What\ud800?", *third.args[1:])
    said = model.generate_until([first, second, third])
    assert said[0]
    assert said[1:] == ["", ""]


def test_questions_are_put_as_nanovlms_wrapper_puts_them():
    letters = "Which?\nOptions:\nA. one\nAnswer with the option's letter from the given choices directly"
    expected = "Which?\nChoices:\nChoices:\nA. one\nAnswer with the letter directly"
    assert worded(letters, "mmstar", "nanovlm") == (expected, "Answer:")
    assert worded(letters, "mmstar", "plain") == (letters, "")
    assert worded("Who?", "mme", "nanovlm") == ("Who?\nGive a very brief answer.", "")
    assert worded("Who?", "docvqa_val", "nanovlm")[0].endswith("Question: Who?")
    assert worded("Question: Who?", "mmmu_val", "nanovlm") == (" Who?", "Answer:")
    with pytest.raises(UserError, match=r"Unknown wording 'nanovml'\. Did you mean 'nanovlm'"):
        worded("Who?", "mme", "nanovml")


def test_an_answer_that_is_begun_goes_on(model):
    example = {"id": "0", "image": None, "question": "Who?"}
    (fresh,) = model.captioner.ask([example], max_new=4)
    (begun,) = model.captioner.ask([example | {"begun": "Answer:"}], max_new=4)
    assert fresh["scores"] != begun["scores"]


def test_wrong_arguments_are_one_line(model, checkpoint):
    with pytest.raises(UserError, match="batch_size='auto': a number"):
        type(model)(str(checkpoint), batch_size="auto")
    with pytest.raises(UserError, match="Unknown wording 'x'"):
        type(model)(str(checkpoint), wording="x")
    with pytest.raises(UserError, match="one question at a time"):
        model.generate_until_multi_round([])


def test_lmms_eval_is_told_of_the_model(package):
    assert manifest().model_id == "prismer_jax"
    module, _, name = manifest().simple_class_path.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


TASK = """
task: prismer_jax_photos
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: {target}
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval, an extra of a hundred packages, is not installed")
@pytest.mark.parametrize("kind", ["generate_until", "multiple_choice"])
def test_lmms_eval_runs_a_task(model, checkpoint, tmp_path, kind):
    from lmms_eval import evaluator, models, tasks

    models.MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    said = answers(model, tmp_path, max_new=6)[::-1]
    rows = [{"path": str(tmp_path / f"{n}.png"), "question": QUESTIONS[n], "answer": said[n]} for n in range(3)]
    for row in rows:
        row["choices"] = ["one", "two"]
        (ranked,) = model.captioner.rank(
            [{"id": "0", "image": row["path"], "question": row["question"]}], row["choices"]
        )
        row["label"] = row["choices"].index(ranked["choices"][0])
    (tmp_path / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "utils.py").write_text(
        "from PIL import Image\n\n\ndef visual(doc):\n    return [Image.open(doc['path']).convert('RGB')]\n"
    )
    generates = kind == "generate_until"
    more = "generation_kwargs: {max_new_tokens: 6, do_sample: false}" if generates else "doc_to_choice: choices"
    fields = dict(target="answer" if generates else "label", metric="exact_match" if generates else "acc")
    (tmp_path / "task.yaml").write_text(TASK.format(data=tmp_path / "data.json", kind=kind, more=more, **fields))
    results = evaluator.simple_evaluate(
        model="prismer_jax",
        model_args=f"checkpoint={checkpoint}",
        tasks=["prismer_jax_photos"],
        batch_size=2,
        task_manager=tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert results["results"]["prismer_jax_photos"][f"{fields['metric']},none"] == 1.0
