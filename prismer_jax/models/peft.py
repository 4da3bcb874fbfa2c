"""Adapters as the library PEFT keeps them: a folder of adapter_model.safetensors and adapter_config.json.

Its keys are 'base_model.model.', the name of a Linear of the original, '.lora_A.weight' [r i] or '.lora_B.weight'
[o r]. Where the original packs several of our kernels into one Linear, as nanoVLM does query, key and value, their
adapters become one of so many times the rank, whose B is zero where a part does not read another's A.
Source: huggingface/peft 0.21 (utils/save_and_load.py, tuners/lora/config.py).
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from prismer_jax import tree
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.models import conversion
from prismer_jax.models.lora import Adapted
from prismer_jax.weights import safe
from prismer_jax.weights.rules import Rule, Table, grouped
from prismer_jax.weights.write import safetensors_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX, _KEY = "base_model.model.", r"(?:base_model\.model\.)?(.*)\.lora_([AB])(?:\.\w+)?\.weight"
_UNLIKE = ("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens")  # other sums than W + BA
_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # beginnings of which W is no longer that of the model


def _linears(table: Table) -> Iterator[tuple[str, tuple[str, ...], Rule]]:
    """Yields (name of a Linear, '{}' in it the layer, names of its kernels here, rule) of a family's originals."""
    for rule in table.rules:
        if rule.layout == "dense" and rule.key.endswith(".weight"):
            yield rule.key.removesuffix(".weight"), tuple(name.removeprefix("params/") for name in rule.names), rule


def _layers(module: str, rule: Rule, number: int) -> list[str]:
    return [module.format(rule.first + rule.step * layer) for layer in range(number)] if "{}" in module else [module]


def write(output: pathlib.Path, params: Mapping[str, Any], model: Adapted, family: str) -> None:
    """Writes the adapters among a model's parameters into a folder; `family` is the name of its family.

    Raises:
      UserError: the original has no Linear for one of the adapters.
    """
    family_of = conversion.of_family(family)
    flat = {name: np.asarray(x, np.float32) for name, x in tree.flatten(params).items() if "/lora/" in name}
    state, modules, packs, left = {}, [], {}, set(model.adapters)
    for module, names, rule in _linears(conversion.table_of(family, model)):
        if not left.intersection(names):
            continue
        left.difference_update(names)
        a, b = (_joined(flat, names, part) for part in ("lora/a", "lora/b"))
        for pattern in getattr(family_of, "PEFT", ()):
            module = re.sub(*pattern, module)
        modules.append(re.escape(module).replace(r"\{\}", r"\d+"))
        if len(names) > 1:
            packs[modules[-1]] = len(names)
        stacked = "{}" in module
        for layer, key in enumerate(_layers(module, rule, len(a))):
            state[f"{_PREFIX}{key}.lora_A.weight"] = a[layer].T if stacked else a.T
            state[f"{_PREFIX}{key}.lora_B.weight"] = b[layer].T if stacked else b.T
    if left:
        raise UserError(f"{output}: the original has no Linear for the adapter of {min(left)}; use --format orbax.")
    lora = model.lora
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=None, inference_mode=True)
    config |= dict(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="|".join(modules))
    config |= dict(bias="none", fan_in_fan_out=False, use_rslora=False, use_dora=False)
    config |= dict(rank_pattern={module: parts * lora.rank for module, parts in packs.items()})
    config |= dict(alpha_pattern={module: parts * lora.alpha for module, parts in packs.items()})
    output.mkdir(parents=True, exist_ok=True)
    safetensors_file(output / WEIGHTS, state)
    storage.write_json(output / CONFIG, config)


def _joined(flat: Mapping[str, np.ndarray], names: tuple[str, ...], part: str) -> np.ndarray:
    """Returns A [*l i n·r] or B [*l n·r n·o] of n kernels that are one Linear; zeros of those without an adapter."""
    given = [flat.get(f"{name.removesuffix('kernel')}{part}") for name in names]
    zeros = np.zeros_like(next(x for x in given if x is not None))
    parts = [zeros if x is None else x for x in given]
    if part == "lora/a":
        return np.concatenate(parts, axis=-1)
    return np.block([[x if i == j else zeros for j, x in enumerate(parts)] for i in range(len(parts))])


def read(folder: pathlib.Path, model: Any, family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns what `config.model.lora` is for an adapter, and {name: array} of its parameters here.

    Args:
      folder: of PEFT, or of `write`.
      model: the model that it is for, without adapters.
      family: its name.

    Raises:
      UserError: it is no adapter of LoRA, is of another model, or has several ranks.
    """
    config, table = _config(folder), conversion.table_of(family, model)
    shapes = tree.flatten(jax.eval_shape(model.init_variables, jax.random.key(0))["params"])
    state = _matrices(folder / WEIGHTS)
    spelled = table.spell({f"{module}.weight": module for module, _ in state}, str(folder))
    unknown, arrays, ranks = set(spelled), {}, set()
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
    for module, names, rule in _linears(table):
        stacked, kernel = "{}" in module, shapes.get(names[0])
        keys = [] if kernel is None else _layers(module, rule, kernel.shape[0])
        there = [f"{key}.weight" for key in keys if f"{key}.weight" in spelled]
        if not there:
            continue
        if len(there) < len(keys):
            raise UserError(
                f"{folder}: has {module} of {len(there)} of {len(keys)} layers; an adapter of all is needed."
            )
        unknown.difference_update(there)
        pairs = [_pair(folder, state, spelled[key], config, scale) for key in there]
        a, b = (np.stack(part) if stacked else part[0] for part in zip(*pairs, strict=True))
        if (a.shape[-2], b.shape[-1]) != (kernel.shape[-2], kernel.shape[-1] * len(names)):
            raise UserError(f"{folder}: {module} is of another size: the adapter is of another model.")
        for name, own_a, own_b in zip(names, *_parted(a, b, len(names)), strict=True):
            if own_a.any():
                arrays |= {name.replace("kernel", "lora/a"): own_a, name.replace("kernel", "lora/b"): own_b}
                ranks.add(own_a.shape[-1])
    if unknown:
        raise UserError(f"{folder}: {grouped(unknown)} are not in the model: the adapter is of another one.")
    if len(ranks) != 1:
        raise UserError(f"{folder}: its adapters have the ranks {sorted(ranks)}; here all have one.")
    rank = ranks.pop()
    match = "|".join(sorted(name.replace("lora/a", "kernel") for name in arrays if name.endswith("lora/a")))
    return dict(match=match, rank=rank, alpha=scale * rank, dropout=config.get("lora_dropout", 0.0)), arrays


def _config(folder: pathlib.Path) -> dict[str, Any]:
    """Returns adapter_config.json."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        kind = config["peft_type"], config["r"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder}: is no adapter of PEFT ({type(error).__name__}: {error}).") from None
    other = [key for key in _UNLIKE if config.get(key)]
    if (start := str(config.get("init_lora_weights"))).lower().startswith(_CHANGED):
        other.append(f"init_lora_weights={start}")
    if kind[0] != "LORA" or other:
        raise UserError(f"{folder}: is an adapter of {other[0] if other else kind[0]}; only plain LoRA is read.")
    return config


def _matrices(path: pathlib.Path) -> dict[tuple[str, str], np.ndarray]:
    """Returns {(name of a Linear, 'A' or 'B'): matrix}."""
    state = {}
    for key, array in safe.load(path).items():
        if (match := re.fullmatch(_KEY, key)) is None:
            raise UserError(f"{path}: {key} is no lora_A or lora_B; merge what else was trained into the model first.")
        state[match.groups()] = array
    return state


def _pair(
    folder: pathlib.Path, state: Mapping[tuple[str, str], np.ndarray], module: str, config: Any, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns A [i r] and B [r o] of a Linear, whose product times `scale` is added."""
    if any((module, part) not in state for part in "AB"):
        raise UserError(f"{folder}: {module} has only one of lora_A and lora_B. Save the adapter again.")
    a, b = (np.asarray(state[module, part], np.float32).T for part in "AB")
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (x for key, x in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)), config["lora_alpha"]
    )
    own = alpha / a.shape[-1] ** (0.5 if config.get("use_rslora") else 1)
    return a, b if own == scale else b * np.float32(own / scale)


def _parted(a: np.ndarray, b: np.ndarray, number: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns A and B of each of the kernels that are one Linear: of equal parts of the rank if each reads its own."""
    bs = np.split(b, number, axis=-1)
    if b.shape[-2] % number == 0:
        blocks = [np.split(part, number, axis=-2) for part in bs]
        if not any(block.any() for i, row in enumerate(blocks) for j, block in enumerate(row) if i != j):
            return np.split(a, number, axis=-1), [row[i] for i, row in enumerate(blocks)]
    return [a] * number, bs
