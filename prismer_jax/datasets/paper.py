"""The data sets of the paper by name: finished shards, or lists and photos as the official repository lays them out.

A folder DATA holds what a run uses of (NVlabs/prismer, README.md, configs/*.yaml and dataset/*.py):

    coco_karpathy_{train,val,test}.json            photos in vqav2/train2014, vqav2/val2014
    vg_caption.json                                vg
    cc12m, cc3m_sgu                                themselves, a .txt beside each; or the .tar files of img2dataset
    nocaps_val_4500_captions.json (the benchmark's own)        nocaps/val
    nocaps_test_image_info.json (the benchmark's own)          nocaps/test
    vqav2_train_val.json, vqav2_test.json, answer_list.json    vqav2/{train,val}2014, vqav2/test2015
    v2_OpenEnded_mscoco_{train,val}2014_questions.json, v2_mscoco_{train,val}2014_annotations.json (its own)
    vg_qa.json                                     vg
    labels/<folder of photos>/<expert>/...         expert labels, as `python -m tools.make_labels` writes them to
                                                   --output DATA/labels/vqav2; or labels/<expert>/<folder of photos>/...

Instead of any of them, DATA/<name> may be a finished data set of that name (`python -m tools.build_dataset`), labels
inside.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prismer_jax import labels
from prismer_jax.errors import UserError, choose


@dataclass(frozen=True)
class Set:
    """One row of the table.

    Attributes:
      photos: their folder below DATA, and that of their labels below DATA/labels; '{dataset}' stands for the data set
        that an entry of the list is of: vqav2 or vg.
      list: in DATA; None where a text lies beside each photo.
      task: what its items are.
      answers: VQAv2's file of answers, where they are not in the list.
    """

    photos: str
    list: str | None = None
    task: Literal["caption", "question"] = "caption"
    answers: str | None = None


SETS = {
    "cc12m": Set("cc12m"),
    "cc3m_sgu": Set("cc3m_sgu"),
    "coco": Set("vqav2", "coco_karpathy_train.json"),
    "coco_val": Set("vqav2", "coco_karpathy_val.json"),
    "coco_test": Set("vqav2", "coco_karpathy_test.json"),
    "vg": Set("vg", "vg_caption.json"),
    "nocaps_val": Set("nocaps/val", "nocaps_val_4500_captions.json"),
    "nocaps_test": Set("nocaps/test", "nocaps_test_image_info.json"),
    "vqav2": Set("{dataset}", "vqav2_train_val.json", "question"),
    "vqav2_test": Set("{dataset}", "vqav2_test.json", "question"),
    "vqav2_train2014": Set(
        "vqav2",
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "question",
        "v2_mscoco_train2014_annotations.json",
    ),
    "vqav2_val2014": Set(
        "vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "question", "v2_mscoco_val2014_annotations.json"
    ),
    "vg_qa": Set("{dataset}", "vg_qa.json", "question"),
}
PRETRAINING = ("cc12m", "cc3m_sgu", "coco", "vg")


def find(data: str, name: str, experts: str | Sequence[str] = "all") -> dict[str, Any]:
    """Returns the section {name, path ...} of a config that loads a set of DATA, whichever form it has there.

    A set that is not there at all is named as a list would be: loading it says which file is missing.

    Raises:
      UserError: an unknown set, or photos without the labels of any of the experts.
    """
    row = choose("data set of the paper", name, SETS)
    root = pathlib.Path(data).expanduser()
    if "://" in data or (root / name / "manifest.json").exists():
        return {"name": "records", "path": f"{data}/{name}", "task": row.task}
    extra = labels_of(data, row.photos, experts, needed=is_there(data, name))
    if row.list is None:
        if any((root / row.photos).glob("*.tar")):
            return {"name": "tars", "path": f"{data}/{row.photos}", **extra}
        return {"name": "lists", "images": f"{data}/{row.photos}", "task": row.task, **extra}
    if row.answers is not None:
        extra["annotations"] = f"{data}/{row.answers}"
    return {
        "name": "lists",
        "path": f"{data}/{row.list}",
        "images": f"{data}/{row.photos}",
        "task": row.task,
        **extra,
    }


def labels_of(data: str, photos: str, experts: str | Sequence[str], needed: bool = True) -> dict[str, Any]:
    """Returns {'labels': where those of a folder of photos lie}, or {} where `experts` names none.

    Raises:
      UserError: none of the experts has labels there, though they are needed.
    """
    names = labels.select(experts)
    if not names:
        return {}
    folder = f"{data}/labels/{photos}/{{expert}}", f"{data}/labels/{{expert}}/{photos}"
    for template in folder:
        path = template.replace("{dataset}", "vqav2")
        if any(pathlib.Path(path.replace("{expert}", name)).expanduser().is_dir() for name in names):
            return {"labels": template}
    if needed:
        raise UserError(
            f"{data}/labels: has no labels of {', '.join(names)} for the photos in {photos}. Make them with python -m "
            f"tools.make_labels --output {data}/labels/{photos}, or train without: experts=none."
        )
    return {"labels": folder[0]}


def is_there(data: str, name: str) -> bool:
    """Returns whether DATA holds this set in any form; a remote folder is taken to hold every set."""
    row, root = choose("data set of the paper", name, SETS), pathlib.Path(data).expanduser()
    return "://" in data or (root / name / "manifest.json").exists() or (root / (row.list or row.photos)).exists()


def choose_sets(data: str, names: str) -> list[str]:
    """Returns the names of the sets in 'coco+vg'.

    Raises:
      UserError: an unknown one, or DATA has some of them and lacks others.
    """
    chosen = [name.strip() for name in names.split("+")]
    for name in chosen:
        choose("data set for pretraining", name, PRETRAINING)
    there = [name for name in chosen if is_there(data, name)]
    if there and len(there) < len(chosen):
        absent = [f"{name} ({data}/{SETS[name].list or SETS[name].photos})" for name in chosen if name not in there]
        raise UserError(
            f"{data}: has no {', '.join(absent)}. Fetch them, or train on what is there: sets={'+'.join(there)}."
        )
    return chosen
