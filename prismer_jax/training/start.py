"""What a run or an evaluation starts from: a checkpoint's variables, or in which settings its model is another one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax import checkpoint, config, models, pp
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.errors import UserError


def load(
    state: Mapping[str, Any],
    path: str | os.PathLike[str],
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
    resize = models.family(models.name_of(section)).RESIZE
    patterns = (fresh,) if isinstance(fresh, str) else fresh or ()
    try:
        return load_into(state, path, patterns, resize, **getattr(model, "loading", {}))
    except UserError as error:
        theirs, ours = description.get("model", {}), json.loads(config.to_json(section))
        other = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        if not theirs or not other:
            raise
        listed = "; ".join(f"{key} is {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in other[:3])
        said = f"{path}: is of another model than the config's: {listed}."
        raise UserError(said if fresh is None else f"{error} {said}") from error
