"""Evaluation apart from training: python -m prismer_jax.evaluate --config FILE.py[:arg] --checkpoint DIR [--output DIR]

Runs a config's evaluators on any checkpoint of its model, prints the metrics and writes metrics.json, the predictions,
what there is to know of each sample, and report.html with the best and the worst. A run that is stopped, even killed,
goes on where it was when it is started again, also by another number of processes. Two results side by side:

    python -m prismer_jax.evaluate --compare RUN_A RUN_B --output DIR
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from prismer_jax import compare, config, runtime
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.files import storage
from prismer_jax.report import results


def evaluate(
    cfg: config.Section,
    checkpoint_path: pathlib.Path,
    folder: pathlib.Path,
    *,
    only: Sequence[str] = (),
    asked: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Runs the config's evaluators on a checkpoint and writes the results into a folder; returns the metrics.

    All processes of a multi-host run call this; one writes.

    Args:
      cfg: the config.
      checkpoint_path: whatever `checkpoint.find` accepts.
      folder: of the results. What is found on the way is kept in FOLDER/partial until all is there.
      only: names of the evaluators that are run; all by default.
      asked: what the results say of where the config came from, such as {"config": "configs/quickstart.py:z"}.

    Raises:
      UserError: the checkpoint is not of the config's model, or anything named by the config cannot be used.
    """
    import jax  # a comparison needs none of this

    from prismer_jax import sharding

    runtime.use_compilation_cache()
    sharding.initialize_distributed(cfg.get("distributed"))
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    with jax.set_mesh(mesh):
        return evaluate_on(mesh, cfg, checkpoint_path, folder, only, asked or {})


def evaluate_on(
    mesh: Any,
    cfg: config.Section,
    checkpoint_path: pathlib.Path,
    folder: pathlib.Path,
    only: Sequence[str],
    asked: dict[str, Any],
) -> dict[str, float]:
    """Does the work of `evaluate` on a mesh, which is set."""
    import jax

    from prismer_jax import assembly, checkpoint, evaluators, pp, sharding, tree

    # ------------------------------------------------------------------------------------------ model and evaluators
    sections = {name: choose("evaluator of the config", name, cfg.evals) for name in only or cfg.evals}
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    model = assembly.make_model(cfg, tokenizer)
    by_name = assembly.make_evaluators(sections, model, tokenizer, mesh)
    variables = assembly.load_variables(cfg, model, mesh, checkpoint_path)
    path = checkpoint.find(checkpoint_path)
    step = int(path.name) if path.name.isdigit() else checkpoint.description(checkpoint_path).get("step")
    weights = {"path": str(path), "step": step, "fingerprint": tree.fingerprint(variables)}

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
        name: evaluators.Journal(
            folder / "partial",
            name,
            {**same, **described[name], "config": {**described[name]["config"], "num_workers": None}},
            jax.process_index(),
            jax.process_count(),
        )
        for name in by_name
    }
    scores = evaluators.run(by_name, variables, journals)

    # ----------------------------------------------------------------------------------------------------- the results
    for journal in journals.values():
        journal.close()
    sharding.barrier("evaluated")
    if jax.process_index() == 0:
        record = {
            **asked,
            "checkpoint": weights,
            "evaluators": described,
            "model": same["model"],
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, processes: {jax.process_count()}",
        }
        shown = config.plain(cfg.get("report", {})).get("samples", 12)
        results.write_evaluation(folder, by_name, scores, record, shown)
        for journal in journals.values():
            journal.discard()
    sharding.barrier("written")
    return scores


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.evaluate", description=__doc__)
    parser.add_argument("--config", help="FILE.py or FILE.py:arg, the config of the run; --config.key=value overrides")
    parser.add_argument("--checkpoint", type=storage.on_disk, help="a workdir, an export or a checkpoint")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these of the config's evaluators")
    parser.add_argument(
        "--output", type=storage.on_disk, help="where results are written; default CHECKPOINT/evaluation"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        type=storage.on_disk,
        metavar="RUN",
        help="results to put side by side, the first as base",
    )
    args, overrides = parser.parse(argv)
    runtime.log_warnings()
    if args.compare is not None:
        if args.config or args.checkpoint or args.only or overrides:
            raise UserError("--compare reads results that are there: leave --config, --checkpoint and --only out.")
        if args.output is None:
            raise UserError("--compare needs --output, a folder for its page.")
        compare.compare(args.compare, args.output)
        return
    if args.config is None or args.checkpoint is None:
        raise UserError("Give --config and --checkpoint, or --compare and the folders of two results.")
    folder = args.output or args.checkpoint / "evaluation"
    cfg = config.load(args.config, overrides)
    results.show(
        evaluate(cfg, args.checkpoint, folder, only=args.only, asked={"config": args.config, "overrides": overrides})
    )
    print(f"Results, predictions and report are in {folder}.")


if __name__ == "__main__":
    run_main(main)
