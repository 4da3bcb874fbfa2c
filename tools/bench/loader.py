"""Speed of the loader beside that of the official Dataset, and the bytes of a sample: a part of tools.bench.

Both get the same photos with the same six label maps: ours as records of a data set, theirs as the files of the
official layout. Each runs in a worker process, one round of ours over all photos, then one of theirs, in turn. What is
counted is the processor's time, of all threads, so that a sample a second means a sample a second of one core however
busy the machine is; the fastest round of each counts.

    train           decode, random crop, resize to 480 px (labels to 224), flip, RandAugment(2, 5), caption, token ids
    train, opencv   the same where photos are resized by OpenCV's filters, which give other pixels than the reference's
    evaluation      decode, resize, prompt, token ids

The reference makes no token ids in its Dataset, and its batches are not collated here; ours do both.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np

from prismer_jax import input, label_files, labels, pp
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.shards import metadata, records, writer

from .worker import Worker, beside, our_command

SIZE, LABEL_SIZE, PATCH = 480, 224, 16  # of the official fine-tuning (configs/caption.yaml, prismer.json: base)
PREFIX = "A picture of"
BATCH = 8
TRAIN = (
    f"labels_for('all')|decode|random_resized_crop({SIZE}, {LABEL_SIZE}{{}})|flip|randaugment(2, 5)"
    f"|caption({PREFIX!r}, style='reference')|tokenize(64)"
)
PP = {
    "train": TRAIN.format(""),
    "train, opencv": TRAIN.format(", filter='opencv'"),
    "evaluation": f"labels_for('all')|decode|resize({SIZE}, {LABEL_SIZE})|caption_prompt({PREFIX!r})|tokenize(64)",
}
COLUMNS = ("loader", "samples/s/core", "reference", "ratio", "kB/sample", "reference", "ratio")


def measure(
    source: Any,
    reference: pathlib.Path | None,
    python: str,
    *,
    seconds: float = 10,
    against: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Prints a line for each chain of PP, and returns them: samples a second of ours, and of theirs.

    Args:
      source: photos with captions and labels, of task 'all'.
      reference: a checkout of NVlabs/prismer.
      python: the interpreter for it, which has PyTorch.
      seconds: how long each is measured at least; two turns of each code in any case.
      against: a checkout of this project that reads the same records in place of the official code.
    """
    with tempfile.TemporaryDirectory(prefix="prismer_jax.bench.") as name:
        folder = pathlib.Path(name)
        count = write(source, folder)
        print("{:<14}{:>14}{:>11}{:>8}{:>12}{:>11}{:>8}".format(*COLUMNS), flush=True)
        table = []
        for mode in PP:
            commands = [our_command(sys.modules[__name__], str(folder), mode)]
            if against is not None:
                commands.append(our_command(sys.modules[__name__], str(folder), mode, checkout=against))
            elif reference is not None:
                script = pathlib.Path(__file__).with_name("reference") / "run_dataset.py"
                command = [python, str(script), str(reference.resolve()), str(folder), mode.split(",")[0], str(SIZE)]
                commands.append(command)
            workers = beside(commands, seconds)
            print(_line(mode, workers, count), flush=True)
            rates = [count / min(one.seconds) for one in workers]
            table.append(dict(row=mode, a_second=rates))
            if len(rates) == 2:
                table[-1]["ratio"] = rates[0] / rates[1]
        return table


def _line(mode: str, workers: list[Worker], count: int) -> str:
    ours, *others = workers
    rate, size = count / min(ours.seconds), ours.last
    line = f"{mode:<14}{rate:>14.1f}"
    if not others:
        return line + f"{'-':>11}{'-':>8}{size / 1e3:>12.0f}{'-':>11}{'-':>8}"
    (theirs,) = others
    their_rate = count / min(theirs.seconds)
    line += f"{their_rate:>11.1f}{rate / their_rate:>8.1f}"
    return line + f"{size / 1e3:>12.0f}{theirs.last / 1e3:>11.0f}{theirs.last / size:>8.1f}"


def write(source: Any, folder: pathlib.Path) -> int:
    """Writes a source as a data set of ours (`records`) and as the official layout's files; returns the photos.

    A photo that cannot be used, or has no caption, is left out.
    """
    examples = [e for e in writer.take(source, 0, len(source)) if isinstance(e, dict) and e.get("captions")]
    if len(examples) < BATCH:
        raise UserError(f"{len(examples)} captioned photos are too few to measure with; at least {BATCH}.")
    rows = []
    for number, example in enumerate(examples):
        name = f"{number:06d}.jpg"
        _put(folder / "photos/vqav2" / name, example["image"])
        rows.append({"image": name, "caption": example["captions"][0]})
        for expert in labels.PAPER:
            png = label_files.path_of(folder / "labels" / expert / "vqav2", "", name)
            _put(png, example.get(f"labels/{expert}", b""))
        table = example.get(labels.CLASSES_KEY, labels.no_classes())
        classes = {str(i): int(kind) for i, kind in enumerate(table) if kind >= 0}
        _put(folder / "labels/obj_detection/vqav2" / f"{number:06d}.json", json.dumps(classes).encode())
        if words := example.get("words"):
            png = folder / "labels/ocr_detection/vqav2" / f"{number:06d}.npz"
            np.savez(png, features=example[labels.WORDS_KEY][: len(words)], words=np.asarray(words, np.str_))
    for split in ("train", "test"):
        (folder / f"photos/coco_karpathy_{split}.json").write_text(json.dumps(rows))
    settings = {"dataset": "coco", "data_path": str(folder / "photos"), "label_path": str(folder / "labels")}
    settings |= {"experts": labels.PAPER, "prefix": PREFIX}
    (folder / "settings.json").write_text(json.dumps(settings))
    records_folder = str(folder / "records")
    storage.make_folder(records_folder)
    file = metadata.shard_name("bench", "train", 0, 1)
    row = writer.write_shard(examples, records_folder, file, experts=labels.PAPER)
    about = dict(name="bench", split="train", experts=labels.PAPER, made_from={}, labels={})
    return metadata.finish(records_folder, rows=[row], **about).records


def _put(path: pathlib.Path, content: bytes | str) -> None:
    """Writes bytes, or what the file of that name holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else pathlib.Path(content).read_bytes())


def main(folder: str, mode: str) -> None:
    """Our worker: 'ready'; the processor's seconds of a round for each line on stdin; the bytes of a sample."""
    source = records.Source(f"{folder}/records", "caption")
    chain = pp.build(PP[mode], tokenizer=pp.tokenizer.load("scenes"))
    data = [{"source": source, "pp": chain}]
    # Without threads nothing is loaded ahead: what a round gives is what it took.
    batches = input.train_batches(data, batch_size=BATCH, seed=0, num_threads=0)
    crossing = sum(value.nbytes for value in next(batches).values() if isinstance(value, np.ndarray))
    rounds = -(-len(source) // BATCH)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        for _ in range(rounds):
            next(batches)
        print((time.process_time() - start) * len(source) / (rounds * BATCH), flush=True)
    print(crossing // BATCH, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
