import hashlib

import pytest

from prismer_jax import labels
from prismer_jax.errors import UserError, run_main
from prismer_jax.experts.ocr import expert as ocr
from prismer_jax.files.published import Facts, HubFile, Repository, Unreachable, WebFile
from prismer_jax.models import blip2
from prismer_jax.models.prismer import VARIANTS
from prismer_jax.weights import label_tables
from tools import download

ONE = "pytorch_model.bin"


class Offline:
    """A source that never answers."""

    address, stated = "hub:some/file", Facts()

    def facts(self):
        raise Unreachable("no network")

    def fetch(self, target):
        raise Unreachable("no network")


class Known(Offline):
    stated = Facts(5, sha256=hashlib.sha256(b"right").hexdigest())


class Online(Offline):
    def facts(self):
        return Facts(5)

    def fetch(self, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"right")


@pytest.fixture
def only(monkeypatch):
    """Replaces the files of a group by one whose source is given."""

    def replace(source, count=1, group="label-tables"):
        items = {f"n{i}": download.Item(source(), f"f{i}.pt") for i in range(count)}
        monkeypatch.setitem(download.GROUPS, group, items)

    return replace


def test_the_twelve_checkpoints_lie_where_the_reference_fetches_them():
    items = download.GROUPS["prismer"]
    assert len(items) == 12
    for name, item in items.items():
        stage, model, size = name.split("_")
        assert stage in ("pretrain", "caption", "vqa")
        assert model in ("prismer", "prismerz")
        assert size in VARIANTS
        assert item == download.Item(HubFile("shikunl/prismer", f"{name}/{ONE}"), f"{name}/{ONE}")


def test_every_expert_has_its_weights():
    assert download.GROUPS["experts"].keys() == labels.EXPERTS.keys()
    item = download.GROUPS["experts"]["obj_detection"]
    assert item.source.path == f"expert_weights/{item.target}" == "expert_weights/Unified_learned_OCIM_RS200_6x+2x.pth"


def test_clip_and_roberta_have_the_names_of_their_files():
    clip = {name: item.target for name, item in download.GROUPS["clip"].items()}
    assert clip["ViT-L/14@336px"] == "ViT-L-14-336px.pt"
    assert download.GROUPS["clip"]["ViT-B/16"].source.address.endswith("df416f/ViT-B-16.pt")
    assert [item.source.repository for item in download.GROUPS["roberta"].values()] == [
        "FacebookAI/roberta-base",
        "FacebookAI/roberta-large",
    ]


def test_a_model_is_fetched_as_a_folder_that_conversion_reads():
    (config, weights) = download.select("nanovlm", ["nanoVLM-460M-8k"])
    assert config == download.Item(HubFile("lusxvr/nanoVLM-460M-8k", "config.json"), "nanoVLM-460M-8k/config.json")
    assert weights.target == "nanoVLM-460M-8k/model.safetensors"
    language = download.select("smollm2", ["HuggingFaceTB/SmolLM2-360M-Instruct"])
    assert [item.target.partition("/")[2] for item in language] == [*download.MODEL, *download.TOKENIZER]
    vision = download.select("siglip", ["google/siglip2-base-patch16-512"])
    assert {item.source.repository for item in vision} == {"google/siglip2-base-patch16-512"}


def test_the_files_of_a_model_in_shards_are_those_that_the_hub_lists(monkeypatch):
    name = "google/paligemma2-28b-pt-896"
    listed = [HubFile(name, f"model-{i}.safetensors") for i in range(2)]
    monkeypatch.setattr(Repository, "files", lambda repository, *suffixes: listed if repository.name == name else [])
    assert [item.target for item in download.select("paligemma", [name])] == [
        f"paligemma2-28b-pt-896/model-{i}.safetensors" for i in range(2)
    ]


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_blip2_is_fetched_with_the_parts_that_its_file_lacks(monkeypatch, weights):
    def files(repository, *suffixes):
        listed = {
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            weights,
            "config.json",
            "merges.txt",
            "flax.msgpack",
        }
        return [HubFile(repository.name, name) for name in sorted(listed) if name.endswith(suffixes)]

    monkeypatch.setattr(Repository, "files", files)
    targets = [item.target for item in download.select("blip2", ["pretrained_opt2.7b", "caption_opt2.7b"])]
    own = ["pytorch_model.bin", "pytorch_model.bin.index.json"] if weights.endswith(".bin") else [weights]
    shared = [f"opt-2.7b/{name}" for name in sorted(["config.json", "merges.txt", *own])]
    assert targets == ["blip2_pretrained_opt2.7b.pth", "eva_vit_g.pth", *shared, "blip2_caption_opt2.7b.pth"]
    stage1 = [item.target for item in download.select("blip2", ["finetune_coco"])]
    assert stage1 == ["blip2_finetune_coco.pth", "bert/tokenizer.json"]
    start = [item.target for item in download.select("blip2", ["bert-base-uncased"])]
    assert start == ["bert/model.safetensors", "bert/tokenizer.json", "eva_vit_g.pth"]
    assert set(download.BLIP2) <= set(blip2.VARIANTS)


def test_what_a_blip2_takes_in_memory_is_said(capsys):
    download.weigh("facebook/opt-2.7b")  # no BLIP-2
    download.weigh("pretrained_opt2.7b")
    sizes = "bfloat16 7.489 GB, int8 4.043 GB, nf4 2.458 GB (tools.convert blip2 --dtype)."
    assert capsys.readouterr().out == f"pretrained_opt2.7b: weights in memory take {sizes}\n"


def test_offline_a_repository_that_only_the_hub_can_list_is_named(monkeypatch, capsys):
    def offline(*_):
        raise Unreachable("no network")

    monkeypatch.setattr(Repository, "files", offline)
    with pytest.raises(SystemExit):
        run_main(download.main, ["paligemma", "google/paligemma-3b-pt-224"])
    assert capsys.readouterr().err.startswith(
        "error: https://huggingface.co/google/paligemma-3b-pt-224 does not answer"
    )


def test_the_known_checksums_of_the_tables_are_right(shared, capsys):
    assert download.GROUPS["label-tables"].keys() == set(label_tables.FILES)
    download.fetch(download.select("label-tables", []), shared / "data/label_embeddings")
    download.fetch(download.select("words", [ocr.MERGES]), shared / "data/clip")
    download.fetch(download.select("words", [ocr.LEXICON]), shared / "data/ocr")
    assert capsys.readouterr().out.count("there already, compared with its checksum") == 7


def test_what_is_fetched_is_said(only, tmp_path, capsys):
    only(Online, 2)
    download.main(["label-tables", "--output", str(tmp_path)])
    assert (tmp_path / "f1.pt").read_bytes() == b"right"
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/f{i}.pt: fetched, 5 bytes." for i in range(2)]
    download.main(["label-tables", "n1", "--output", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path}/f1.pt: there already, of the right size.\n"


def test_offline_it_says_which_file_to_put_where(only, tmp_path, capsys):
    only(Offline, 2)
    (tmp_path / "f0.pt").write_bytes(b"by hand")
    with pytest.raises(SystemExit) as stop:
        run_main(download.main, ["label-tables", "--output", str(tmp_path)])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert out.splitlines() == [
        f"{tmp_path}/f0.pt: there already, not compared, as nobody answers.",
        f"{tmp_path}/f1.pt: put here what is at hub:some/file",
    ]
    assert error == (
        "error: 1 file cannot be fetched: hub:some/file does not answer (no network). Fetch elsewhere what is listed "
        "above, put it there, and run the same again.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["f0.pt"]


def test_a_file_put_there_by_hand_is_compared_offline_where_its_checksum_is_known(only, tmp_path):
    only(Known)
    items = download.select("label-tables", [])
    (tmp_path / "f0.pt").write_bytes(b"right")
    download.fetch(items, tmp_path)
    (tmp_path / "f0.pt").write_bytes(b"wrong")
    with pytest.raises(UserError, match=r"f0\.pt: is not the published file: it has the checksum .*Delete it"):
        download.fetch(items, tmp_path)
    assert (tmp_path / "f0.pt").read_bytes() == b"wrong"  # whose it is, only its owner knows


@pytest.mark.parametrize(("source", "size"), [(Offline, "unknown offline"), (Known, "5 bytes"), (Online, "5 bytes")])
def test_a_dry_run_says_sizes_and_destinations_and_writes_nothing(only, tmp_path, monkeypatch, capsys, source, size):
    only(source)
    monkeypatch.chdir(tmp_path)
    download.main(["label-tables", "--dry-run"])
    assert capsys.readouterr().out == f"weights/label_tables/f0.pt: {size}, from hub:some/file\n"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_several_files_adds_up_what_is_known(only, tmp_path, capsys):
    for source, last in ((Online, "2 files, 10 bytes in all"), (Offline, f"{tmp_path}/f1.pt: unknown offline, from")):
        only(source, 2)
        download.main(["label-tables", "--dry-run", "--output", str(tmp_path)])
        assert capsys.readouterr().out.splitlines()[-1].startswith(last)


def test_a_tokenizer_that_is_not_robertas_is_found_at_once(monkeypatch, tmp_path):
    items = {name: download.Item(Online(), name) for name in ("vocab.json", "merges.txt")}
    monkeypatch.setitem(download.GROUPS, "tokenizer", items)
    with pytest.raises(UserError, match=r"vocab\.json: not a table of tokens"):
        download.main(["tokenizer", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["prismr"], "Did you mean 'prismer'"),
        (["prismer"], "Name the checkpoints to fetch: pretrain_prismer_base, "),
        (["prismer", "caption_prismer_bse"], "Did you mean 'caption_prismer_base'"),
        (["experts", "depht"], "Did you mean 'depth'"),
        (["nanovlm"], "Name the checkpoints to fetch: nanoVLM-222M, "),
        (["nanovlm", "nanoVLM-460M-8"], "Did you mean 'nanoVLM-460M-8k'"),
        (["clip", "--outptu", "x"], "Did you mean '--output'"),
        ([], "what"),
    ],
)
def test_wrong_flags_are_explained(flags, message):
    with pytest.raises(UserError, match=message):
        download.main(flags)


def test_every_source_has_an_address():
    groups = {
        name: items for name, items in download.GROUPS.items() if name not in ("paligemma", "blip2")
    }  # the hub knows those
    sources = [item.source for group, items in groups.items() for item in download.select(group, list(items))]
    assert len({source.address for source in sources}) == len(sources) == 34 + 4 * 2 + 3 * 2 + 6 * 4 + 7
    assert all(source.address.startswith("https://") for source in sources)
    assert all(len(source.sha256) == 64 for source in sources if isinstance(source, WebFile))
