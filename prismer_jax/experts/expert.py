"""What all experts have in common: a photo goes in, its label map comes out; the network in the middle is jitted.

An expert is one subclass in one file, and one row in `experts/__init__.py`. It says how a photo becomes the network's
input (`prepare`, on the host), what the device computes (`apply`, jitted over a batch), and how that becomes a label of
the photo's own size (`finish`, on the host). Weights come from the official checkpoint by one table of name rules.
"""

from __future__ import annotations

import abc
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from prismer_jax import checkpoint, sharding, tree
from prismer_jax.experts import layers
from prismer_jax.weights import rules, safe

Arrays = dict[str, np.ndarray]  # one photo's


@dataclass(frozen=True)
class Label:
    """What an expert says of one photo, in the photo's own size: the arguments of `label_files.write`.

    Attributes:
      map: uint8 [h, w, channels].
      classes: detection only: class id of instance 0, 1, ...
      features: words only: [n, 64], of word 0, 1, ...
      words: their texts.
    """

    map: np.ndarray
    classes: Sequence[int] | None = None
    features: np.ndarray | None = None
    words: Sequence[str] = ()


class Expert(abc.ABC):
    """One expert model with its sizes; the weights are handed to its functions.

    Attributes:
      name: its row in `labels.EXPERTS`, which says channels, storage and how the model embeds the map.
      file: name of the official checkpoint.
      made_with: what a folder of its labels is noted as, so that they are not mixed with others'.
      needs: experts whose labels `finish` reads.
      table: official state dict -> variables of `module`.
      network: class of `module`.
      module: the network, tensors in, tensors out: float [b, H, W, 3] to whatever `apply` makes of it.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    made_with: ClassVar[str] = "trained weights"
    needs: ClassVar[tuple[str, ...]] = ()
    table: ClassVar[rules.Table]
    network: ClassVar[type[nn.Module]]

    def __init__(self, dtype: Any = jnp.float32, **sizes: Any) -> None:
        """Builds the network; `sizes` are its fields, whose defaults are the official ones."""
        self.dtype = jnp.dtype(dtype)
        self.module = self.network(dtype=self.dtype, **sizes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Returns the kinds of labels that it makes, rows of `labels.EXPERTS`: most experts make their own alone."""
        return (self.name,)

    def places(self, folder: pathlib.Path) -> Iterator[pathlib.Path]:
        """Yields where its weights lie in a folder of weights: converted, or else the official file."""
        if (folder / self.name / checkpoint.DESCRIPTION).is_file():
            yield folder / self.name
        if (folder / self.file).is_file():
            yield folder / self.file

    def by_kind(self, made: Label | Mapping[str, Label]) -> Mapping[str, Label]:
        """Returns what `finish` has made as {kind: label}."""
        return made if isinstance(made, Mapping) else {self.name: made}

    @abc.abstractmethod
    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Returns a photo's prepared size (H, W), which batches are sorted by before any pixel is read."""

    @abc.abstractmethod
    def prepare(self, photo: np.ndarray) -> Arrays:
        """Returns the arrays the device gets of a photo uint8 RGB [h, w, 3]; photos with equal shapes form a batch.

        Runs on the host, in threads. Photos stay uint8: the device normalises.
        """

    @abc.abstractmethod
    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Computes a batch of prepared photos on the device: static shapes, leading axis batch everywhere."""

    @abc.abstractmethod
    def finish(
        self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]
    ) -> Label | dict[str, Label]:
        """Makes one photo's label of what `apply` says of it, or {kind: label}. Runs on the host, in threads.

        Args:
          output: one photo's arrays, without the batch axis.
          size: (height, width) of the photo, and of the label.
          needed: the photo's labels by the experts that this one `needs`.
        """

    def complete(self, variables: Any, label: Label) -> Label:
        """Adds to a finished label what only a network can say of it: features of the words read. Runs in threads."""
        return label

    def open(self, path: str | os.PathLike[str]) -> None:  # noqa: B027 (most experts need nothing more)
        """Reads what the expert needs beside weights, such as lists of words, and looks whether all is there.

        Args:
          path: of its official checkpoint, or of the folder converted from it; the rest lies beside it.
        """

    def beside(self, path: str | os.PathLike[str]) -> Sequence[str | os.PathLike[str]]:
        """Returns the files beside the weights that its labels depend on, as far as they are there; see `open`."""
        return ()

    def init(self, rng: jax.Array) -> Any:
        """Returns initial variables. A network that takes more than an image, or several networks, override this."""
        return self.module.init(rng, jnp.zeros((1, *self.shape(64, 64), 3)))

    def unwrap(self, state: Mapping[str, Any]) -> rules.State:
        """Returns the state dict in the official file's content; `safe.load` has opened 'model' and 'state_dict'."""
        return state

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Returns {'/'-joined name: shape and dtype} of the variables."""
        return tree.flatten(jax.eval_shape(self.init, jax.random.key(0)))

    def random_variables(self, seed: int = 0) -> Any:
        """Returns untrained variables, for tests and timing: labels made with them mean nothing.

        Kernels are drawn so that activations keep their size, norms change nothing. Made by NumPy: to compile the
        networks' own initialisation takes longer than to run them.
        """
        rng = np.random.default_rng(seed)

        def make(name: str, leaf: Any) -> np.ndarray:
            part = name.rpartition("/")[2]  # a norm's may have an axis of layers, so the number of axes says little
            of_norm = part in ("scale", "bias", "mean", "var")
            if leaf.ndim > 1 and not of_norm and jnp.issubdtype(leaf.dtype, jnp.floating):
                noise = rng.standard_normal(leaf.shape, np.float32) / math.sqrt(math.prod(leaf.shape[:-1]))
                return noise.astype(leaf.dtype)
            return np.full(leaf.shape, part in ("scale", "var"), leaf.dtype)

        return tree.unflatten({name: make(name, leaf) for name, leaf in self.shapes.items()})

    def from_official(
        self, state: Mapping[str, Any], where: str = "the checkpoint", allow: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Returns the variables of an official state dict {key: array}.

        Args:
          where: names the file in errors.
          allow: regexes of keys that may be missing, unexpected or of another shape (see rules.from_torch).

        Raises:
          UserError: keys or shapes do not fit; all of them, grouped.
        """

        def fresh(names: Sequence[str]) -> Mapping[str, Any]:
            flat = tree.flatten(self.random_variables())
            return {name: flat[name] for name in names}

        arrays = rules.from_torch(self.unwrap(state), self.table, self.shapes, where, allow, fresh)
        return tree.unflatten({name: make() for name, make in arrays.items()})

    def init_from_official(self, path: str | os.PathLike[str], allow: Sequence[str] = ()) -> dict[str, Any]:
        """Returns the variables of the official checkpoint; raises a UserError as `safe.load` and `from_official`."""
        return self.from_official(safe.load(path), os.fspath(path), allow)

    def predict(
        self,
        photos: Sequence[np.ndarray],
        variables: Any,
        needed: Sequence[Mapping[str, Label]] | None = None,
        mesh: Mesh | None = None,
    ) -> list[Label]:
        """Labels photos uint8 RGB [h, w, 3] of any sizes: one batch for each shape that their prepared images have.

        Args:
          needed: each photo's labels by the experts that this one `needs`.
          mesh: whose data axis shares a batch; default all devices.
        """
        mesh = sharding.make_mesh() if mesh is None else mesh
        variables = jax.device_put(variables, sharding.replicated(mesh))
        prepared = [self.prepare(photo) for photo in photos]
        groups: dict[Any, list[int]] = {}
        for i, arrays in enumerate(prepared):
            groups.setdefault(tuple((name, array.shape) for name, array in sorted(arrays.items())), []).append(i)
        results: dict[int, Label] = {}
        for members in groups.values():
            outputs = jax.device_get(self.run(variables, [prepared[i] for i in members], mesh))
            for row, i in enumerate(members):
                output = {name: array[row] for name, array in outputs.items()}
                label = self.finish(output, photos[i].shape[:2], {} if needed is None else needed[i])
                results[i] = self.complete(variables, label)
        return [results[i] for i in range(len(photos))]

    def run(
        self, variables: Any, prepared: Sequence[Arrays], mesh: Mesh, batch_size: int | None = None
    ) -> dict[str, jax.Array]:
        """Starts the network on a batch and returns at once; reading the arrays [batch, ...] waits for them.

        Args:
          variables: replicated on the mesh.
          prepared: of one shape.
          batch_size: the batch is filled up to it, and to what the devices can share, by its last photo: every shape
            is compiled once.
        """
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        size = max(batch_size or 0, len(prepared))
        rows = [*prepared, *[prepared[-1]] * (-(-size // devices) * devices - len(prepared))]
        batch = {name: np.stack([row[name] for row in rows]) for name in prepared[0]}
        return self._jitted(variables, jax.device_put(batch, sharding.batch_sharding(mesh)))

    @functools.cached_property
    def _jitted(self) -> Any:
        return compiled(self.apply)


def compiled(network: Callable[..., Any]) -> Any:
    """Returns a network, jitted, whose float32 is one: TPUs else multiply it in bfloat16, GPUs in 19 bits."""

    def exact(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return network(*args)

    return jax.jit(exact)


class SquareExpert(Expert):
    """An expert that looks at every photo at the same size, proportions not kept, resized as Pillow's bilinear does.

    Its batches are {"image": uint8 [b, H, W, 3]}.
    """

    size: ClassVar[tuple[int, int]] = (480, 480)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return self.size

    def prepare(self, photo: np.ndarray) -> Arrays:
        return {"image": layers.resize_photo(photo, self.size)}
