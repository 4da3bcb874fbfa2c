"""Labels that are made when a model is asked about photos, and kept in the cache folder.

    labelled = Cached(model.experts, "weights/experts").label(source)

A label depends on the pixels' bytes and on the expert's weights alone, and lies where both say:
FOLDER/<expert>/<weights>/<photo>.png, with the side files of label_files.py. Where the folder of weights holds a
student (experts.student), that makes the labels which it learnt, and the experts make the others. Many photos are
better labelled before, by tools.make_labels, whose processes share the work.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import prismer_jax
from prismer_jax import label_files, label_png, labels, pp, runtime, sharding
from prismer_jax.datasets import label_names
from prismer_jax.errors import BadSample, UserError
from prismer_jax.experts import EXPERTS, Expert, Label, Student, weights
from prismer_jax.files import progress, storage, versions
from prismer_jax.labelling import pipeline
from prismer_jax.labelling.label_stores import SUFFIXES
from prismer_jax.labelling.pipeline import Photo
from prismer_jax.pp.image import read_bytes

logger = logging.getLogger(__name__)


class Cached:
    """Those experts of a model whose weights are there.

    Attributes:
      experts: in the order in which they label.
      without: {expert: why it labels nothing}.
      folder: of the labels, with '{expert}' for what is the expert's, see label_files.path_of.
    """

    def __init__(
        self, names: Sequence[str], checkpoints: storage.PathLike, classes: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Args:
        names: the model's experts; those that they need are used too.
        checkpoints: folder of the experts' weights, as of `tools.make_labels --checkpoints`.
        classes: of the model where a data set has its own, whose ids only a student writes that learnt them.

        Raises:
          UserError: there is no such folder of weights.
        """
        checkpoints = storage.on_disk(checkpoints)
        if not checkpoints.is_dir():
            raise UserError(f"{checkpoints}: no such folder of experts' weights. Run python -m tools.download experts.")
        self.names, self.checkpoints = tuple(names), checkpoints
        self.folder = runtime.cache_dir() / "labels"
        self.experts: list[Expert] = []
        self.without: dict[str, str] = {}
        self._versions: dict[str, str] = {}  # of each kind of label
        taught = self._add_student(classes or {})
        networks = {need for name in names if name not in taught for need in (*EXPERTS[name].needs, name)}
        networks -= set(taught)
        for name in (name for name in EXPERTS if name in networks):
            try:
                self._add(EXPERTS[name](), (classes or {}).get(name, ()))
            except UserError as error:
                self.without[name] = str(error).rstrip(".")

    def _add_student(self, classes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Adds the student that the folder holds, if it does; returns the kinds of labels that it makes."""
        student = Student()
        if (path := next(iter(student.places(self.checkpoints)), None)) is None:
            return ()
        student.open(path)
        own = student.module.classes
        same = [kind for kind in student.kinds if tuple(own.get(kind, ())) == tuple(classes.get(kind, ()))]
        if kinds := tuple(kind for kind in same if kind in self.names):
            student = Student(only=kinds)
            student.open(path)
            self._versions |= dict.fromkeys(kinds, _version([path], [prismer_jax.__version__]))
            self.experts.append(student)
        return kinds

    def _add(self, expert: Expert, own: Sequence[str]) -> None:
        if own:
            raise UserError("its classes are this model's own")
        if lacking := [name for name in expert.needs if name in self.without]:
            raise UserError(f"it needs {' and '.join(lacking)}")
        try:
            path = weights.find(expert, self.checkpoints)
        except UserError:
            raise UserError(f"no weights in {self.checkpoints}: python -m tools.download experts") from None
        expert.open(path)
        self._versions[expert.name] = _version(
            [path, *expert.beside(path)], [prismer_jax.__version__, *map(self._versions.get, expert.needs)]
        )
        self.experts.append(expert)

    def line(self) -> str:
        """Says without which of the model's experts it has to do; '' where all are there."""
        reasons: dict[str, list[str]] = {}
        for name in self.names:
            if name in self.without:
                reasons.setdefault(self.without[name], []).append(name)
        missing = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        return f"The model does without the experts {missing}." if missing else ""

    def label(self, source: Any, batch_size: int = 4) -> Labelled:
        """Returns the source's photos with their labels; those that are not in the cache are made now.

        A photo that an expert cannot label is a warning, and has the background in the place of its label.
        """
        *_, (_, labelled) = self.one_by_one(source, batch_size)
        return labelled

    def one_by_one(self, source: Any, batch_size: int = 4) -> Iterator[tuple[str, Labelled]]:
        """Yields '' and the photos; then each expert's name, when it is done, and the photos with its labels, too."""
        keys, photos = [_key(source, index) for index in range(len(source))], {}
        for index, key in enumerate(keys):
            if key is not None:
                photos.setdefault(key, index)
        problems: dict[str, list[str]] = {}  # a photo that cannot be read is one line, not one an expert
        folders: dict[str, str] = {}
        made_with = {kind: expert.made_with for expert in self.experts for kind in expert.kinds}
        yield "", Labelled(source, keys, folders, made_with)
        for expert in self.experts:
            for problem in self._run(expert, source, photos, batch_size):
                problems.setdefault(str(problem), []).append(expert.name)
            for kind in expert.kinds:
                if kind in self.names:
                    folders[kind] = self._path(kind)
                yield kind, Labelled(source, keys, folders, made_with)
        for problem, names in problems.items():
            logger.warning("No label of %s: %s", ", ".join(names), problem)

    def said(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what is in the labels of an example of `Labelled`, as `Captioner.label` has it; raises BadSample."""
        example = pp.build("decode")(example, np.random.default_rng(0))
        label_maps = {name: example[key] for name in self.names if (key := labels.EXPERTS[name].key) in example}
        result = {"image": example["id"], "labels": label_maps}
        if labels.CLASSES_KEY in example:
            result["objects"] = [int(kind) for kind in example[labels.CLASSES_KEY] if kind >= 0]
        return result | ({"words": list(example["words"])} if "words" in example else {})

    def _path(self, expert: str) -> str:
        return str(self.folder / "{expert}" / self._versions[expert])

    def _run(self, expert: Expert, source: Any, photos: Mapping[str, int], batch_size: int) -> Iterator[BadSample]:
        """Labels photos {key: number in the source} with one expert; yields what went wrong."""
        folders = {kind: self._path(kind) for kind in expert.kinds}
        missing = [
            key for key in photos if not all(label_files.is_whole(at, kind, key) for kind, at in folders.items())
        ]
        if not missing:
            return

        def read(key: str) -> Photo:
            example = source[photos[key]]
            image = _image(example)
            if _digest(image) != key:  # whose label this would be taken for, for good
                raise BadSample(f"{_called(example)}: changed while it was labelled. Ask again.", "photo that changed")
            return Photo(_called(example), image)

        def write(key: str, photo: Photo, made: Label | Mapping[str, Label]) -> None:
            for kind, label in expert.by_kind(made).items():
                label_files.write(folders[kind], kind, key, **vars(label))

        def needed(key: str, photo: Photo, size: tuple[int, int]) -> dict[str, Label]:
            return {name: Label(self._read(name, key, size)) for name in expert.needs}

        load = functools.partial(weights.load, expert, self.checkpoints)
        mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        results = pipeline.run(expert, load, missing, read, write, needed, mesh=mesh, batch_size=batch_size)
        with progress.bar(expert.name, len(missing)) as advance:
            for result in results:
                advance()
                if result.problem is not None:
                    yield result.problem

    def _read(self, expert: str, key: str, size: tuple[int, int]) -> np.ndarray:
        png = label_files.path_of(self._path(expert), expert, key)
        if not png.exists():
            raise BadSample(f"has no label of {expert}, which it needs.", f"no label of {expert}")
        map = label_png.decode(expert, png.read_bytes(), str(png))
        return labels.blank(expert, *size) if map is None else map


class Labelled:
    """A source's photos with what experts have said of them: label files, and the tables that go with them."""

    def __init__(
        self, source: Any, keys: Sequence[str | None], folders: Mapping[str, str], made_with: Mapping[str, str]
    ) -> None:
        """Args:
        keys: what each photo's labels are called; None for one that cannot be read.
        folders: {expert: folder of its labels}.
        made_with: {expert: how its labels are made}.
        """
        self._source, self._keys, self._folders, self._made_with = source, keys, dict(folders), made_with

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        for name, folder in self._folders.items() if self._keys[index] else ():
            example |= label_files.locate(folder, [name], self._keys[index])
        return example

    def save(self, folder: pathlib.Path) -> None:
        """Copies the labels to a folder in the official layout, as tools.make_labels leaves it.

        Of two photos whose label files would be the same only the first has them there, and a line says so.

        Raises:
          UserError: the folder holds labels that were made otherwise.
        """
        label_files.record(folder, {name: self._made_with[name] for name in self._folders})
        any_case, owners = label_names.ignores_case(folder), {}
        for index, key in ((index, key) for index, key in enumerate(self._keys) if key):
            owner = owners.setdefault(label_names.key(self.name(index), any_case), index)
            if self._keys[owner] != key:
                this, first = (_called(self._source[place]) for place in (index, owner))
                logger.warning("%s: not saved in %s, where its label files would be those of %s.", this, folder, first)
                continue
            for name in self._folders:
                source = label_files.path_of(self._folders[name], name, key)
                target = label_files.path_of(folder, name, self.name(index))
                for suffix in SUFFIXES:  # the map comes last: it says that all is there
                    if source.with_suffix(suffix).exists():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        storage.write(target.with_suffix(suffix), source.with_suffix(suffix).read_bytes())


def _called(example: Mapping[str, Any]) -> str:
    """Returns what messages call a photo: the number of one in memory alone says little."""
    return example["image"] if isinstance(example["image"], str) else f"image {example['id']}"


def _key(source: Any, index: int) -> str | None:
    """Returns a digest of a photo's bytes; None if there are none, which is said by whoever reads the photo."""
    try:
        return _digest(_image(source[index]))
    except BadSample:
        return None


def _image(example: Mapping[str, Any]) -> bytes | np.ndarray:
    """Returns a photo's pixels, or the bytes of its file."""
    image = example["image"]
    return image if isinstance(image, np.ndarray) else read_bytes(image, _called(example))


def _digest(image: bytes | np.ndarray) -> str:
    data = f"{image.shape}".encode() + image.tobytes() if isinstance(image, np.ndarray) else image
    return hashlib.sha256(data).hexdigest()[:32]


def _version(paths: Sequence[pathlib.Path], more: Sequence[str]) -> str:
    """Returns a digest of which files weights are, by name, size and time: to read gigabytes takes longer."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = [(file.name, *versions.version(file)) for file in files if file.is_file()]
    return hashlib.sha256(repr([stats, *more]).encode()).hexdigest()[:16]
