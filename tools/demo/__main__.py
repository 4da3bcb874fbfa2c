"""Serves a page that shows what a trained model says of a photo, and why: python -m tools.demo --checkpoint DIR

    python -m tools.demo --checkpoint runs/quickstart
    python -m tools.demo --checkpoint models/prismer --experts weights/experts --examples photos/

Drop a photo: the model's experts label it, each map appears when it is made; then come the caption, all its beams, and
where the model looked for each word. Ask questions, and switch experts off to see what changes. docs/demo.md has the
limits. It needs the extra `demo`: pip install "prismer_jax[demo]".
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence

import jax

import prismer_jax
from prismer_jax import config, runtime
from prismer_jax.errors import UserError, run_main
from prismer_jax.files import storage

from .limits import Limits
from .model import Model

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str] | None = None) -> None:
    """Loads the model, and serves its page until Ctrl-C or SIGTERM; what was uploaded is gone then."""
    args = parse(argv)
    port = free_port(args.host, args.port)
    with tempfile.TemporaryDirectory(prefix="prismer_jax_demo_") as folder:
        serve = server(folder)
        runtime.use_compilation_cache()
        runtime.log_warnings()
        captioner = prismer_jax.load(args.checkpoint, args.experts)
        model = Model(captioner, args.num_beams)
        examples = [] if str(args.examples) == "none" else model.examples(args.examples)
        print("Compiling ...", file=sys.stderr)
        model.warm_up()
        limits = Limits(per_minute=args.per_minute, megabytes=args.megabytes, megapixels=args.megapixels)
        count = sum(leaf.size for leaf in jax.tree.leaves(captioner.variables["params"]))
        name = f"{os.path.join(*args.checkpoint.resolve().parts[-2:])}, {count / 1e6:,.1f} million parameters"
        if args.host not in LOOPBACK:
            print(f"Whoever reaches {args.host} may use this page: it asks for no password.", file=sys.stderr)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with serve(model, examples, limits, name, args.host, port) as url, contextlib.suppress(KeyboardInterrupt):
            print(f"{url} is the page. Ctrl-C ends it.", flush=True)
            threading.Event().wait()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the flags; raises UserError for what is wrong with them."""
    parser = config.ArgumentParser(
        prog="python -m tools.demo", description="A page that shows what a trained model says of a photo, and why."
    )
    defaults = Limits()
    parser.add_argument("--checkpoint", required=True, type=storage.folder, help="a workdir, an export or a checkpoint")
    parser.add_argument("--experts", type=storage.on_disk, help="folder of the experts' weights, to label new photos")
    parser.add_argument(
        "--examples", type=storage.on_disk, default="scenes", help="scenes (the default), a folder of photos, or none"
    )
    parser.add_argument("--num-beams", type=int, help="search with so many; default: as the checkpoint says")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all, for everyone")
    parser.add_argument("--port", type=int, default=7860, help="default 7860; 0: any that is free")
    parser.add_argument("--megabytes", type=int, default=defaults.megabytes, help="of a file, default %(default)s")
    parser.add_argument("--megapixels", type=int, default=defaults.megapixels, help="of a photo, default %(default)s")
    parser.add_argument(
        "--per-minute", type=int, default=defaults.per_minute, help="requests of an address, default 60"
    )
    args = parser.parse_args(argv)
    if min(args.megabytes, args.megapixels, args.per_minute, args.num_beams or 1) < 1 or not 0 <= args.port < 65536:
        raise UserError("--megabytes, --megapixels, --per-minute and --num-beams are at least 1, a --port below 65536.")
    return args


def free_port(host: str, port: int) -> int:
    """Returns a port, or any that is free for 0; raises UserError if it is taken, or the address is not one's own."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"Port {port} of {host} is in use. Give another, or --port 0 for any that is free."
            ) from None
        raise UserError(f"--host {host} --port {port}: {error.strerror}.") from None


def server(folder: str) -> Callable[..., contextlib.AbstractContextManager[str]]:
    """Returns tools.demo.server.serve, with Gradio's files in a folder and without what it tells its makers.

    Raises:
      UserError: Gradio is not there.
    """
    # Gradio reads these when it is imported.
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if importlib.util.find_spec("gradio") is None:
        raise UserError('The page needs Gradio: pip install "prismer_jax[demo]".')
    from .server import serve

    return serve


if __name__ == "__main__":
    run_main(main)
