"""What a frozen encoder makes of each photo, computed once and kept on disk: training reads it in place of photos.

In a config, `features="decode|tiles(224)"` in a data section names the ops in front of the encoder, and its pp goes on
behind them, with `features` instead of `image`. A family that can do this has FEATURES, regexes of the parameters that
the model's method `features(batch)` reads; they have to be frozen, and come from `config.init`.

The files lie below `storage.data_folder()`, in a folder that is named after the encoder's weights and computation and
the ops, each named after its photo. So they are never stale, and other runs and data sets find what they share.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from prismer_jax import checkpoint, config, input, models, pp, runtime, sharding, tree
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.checkpoint.reading import is_variable
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import progress, storage, versions
from prismer_jax.registry import READING

VERSION = 2  # of the files; 1: pixels of `tiles` as the order of axes of Pillow 13 had them
BESIDE = ("image_mask", "grids")  # what ops make beside the image that later ops or the model read
BATCH = 16  # photos of one pass

Example = dict[str, Any]


def cached(mixture: list[dict[str, Any]], cfg: Any, step: Any, run: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """Returns a mixture that reads features in place of photos where a data section names them; computes what lacks.

    Args:
      mixture: of `assembly.load_mixture`.
      cfg: the config of the run.
      step: its step of training.step, which has the `model`, the shapes of its `state` and of what is `trainable`.
      run: the checkpoints of a run that goes on. They hold the encoder that it began with; config.init may be gone by
        now, or be another model's.

    Raises:
      UserError: the family has no FEATURES, they are trained or start from scratch, there is no config.init, or the
        model reads label maps, which no op can cut as the photo was.
    """
    chains = {name: part["features"] for name, part in cfg.data.items() if "features" in part}
    if not chains:
        return mixture
    name, init, model = models.name_of(cfg.model), cfg.get("init"), step.model
    family = models.family(name)
    if not hasattr(family, "FEATURES"):
        raise UserError(f"config.data: a model of {name} keeps no features of photos; leave `features` out.")
    if model.experts:
        raise UserError("config.data: `features` are of photos, beside which config.model.experts read maps: drop one.")
    if init is None:
        raise UserError("config.data: `features` are those of trained weights; name them by config.init.")
    shapes = tree.flatten(step.state["params"])
    reads = tree.first_match(family.FEATURES, shapes, "FEATURES")
    if trained := sorted(set(reads) & set(step.trainable)):
        raise UserError(f"config.freeze: {trained[0]} is trained, so features cannot be kept; freeze it, or keep none.")
    fresh = config.plain(cfg.get("init_fresh", ()))
    for pattern in (fresh,) if isinstance(fresh, str) else fresh:
        if begun := [name for name in reads if re.fullmatch(pattern, f"params/{name}")]:
            raise UserError(f"config.init_fresh: {begun[0]} would start from scratch, but features are config.init's.")
    if packed := [part for part in chains if "pack" in cfg.data[part]]:
        raise UserError(f"config.data.{packed[0]}: rows of several samples (`pack`) have no features; use one of both.")
    here = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("data",))  # each process computes for itself
    pack = getattr(model, "loading", {}).get("pack", {})
    weights = encoder_weights(run or init, {name: shapes[name] for name in reads}, family.RESIZE, here, pack)
    encode = jax.jit(lambda params, image: model.apply({"params": params}, {"image": image}, method="features"))

    def features(image: np.ndarray) -> np.ndarray:
        with jax.set_mesh(here):
            return np.asarray(encode(weights, image))

    def replaced(part: dict[str, Any]) -> dict[str, Any]:
        chain = pp.build(chains[part["name"]])
        with jax.set_mesh(here):
            folder = folder_of(encode, weights, part["source"], chain)
        source = Cached(part["source"], chain, folder)
        source.fill(features)
        return {**part, "source": source}

    return [replaced(part) if part["name"] in chains else part for part in mixture]


def with_photos(mixture: list[dict[str, Any]], cfg: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Returns a mixture that reads photos where a data section names `features`: for whoever runs the encoder, too."""
    specs = {name: f"{part['features']}|{part['pp']}" for name, part in cfg.data.items() if "features" in part}
    chains = {name: pp.build(spec, tokenizer=tokenizer) for name, spec in specs.items()}
    return [{**part, "pp": chains.get(part["name"], part["pp"])} for part in mixture]


def encoder_weights(
    path: str, shapes: Mapping[str, Any], resize: Mapping[str, Any], mesh: jax.sharding.Mesh, pack: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the parameters of these names and shapes from a checkpoint, nested, on a mesh; see `load_into`."""
    place = sharding.replicated(mesh)
    like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()}
    saved = filter(is_variable, checkpoint.saved_shapes(checkpoint.find(path)))
    pack = {name: fn for name, fn in pack.items() if f"{name.removeprefix('params/')}/codes" in shapes}
    read_names = {*pack, *(f"params/{name}" for name in shapes)}
    others = [re.escape(name) for name in saved if name not in read_names]
    return load_into({"params": tree.unflatten(like)}, path, others, resize, pack=pack)["params"]


def folder_of(encode: Any, params: Any, source: Any, chain: Any) -> pathlib.Path:
    """Returns the folder of features: its name is a hash of weights, computation and ops."""
    image = next(iter(input.eval_batches(_Photos(source, range(len(source))), chain, batch_size=1)))["image"]
    digest = hashlib.sha256(f"{VERSION} {chain.spec} {encode.lower(params, image).as_text()}".encode())
    for name, leaf in sorted(tree.flatten(params).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf))
    return storage.data_folder() / "features" / digest.hexdigest()[:32]


def stand_in(model: Any, chain: str, example: Example) -> Example:
    """Returns an example with features of zeros, for those who want a batch's shapes alone."""
    arrays = pp.build(chain)(example, np.random.default_rng(0))
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    image = np.asarray(arrays.pop("image"))[None]
    features = jax.eval_shape(lambda *args: model.apply(*args, method="features"), variables, {"image": image})
    return {**arrays, "features": np.zeros(features.shape[1:], np.float16)}


class _Photos:
    """The photos of a source alone, or of these examples of it: what features are a function of."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        example = self._source[self._indices[index]]
        return {key: example[key] for key in ("id", "image") if key in example}


class Cached:
    """A source whose examples have `features` float16 and what else BESIDE the ops made, in place of the photo."""

    def __init__(self, source: Any, chain: Any, folder: pathlib.Path) -> None:
        self._source, self._chain, self._folder = source, chain, folder

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = dict(self._source[index])
        path = self._path(example.pop("image"))
        try:
            with READING, np.load(path) as stored:
                arrays = dict(stored)
        except FileNotFoundError:
            input.eval_example(_Photos(self._source, [index]), self._chain, 0)  # raises what is wrong with the photo
            raise UserError(f"{path}: is gone; start again, and it is computed again.") from None
        if "grids" in arrays:
            arrays["grids"] = arrays["grids"].tolist()
        return example | arrays

    def fill(self, encode: Callable[[Any], Any]) -> None:
        """Computes the features that lack. Several processes share the work if they share the folder."""
        for mine in (slice(jax.process_index(), None, jax.process_count()), slice(None)):
            sharding.barrier("features")
            self._compute([i for i in range(len(self)) if self._lacks(i)][mine], encode)

    def _lacks(self, index: int) -> bool:
        try:
            return not self._path(self._source[index]["image"]).exists()
        except BadSample:
            return False  # it is reported when the training meets it

    def _compute(self, indices: Sequence[int], encode: Callable[[Any], Any]) -> None:
        def prepared(index: int) -> Example | None:
            try:
                return input.eval_example(_Photos(self._source, [index]), self._chain, 0)
            except BadSample:
                return None  # it is reported when the training meets it

        if not indices:
            return
        with progress.bar("features of photos", len(indices)) as advance, ThreadPoolExecutor(runtime.cores()) as pool:
            for start in range(0, len(indices), BATCH):
                some = indices[start : start + BATCH]
                good = {i: example for i, example in zip(some, pool.map(prepared, some), strict=True) if example}
                images = [example["image"] for example in good.values()]
                if images:
                    rows = encode(np.stack(images + images[:1] * (BATCH - len(images))))
                    for (index, example), row in zip(good.items(), rows, strict=False):
                        self._write(index, row, example)
                advance(len(some))

    def _write(self, index: int, features: np.ndarray, example: Example) -> None:
        file, path = io.BytesIO(), self._path(self._source[index]["image"])
        np.savez(file, features=features.astype(np.float16), **{key: example[key] for key in BESIDE if key in example})
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, file.getvalue())

    def _path(self, photo: Any) -> pathlib.Path:
        """Returns the file of a photo's features, named after its bytes, or its path, size and time of change."""
        if not isinstance(photo, str | bytes | np.ndarray):
            raise UserError(
                f"{self._folder}: features are of one photo an example, which is {type(photo).__name__} here."
            )
        if isinstance(photo, str):
            version = versions.version(photo) if os.path.exists(photo) else None
            said = f"{os.path.realpath(photo)} {version}".encode()
        else:
            said = photo if isinstance(photo, bytes) else np.ascontiguousarray(photo).tobytes()
        name = hashlib.sha256(said).hexdigest()[:32]
        return self._folder / name[:2] / f"{name}.npz"
