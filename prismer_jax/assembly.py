"""From sections of a config to what they name: data, model, loss and evaluators, for training and evaluation alike."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prismer_jax import config, datasets, evaluators, losses, models, pp, registry, runtime
from prismer_jax.datasets import checks
from prismer_jax.errors import UserError, nearest
from prismer_jax.files import storage
from prismer_jax.pp.ops import Pipeline
from prismer_jax.pp.text import style_of
from prismer_jax.report import results

DATA_KEYS = ("name", "pp", "weight", "pack", "features", *config.duration_keys("start"))  # others are the data set's


def load_source(section: config.Section, where: str, pp: str = "", experts: str | Sequence[str] = ()) -> Any:
    """Returns the source of examples that a section {name, ...} of the config describes; see `checks.check`."""
    source = config.call(datasets.load, section, where, skip=DATA_KEYS, name=section.name, where=where)
    checks.check(source, where, pp, experts)
    return source


def load_mixture(section: config.Section, tokenizer: Any, experts: str | Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns what `input.train_batches` mixes, and its `name`, from {any name: {name, pp, weight, pack, ...}}.

    `size` is the number of the set's texts, as the reference counts its examples: of each photo with five captions,
    five. Weights are proportions of a batch; sets whose weights are 'size' are mixed as if they were one. With `pack`,
    the settings of datasets.packing.rows, an example is a row of several. `experts` are those that the model reads.
    """
    if not section:
        raise UserError("config.data is empty. Name a data set to train on: dict(mine=dict(name=..., pp=...)).")
    mixture = []
    for name, part in section.items():
        source, weight = load_source(part, f"config.data.{name}", part.pp, experts), part.get("weight", 1.0)
        chain = pp.build(part.pp, tokenizer=tokenizer)
        if "pack" in part:
            rows = importlib.import_module("prismer_jax.datasets.packing").rows
            source, chain = config.call(rows, part["pack"], f"config.data.{name}.pack", source=source, chain=chain)
        size = getattr(source, "texts", len(source))
        weight = size if weight == "size" else weight
        if not isinstance(weight, int | float):
            raise UserError(f"config.data.{name}.weight={weight!r}: a number above 0, or 'size'.")
        mixture.append({"name": name, "source": source, "pp": chain, "weight": weight, "size": size})
    return mixture


def make_model(cfg: config.Section, tokenizer: Any) -> Any:
    """Returns the config's model, which takes the ids of the tokenizer."""
    return config.call(models.build, cfg.model, "config.model", tokenizer=tokenizer)


def sharding_of(cfg: config.Section, model: Any) -> tuple[Any, Any]:
    """Returns the config's preset or rules, and the rules of the model's family for 'tensor' where they are needed."""
    spec = config.plain(cfg.get("sharding", ()))
    split = importlib.import_module("prismer_jax.models.split") if "tensor" in spec else None
    return spec, split.tensor_rules(models.name_of(cfg.model), model) if split else ()


def make_loss(section: config.Section) -> losses.Loss:
    """Returns the loss (forward, batch) -> costs with the section's settings; see `losses`."""
    fn = registry.imported("loss", section.name, losses.LOSSES)
    called_with = list(inspect.signature(fn).parameters)[:2]
    return functools.partial(fn, **config.arguments(fn, section, "config.loss", skip=("name",), extra=called_with))


def make_evaluators(
    section: config.Section, model: Any, tokenizer: Any, mesh: Any, quiet: bool = False
) -> dict[str, evaluators.Evaluator]:
    """Returns {name: evaluator} from {name: {type, data, pp, batch_size[, train_data], and the type's own options}}."""
    by_name = {}
    for name, part in section.items():
        where = f"config.evals.{name}"
        train_data = part.get("train_data")
        by_name[name] = config.call(
            evaluators.build,
            part,
            where,
            skip=("data", "train_data", "pp"),
            where=where,
            model=model,
            tokenizer=tokenizer,
            source=load_source(part.data, f"{where}.data", part.pp, model.experts),
            train_source=None if train_data is None else load_source(train_data, f"{where}.train_data"),
            pp=pp.build(part.pp, tokenizer=tokenizer),
            mesh=mesh,
            quiet=quiet,
        )
        by_name[name].check_source()  # now, and not after hours of training
    return by_name


def check_tasks(section: config.Section, tokenizer: Any) -> None:
    """Raises a UserError for what checkpoints could not be used by; training itself asks for no task."""
    for name, part in section.items():
        config.call(check_task, part, f"config.tasks.{name}", where=f"config.tasks.{name}", tokenizer=tokenizer)


def check_task(
    pp: str,
    *,
    style: str = "plain",
    decode: Mapping[str, Any] | None = None,
    sample: Mapping[str, Any] | None = None,
    max_tokens: int = 32,
    where: str,
    tokenizer: Any,
) -> None:
    """Checks a task: its ops, how texts are read back, and the settings of decoding, further ones where it draws."""
    Pipeline(pp, tokenizer)
    style_of(style)
    check = importlib.import_module("prismer_jax.decode.batch").check
    for key, settings in (("decode", decode), ("sample", sample and {"method": "sample", **sample})):
        check(settings or {}, f"{where}.{key}")


def check_metric(name: str | None, evals: Mapping[str, Any], why: str = "to choose the best checkpoint by") -> None:
    """Checks that a metric, such as 'caption/cider', will be there: of evaluators, or whatever has `score_names`.

    Raises:
      UserError: no evaluator yields it; the message says the nearest that one does.
    """
    if name is None:
        return
    evaluator, _, metric = name.partition("/")
    score = metric.partition("/")[0].removesuffix("_blank").removesuffix("_most_frequent")  # kinds follow a slash
    names = [f"{key}/{one}" for key, part in evals.items() for one in part.score_names]
    if not {name, f"{evaluator}/{score}"} & {*names} and (evaluator not in evals or evals[evaluator].score_names):
        raise UserError(f"No metric {name!r} {why}. {nearest(name, names)}")


def report_and_profile(cfg: config.Section) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the report and of the profile, checked although they are not needed before the end.

    Raises:
      UserError: there is no such setting, or a profile of no steps.
    """
    report = config.arguments(
        results.write, cfg.get("report", {}), "config.report", extra=("folder", "evaluators", "scores", "cfg")
    )
    profile = config.arguments(runtime.profiled, cfg.get("profile", {}), "config.profile", extra=("folder",))
    if profile.get("first", 0) < 0 or profile.get("steps", 1) < 1:
        raise UserError(f"config.profile: {profile}; first is a step, or 0 for no profile, and steps at least 1.")
    return report, profile


def description(cfg: config.Section, tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Returns what a checkpoint carries beside its arrays, so that it can be used without the config file.

    Those of `config.files` go with it, too, such as a codec of masks.
    """
    what = {"model": config.plain(cfg.model), "tokenizer": tokenizer.spec, "tasks": config.plain(cfg.tasks), **more}
    what |= {"freeze": config.plain(cfg.get("freeze", "none"))} if cfg.model.get("lora") else {}  # for tools.export
    further = cfg.get("files", ())
    files = [*tokenizer.files(), *map(storage.on_disk, [further] if isinstance(further, str) else further)]
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(f"config.files: {missing[0]} does not exist.")
    return {"config": what, "files": {path.name: path for path in files}}


def make_initial(cfg: config.Section, model: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Returns a function from a fresh state to the variables that `config.init` names, if it names any."""
    path, fresh = cfg.get("init"), config.plain(cfg.get("init_fresh", ()))
    if path is None and fresh:
        raise UserError("config.init_fresh says what is not taken from config.init, which is missing: give both.")
    if path is None:
        return lambda state: {}
    start = importlib.import_module("prismer_jax.training.start")
    return functools.partial(start.load, path=path, section=cfg.model, model=model, fresh=fresh)
