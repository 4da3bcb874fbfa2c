#!/usr/bin/env bash
# nn.remat and nn.scan of flax.linen define a subclass of a layer wherever they are called, which is each time a model
# is traced. While a subclass is defined, flax takes the fields `parent` and `name` out of the layer's own class and
# puts them back behind it. JAX may be used by several threads, for tracing too, but a second thread that traces a model
# with the same layer in that moment ends in "KeyError: 'parent'" or "RuntimeError: dictionary changed size during
# iteration", deep inside of flax; or it remembers the class without them and puts that back, so that the layer has lost
# both fields for good (which linen itself gets over). It is a matter of luck: a server whose first requests come
# together, or a training that makes its first values while it compiles, as prismer_jax does, fails in one start of
# many. Here threads are switched often. One thread at a time never fails. Seen with flax 0.12.8 and jax 0.10.2.
# prismer_jax traces a model in one thread (prismer_jax/training/step.py; prismer_jax/compilations_test.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import collections
import importlib.metadata
import sys
import threading

from flax import linen as nn

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("flax", "jax")), "Python", sys.version.split()[0])
sys.setswitchinterval(1e-6)


def outcomes(threads):
    """Returns what becomes of a layer's class that so many threads wrap at once."""

    class Layer(nn.Module):
        width: int = 4
        heads: int = 2

        def __call__(self, x):
            return x

    found, together = [], threading.Barrier(threads)

    def wrap():
        together.wait()
        try:
            nn.remat(Layer)
        except (KeyError, RuntimeError) as error:
            found.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=wrap) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if "name" not in Layer.__dataclass_fields__:
        found.append("the layer has lost its fields parent and name")
    return found


errors = {}
for threads in (1, 4):
    counts = collections.Counter(outcome for _ in range(2000) for outcome in outcomes(threads))
    errors[threads] = sum(count for outcome, count in counts.items() if "Error" in outcome)
    print(f"{threads} thread(s) at once, of 2,000 layers:", dict(counts) or "nothing amiss")
if errors[1] or not errors[4]:
    sys.exit("The behaviour has changed.")
P
