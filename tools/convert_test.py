"""Checkpoints, backbones and tables through the commands; what does not fit is one line, and writes nothing."""

import io
import json
import string
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
import sentencepiece
from PIL import Image

import prismer_jax
from prismer_jax import checkpoint, models, tree
from prismer_jax.captioner import Captioner
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.errors import UserError
from prismer_jax.experts import testing, weights
from prismer_jax.models import conversion
from prismer_jax.models.prismer import backbones, build, table
from prismer_jax.models.prismer import backbones_test as public
from prismer_jax.models.prismer.table_test import a_state, full_size
from prismer_jax.towers.layers import resize_positions
from prismer_jax.weights import write
from tools import convert


@pytest.fixture(scope="module")
def tiny():
    return a_state(build("tiny", "all"))


@pytest.fixture(scope="module")
def tiny_z():
    return a_state(build("tiny", "none"))


@pytest.fixture
def tokenizer(tmp_path):
    """A folder of a byte-level BPE without merges: one token a character."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", *string.ascii_letters, *string.digits, *string.punctuation]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.RandomState(i).randint(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_a_model_larger_than_the_memory_is_written_without_copies(tmp_path):
    """Orbax (0.12.8) by itself copies all arrays of NumPy before it writes the first."""
    arrays = {name: convert._on_disk(np.full((4, 1 << 20), i, np.float32), tmp_path) for i, name in enumerate("abc")}
    assert all(isinstance(array, np.memmap) for array in arrays.values())
    tracemalloc.start()
    checkpoint.export(tmp_path / "out", {"params": arrays}, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < arrays["a"].nbytes
    back, _ = checkpoint.load_export(tmp_path / "out")
    assert jax.tree.map(np.unique, back["params"]) == {"a": 0, "b": 1, "c": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the arrays lay in had no name


def run(state, tmp_path, *flags, output="out"):
    """Converts a state dict, a tiny Prismer's unless the flags say otherwise."""
    write.torch_file(tmp_path / "model.bin", state)
    flags = flags if "--variant" in flags else ("--variant", "prismer_tiny", *flags)
    convert.main(["prismer", "--input", str(tmp_path / "model.bin"), "--output", str(tmp_path / output), *flags])
    return tmp_path / output


def test_a_checkpoint_becomes_what_captions_and_answers(tiny_z, tokenizer, photos, tmp_path, capsys):
    folder = run(tiny_z, tmp_path, "--variant", "prismerz_tiny", "--tokenizer", str(tokenizer))
    assert "prismerz_tiny at 96 pixels" in capsys.readouterr().out
    task = checkpoint.load_export(folder)[1]["tasks"]["caption"]
    assert "caption_prompt('A picture of')|tokenize(13)" in task["pp"]
    captioner = Captioner(folder)
    captions = captioner.caption(photos)
    assert [len(result["captions"]) for result in captions] == [1, 1]
    assert captions[0]["scores"] != captions[1]["scores"]
    assert captioner.answer(photos, "is it red")[0]["question"] == "is it red"


def test_a_checkpoint_comes_back_bit_for_bit(tiny, tmp_path):
    back = conversion.to_torch(checkpoint.load_export(run(tiny, tmp_path))[0], table.TABLE)
    assert back.keys() == tiny.keys()
    for key, array in tiny.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_lengths_are_the_references(tiny_z, tmp_path):
    folder = run(tiny_z, tmp_path, "--variant", "prismerz_tiny")
    tasks = checkpoint.load_export(folder)[1]["tasks"]
    # max_length 20 and min_length 8 with the four tokens of "<s>A picture of" (model/prismer_caption.py).
    assert tasks["caption"]["decode"].items() >= {"max_new": 16, "min_new": 4, "num_beams": 3}.items()
    assert tasks["question"]["decode"].items() >= {"max_new": 10, "min_new": 2, "length_penalty": -1.0}.items()


def test_a_run_starts_from_what_was_converted(tiny, tmp_path):
    folder = run(tiny, tmp_path)
    model = models.build("prismer", variant="tiny", experts="all")
    state = jax.eval_shape(model.init_variables, jax.random.key(0))
    variables = load_into({**state, "step": jax.ShapeDtypeStruct((), np.int32)}, folder)
    np.testing.assert_array_equal(variables["params"]["decoder"]["head_bias"], tiny["text_decoder.lm_head.bias"])


def test_label_tables_travel_with_the_checkpoint(shared, tiny, tmp_path, caplog):
    official = shared / "data" / "label_embeddings"
    convert.main(["label-tables", "--input", str(official), "--output", str(tmp_path / "tables.npz")])
    tables = checkpoint.load_export(run(tiny, tmp_path, "--label-tables", str(tmp_path / "tables.npz")))[0]["tables"]
    assert "stand-in" not in caplog.text
    plain = checkpoint.load_export(run(tiny, tmp_path, output="plain"))[0]["tables"]
    assert "label maps of seg_coco, obj_detection, ocr_detection are looked up in stand-in vectors" in caplog.text
    assert {k: v.shape for k, v in tables.items()} == {k: v.shape for k, v in plain.items()}
    with np.load(tmp_path / "tables.npz") as file:
        np.testing.assert_array_equal(tables["obj_detection"][:-1], file["obj_detection/features"])


def test_positions_are_resized_where_a_resolution_is_asked_for(tiny_z, tmp_path):
    positions = np.random.RandomState(0).standard_normal((49, 64)).astype(np.float32)
    state, z = {**tiny_z, table.POSITIONS: positions}, ("--variant", "prismerz_tiny", "--resolution")
    with pytest.raises(
        UserError, match=r"is of resolution 112 \(7x7 positions\); use --resolution 112 to keep that, or"
    ):
        run(state, tmp_path, *z[:2])
    for size, wanted in (("112", positions), ("96", resize_positions(positions, (6, 6)))):
        variables, description = checkpoint.load_export(run(state, tmp_path, *z, size, "--force"))
        np.testing.assert_array_equal(variables["params"]["encoder"]["position_embedding"], wanted)
        assert f"resize({size}, 224)" in description["tasks"]["caption"]["pp"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--variant", "prismer_base"), r"model\.bin is a prismer_tiny checkpoint; use --variant prismer_tiny\."),
        (("--variant", "prismerz_tiny"), r"model\.bin is a prismer_tiny checkpoint; use --variant prismer_tiny\."),
        (("--variant", "prismer_tny"), r"Unknown variant 'prismer_tny'\. Did you mean 'prismer_tiny'\?"),
        (("--experts", "depth"), r"has the experts depth\+normal\+edge\+seg_coco\+obj_detection\+ocr_detection; use"),
        (("--experts", "dept"), r"Unknown expert 'dept'"),
        (("--resolution", "5"), r"--resolution 5 is less than a patch of 16 pixels\."),
        (("--prefix", "A"), r"--prefix needs --tokenizer too"),
        (("--label-tables", "none.npz"), r"none\.npz: "),
        (("--tokenizer", "nowhere"), r"nowhere/vocab\.json: no such file"),
        (("--allow", "nothing"), r"allow: 'nothing' matches no parameter"),
        (("--config.seed=1",), r"Unknown argument --config\.seed=1"),
        (("--varant", "x"), r"Unknown argument '--varant'\. Did you mean '--variant'"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(tiny, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as raised:
        run(tiny, tmp_path, *flags)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin"]


def test_a_prismerz_is_told_from_a_prismer(tiny_z, tmp_path):
    with pytest.raises(UserError, match=r"is a prismerz_tiny checkpoint; use --variant prismerz_tiny\."):
        run(tiny_z, tmp_path)


def test_experts_may_be_left_behind(tiny, tmp_path):
    others = [r"expert_encoder\.conv1\.(?!rgb|depth).*", r".*instance_embedding"]
    folder = run(tiny, tmp_path, "--experts", "depth", "--allow", *others)
    encoder = checkpoint.load_export(folder)[0]["params"]["encoder"]
    assert [name for name in encoder if name.startswith("stem")] == ["stem_depth"]


def test_backbones_and_other_files_are_told_from_checkpoints(tmp_path):
    with pytest.raises(UserError, match=r"is a backbone; use: python -m tools\.convert backbone --vision .*model\.bin"):
        run({"visual.conv1.weight": np.zeros((2, 2), np.float32)}, tmp_path)
    with pytest.raises(UserError, match=r"is no checkpoint of Prismer: it lacks expert_encoder\.positional_embedding"):
        run({"weight": np.zeros(1, np.float32)}, tmp_path)
    with pytest.raises(UserError, match=r"Unknown command 'prismr'\. Did you mean 'prismer'"):
        convert.main(["prismr"])
    with pytest.raises(UserError, match=r"Give --vision, --text or both"):
        convert.main(["backbone", "--variant", "prismer_tiny", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    for flags, message in [((), "out exists; choose another"), (("--force",), "exists and is no exported model")]:
        with pytest.raises(UserError, match=message):
            run(tiny, tmp_path, *flags)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_model_that_is_there_is_replaced_where_that_is_asked_for(tiny, tmp_path):
    out = run(tiny, tmp_path)
    (out / "mark").write_text("trained for days")
    with pytest.raises(UserError, match=r"out exists; choose another name, or replace it with --force"):
        run(tiny, tmp_path)
    assert (out / "mark").exists()
    run(tiny, tmp_path, "--force")
    assert not (out / "mark").exists()


def test_a_model_starts_from_backbones(tmp_path):
    model = build("tiny", "none")
    state = public.a_state(backbones.TEXT, conversion.shapes_of(model))
    write.safetensors_file(tmp_path / "roberta.safetensors", state)
    flags = ("--text", str(tmp_path / "roberta.safetensors"), "--variant", "prismerz_tiny")
    with pytest.raises(UserError, match=r"seed=-1: must be"):
        convert.main(["backbone", *flags, "--output", str(tmp_path / "out"), "--seed", "-1"])
    convert.main(["backbone", *flags, "--output", str(tmp_path / "out"), "--seed", "1"])
    variables, description = checkpoint.load_export(tmp_path / "out")
    assert description["model"] == {"name": "prismer", "variant": "tiny", "experts": [], "image_size": 96}
    wanted = jax.eval_shape(model.init_variables, jax.random.key(0))
    assert tree.flatten(variables).keys() == tree.flatten(wanted).keys()
    words = state["roberta.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(variables["params"]["decoder"]["word_embedding"], words)


def test_a_checkpoint_of_version_0_1_with_a_vocabulary_of_its_own_is_refused_and_renumbered(tmp_path, monkeypatch):
    """That version moved the ids of this file (<unk> 0, <s> 1, </s> 2, no padding) to <s> 0, pad 1, </s> 2, <unk> 3."""
    texts, model_file = ["a red cone", "two blue boxes", "the sphere"] * 9, io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model_file, model_type="bpe", vocab_size=40, minloglevel=2
    )
    (tmp_path / "own.model").write_bytes(model_file.getvalue())
    fields = {"variant": "tiny", "experts": "none", "decoder": {"vocab_size": 50}}
    variables = jax.device_get(jax.jit(build(**fields).init_variables)(jax.random.key(0)))
    tasks = {"caption": {"pp": "decode|resize(96)|caption_prompt()|tokenize(5)", "decode": {"max_new": 4}}}
    what = {"model": {"name": "prismer", **fields}, "tokenizer": "sentencepiece:own.model", "tasks": tasks}
    with monkeypatch.context() as patch:
        patch.setattr(prismer_jax, "__version__", "0.1.0")
        checkpoint.export(tmp_path / "old", variables, what, {"own.model": tmp_path / "own.model"})
    with pytest.raises(UserError, match=r"version 0\.1\.0 numbered the words .* tools\.convert renumber --input"):
        Captioner(tmp_path / "old")
    convert.main(["renumber", "--input", str(tmp_path / "old"), "--output", str(tmp_path / "new")])
    mended = Captioner(tmp_path / "new").variables["params"]["decoder"]
    words, old_words = mended["word_embedding"], variables["params"]["decoder"]["word_embedding"]
    np.testing.assert_array_equal(words[:3], old_words[[3, 0, 2]])
    np.testing.assert_array_equal(words[3:40], old_words[4:41])
    positions = variables["params"]["decoder"]["position_embedding"]  # padding is </s> now, from which they count on
    np.testing.assert_array_equal(mended["position_embedding"][3:], positions[2:-1])


@pytest.mark.slow  # writes a checkpoint of 4 GB and converts it
def test_a_large_checkpoint_in_little_memory_and_time(shared, tmp_path):
    model, state = full_size(shared, "prismer_large_manifest")
    size = sum(x.size * x.dtype.itemsize for x in conversion.shapes_of(model).values())
    write.torch_file(tmp_path / "large.bin", state)
    command = """
import resource, sys
from tools import convert
convert.main(["prismer", "--input", sys.argv[1], "--variant", "prismer_large", "--output", sys.argv[2]])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)
"""
    arguments = [str(tmp_path / "large.bin"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=True)
    peak, seconds = map(float, done.stdout.split("\n")[-2].split())
    assert peak < 1.3 * size, f"{peak / size:.2f} times the size of its parameters"
    assert seconds < 60, f"{seconds:.0f} s of one core"


def test_an_expert_becomes_a_folder_and_a_wrong_file_is_named(tmp_path, monkeypatch, capsys):
    for module in (convert.experts, weights):
        monkeypatch.setattr(module, "EXPERTS", testing.TOYS)
    state = {"head.weight": np.ones((1, 3), np.float32), "head.bias": np.zeros(1, np.float32)}
    write.torch_file(tmp_path / "depth.pt", state)
    flags = ["--input", str(tmp_path / "depth.pt"), "--output", str(tmp_path / "depth")]
    convert.main(["expert", "--name", "depth", *flags])
    assert "depth, 4 parameters" in capsys.readouterr().out
    variables = weights.load(testing.ToyDepth(), tmp_path)
    np.testing.assert_array_equal(variables["params"]["out"]["kernel"], np.ones((3, 1)))
    with pytest.raises(UserError, match="weights of the expert depth, not of obj_detection"):
        convert.main(["expert", "--name", "obj_detection", *flags[:2], "--output", str(tmp_path / "other")])
    with pytest.raises(UserError, match="Did you mean 'depth'"):
        convert.main(["expert", "--name", "dept", *flags[:2], "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
