"""Publishes a model for its original: python -m tools.push --checkpoint DIR --repo USER/NAME [--private] [--dry-run]

Writes what tools.export writes in the format of the model's family (of nanoVLM config.json and model.safetensors, as
the original reads them) and a model card, README.md, and uploads all of it in one commit to a new
repository of the Hugging Face Hub. Log in first: `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from prismer_jax import checkpoint, config, models
from prismer_jax.errors import UserError, run_main
from prismer_jax.files import storage
from prismer_jax.models import conversion, lora

from .export import Writer, on_cpu


def prepare(folder: pathlib.Path, path: pathlib.Path, repo: str) -> list[pathlib.Path]:
    """Writes what is uploaded into a folder and returns the files.

    Raises:
      UserError: the model's family has no format that its original loads from the hub, or the model has adapters.
    """
    fields = checkpoint.description(path).get("model", {})
    lora.check_plain(fields, path)
    variables, description = checkpoint.load_export(path, on_cpu)
    family = models.name_of(fields)
    module = conversion.of_family(family)
    formats: Mapping[str, Writer] = getattr(module, "FORMATS", {})
    if family not in formats:
        raise UserError(
            f"{path}: the original of {family} loads nothing from the hub; use tools.export and upload that."
        )
    formats[family](folder, variables, description)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    card = module.CARD.format(name=repo.partition("/")[2], repo=repo, parameters=parameters)
    storage.write(folder / "README.md", card)
    return sorted(file for file in folder.rglob("*") if file.is_file())


def upload(folder: pathlib.Path, repo: str, private: bool) -> str:
    """Makes the repository, uploads a folder in one commit, and returns the address.

    A commit is there as a whole or not at all. Where it fails the new repository stays, empty: what others may have put
    there meanwhile is not ours to delete.

    Raises:
      UserError: nobody is logged in, the repository exists, or the hub refuses or does not answer.
    """
    import huggingface_hub  # here: it takes a second, and --help has no use for it

    if not huggingface_hub.get_token():
        raise UserError(f"{repo}: nobody is logged in to the hub. Run `hf auth login`, or set HF_TOKEN.")
    api = huggingface_hub.HfApi()
    if _ask(repo, lambda: api.repo_exists(repo)):
        raise UserError(f"{repo}: exists on the hub. Choose another name, or delete it there.")
    _ask(repo, lambda: api.create_repo(repo, private=private, exist_ok=False))
    commit = dict(repo_id=repo, folder_path=str(folder), commit_message="Add the model")
    _ask(repo, lambda: api.upload_folder(**commit), "The repository is there, but empty: delete it, then try again.")
    return f"{huggingface_hub.constants.ENDPOINT}/{repo}"


def _ask(repo: str, question: Callable[[], Any], state: str = "Nothing was published.") -> Any:
    try:
        return question()
    except Exception as error:  # of whatever HTTP library this version of huggingface_hub uses
        if (response := getattr(error, "response", None)) is not None:
            reason = f"answers {response.status_code}. May this token write there?"
        else:
            reason = f"does not answer ({' '.join(str(error).split())[:200] or type(error).__name__})."
        raise UserError(f"{repo}: the hub {reason} {state}") from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.push", description=__doc__.partition(":")[0])
    parser.add_argument("--checkpoint", required=True, type=storage.folder, help="an export, a workdir or a checkpoint")
    parser.add_argument("--repo", required=True, help="USER/NAME, which must not exist yet")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be uploaded")
    args = parser.parse_flags(argv, "a checkpoint carries its own config")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        raise UserError(f"--repo {args.repo}: write it USER/NAME.")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "model"
        for file in prepare(folder, args.checkpoint, args.repo):
            print(f"{file.relative_to(folder)}: {file.stat().st_size:,} bytes")
        if args.dry_run:
            print(f"{args.repo}: nothing was uploaded.")
        else:
            print(f"{upload(folder, args.repo, args.private)}: published.")


if __name__ == "__main__":
    run_main(main)
