"""Commands of README and docs run as they stand, one after the other, in a folder such as a reader has.

Each whole command of every page is either in RUN, in an order in which each finds what those before have left, or there
is a reason in LEFT_OUT why not. All are parsed by docs_test.py, and what the latter do is tested beside their modules.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from prismer_jax.datasets import miniature
from prismer_jax.testing import ROOT
from tools.docs_test import PAGES, commands

BRIEF = "--config.total_steps=2 --config.log_steps=1"
STUDENT = f"{BRIEF} --config.batch_size=2"
RUN = {  # command -> what it has more, so that it ends soon
    "prismer_jax.train --config configs/quickstart.py --workdir runs/quickstart": "",
    "prismer_jax.caption --checkpoint runs/quickstart --images photo.jpg": "",
    'prismer_jax.caption --checkpoint runs/quickstart --images photo.jpg --question "What color is the cone?"': "",
    "prismer_jax.evaluate --config configs/quickstart.py --checkpoint runs/quickstart": "",
    "prismer_jax.train --config configs/quickstart.py:z,smoke --config.optim.lr=3e-4 --workdir runs/z": "",
    "prismer_jax.train --config transfers/forkme.py:data=my_photos,task=questions --workdir runs/mine": BRIEF,
    "prismer_jax.train --config transfers/forkme.py:data=my_photos --workdir runs/mine": BRIEF,
    "prismer_jax.evaluate --config transfers/forkme.py:data=my_photos --checkpoint runs/mine": "",
    # That page's runs/mine started from official weights; this one from the quickstart, whose places no such file has.
    "tools.export --checkpoint runs/mine --format torch --output pytorch_model.bin": "--checkpoint runs/z",
    "tools.export --checkpoint runs/mine --format safetensors --output mine.safetensors": "--checkpoint runs/z",
    "tools.audit --checkpoint runs/quickstart --config configs/quickstart.py --output runs/audit": "",
    "tools.build_dataset --list captions.json --images photos --labels labels --output shards/mine": "",
    "tools.build_dataset --check shards/mine": "",
    "tools.visualize --dataset-dir shards/mine --output sheet.png": "",
    "tools.visualize --images photos/ --labels labels/ --output sheet.png": "",
    "prismer_jax.caption --checkpoint runs/mine --images a.jpg": "",
    "prismer_jax.train --config configs/student.py:data=photos/,labels=labels/ --workdir runs/student": STUDENT,
    "prismer_jax.evaluate --score predictions.json --references captions_val2014.json": "",
    "prismer_jax.evaluate --score answers.json --references questions.json --annotations annotations.json": "",
    "prismer_jax.train --config transfers/vqav2.py:smoke --workdir runs/smoke": "",
}
LEFT_OUT = {  # what a command has in it -> why it is not run
    "tools.download|hf://|tools.push": "the network would be asked",
    "cc12m|DATA/|datasets|SHARDS|coco|finevision|PHOTOS|mmstar|instances.json": "it reads data sets of others",
    "weights/|models/|eva_vit_g|nanovlm|siglip|paligemma|blip2|clip": "it reads weights of others",
    "--plan|--estimate": "it compiles models of the paper's size, for minutes",
    "tools.demo": "it serves until it is stopped; tools/demo/page_test.py has it in a browser",
    "tools.sweep|tools.bench|configs/pretrain.py|tools.train_mask_codec": "it takes hours",
    "DIR|TASK|SCENES|ARGUMENTS|--compare|more/": "its reader puts something in a place",
    "runs/pretrain|student_labels": "it goes on from a run that takes days, or from its labels",
    "tools.convert ocr-labels": "it reads labels of the original's generator; tools/convert_test.py makes some",
    "tools.parity": "it reads recorded numbers, which are beside the checkout and not in it",
    "toy": "it is about a family that prismer_jax/models/family_test.py adds",
    "adapter|weights/tuned": "its checkpoint has adapters; tools/export_test.py makes some",
}


def on_pages():
    """Returns the whole commands of all pages, without `python -m`, as one line each."""
    found = {}
    for page in PAGES:
        for command, whole in commands(page):
            text = " ".join(command.partition("#")[0].split()).removeprefix("python -m ")
            if whole:
                found.setdefault(text.replace("prismer_jax.tools.", "tools."), page.name)
    return found


def test_every_command_is_run_or_there_is_a_reason():
    found = on_pages()
    reasons = re.compile("|".join(LEFT_OUT))
    assert not {text: page for text, page in found.items() if text not in RUN and not reasons.search(text)}
    assert not set(RUN) - set(found)
    for pattern in LEFT_OUT:
        assert any(re.search(pattern, text) for text in found if text not in RUN), pattern


@pytest.fixture
def folder(tmp_path):
    """What a reader has: photos with labels, captions and questions, and predictions to score."""
    miniature.my_photos(tmp_path / "my_photos", train=16, held_out=4)
    photos, labels = tmp_path / "my_photos/images", tmp_path / "my_photos/labels"
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(labels, tmp_path / "labels")
    shutil.copy(tmp_path / "my_photos/captions_train.json", tmp_path / "captions.json")
    for name in ("photo.jpg", "a.jpg"):
        shutil.copy(photos / "val_0.jpg", tmp_path / name)
    image, question = {"image_id": 1}, {"question_id": 2}
    for name, content in {
        "predictions": [image | {"caption": "a red cone"}],
        "captions_val2014": {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [image | {"id": 3, "caption": "a red cone on a floor"}],
        },
        "answers": [question | {"answer": "red"}],
        "questions": {
            "data_subtype": "val2014",
            "questions": [image | question | {"question": "What color is the cone?"}],
        },
        "annotations": {"annotations": [image | question | {"answers": [{"answer": "red", "answer_id": 1}] * 10}]},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.slow
def test_commands_run_one_after_the_other(folder):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    for text, more in RUN.items():
        words = shlex.split(f"{text} {more}".replace("configs/quickstart.py ", "configs/quickstart.py:smoke "))
        if "--workdir" in words:  # another page may have trained there
            shutil.rmtree(folder / words[words.index("--workdir") + 1], ignore_errors=True)
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{text}\n{done.stderr[-2000:]}"
    for left in ("runs/quickstart/report.html", "runs/mine/export", "pytorch_model.bin", "sheet.png", "runs/student"):
        assert (folder / left).exists(), left
    assert json.loads((folder / "answers_scores/metrics.json").read_text())
