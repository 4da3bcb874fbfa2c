"""Label files are read alike by the official code, whose rules are written down again here, and by ours."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_files, labels, pp
from prismer_jax.datasets import lists
from prismer_jax.errors import BadSample
from prismer_jax.experts.expert import Label
from prismer_jax.labelling import official
from prismer_jax.labelling.label_stores import LabelFiles
from prismer_jax.labelling.ledger import Shard
from prismer_jax.labelling.pipeline import Photo
from prismer_jax.towers import label_lookup
from prismer_jax.towers.stem import resize_ids
from prismer_jax.weights import label_tables, ocr_words, safe

SIZE = (12, 16)
TABLES = label_lookup.label_tables(tuple(labels.EXPERTS), {})


def jpeg(**options):
    buffer = io.BytesIO()
    Image.new("RGB", SIZE[::-1]).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def write(folder, made, size=SIZE, name="sub/a.jpg"):
    """Writes the label of each expert as the command does; None where the expert had none to give."""
    photo = folder / "photos" / name
    photo.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(photo)
    for expert, label in made.items():
        LabelFiles(folder / "labels", official=True).open(expert, Shard(0, 0, 1)).write(Photo(name, str(photo)), label)


def theirs(folder, expert, tables, name="sub/a.jpg"):
    """What the official code makes of a label before the stem [h, w, c] (get_expert_labels and post_label_process)."""
    png = folder / "labels" / expert / name.replace(".jpg", ".png")
    if expert == "ocr_detection" and not png.with_suffix(".pt").exists():
        return np.broadcast_to(tables[expert][-1], (*SIZE, labels.FEATURES))
    assert png.stat().st_size  # else class 0, or an error
    map = np.asarray(Image.open(png).convert("RGB" if expert == "normal" else "L"))
    if labels.EXPERTS[expert].embed == "scaled":
        x = np.atleast_3d(map).astype(np.float32) / 255
        return 2 * (x - x.min()) / (x.max() - x.min() + 1e-6) - 1
    vectors = np.full((256, labels.FEATURES), np.nan)
    for number in set(np.unique(map).tolist()) - {labels.BACKGROUND}:
        match expert:
            case "obj_detection":
                vectors[number] = tables[expert][json.loads(png.with_suffix(".json").read_text())[str(number)]]
            case "ocr_detection":
                vectors[number] = safe.load_tree(png.with_suffix(".pt"))[number]["features"]
            case _:
                vectors[number] = tables[expert][number]
    vectors[labels.BACKGROUND] = tables[expert][-1]
    return vectors[map]


def ours(folder, experts, tables):
    """What our model makes of them: {expert: [h, w, c]}."""
    (example,) = lists.load(images=folder / "photos", labels=folder / "labels", experts=experts)
    example = pp.build(f"labels_for('{'+'.join(experts)}')|decode")(example, np.random.default_rng(0))
    batch = {key: jnp.asarray(value)[None] for key, value in example.items() if key.startswith("labels/")}
    device_tables, out = jax.tree.map(jnp.asarray, dict(tables)), {}
    for name in experts:
        x = label_lookup.features(name, batch[labels.EXPERTS[name].key], batch, device_tables)
        out[name] = np.asarray(x if labels.EXPERTS[name].embed == "scaled" else resize_ids(*x, x[0].shape[1:3]))[0]
    return out


def some_labels(rng):
    made = {}
    for name, row in labels.EXPERTS.items():
        top = {"classes": row.num_classes, "instances": 3, "words": 2}.get(row.embed, 256)
        map = rng.integers(0, top, (*SIZE, row.channels), np.uint8)
        if row.storage == "ids":
            map[:4] = labels.BACKGROUND
        made[name] = Label(map)
    made["obj_detection"] = dataclasses.replace(made["obj_detection"], classes=[7, 700, 0])
    features = rng.standard_normal((2, labels.FEATURES))  # finer than the .npz holds
    made["ocr_detection"] = dataclasses.replace(made["ocr_detection"], features=features, words=["stop", "über"])
    return made


NOTHING = {name: Label(labels.blank(name, *SIZE)) for name in labels.EXPERTS}
KINDS = {
    "labels": lambda: some_labels(np.random.default_rng(0)),
    "nothing in the photo": lambda: NOTHING,
    "empty labels": lambda: dict.fromkeys(labels.EXPERTS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_official_code_and_ours_see_the_same(tmp_path, kind):
    write(tmp_path, KINDS[kind]())
    seen = ours(tmp_path, tuple(labels.EXPERTS), TABLES)
    for name, x in seen.items():
        np.testing.assert_allclose(x, theirs(tmp_path, name, TABLES), atol=2e-6, err_msg=name)
    uniform = [name for name, x in seen.items() if (x == x[:1, :1]).all()]
    assert uniform == ([] if kind == "labels" else list(labels.EXPERTS))


def test_both_see_what_was_recorded_of_the_official_code(shared, tmp_path):
    label_tables.convert(shared / "data/label_embeddings", tmp_path / "tables.npz")
    tables = label_tables.load(tmp_path / "tables.npz")
    case = np.load(shared / "golden/post_label_process/io.npz")
    recorded = {name.partition("[")[0]: name for name in case.files}
    classes = case["in/obj_class_ids"]
    side = {
        "obj_detection": {"classes": [int(dict(classes).get(i, 0)) for i in range(int(classes[:, 0].max()) + 1)]},
        "ocr_detection": {"features": case["in/ocr_features"], "words": ["w"] * len(case["in/ocr_features"])},
    }
    maps = {name: np.moveaxis(case[f"in/{name}_u8"], 0, -1) for name in ("depth", "normal", "edge")}
    ids = {"seg_coco": "seg_coco", "seg_ade": "seg_ade", "obj_detection": "obj_instance", "ocr_detection": "ocr_label"}
    maps |= {name: case[f"in/{key}"][..., None] for name, key in ids.items()}
    write(tmp_path, {name: Label(map, **side.get(name, {})) for name, map in maps.items()}, maps["depth"].shape[:2])
    for name, x in ours(tmp_path, tuple(maps), tables).items():
        key = recorded[f"out/{name}_label" if name == "obj_detection" else f"out/{name}"]
        parts = key.removesuffix("]").partition("[")[2].split(",")  # of the name, as '[:,3::8,5::8]'
        place = tuple(slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)
        for one in (x, theirs(tmp_path, name, tables)):
            seen = np.moveaxis(one, -1, 0)[place]
            error = np.linalg.norm(seen - case[key]) / np.linalg.norm(case[key])
            assert error < (5e-4 if name == "ocr_detection" else 1e-5), name  # features are rounded to float16


def test_the_words_come_back_through_the_safe_reader(tmp_path):
    made = some_labels(np.random.default_rng(0))["ocr_detection"]
    write(tmp_path, {"ocr_detection": made})
    npz = tmp_path / "labels/ocr_detection/sub/a.npz"
    before = label_files.read_words(npz)
    npz.unlink()
    assert ocr_words.convert(tmp_path / "labels") == 1
    after = label_files.read_words(npz)
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1] == before[1] == ["stop", "über"]


def test_words_that_were_labelled_without_get_their_official_file(tmp_path):
    made = some_labels(np.random.default_rng(0))["ocr_detection"]
    for name in ("a.jpg", "b.jpg"):
        label_files.write(tmp_path, "ocr_detection", name, made.map, features=made.features, words=made.words)
    (tmp_path / "ocr_detection/b.pt").write_bytes(b"theirs")
    official.complete(tmp_path)
    table = safe.load_tree(tmp_path / "ocr_detection/a.pt")
    assert [table[i]["text"] for i in range(2)] == ["stop", "über"]
    np.testing.assert_array_equal(table[1]["features"], made.features[1].astype(np.float16).astype(np.float32))
    assert (tmp_path / "ocr_detection/b.pt").read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("a.jpg.jpg", jpeg(), "looks for its labels as a.png.png"),
        ("photos.jpg/a.jpg", jpeg(), "looks for its labels as photos.png/a.png"),
        ("photo", jpeg(), "looks for its labels as photo, not photo.png"),
        ("a.jpg", jpeg(exif=Image.Exif()), None),
        ("a.jpg", b"no photo", None),  # that, reading it says
        ("a.jpeg", jpeg(), None),
        *[("a.jpg", jpeg(exif=turned(number)), "EXIF turns it") for number in range(2, 9)],
    ],
)
def test_photos_that_the_official_code_would_see_otherwise_are_refused(name, source, message, tmp_path):
    writer = LabelFiles(tmp_path, official=True).open("depth", Shard(0, 0, 1))
    photo = Photo(name, source)
    if message is None:
        writer.write(photo, NOTHING["depth"])
        assert writer.has(photo)
        assert not writer.has(Photo(name, ""))  # of a photo that was not looked at, it is not known
        return
    for use in (lambda: writer.write(photo, NOTHING["depth"]), lambda: writer.has(photo)):
        with pytest.raises(BadSample, match=message):
            use()
    writer.write(photo, None)
    assert not list(tmp_path.rglob("*.png"))
