"""What each expert is worth to a trained model, without training again.

    python -m tools.audit --checkpoint runs/quickstart --config configs/quickstart.py --output runs/audit

The config's evaluators run again and again on the same examples while a part of the labels tells nothing: each expert's
alone, and all experts' at once, are

  blank      left out: the model sees the background
  shuffled   those of another photo
  noise      drawn uniformly, pixel by pixel

OUTPUT/audit.md has, for every arm, the difference that this makes to each evaluator's score, over all and by type of
question, with 95 % intervals by a paired bootstrap over photos, and what reading an expert's labels takes; audit.png
shows it, audit.json has all metrics. A run that is stopped goes on with the arms that are not done; what is there of
another checkpoint, config or choice of evaluators is refused. What a model does without an expert that it was trained
with is not what it would do had it been trained without: tools.sweep trains.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prismer_jax import checkpoint, compare, config, datasets, evaluate, labels, pp, runtime, sharding
from prismer_jax.datasets import checks
from prismer_jax.datasets.altered import HOW
from prismer_jax.errors import BadSample, UserError, choose, run_main
from prismer_jax.experts import EXPERTS
from prismer_jax.files import storage
from prismer_jax.report import audit as report

KINDS = ("blank", "shuffled", "noise")
BASE = "as it is"
TIMED = 64  # photos whose labels are read for the clock
SIDE = 480  # pixels, of the photo that the networks are timed on
_DECODE = re.compile(r"(?<![\w.])decode(\([^|]*\))?(?=\||$)")


class Arm(NamedTuple):
    """What is done to the labels of which experts; of neither, nothing."""

    experts: tuple[str, ...] = ()
    kind: str = ""

    def name(self, every: Sequence[str]) -> str:
        who = "all experts" if len(self.experts) == len(every) > 1 else "+".join(self.experts)
        return f"{who} {self.kind}" if self.experts else BASE


def experts_of(cfg: config.Section) -> tuple[str, ...]:
    """Returns the experts whose labels a config's model reads.

    Raises:
      UserError: it has none.
    """
    names = tuple(labels.select(config.plain(cfg.model.get("experts", "none"))))
    if not names:
        raise UserError("The config's model has no experts: there is nothing to audit.")
    return names


def arms(experts: Sequence[str], kinds: Sequence[str]) -> list[Arm]:
    """Returns the model as it is, each expert by itself, and all of them, altered in each way."""
    alone = [(name,) for name in experts] if len(experts) > 1 else []
    return [Arm(), *(Arm(chosen, kind) for chosen in (*alone, tuple(experts)) for kind in kinds)]


def altered(section: Mapping[str, Any], arm: Arm, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Returns an evaluator's section of the config with the labels of an arm.

    Args:
      section: {type, data, pp ...}.
      classes: of experts whose classes are a data set's own.

    Raises:
      UserError: its `pp` has no `decode`, behind which noise takes the place of labels.
    """
    out = {**section, "blank": False}  # which arms are compared with each other
    if arm.kind in HOW:
        out["data"] = dict(name="altered", of=section["data"], experts=list(arm.experts), how=arm.kind)
    elif arm.kind:
        if not _DECODE.search(section["pp"]):
            raise UserError(f"{section['pp']!r} has no op `decode`, behind which noise would stand.")
        noise = "".join(
            f"|noise_labels('{name}', num_classes={len(classes[name]) if name in classes else None})"
            for name in arm.experts
        )
        out["pp"] = _DECODE.sub(lambda match: match[0] + noise, section["pp"], count=1)
    return out


def reading(data: Mapping[str, Any], experts: Sequence[str]) -> dict[str, float]:
    """Returns milliseconds a photo of reading and decoding an expert's labels, on one core."""
    source, examples = datasets.load(**data), []
    for index in range(min(TIMED, len(source))):
        with contextlib.suppress(BadSample):  # a label is damaged
            examples.append(source[index])

    def seconds(names: str) -> float:
        chain, best = pp.build(f"labels_for('{names}')|decode"), float("inf")
        for _ in range(3):
            start = time.perf_counter()
            for number, example in enumerate(examples):
                try:
                    chain(example, np.random.default_rng(number))
                except BadSample:
                    continue
            best = min(best, time.perf_counter() - start)
        return best / max(len(examples), 1)

    without = seconds("none")
    return {name: 1000 * max(0.0, seconds(name) - without) for name in experts}


def making(experts: Sequence[str]) -> dict[str, float]:
    """Returns milliseconds a photo, of 480x480 pixels and by itself, of the experts' networks on this machine."""
    mesh, photo = sharding.make_mesh(), np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    spent = {}
    for name in experts:
        expert = EXPERTS[name]()
        variables = jax.device_put(expert.random_variables(), sharding.replicated(mesh))
        rounds = []
        for _ in range(3):  # the first compiles
            start = time.perf_counter()
            jax.block_until_ready(expert.run(variables, [expert.prepare(photo)], mesh))
            rounds.append(time.perf_counter() - start)
        spent[name] = 1000 * min(rounds[1:])
    return spent


def is_done(folder: pathlib.Path, path: pathlib.Path, asked: Mapping[str, Any], cfg: config.Section) -> bool:
    """Returns whether a folder holds the results of this checkpoint and config, asked for in the same way.

    A config is the same where it says the same of the model, the tokenizer and all that matters of the evaluators.

    Raises:
      UserError: it holds those of another checkpoint or config, of other evaluators, or of a checkpoint that was there
        before.
    """
    if not (folder / "metrics.json").exists():
        return False
    record, weights, content = compare.read(folder).record, checkpoint.find(path), json.loads(config.to_json(cfg))
    sections = {name: part["config"] for name, part in record["evaluators"].items()}
    asked = {**asked, "model": content["model"], "tokenizer": content["tokenizer"]}
    same = record["checkpoint"]["path"] == str(weights) and all(record.get(key) == asked[key] for key in asked)
    same = same and _that_matter(sections) == _that_matter(content["evals"])
    if not same or (folder / "metrics.json").stat().st_mtime < weights.stat().st_mtime:
        raise UserError(
            f"{folder}: holds results of another checkpoint, config or choice of evaluators. Choose another --output, "
            "or delete it."
        )
    return True


def _that_matter(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns evaluators' sections of a config without the settings that change no result."""
    return {name: {**section, **evaluate.NO_MATTER} for name, section in sections.items()}


def audit(
    cfg: config.Section,
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    only: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    asked: Mapping[str, Any] | None = None,
    time_making: bool = False,
) -> dict[str, Any]:
    """Evaluates all arms, writes OUTPUT/audit.md, audit.png and audit.json, and returns the last one's content.

    Args:
      cfg: the config, whose `evals` are run.
      path: of the checkpoint, whatever `checkpoint.find` accepts.
      only: names of the evaluators that are run; all by default.
      kinds: of KINDS.
      asked: what the results say of where the config came from.
      time_making: also run each expert's network, with random weights, for the clock.

    Raises:
      UserError: the model has no experts, no example has labels of one, `output` holds the audit of something else, or
        as `evaluate.evaluate`.
    """
    experts = experts_of(cfg)
    plain = config.plain(cfg)
    sections = {name: choose("evaluator of the config", name, plain["evals"]) for name in only or plain["evals"]}
    classes = plain["model"].get("classes") or {}
    for name, part in sections.items():
        if absent := checks.missing([datasets.load(**part["data"])], experts):
            said = f"config.evals.{name}: no labels of {', '.join(absent)}, which an audit would call worth nothing"
            raise UserError(f"{said}. {checks.MAKE}.")
    folders, every = {}, arms(experts, kinds)
    for arm in every:
        name = arm.name(experts)
        folders[name] = output / name.replace(" ", "_")
        said = {**(asked or {}), "labels": name}
        changed = {**plain, "evals": {key: altered(part, arm, classes) for key, part in sections.items()}}
        if is_done(folders[name], path, said, config.Section(changed)):
            print(f"{name}: there already.")
            continue
        print(f"{name} ({len(folders)} of {len(every)})", flush=True)
        evaluate.evaluate(config.Section(changed), path, folders[name], asked=said)
    table, runs, _ = compare.tabulate(list(folders.values()))
    parts = runs[0].record["evaluators"]
    scores = {name: part["score"] for name, part in parts.items()}
    summary = {
        "arms": list(folders),
        "level": table["level"],
        "metrics": report.chosen(table["metrics"], scores),
        "lower_is_better": [name for name, part in parts.items() if not part["higher_is_better"]],
        "reading_ms": reading(next(iter(sections.values()))["data"], experts),
        "making_ms": making(experts) if time_making else None,
    }
    storage.write_json(output / "audit.json", {**summary, "metrics": table["metrics"]})
    storage.write(output / "audit.md", report.table(summary))
    report.plot(output / "audit.png", summary)
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.audit", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=storage.on_disk, help="a workdir, a step or an export")
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:arg, the config that it was trained with")
    parser.add_argument("--output", required=True, type=storage.on_disk, help="folder of the results")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="evaluators of the config")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="what becomes of labels")
    parser.add_argument("--making", action="store_true", help="also time the experts' networks on this machine")
    args, overrides = parser.parse(argv)
    runtime.use_compilation_cache()
    runtime.log_warnings()
    cfg = config.load(args.config, overrides)
    asked = {"config": args.config, "overrides": list(overrides)}
    options = dict(only=args.only, kinds=args.kinds, asked=asked, time_making=args.making)
    summary = audit(cfg, args.checkpoint, args.output, **options)
    print(report.table(summary))
    print(f"Table: {args.output / 'audit.md'}   plot: {args.output / 'audit.png'}   all: {args.output / 'audit.json'}")


if __name__ == "__main__":
    run_main(main)
