#!/usr/bin/env bash
# ml_collections calls FrozenConfigDict fully immutable, and it is hashable, as jax.jit's static arguments and keys of a
# cache have to be. But it keeps the ConfigDict that it was made of, and with it that one's references (get_ref): if the
# original's width is changed later, say for the next run of a sweep, the frozen one's width stays what it was, its hash
# changes, and its copies (copy.copy, pickle, as for a worker process) have the new width, though == calls them equal.
# Without references nothing of this happens. prismer_jax freezes no config so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check ml_collections==1.1.0
cat > "$folder/frozen.py" <<'P'
import copy
import importlib.metadata
import pickle
import sys

import ml_collections

print("ml_collections", importlib.metadata.version("ml_collections"))


def seen(reference: bool) -> dict[str, object]:
    """Returns what a frozen config shows once the config that it was made of has changed."""
    config = ml_collections.ConfigDict({"width": 512})
    if reference:
        config.mlp = config.get_ref("width") * 4
    frozen = ml_collections.FrozenConfigDict(config)
    hashed = hash(frozen)
    config.width = 1024
    pickled = pickle.loads(pickle.dumps(frozen))
    return {
        "width": frozen.width,
        "of its copy": copy.copy(frozen).width,
        "pickled": pickled.width,
        "as_configdict": frozen.as_configdict().width,
        "equal to the pickled one": frozen == pickled,
        "same hash": hash(frozen) == hashed,
    }


results = {reference: seen(reference) for reference in (False, True)}
print("After the original's width went from 512 to 1024:")
for reference, result in results.items():
    print("with a reference:" if reference else "without references:", result)
without = dict.fromkeys(("width", "of its copy", "pickled", "as_configdict"), 512)
without |= dict.fromkeys(("equal to the pickled one", "same hash"), True)
other = {"of its copy": 1024, "pickled": 1024, "as_configdict": 1024, "same hash": False}
sys.exit(0 if results == {False: without, True: without | other} else "The behaviour has changed.")
P
cd "$folder"
venv/bin/python frozen.py
