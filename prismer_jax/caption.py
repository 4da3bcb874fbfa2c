"""Photos in, captions or answers out: python -m prismer_jax.caption --checkpoint DIR --images FILES_OR_FOLDER ...

    python -m prismer_jax.caption --checkpoint runs/quickstart --images photos/
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --question "What color is the sphere?"
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --question "Is it red?" "Is it big?"
    python -m prismer_jax.caption --checkpoint models/prismer --images a.jpg --experts weights/experts \
        --save-labels labels/ --picture a.png
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --num-captions 3 --top-p 0.9
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --choices "a cone" "a sphere"
    python -m prismer_jax.caption --checkpoint models/nanovlm_222m --images a.jpg --prompt "What is this?"
    python -m prismer_jax.caption --checkpoint models/nanovlm_450m --prompt "What is the capital of France?"
    python -m prismer_jax.caption --checkpoint models/paligemma --images a.jpg --prompt "detect cat ; dog" --draw boxes/
    python -m prismer_jax.caption --checkpoint models/blip2 --images photos/ --num-beams 3 --output captions.json \
        --embed all-MiniLM-L6-v2

With `--experts`, a folder of their weights, the model's experts label each photo first; what they said is kept in the
cache folder. `--save-labels` copies it, and `--picture` draws it, with what the model said.

Results come as they are found. A photo that cannot be used is named and left out; the exit status is then 1. What goes
to `--output` is kept beside it until all is there: a run that was stopped, even killed, goes on where it was. With
`--embed` the captions' vectors are written to submission.csv beside it, when the captioner has left the memory.

From Python: `prismer_jax.load("runs/quickstart").caption("a.jpg")`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import config, runtime
from prismer_jax.captioner import Captioner
from prismer_jax.captioner.requests import Request, Result, to_answer, to_caption, to_choose
from prismer_jax.captioner.results import results_of
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.decode.batch import MOST
from prismer_jax.errors import BadSample, UserError, run_main
from prismer_jax.evaluators.journal import Journal
from prismer_jax.files import storage
from prismer_jax.label_png import MAX_PIXELS
from prismer_jax.objects import codec as codecs
from prismer_jax.objects.class_names import class_names
from prismer_jax.pp.image import read_image
from prismer_jax.report import objects, photos
from prismer_jax.sentences import SentenceEmbedder, submission


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.caption", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, type=storage.folder, help="a workdir, an export or a checkpoint")
    parser.add_argument("--images", nargs="+", type=storage.on_disk, help="photos, or folders of them")
    parser.add_argument("--labels", type=storage.on_disk, help="folder of expert labels, labels/<expert>/<photo>.png")
    parser.add_argument(
        "--experts", type=storage.on_disk, help="folder of the experts' weights, which label the photos"
    )
    parser.add_argument(
        "--question", nargs="+", help="answer this, or these, about each photo instead of captioning it"
    )
    parser.add_argument("--prompt", help="use this instead of the checkpoint's own prompt; needs no photos")
    parser.add_argument("--choices", nargs="+", help="choose among these texts, or those of a JSON file")
    parser.add_argument("--num-beams", type=int, help="search with so many beams")
    parser.add_argument("--num-captions", type=int, default=1, help="how many, sampled, of each photo")
    parser.add_argument("--top-p", type=float, help="sample from the smallest set of tokens of this probability")
    parser.add_argument("--temperature", type=float, help="of sampling")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=storage.on_disk, help="a JSON file for the results")
    parser.add_argument(
        "--embed", type=storage.on_disk, help="folder or name of a model of sentence-transformers, for submission.csv"
    )
    parser.add_argument("--mask-codec", type=storage.on_disk, help="vae-oid.npz, for the masks that a model writes")
    parser.add_argument("--divide-by", type=int, default=1024, help="1024 or 1023, of the places that a model writes")
    parser.add_argument("--draw", type=storage.on_disk, help="a folder for photos with the boxes and masks in them")
    parser.add_argument("--save-labels", type=storage.on_disk, help="a folder to write the experts' labels to")
    parser.add_argument("--picture", type=storage.plain, help="a picture of photos, label maps and what was said")
    args = parser.parse_flags(argv, "a checkpoint carries its own config")
    drawn = args.num_captions > 1 or args.top_p is not None or args.temperature is not None
    if args.choices is not None and drawn:
        raise UserError("--choices are ranked, not sampled: leave --num-captions, --top-p and --temperature out.")
    if args.prompt is not None and (args.choices is not None or args.question is not None):
        raise UserError("--prompt is said instead of asking: leave --question and --choices out.")
    if args.images is None and args.prompt is None:
        raise UserError("Give --images, photos or folders of them, or --prompt.")
    if args.experts is not None and args.labels is not None:
        raise UserError("Give --labels, which were made before, or --experts, which make them now.")
    if args.images is None and (args.experts is not None or args.picture is not None):
        raise UserError("--experts and --picture are about photos: give --images.")
    beams = 1 if args.num_beams is None else args.num_beams
    if args.batch_size < 1 or not 1 <= args.num_captions <= MOST or not 1 <= beams <= MOST:
        raise UserError(f"--num-captions and --num-beams must be from 1 to {MOST}, and --batch-size at least 1.")
    config.check_seed(args.seed)
    if args.divide_by not in (1023, 1024):
        raise UserError(
            f"--divide-by {args.divide_by}: 1024, as in PaliGemma's announcement, or 1023, as in big_vision."
        )
    if args.num_beams is not None and (args.choices is not None or drawn):
        raise UserError("--num-beams searches: leave --choices, --num-captions, --top-p and --temperature out.")
    if args.output is not None and args.output.exists() and not args.output.is_file():
        raise UserError(f"--output {args.output}: is no file. Name the one to write, such as results.json.")
    if args.embed is not None and (args.output is None or args.images is None or args.question or args.choices):
        raise UserError("--embed is for captions: give --images and --output, and leave --question and --choices out.")
    runtime.use_compilation_cache()
    runtime.log_warnings()
    embedder = None if args.embed is None else SentenceEmbedder(args.embed)
    captioner = Captioner(args.checkpoint, args.experts)
    settings = {key: getattr(args, key) for key in ("num_beams", "top_p", "temperature")}
    settings = {key: value for key, value in settings.items() if value is not None}
    if args.choices is not None:
        choices = args.choices[0] if len(args.choices) == 1 else args.choices
        request = to_choose(captioner, args.images, choices, args.question, args.labels, None)
    elif args.question is None:
        how_many = args.num_captions, args.seed, settings
        request = to_caption(captioner, args.images, args.labels, *how_many, args.prompt)
    else:
        request = to_answer(captioner, args.images, args.question, args.labels, args.num_captions, args.seed, settings)
    reader = _reader(captioner, request.source, args)
    sheet = None if args.picture is None else _sheet(captioner, request.source, args.picture)
    if captioner.experts is not None and args.save_labels is not None:
        request.source.source.save(args.save_labels)

    def see(result: Result) -> Result:
        if sheet is not None:
            sheet.add(result)
        return reader(result)

    if args.output is None:
        for _ in _shown(request, map(see, results_of(captioner, request, args.batch_size))):
            pass
    elif embedder is None:
        writeresults(args.output, captioner, request, args.batch_size, see)
    else:
        submission.check(request.source.name(index) for index in range(len(request.source)))

        def embed(results: list[Result]) -> None:
            captioner.variables = {}  # only one of the two models is in memory
            submission.write(args.output.with_name("submission.csv"), results, embedder)

        writeresults(args.output, captioner, request, args.batch_size, see, embed)
    if sheet is not None:
        print(sheet.save(), file=sys.stderr)
    for problem in reader.problems():
        print(problem, file=sys.stderr)
    if captioner.left_out:
        print(f"{len(captioner.left_out)} of {request.photos} photos were left out.", file=sys.stderr)
        sys.exit(1)


def _reader(captioner: Captioner, source: Any, args: argparse.Namespace) -> objects.Reader:
    """Returns what reads boxes and masks off the captions of a source's photos, draws and saves them."""
    own = captioner.folder / codecs.FILE
    path = args.mask_codec or (own if own.exists() else None)
    place = _finder(source)

    def read(image: str) -> np.ndarray:
        return read_image(source[place(image)]["image"], MAX_PIXELS, image)

    labels = None
    if args.save_labels is not None and captioner.experts is None:
        asked = args.prompt or args.question
        made_with = f"caption{f' {asked!r}' if asked else ''}, weights {fingerprint(captioner.variables)}"
        names = _class_names(captioner, objects.DRAWN)
        labels = objects.Labels(args.save_labels, lambda image: source.name(place(image)), names, made_with)
    codec = None if path is None else codecs.load(os.fspath(path))
    return objects.Reader(read, codec, args.divide_by, args.draw, labels)


def _finder(source: Any) -> Callable[[str], int]:
    """Returns what finds the place of a photo in a source by its id; it looks at all when it is first asked."""

    @functools.cache
    def places() -> dict[str, int]:
        index_of = {}
        for index in range(len(source)):
            with contextlib.suppress(BadSample):  # which has no result
                index_of[source[index]["id"]] = index
        return index_of

    return lambda image: places()[image]


def _class_names(captioner: Captioner, experts: Iterable[str]) -> dict[str, Sequence[str]]:
    return {expert: captioner.model.classes.get(expert) or class_names(expert) for expert in experts}


def _sheet(captioner: Captioner, source: Any, path: str) -> photos.Sheet:
    """Returns what draws the results of photos with the label maps that the model sees."""
    place, experts = _finder(source), captioner.model.experts
    return photos.Sheet(path, lambda image: source[place(image)], experts, _class_names(captioner, experts))


def writeresults(
    path: pathlib.Path,
    captioner: Captioner,
    request: Request,
    batch_size: int,
    see: Callable[[Result], Result],
    then: Callable[[list[Result]], None] = lambda results: None,
) -> None:
    """Writes the results to a JSON file, or as JSON lines (.jsonl), and shows them; goes on where an earlier start was.

    Until all is there, PATH.partial holds what was found. `see` adds to a result what is read off its texts; `then` is
    what else all results are needed for.
    """
    journals: list[Journal] = []

    def journal(description: Mapping[str, Any]) -> Journal:
        journals.append(Journal(path.with_name(f"{path.name}.partial"), "results", description))
        return journals[0]

    results = list(_shown(request, map(see, results_of(captioner, request, batch_size, journal))))
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    else:
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, text)
    then(results)
    journals[0].discard()


def _shown(request: Request, results: Iterable[Result]) -> Iterator[Result]:
    """Passes results on and prints them as they come, each with its question if there are several."""
    for result in results:
        question = f"{result['question']} " if request.asked[1:] else ""
        texts = result.get("captions") or result.get("answers") or result["choices"][:1]
        for text in map(objects.line_of, result["objects"]) if result.get("objects") else texts:
            print(f"{result['image']}: {question}{text}" if result["image"] else text, flush=True)
        yield result


if __name__ == "__main__":
    run_main(main)
