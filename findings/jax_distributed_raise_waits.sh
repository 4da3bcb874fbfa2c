#!/usr/bin/env bash
# Where one of several processes of a run fails, JAX says, all others end, too, and heartbeat_timeout_seconds says how
# soon a dead one is noticed. A process in which Python raises an error, as it does for a missing file, is not dead: it
# shows its traceback and then, in jax.distributed.shutdown, which JAX registers to run at exit, waits for the others to
# leave, five minutes by default (shutdown_timeout_seconds), and its heart beats on. The others are told nothing, and
# compute or wait for it; a scheduler that restarts what failed sees no process that ended. One that leaves by os._exit
# is noticed after the timeout of heartbeats. Seen with jax 0.10.2 and 0.12.0.1, two processes on a CPU; $JAX names
# another version. Source: JAX's page "Fault tolerant distributed JAX". Processes of prismer_jax tell each other of the
# error and end within half a minute (prismer_jax/sharding/processes.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}" numpy==2.4.6
cat > "$folder/process.py" <<'P'
import os
import sys
import time

import jax

index, port, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index, heartbeat_timeout_seconds=10)
if index == 1 and how == "raises":
    raise FileNotFoundError("captions.json")
if index == 1:
    os._exit(1)
time.sleep(600)
P
cat > "$folder/watch.py" <<'P'
import importlib.metadata
import os
import socket
import subprocess
import sys
import time

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")))
PATIENCE = 60  # seconds, six times the timeout of heartbeats


def ended(how):
    """Returns which of two processes ended within PATIENCE of the second's failure, and prints what they did."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, sys.argv[1], "INDEX", port, how]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen([str(i) if word == "INDEX" else word for word in command], env=environment, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    os.set_blocking(processes[1].stderr.fileno(), False)
    said, failed = b"", None
    while failed is None or (time.monotonic() < failed + PATIENCE and None in [process.poll() for process in processes]):
        time.sleep(0.5)
        said += processes[1].stderr.read() or b""
        if failed is None and (b"FileNotFoundError" in said or processes[1].poll() is not None):
            failed = time.monotonic()
    took = time.monotonic() - failed
    over = [process.poll() is not None for process in processes]
    for process in processes:
        process.kill()
    state = [f"process {i} {'has ended' if done else 'still runs'}" for i, done in enumerate(over)]
    print(f"process 1 {how}: {took:.0f} s later {', '.join(state)}")
    return over


behaviour = [ended("raises"), ended("leaves by os._exit")]
sys.exit("The behaviour has changed." if behaviour != [[False, False], [True, True]] else 0)
P
"$folder/venv/bin/python" "$folder/watch.py" "$folder/process.py"
