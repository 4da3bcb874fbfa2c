"""Evaluation apart from training: python -m prismer_jax.evaluate --config FILE.py[:arg] --checkpoint DIR [--output DIR]

Runs a config's evaluators on any checkpoint of its model, prints the metrics and writes metrics.json, predictions and a
report. The training loop takes what it evaluates with from here, so both give the same numbers.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from prismer_jax import checkpoint, config, datasets, evaluators, losses, models, pp, report, runtime, sharding
from prismer_jax.errors import UserError, choose, run_main

DATA_KEYS = ("name", "pp", "weight")  # of a data section; the rest goes to the data set


def load_source(section: config.Section, where: str) -> Any:
    """Returns the source of examples that a section {name, ...} of the config describes."""
    options = {key: config.plain(section[key]) for key in section if key not in DATA_KEYS}
    try:
        return datasets.load(section.name, **options)
    except TypeError as error:
        raise UserError(f"{where}: data set {section.name!r}: {error}.") from None


def load_mixture(section: config.Section, tokenizer: Any) -> list[dict[str, Any]]:
    """Returns what `input.train_batches` mixes, from {any name: {name, pp, weight, ...}}.

    Weights are proportions of a batch; 'size' is the number of the set's examples, so that sets which all have it are
    mixed as if they were one.
    """
    mixture = []
    for name, part in section.items():
        source, weight = load_source(part, f"config.data.{name}"), part.get("weight", 1.0)
        weight = len(source) if weight == "size" else weight
        mixture.append({"source": source, "pp": pp.build(part.pp, tokenizer=tokenizer), "weight": weight})
    return mixture


def make_model(cfg: config.Section, tokenizer: Any) -> Any:
    """Returns the config's model, whose vocabulary must be large enough for the tokenizer."""
    model = config.call(models.build, cfg.model, "config.model")
    if (size := model.decoder["vocab_size"]) < tokenizer.vocab_size:
        raise UserError(
            f"config.model.decoder.vocab_size={size} is smaller than the {tokenizer.vocab_size} ids of the tokenizer "
            f"{tokenizer.spec!r}; raise it to that."
        )
    return model


def make_loss(section: config.Section) -> Callable[..., jax.Array]:
    """Returns the loss (logits, text, mask_loss) -> [batch] with the section's settings."""
    fn = choose("loss", section.name, losses.LOSSES)
    return lambda *args: config.call(
        lambda **options: fn(*args, **options), {k: section[k] for k in section if k != "name"}, "config.loss"
    )


def make_evaluators(
    section: config.Section, model: Any, tokenizer: Any, mesh: Any, quiet: bool = False
) -> dict[str, evaluators.Evaluator]:
    """Returns {name: evaluator} from {name: {type, data, pp, batch_size[, train_data], and the type's own options}}."""
    made = {}
    for name, part in section.items():
        where = f"config.evals.{name}"
        train_data = part.get("train_data")
        made[name] = config.call(
            evaluators.build,
            part,
            where,
            skip=("data", "train_data", "pp"),
            model=model,
            tokenizer=tokenizer,
            source=load_source(part.data, f"{where}.data"),
            train_source=None if train_data is None else load_source(train_data, f"{where}.train_data"),
            pp=pp.build(part.pp, tokenizer=tokenizer),
            mesh=mesh,
            quiet=quiet,
        )
    return made


def description(cfg: config.Section, tokenizer: Any) -> dict[str, Any]:
    """What a checkpoint carries beside its arrays, so that it can be used without the config file."""
    what = {"model": config.plain(cfg.model), "tokenizer": tokenizer.spec, "tasks": config.plain(cfg.tasks)}
    return {"config": what, "files": {path.name: path for path in tokenizer.files()}}


def run(made: Mapping[str, evaluators.Evaluator], variables: Any) -> dict[str, float]:
    """Returns {'evaluator/metric': value} of all evaluators."""
    return {
        f"{name}/{metric}": float(value)
        for name, evaluator in made.items()
        for metric, value in evaluator.run(variables)
    }


def write_results(
    folder: pathlib.Path,
    made: Mapping[str, evaluators.Evaluator],
    results: Mapping[str, float],
    cfg: config.Section,
    samples: int = 12,
) -> None:
    """Writes metrics.json, predictions/NAME.json in the official result formats, and the report, into a folder."""
    if jax.process_index() != 0:
        return
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    shown = [evaluator for evaluator in made.values() if hasattr(evaluator, "samples")]
    for name, evaluator in made.items():
        if evaluator.predictions:
            (folder / "predictions" / f"{name}.json").write_text(json.dumps(evaluator.predictions) + "\n")
    panels = [sample for evaluator in shown for sample in evaluator.samples(max(1, samples // len(shown)))]
    report.write_report(folder, panels, results, config.to_json(cfg))
    (folder / "metrics.json").write_text(json.dumps(dict(results), indent=2) + "\n")


def print_results(results: Mapping[str, float]) -> None:
    """Prints one line a metric."""
    width = max(map(len, results), default=0)
    for name, value in results.items():
        print(f"{name:<{width}}  {value:.4f}")


def evaluate(cfg: config.Section, checkpoint_path: pathlib.Path, folder: pathlib.Path) -> dict[str, float]:
    """Runs the config's evaluators on a checkpoint and writes the results into a folder; returns the metrics.

    Raises:
      UserError: the checkpoint is not of the config's model, or anything named by the config cannot be used.
    """
    runtime.use_compilation_cache()
    mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
    jax.set_mesh(mesh)
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    model = make_model(cfg, tokenizer)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    places = {
        "params": sharding.param_shardings(shapes["params"], config.plain(cfg.get("sharding", ())), mesh),
        **jax.tree.map(lambda _: sharding.replicated(mesh), {k: v for k, v in shapes.items() if k != "params"}),
    }
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)
    variables = checkpoint.load_into(like, checkpoint_path, resize=models.RESIZE.get(cfg.model.get("name", "prismer")))
    made = make_evaluators(cfg.evals, model, tokenizer, mesh)
    results = run(made, variables)
    write_results(folder, made, results, cfg, config.plain(cfg.get("report", {})).get("samples", 12))
    return results


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.evaluate", description=__doc__)
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:arg, the config of the run")
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path, help="an export, a workdir or a checkpoint")
    parser.add_argument("--output", type=pathlib.Path, help="where results are written; default CHECKPOINT/evaluation")
    args, overrides = parser.parse(argv)
    runtime.log_warnings()
    folder = args.output or args.checkpoint / "evaluation"
    print_results(evaluate(config.load(args.config, overrides), args.checkpoint, folder))
    print(f"Results, predictions and report are in {folder}.")


if __name__ == "__main__":
    run_main(main)
