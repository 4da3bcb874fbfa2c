"""What a run or an evaluation starts from: a checkpoint's variables, or in which settings its model is another one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax import checkpoint, config, models, pp
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.config.section import leaves, unwrapped
from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike

logger = logging.getLogger(__name__)


def load(
    state: Mapping[str, Any],
    path: PathLike,
    section: config.Section,
    model: Any,
    fresh: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns the variables of a state with the values of a checkpoint.

    Args:
      state: initialised, or its shapes on devices.
      path: whatever `checkpoint.find` accepts.
      section: `config.model`, of the model that takes the variables.
      model: as the section describes it.
      fresh: regex, or several, of what a training starts from scratch; None of an evaluation.

    Raises:
      UserError: there is no checkpoint, or it is of another model; where it says of which, the message names the keys.
    """
    description = checkpoint.description(path)
    pp.tokenizer.check_ids(description, path)
    theirs = description.get("model", {})
    resize = models.family(models.name_of(section)).RESIZE
    patterns = (fresh,) if isinstance(fresh, str) else fresh or ()
    another = f"{path}: is of another model than the config's: "
    if theirs and (listed := _beyond_shapes(theirs, model)):  # before what may be gigabytes is read
        if not patterns:
            raise UserError(f"{another}{listed}.")
        logger.warning("%s%s. That is right only for a part that config.init_fresh names.", another, listed)
    try:
        return load_into(state, path, patterns, resize, **getattr(model, "loading", {}))
    except UserError as error:
        if not theirs or not (listed := _differences(theirs, json.loads(config.to_json(section)))):
            raise
        raise UserError(f"{another}{listed}." if fresh is None else f"{error} {another}{listed}.") from error


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Returns the first settings that are not the same in both, in words; '' for none."""
    other = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return "; ".join(f"{key} is {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in other[:3])


def _beyond_shapes(theirs: Mapping[str, Any], model: Any) -> str:
    """Returns in which settings a described model is another one that shapes do not tell, in words; '' for none."""
    try:
        there, here = map(_without_shape, (models.build(**theirs), model))
    except UserError as error:  # its fields are another version's; that is no reason to refuse its weights
        logger.warning("Whether its heads are the config's is not known of a checkpoint's model. %s", error)
        return ""
    return _differences(*({key: one[key] for key in there.keys() & here} for one in (there, here)))


def _without_shape(model: Any) -> dict[str, Any]:
    """Returns the settings by which models of the same shapes differ: numbers of heads, and the adapters' factor."""
    fields = leaves(unwrapped(vars(getattr(model, "model", model))))
    factor = {"lora.alpha / lora.rank": lora.scale} if (lora := getattr(model, "lora", None)) else {}
    return {name: value for name, value in fields if name.endswith("heads")} | factor
