"""nanoVLM beside the original's PyTorch code, at the size of 222M: a part of tools.bench.

    answers     photos with a prompt of 8 tokens: 40 sampled tokens each, beside v0.1, which has no cache, and beside
                HEAD, which has one; and beside HEAD where it is allowed 300 tokens and an answer ends within a tenth
    training    a step with AdamW on 8 photos and texts of 79 tokens, 128 positions in all; and of the projector alone
    images      photos of 640x480 from JPEG to what the model takes, of one tile (v0.1) and of up to 17 (HEAD)
    packing     the share of columns that are tokens, in rows of 4096 of one stream of samples
    memory      the peak of the process that trains

Ours and theirs are worker processes (reference/run_nanovlm.py), three rounds of each in turn, both in float32 and with
fresh weights, on all cores; of images, what is counted is the processor's time. The fastest round of each counts. With
--one-core both have one core, and of all rows the processor's time is counted: that says something on a machine that
others use, too.
"""

from __future__ import annotations

import functools
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from prismer_jax import config, decode, models, pp, runtime
from prismer_jax.batch import prompts
from prismer_jax.datasets import bins, scenes
from prismer_jax.errors import UserError
from prismer_jax.models.nanovlm.model import VARIANTS
from prismer_jax.pp.tiles import tiled_size

from .reference.serving import serve
from .worker import in_turn, one_core, show, steps_of, training_step

V01 = "6ba9082"  # the tag v0.1 of huggingface/nanoVLM
PROMPT, ANSWER, MAX_NEW, BATCH, TEXT = 8, 40, 300, 8, 79  # tokens, and photos at a time
ROW, SAMPLES, WORDS = 4096, 600, 198  # tokens of a packed row, samples, and their mean number of words' tokens
TILES, PHOTOS, ROW_PHOTOS = 63, 4, 18
IMAGE = 49152  # HEAD's id of an image's token, behind SmolLM2's


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      title: what is measured, and in what.
      count: how many of these a round does.
      head: whether it is beside HEAD; otherwise beside v0.1.
      target: the least ratio of ours to theirs.
    """

    title: str
    count: int
    head: bool
    target: float


ROWS = {
    "answers_v01": Row("answers of 40 tokens, one photo, tokens/s", ANSWER, False, 2.5),
    "answers_v01_batch": Row("answers of 40 tokens, 8 photos, tokens/s", BATCH * ANSWER, False, 2.5),
    "answers_head": Row("beside HEAD: one photo, tokens/s", ANSWER, True, 1.2),
    "answers_head_batch": Row("beside HEAD: 8 photos, tokens/s", BATCH * ANSWER, True, 1.2),
    "answers_short": Row("beside HEAD: short answers of at most 300, answers/s", 1, True, 5.0),
    "training": Row("training step, photos/s", BATCH, False, 1.1),
    "projector": Row("training step, projector alone, photos/s", BATCH, False, 1.1),
    "images_v01": Row("photos prepared, one tile, photos/s/core", 8, False, 1.5),
    "images_head": Row("photos prepared, 13 tiles, photos/s/core", 8, True, 1.5),
}


def our_command(row: str, folder: pathlib.Path) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.nanovlm", row, str(folder)]


def their_command(python: str | pathlib.Path, source: pathlib.Path, row: str, folder: pathlib.Path) -> list[str]:
    script = pathlib.Path(__file__).with_name("reference") / "run_nanovlm.py"
    return [str(python), str(script), str(source), row, str(folder)]


def measure(
    reference: pathlib.Path | None,
    python: str | pathlib.Path,
    *,
    seconds: float = 10,
    rows: Sequence[str] = (),
    alone: bool = False,
) -> list[dict[str, Any]]:
    """Prints the table, and returns its rows, with a ratio where there are two sides.

    Args:
      reference: a clone of huggingface/nanoVLM with its tags; without it ours alone is measured.
      python: the interpreter for it, with PyTorch, torchvision, einops and safetensors.
      seconds: how long each row is measured at least; two turns of each code in any case.
      rows: names of ROWS, or 'packing'; all by default.
      alone: give each code one core, and count the processor's time.

    Raises:
      UserError: a worker ends early; the reference is no clone.
    """
    with tempfile.TemporaryDirectory(prefix="prismer_jax.bench.") as name:
        folder = pathlib.Path(name)
        write(folder)
        sources = {}
        if reference is not None:
            sources = {head: _source(reference, folder, head) for head in (False, True)}
        table: list[dict[str, Any]] = []
        print(f"{'nanoVLM-222M, float32':<54}{'ours':>9}{'original':>10}{'ratio':>7}{'target':>8}", flush=True)
        for row in [name for name in ROWS if not rows or name in rows]:
            commands = [our_command(row, folder)]
            if sources:
                commands.append(their_command(python, sources[ROWS[row].head], row, folder))
            if alone or row.startswith("images"):
                commands = [one_core(command) for command in commands]
            workers = in_turn(commands, seconds)
            rounds = [one.seconds for one in workers]
            rates = [ROWS[row].count / min(times) for times in rounds]
            show(ROWS[row].title, rates, ROWS[row].target)
            table.append(dict(row=row, target=ROWS[row].target, a_second=rates, seconds=rounds))
            if sources:
                table[-1]["ratio"] = rates[0] / rates[1]
            if row == "training":
                show("peak memory of training, GB", [one.last / 1e9 for one in workers], 1.0, less=True)
        if not rows or "packing" in rows:
            shares = [packing(folder)]
            if sources:
                ran = subprocess.run(
                    their_command(python, sources[True], "packing", folder), capture_output=True, text=True
                )
                if ran.returncode:
                    raise UserError(f"The reference's packing failed: {ran.stderr.strip().splitlines()[-1]}")
                shares.append(float(ran.stdout.split()[-1]))
            show("share of tokens in packed rows, %", [100 * share for share in shares], 1.0)
        return table


def _source(reference: pathlib.Path, folder: pathlib.Path, head: bool) -> pathlib.Path:
    """Returns a folder with the original's code of one generation, as it is committed."""
    commit = "HEAD" if head else V01
    archive = subprocess.run(["git", "-C", reference, "archive", commit, "models", "data"], capture_output=True)
    if archive.returncode:
        raise UserError(f"{reference}: no clone of huggingface/nanoVLM with its tags; git archive {commit} fails.")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder / commit, filter="data")
    return folder / commit


def write(folder: pathlib.Path) -> None:
    """Writes what both sides read: the sizes, the samples to pack, and photos."""
    vision, language = VARIANTS["222m"]["vision"], VARIANTS["222m"]["language"]
    sizes = {
        **{f"vit_{key}": vision[ours] for key, ours in _VIT.items()},
        **{f"lm_{key}": language[ours] for key, ours in _LM.items()},
        "mp_pixel_shuffle_factor": VARIANTS["222m"]["shuffle"],
        "mp_image_token_length": image_tokens(),
    }
    limits = {"num_of_sequences": 8, "max_images_per_example": PHOTOS, "max_images_per_knapsack": ROW_PHOTOS}
    settings = dict(
        sizes=sizes, prompt=PROMPT, answer=ANSWER, max_new=MAX_NEW, batch=BATCH, text=TEXT, tiles=[2048, 512]
    )
    settings |= dict(image_tokens=image_tokens(), samples=samples(), row=ROW, packing=limits)
    (folder / "settings.json").write_text(json.dumps(settings))
    source = scenes.Settings("train", 480, ROWS["images_v01"].count, 0)
    for number in range(ROWS["images_v01"].count):
        photo = Image.open(io.BytesIO(scenes.example(source, number)["image"]))
        photo.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


_VIT = dict(
    img_size="image_size",
    hidden_dim="width",
    inter_dim="mlp_dim",
    patch_size="patch_size",
    n_heads="heads",
    n_blocks="layers",
)
_LM = dict(
    hidden_dim="width",
    inter_dim="mlp_dim",
    n_heads="heads",
    n_kv_heads="kv_heads",
    n_blocks="layers",
    vocab_size="vocab_size",
)


def image_tokens() -> int:
    return models.build("nanovlm", variant="222m").image_tokens


def samples() -> list[tuple[int, int, int]]:
    """Returns (tokens, tiles, photos) of samples such as FineVision's: up to two photos of usual sizes, and words."""
    draw, sizes = np.random.default_rng(0), []
    sides = [(480, 640), (640, 480), (768, 1024), (500, 500), (1080, 1920)]
    while len(sizes) < SAMPLES:
        photos = int(draw.choice([0, 1, 2], p=[0.1, 0.8, 0.1]))
        grids = [tiled_size(*sides[draw.integers(len(sides))], 512, 2048, enlarge=True) for _ in range(photos)]
        tiles = sum(1 + height * width // 512**2 for height, width in grids)
        tokens = 65 * tiles + 16 + int(draw.exponential(WORDS))  # a tile's 64 and its place; the words
        if tokens < ROW:
            sizes.append((tokens, tiles, photos))
    return sizes


def packing(folder: pathlib.Path) -> float:
    """Returns the share of columns that are tokens in rows as the configs of HEAD's variants have them."""
    sizes = np.array(json.loads((folder / "settings.json").read_text())["samples"])
    plan = bins.best_fit(sizes, [ROW, TILES, np.inf], 2048, 0)
    return float(sizes[:, 0].sum() / (len(plan) * ROW))


# ---------------------------------------------------------------------------------------------------------------------
# Our worker
# ---------------------------------------------------------------------------------------------------------------------


def answers(*, head: bool, count: int, max_new: int = ANSWER, ending: int = 0) -> Callable[[], Any]:
    """Samples as the original's `generate` does by default; with `ending`, an answer has at most so many tokens."""
    fields = {"image_token": IMAGE, "language": {"vocab_size": IMAGE + 1}} if head else {}
    model = models.build("nanovlm", variant="222m", **fields)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    draw, size = np.random.default_rng(0), model.image_size
    ids = draw.integers(3, IMAGE, (count, PROMPT), np.int32)
    if head:
        ids = np.concatenate([np.full((count, model.image_tokens), IMAGE, np.int32), ids], axis=1)
    batch = {"image": draw.integers(0, 256, (count, size, size, 3), np.uint8), **prompts(ids, ids >= 0)}
    how = dict(top_k=50, top_p=0.9, temperature=0.5, filtering="nanovlm") if head else {}
    sample = functools.partial(
        decode.generate, model, variables, batch, method="sample", pad=0, rng=jax.random.key(0), **how
    )
    eos = _ending(np.asarray(sample(eos=-1, max_new=ending)[0])[0, 0]) if ending else -1  # no token ends a text
    return lambda: np.asarray(sample(eos=eos, max_new=max_new)[0])


def _ending(tokens: np.ndarray) -> int:
    """Returns the token whose first place among the tokens is the last: they end there where it ends a text."""
    _, first = np.unique(tokens, return_index=True)
    return int(tokens[first.max()])


def training(*, frozen: str = "none") -> Callable[[], Any]:
    """The step of configs/nanovlm.py:variant=222m, in float32."""
    cfg = config.load("configs/nanovlm.py:variant=222m", ["model.dtype=float32", f"freeze={frozen}"])
    step = training_step(cfg, BATCH)
    draw, size = np.random.default_rng(0), step.model.image_size
    ids = draw.integers(3, IMAGE, (BATCH, TEXT), np.int32)
    batch = {"image": draw.integers(0, 256, (BATCH, size, size, 3), np.uint8), **prompts(ids, ids >= 0)}
    batch["mask_loss"] = np.broadcast_to(np.float32(np.arange(TEXT) >= PROMPT), ids.shape)
    return steps_of(step, batch)


def images(folder: pathlib.Path, *, head: bool) -> Callable[[], Any]:
    """The photos as the configs of both generations prepare them."""
    size = VARIANTS["222m"]["vision"]["image_size"]
    spec = "decode|tiles(512, 2048, method='bicubic')" if head else f"decode|tiles({size}, method='bilinear')"
    chain, paths = pp.build(spec), sorted(folder.glob("*.jpg"))

    def work() -> None:
        for number, path in enumerate(paths):
            chain({"image": str(path), "id": path.name}, np.random.default_rng(number))

    return work


OURS: dict[str, Callable[[pathlib.Path], Callable[[], Any]]] = {
    "answers_v01": lambda _: answers(head=False, count=1),
    "answers_v01_batch": lambda _: answers(head=False, count=BATCH),
    "answers_head": lambda _: answers(head=True, count=1),
    "answers_head_batch": lambda _: answers(head=True, count=BATCH),
    "answers_short": lambda _: answers(head=True, count=1, max_new=MAX_NEW, ending=MAX_NEW // 10),
    "training": lambda _: training(),
    "projector": lambda _: training(frozen="freeze_lang_vision"),
    "images_v01": lambda folder: images(folder, head=False),
    "images_head": lambda folder: images(folder, head=True),
}


def main(row: str, folder: str) -> None:
    """Our worker: 'ready'; the seconds of a round for each line on stdin; the process's peak memory in bytes."""
    runtime.use_compilation_cache()
    serve(lambda: OURS[row](pathlib.Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
