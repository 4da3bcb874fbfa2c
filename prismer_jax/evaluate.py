"""Evaluation apart from training: python -m prismer_jax.evaluate --config FILE.py[:arg] --checkpoint DIR [--output DIR]

Runs a config's evaluators on any checkpoint of its model, prints the metrics and writes metrics.json, the predictions,
what there is to know of each sample, and report.html with the best and the worst. A run that is stopped, even killed,
goes on where it was when it is started again, also by another number of processes. Two results side by side:

    python -m prismer_jax.evaluate --compare RUN_A RUN_B --output DIR

A file of predictions, without a model:

    python -m prismer_jax.evaluate --score predictions.json --references FILE [--annotations FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax import compare, config, runtime, scoring
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.files import storage, versions
from prismer_jax.report import evaluation, results

NO_MATTER = {"num_workers": None, "max_unscored": None}  # settings with which a run may go on that had others


def evaluate(
    cfg: config.Section,
    checkpoint_path: pathlib.Path,
    folder: pathlib.Path,
    *,
    only: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    asked: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Runs the config's evaluators on a checkpoint and writes the results into a folder; returns the metrics.

    All processes of a multi-host run call this; one writes.

    Args:
      cfg: the config.
      checkpoint_path: whatever `checkpoint.find` accepts.
      folder: of the results, also of a bucket. What is found on the way is kept in FOLDER/partial until all is there.
      only: names of the evaluators that are run; all by default.
      settings: of all of them, such as {"predict_only": True}, instead of the config's.
      asked: what the results say of where the config came from, such as {"config": "configs/quickstart.py:z"}.

    Raises:
      UserError: the checkpoint is not of the config's model, or anything named by the config cannot be used.
    """
    import jax  # a comparison needs none of this

    from prismer_jax import sharding
    from prismer_jax.files.mirror import mirrored

    runtime.use_compilation_cache()
    sharding.initialize_distributed(cfg.get("distributed"))
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    first = jax.process_index() == 0
    with jax.set_mesh(mesh), mirrored(folder, sends=first) as here:
        return evaluate_on(mesh, cfg, checkpoint_path, here, only, settings or {}, asked or {})


def evaluate_on(
    mesh: Any,
    cfg: config.Section,
    checkpoint_path: pathlib.Path,
    folder: pathlib.Path,
    only: Sequence[str],
    settings: Mapping[str, Any],
    asked: dict[str, Any],
) -> dict[str, float]:
    """Does the work of `evaluate` on a mesh, which is set."""
    import jax

    from prismer_jax import assembly, checkpoint, evaluators, pp, sharding
    from prismer_jax.checkpoint.fingerprint import fingerprint
    from prismer_jax.datasets import checks, data_seen
    from prismer_jax.evaluators.journal import Journal

    # ------------------------------------------------------------------------------------------ model and evaluators
    sections = {name: choose("evaluator of the config", name, cfg.evals) for name in only or cfg.evals}
    sections = {name: config.Section({**config.plain(part), **settings}) for name, part in sections.items()}
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    model = assembly.make_model(cfg, tokenizer)
    by_name = assembly.make_evaluators(sections, model, tokenizer, mesh)
    path = checkpoint.find(checkpoint_path)  # once, as a run that is under way saves others
    variables = load_variables(cfg, model, mesh, path)
    step = int(path.name) if path.name.isdigit() else checkpoint.description(path).get("step")
    weights = {"path": str(path), "step": step, "fingerprint": fingerprint(variables)}

    # --------------------------------------------------------------------------------------------------------- the run
    described = {
        name: {
            "type": section.type,
            "samples": len(by_name[name].source),
            "decoding": by_name[name].decoding,
            "score": by_name[name].main_score,
            "higher_is_better": by_name[name].higher_is_better,
            "config": json.loads(config.to_json(section)),
        }
        for name, section in sections.items()
    }
    same = {
        "weights": weights["fingerprint"],
        "model": json.loads(config.to_json(cfg.model)),
        "tokenizer": cfg.tokenizer,
    }
    journals = {
        name: Journal(
            folder / "partial",
            name,
            {
                **same,
                **described[name],
                "config": {**described[name]["config"], **NO_MATTER},
                "data": [data_seen.fingerprint(s) for s in (evaluator.source, evaluator.train_source) if s is not None],
                "files": versions.digest(checks.sample(evaluator.source)) if model.experts else "",
            },
            jax.process_index(),
            jax.process_count(),
        )
        for name, evaluator in by_name.items()
    }
    scores = evaluators.run(by_name, variables, journals)

    # ----------------------------------------------------------------------------------------------------- the results
    for journal in journals.values():
        journal.close()
    for name, evaluator in by_name.items():
        described[name] |= {"samples": len(evaluator.records), "left_out": [e["error"] for e in evaluator.left_out]}
    sharding.barrier("evaluated")
    if jax.process_index() == 0:
        record = {
            **asked,
            "checkpoint": weights,
            "evaluators": described,
            "model": same["model"],
            "tokenizer": same["tokenizer"],
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, processes: {jax.process_count()}",
        }
        shown = config.plain(cfg.get("report", {})).get("samples", 12)
        evaluation.write(folder, by_name, scores, record, shown)
        for journal in journals.values():
            journal.discard()
    sharding.barrier("written")
    return scores


def load_variables(cfg: config.Section, model: Any, mesh: Any, path: pathlib.Path) -> Any:
    """Returns the variables of a checkpoint, whatever `checkpoint.find` accepts, for the config's model on a mesh.

    Raises:
      UserError: there is no checkpoint, or it is of another model; where it says of which, the message names the keys.
    """
    import jax

    from prismer_jax import assembly, sharding
    from prismer_jax.training import start

    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    spec, tensor = assembly.sharding_of(cfg, model)
    return start.load(sharding.placed(shapes, spec, mesh, tensor), path, cfg.model, model)


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.evaluate", description=__doc__)
    parser.add_argument("--config", help="FILE.py[:arg]; --config.key=value overrides a key")
    parser.add_argument("--checkpoint", type=storage.folder, help="a workdir, an export or a checkpoint")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these of the config's evaluators")
    parser.add_argument("--plan", metavar="v5e:2x2,...", help="only say what writing takes of a TPU: docs/scaling.md")
    parser.add_argument("--predict-only", action="store_true", help="score nothing: there are no references")
    parser.add_argument("--max-unscored", type=float, help="fraction of samples without score or reference")
    parser.add_argument(
        "--output", type=storage.folder, help="for results; default CHECKPOINT/evaluation, or STEP_evaluation"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        type=storage.on_disk,
        metavar="RUN",
        help="results to put side by side, the first as base",
    )
    add_scoring_flags(parser)
    args, overrides = parser.parse(argv)
    runtime.log_warnings()
    if args.score is not None:
        if args.config or args.checkpoint or args.only or args.compare or overrides:
            raise UserError("--score needs no model: leave --config, --checkpoint, --only and --compare out.")
        score(args)
        return
    if args.references or args.annotations or args.task or args.split:
        raise UserError("--references, --annotations, --split and --task belong to --score, a file of predictions.")
    if args.compare is not None:
        if args.config or args.checkpoint or args.only or overrides:
            raise UserError("--compare reads results that are there: leave --config, --checkpoint and --only out.")
        if args.output is None:
            raise UserError("--compare needs --output, a folder for its page.")
        compare.compare(args.compare, args.output)
        return
    if args.plan and args.config:
        importlib.import_module("prismer_jax.planning.decoding").main(args.config, overrides, args.plan)
        return
    if args.config is None or args.checkpoint is None:
        raise UserError("Give --config and --checkpoint, or --compare and two results, or --score and --references.")
    folder = args.output or compare.results_of(args.checkpoint)
    cfg = config.load(args.config, overrides)
    asked = {"config": args.config, "overrides": overrides}
    settings = {"predict_only": True} if args.predict_only else {}
    settings |= {} if args.max_unscored is None else {"max_unscored": args.max_unscored}
    scores = evaluate(cfg, args.checkpoint, folder, only=args.only, settings=settings, asked=asked)
    results.show(scores)
    print(f"Results, predictions and report are in {folder}.")
    if any(name.endswith("/left_out") for name in scores):
        sys.exit(1)


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags with which a file of predictions is scored."""
    flags = parser.add_argument_group("a file of predictions")
    flags.add_argument("--score", type=storage.on_disk, metavar="FILE", help="predictions, in JSON or JSON lines")
    flags.add_argument("--references", nargs="+", type=storage.on_disk, metavar="FILE", help="lists in any layout")
    flags.add_argument(
        "--annotations", nargs="+", default=(), type=storage.on_disk, metavar="FILE", help="their answers"
    )
    flags.add_argument("--split", help="of lists that hold several, as Karpathy's")
    flags.add_argument("--task", choices=scoring.TEXTS, help="default: what the predictions' keys say")
    flags.add_argument("--metrics", nargs="+", default=(), help="of captions: meteor and spice, which need Java")
    flags.add_argument("--answers", choices=scoring.ANSWERS, help="how answers are scored (default: as VQA's)")
    flags.add_argument(
        "--max-unmatched",
        type=float,
        default=scoring.MAX_UNMATCHED,
        help="fraction of predictions and of references that may be without a partner (default %(default)s)",
    )


def score(args: argparse.Namespace) -> None:
    """Scores a file of predictions, shows the metrics and says where the results are."""
    if not args.references:
        raise UserError("--score needs --references, lists with the captions, answers or classes to score by.")
    folder = args.output or args.score.with_name(f"{args.score.stem}_scores")
    options = {
        name: getattr(args, name) for name in ("annotations", "split", "task", "metrics", "answers", "max_unmatched")
    }
    results.show(scoring.score(args.score, args.references, folder, **options))
    print(f"Scores and report are in {folder}.")


if __name__ == "__main__":
    run_main(main)
