"""Models are published in one commit or not at all, as the original loads them."""

import json
import pathlib

import huggingface_hub
import numpy as np
import pytest

from prismer_jax import checkpoint
from prismer_jax.caption_prompt_test import converted
from prismer_jax.errors import UserError
from prismer_jax.weights import safe
from tools import push


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("nanovlm"))


class Hub:
    """Stands for the hub: notes what is asked of it."""

    def __init__(self, exists=False, fails=None):
        self.exists, self.fails, self.calls, self.files = exists, fails, [], {}

    def __call__(self):
        return self

    def _call(self, name):
        self.calls.append(name)
        if name == self.fails:
            raise ConnectionError("no network")

    def repo_exists(self, repo):
        self._call("repo_exists")
        return self.exists

    def create_repo(self, repo, private, exist_ok):
        assert not exist_ok
        self._call(f"create_repo {repo} {private}")

    def upload_folder(self, repo_id, folder_path, commit_message):
        self._call("upload_folder")
        self.files = {path.name: path.read_bytes() for path in pathlib.Path(folder_path).iterdir()}


@pytest.fixture
def use(monkeypatch):
    def use(hub, token="secret"):
        monkeypatch.setattr(huggingface_hub, "HfApi", hub)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        return hub

    return use


def flags(model, *more):
    return ["--checkpoint", str(model), "--repo", "me/mine", *more]


def test_config_weights_and_card_go_up_in_one_commit(model, use, tmp_path, capsys):
    hub = use(Hub())
    push.main(flags(model, "--private"))
    assert hub.calls == ["repo_exists", "create_repo me/mine True", "upload_folder"]
    assert hub.files.keys() == {"config.json", "model.safetensors", "README.md"}
    assert json.loads(hub.files["config.json"])["lm_hidden_dim"] == 72
    (tmp_path / "model.safetensors").write_bytes(hub.files["model.safetensors"])
    assert "decoder.head.weight" in safe.load(tmp_path / "model.safetensors")
    assert hub.files["README.md"].startswith(b"---\nlibrary_name: nanovlm\n")
    assert b'from_pretrained("me/mine")' in hub.files["README.md"]
    assert capsys.readouterr().out.endswith("me/mine: published.\n")


def test_a_dry_run_asks_nobody(model, use, capsys):
    hub = use(Hub(), token=None)
    push.main(flags(model, "--dry-run"))
    assert hub.calls == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["README.md", "config.json", "model.safetensors", "me/mine"]


@pytest.mark.parametrize(
    ("hub", "token", "message", "calls"),
    [
        (Hub(), None, "nobody is logged in", 0),
        (Hub(exists=True), "t", "me/mine: exists on the hub", 1),
        (Hub(fails="repo_exists"), "t", r"does not answer \(no network\)\. Nothing was published", 1),
        (Hub(fails="upload_folder"), "t", r"does not answer \(no network\)\. The repository is there, but empty", 3),
    ],
)
def test_nothing_is_half_uploaded(model, use, hub, token, message, calls):
    use(hub, token)
    with pytest.raises(UserError, match=message):
        push.main(flags(model))
    assert hub.files == {}
    assert len(hub.calls) == calls


def test_names_are_checked(model):
    with pytest.raises(UserError, match="write it USER/NAME"):
        push.main(["--checkpoint", str(model), "--repo", "mine"])


def test_a_model_with_adapters_is_to_be_merged_first(model, tmp_path):
    variables, description = checkpoint.load_export(model)
    description["model"] |= {"lora": {"match": "language/blocks/query/kernel"}}
    variables["params"]["language"]["blocks"]["query"]["lora"] = {"a": np.ones((1, 1, 1)), "b": np.ones((1, 1, 1))}
    checkpoint.export(tmp_path / "in", variables, description)
    with pytest.raises(UserError, match=r"in has adapters .*: make it whole by python -m tools\.export --merge"):
        push.main(flags(tmp_path / "in", "--dry-run"))


def test_a_model_that_its_original_cannot_hold_is_named(tmp_path):
    """And not the temporary folder that it would have been written to."""
    model = dict(name="nanovlm", variant="tiny", experts="depth")
    checkpoint.export(tmp_path / "in", {"params": {"any": np.ones(1)}}, {"model": model})
    with pytest.raises(UserError, match=r"/in: the original has no experts; use tools.export --format orbax\.$"):
        push.main(flags(tmp_path / "in", "--dry-run"))
