#!/usr/bin/env bash
# A compiled gradient in JAX on a CPU takes the memory of what it keeps anew at each call, and gives it back: the kernel
# clears and hands out every page of 4 kB again, however often the program has run. No setting of JAX changes that, and neither does telling glibc to keep freed memory and not to map
# large blocks (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_). Where Linux gives huge pages to those who ask (madvise, as
# most distributions set it), nobody asks for them: with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which glibc 2.35 and
# newer read when a program starts, the calls are served 512 pages at a time. Counted are page faults a call, in the same
# program. Seen with jaxlib 0.10.2 and 0.12.0.1; prismer_jax starts its programs with it (prismer_jax/programs.py),
# where a training step of its quickstart takes two thirds of the processor's time that it took.
set -euo pipefail
if ! grep -q '\[madvise\]' /sys/kernel/mm/transparent_hugepage/enabled 2>/dev/null; then
    echo "This kernel does not give huge pages on request: nothing to see here."
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax=="${JAX:-0.10.2}" numpy==2.4.6
cat > "$folder/calls.py" <<'P'
import resource

import jax
import jax.numpy as jnp


def loss(x):
    for _ in range(8):  # the gradient keeps what each of them makes, of 16 MB
        x = jnp.tanh(x @ jnp.full((64, 64), 1e-2))
    return x.sum()


program = jax.jit(jax.grad(loss))
x = jnp.ones((65536, 64))
for _ in range(3):
    jax.block_until_ready(program(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    jax.block_until_ready(program(x))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
P
cd "$folder"
export JAX_PLATFORMS=cpu
faults() { env "$@" "$folder/venv/bin/python" calls.py; }
"$folder/venv/bin/python" -c "import jax, jaxlib, platform; print('jax', jax.__version__, 'jaxlib', jaxlib.__version__, *platform.libc_ver())"
plain=$(faults GLIBC_TUNABLES=)
kept=$(faults MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736)
huge=$(faults GLIBC_TUNABLES=glibc.malloc.hugetlb=1)
echo "page faults a call of a gradient that keeps 128 MB: $plain; told to keep freed memory: $kept; told to ask for huge pages: $huge"
if ((plain > 10000 && kept > 10000 && huge * 8 < plain)); then exit 0; fi
echo "The behaviour has changed."
exit 1
