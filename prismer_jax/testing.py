"""pytest plugin of the project: eight virtual devices, a compilation cache, the optional folder of reference data."""

from __future__ import annotations

import contextlib
import gc
import http.server
import importlib.metadata
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Iterator

# Before jax is imported: sharding is tested on eight virtual CPU devices, and tests compile more than they compute. So
# they do without LLVM's optimisation, modules that are compiled side by side, and XLA's newer generator of loops, which
# jaxlib 0.12 always uses: half of the processor's time of two tests that mostly compile (2 cores, jax 0.10.2,
# 2026-11-30). With $XLA_FLAGS of one's own all is as users get it.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "prismer_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import pytest
from absl import flags

from prismer_jax import runtime
from prismer_jax.programs import GARBAGE

gc.set_threshold(GARBAGE)  # as programs have it
runtime.use_xla_sums()  # also of the tests' own functions, whose results those of programs are compared with
ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """Forgets the compiled programs of a file: those of all take 7 GB a process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@contextlib.contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serves on this machine, in a thread; yields the address, http://127.0.0.1:PORT."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="session")
def _bucket_server() -> Iterator[None]:
    """Serves gs://bucket to this process and its children: clients read the address once."""
    pytest.importorskip("gcsfs", reason="gcsfs, which reads buckets, is not installed")
    handler = importlib.import_module("prismer_jax.files.bucket_test").Bucket
    with served(handler) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it looks for credentials, for a while
        yield


@pytest.fixture
def bucket(_bucket_server: None, tmp_path: pathlib.Path) -> str:
    """A folder of its own, gs://bucket/..., in a bucket that a thread of this process serves."""
    return f"gs://bucket/{tmp_path.name}"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of golden cases and real photos beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with golden cases and photos is not part of a clone")
    return folder


@pytest.fixture(scope="session")
def weights() -> pathlib.Path:
    """The folder of trained weights that slow tests read, $PRISMER_TEST_WEIGHTS or `weights` beside the checkout."""
    folder = pathlib.Path(os.environ.get("PRISMER_TEST_WEIGHTS") or ROOT.parent / "weights")
    names = ("vit_s14.onnx", "smollm2-135m-instruct.Q4_1.gguf")
    if lacking := [name for name in names if not (folder / name).is_file()]:
        pytest.skip(f"{folder} lacks {' and '.join(lacking)}, trained weights that are not part of a clone")
    return folder
